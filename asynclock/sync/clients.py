"""Redis-py clients: from those of threads to those of asyncio, and back, with the same settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import redis
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel

from ..errors import ConfigurationError
from ..wire.connector import UNUSED_OPTIONS

# Settings of which each kind of client has its own, and locks need none.
_LEFT_OUT = {*UNUSED_OPTIONS, "command_packer", "max_connections", "parser_class", "socket_read_size"}


def asynchronous(servers: object) -> Any:
    """The argument ``servers`` as ``asynclock.Locker`` takes it: with clients of ``redis.asyncio``.

    :raises ConfigurationError: a client is of the wrong kind, or has a setting that clients of asyncio do not know
    """
    if isinstance(servers, list | tuple):
        return [asynchronous(each) for each in servers]
    if isinstance(servers, redis.Redis | redis.cluster.RedisCluster):
        return _converted(servers, redis.asyncio)
    if isinstance(servers, redis.asyncio.Redis | redis.asyncio.cluster.RedisCluster):
        raise ConfigurationError(
            "servers: a client of redis.asyncio; asynclock.sync.Locker takes URLs and clients of redis (redis.Redis, "
            "redis.RedisCluster). asynclock.Locker takes this one, and works in asyncio"
        )
    if not isinstance(servers, str):
        raise ConfigurationError(
            "servers: expected a URL, a list of URLs or a redis client (Redis, RedisCluster), "
            f"not {type(servers).__name__}"
        )
    return servers


def synchronous(client: redis.asyncio.Redis | redis.asyncio.cluster.RedisCluster) -> Any:
    """A client for threads, with the same settings."""
    return _converted(client, redis)


def _converted(client: Any, to: ModuleType) -> Any:
    """:param to: ``redis`` or ``redis.asyncio``, which have the same names in them"""
    if isinstance(client, redis.cluster.RedisCluster | redis.asyncio.cluster.RedisCluster):
        return _cluster(client, to)
    pool = client.connection_pool
    if isinstance(pool, redis.sentinel.SentinelConnectionPool | redis.asyncio.sentinel.SentinelConnectionPool):
        return _behind_sentinels(pool, to)
    kind = getattr(to, _kind(pool))
    made = to.ConnectionPool(connection_class=kind, **_settings(pool.connection_kwargs, kind))
    return to.Redis(connection_pool=made)


def _kind(pool: Any) -> str:
    """The name of the class of its connections. Both modules have one of that name."""
    name: str = pool.connection_class.__name__
    if pool.connection_class not in (getattr(redis, name, None), getattr(redis.asyncio, name, None)):
        raise ConfigurationError(
            f"servers: the client has connections of {pool.connection_class.__module__}.{name}; give a URL, or a "
            "client with one of redis-py's connection classes"
        )
    return name


def _settings(given: Mapping[str, Any], *kinds: type) -> dict[str, Any]:
    """Those that these classes of redis-py take.

    :raises ConfigurationError: one of the others matters
    """
    classes = [each for kind in kinds for each in kind.__mro__]
    known = {name for each in classes for name in inspect.signature(each).parameters}
    settings = {}
    for name, value in given.items():
        if name in _LEFT_OUT:
            continue
        if name in known and name != "redis_connect_func":
            settings[name] = value
        elif value is not None and value is not False:
            raise ConfigurationError(
                f"servers: the client has the setting {name}, which works in one kind of redis-py's clients only; give "
                "a URL, or a client without it"
            )
    return settings


def _behind_sentinels(pool: Any, to: ModuleType) -> Any:
    sentinels: Any = redis.asyncio.sentinel if to is redis.asyncio else redis.sentinel
    manager = pool.sentinel_manager
    of_each = [each.connection_pool.connection_kwargs for each in manager.sentinels]
    secure = "SSL" in pool.connection_class.__name__
    kind = to.SSLConnection if secure else to.Connection
    kwargs = {name: value for name, value in pool.connection_kwargs.items() if name != "connection_pool"}
    made = sentinels.Sentinel(
        [(each["host"], each["port"]) for each in of_each],
        min_other_sentinels=manager.min_other_sentinels,
        sentinel_kwargs={name: value for name, value in manager.sentinel_kwargs.items() if name not in _LEFT_OUT},
        **({"force_master_ip": ip} if (ip := getattr(manager, "_force_master_ip", None)) else {}),
        **_settings(kwargs, kind),
        **({"ssl": True} if secure else {}),
    )
    return (made.master_for if pool.is_master else made.slave_for)(pool.service_name)


def _cluster(client: Any, to: ModuleType) -> Any:
    clusters: Any = redis.asyncio.cluster if to is redis.asyncio else redis.cluster
    kwargs = {**getattr(client, "connection_kwargs", client.nodes_manager.connection_kwargs)}
    if getattr(client, "user_on_connect_func", None) is None:
        kwargs.pop("redis_connect_func", None)  # the cluster client's own
    for own in ("host", "port", "path", "response_callbacks", "connection_pool_class"):
        kwargs.pop(own, None)
    secure = "SSL" in getattr(kwargs.pop("connection_class", None), "__name__", "") or kwargs.pop("ssl", False)
    kinds = [clusters.RedisCluster] if to is redis.asyncio else [redis.SSLConnection, clusters.RedisCluster]
    return clusters.RedisCluster(
        startup_nodes=[
            clusters.ClusterNode(node.host, node.port) for node in client.nodes_manager.startup_nodes.values()
        ],
        address_remap=client.nodes_manager.address_remap,
        **_settings(kwargs, *kinds),
        **({"ssl": True} if secure else {}),
    )
