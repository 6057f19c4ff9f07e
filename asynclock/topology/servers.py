"""Turns the argument ``servers`` (URLs, or redis-py clients) into connectors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis.asyncio as redis
from redis import Redis as SyncRedis
from redis import RedisCluster as SyncRedisCluster
from redis import Sentinel as SyncSentinel
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import SSLConnection
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool

from ..errors import ConfigurationError, ServerError
from ..wire import tls
from ..wire.connector import Connector
from ..wire.sentinel import SentinelConnector
from .base import Address
from .sentinel import client_of, is_sentinel_url
from .urls import checked, wrong


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers of a locker."""

    connectors: tuple[Connector, ...]
    # repr=False: the repr of redis-py's clients before 8 has the password in it.
    client: redis.Redis | RedisCluster = field(repr=False)  #: to the first server (``Locker.client``)
    ours: tuple[redis.Redis, ...] = field(repr=False)  #: clients made here from URLs; the locker closes them
    url: str | None = field(repr=False)  #: of the first server, if it was given by URL
    remap: Callable[[Address], Address] | None = None  #: RedisCluster's address_remap

    @classmethod
    def of(cls, servers: object) -> Servers:
        """:raises ConfigurationError: that does not describe servers
        :raises ServerError: no file can be opened now
        """
        try:
            return cls._of([*servers] if isinstance(servers, list | tuple) else [servers])
        except OSError as error:  # redis-py opens a file to find its own version
            raise ServerError("servers", f"cannot make a client: {error}") from error

    @classmethod
    def _of(cls, listed: list[object]) -> Servers:
        if not listed:
            raise ConfigurationError("servers: an empty list; give a URL, or a list of them")
        connectors: list[Connector] = []
        clients: list[redis.Redis | RedisCluster] = []
        ours: list[redis.Redis] = []
        for server in listed:
            if isinstance(server, str) and is_sentinel_url(server):
                client, sentinel = client_of(server)
                ours += [client, *sentinel.sentinels]
                clients.append(client)
                connectors.append(SentinelConnector(client))
            elif isinstance(server, str):
                client = _client_of(checked(server))
                ours.append(client)
                clients.append(client)
                connectors.append(_connector_of(client))
            elif isinstance(server, redis.Redis):
                clients.append(server)
                connectors.append(_connector_of(server))
            elif isinstance(server, RedisCluster):
                if len(listed) > 1:
                    raise ConfigurationError(
                        "servers: a RedisCluster client in a list; pass it alone, without the list"
                    )
                clients.append(server)
                # Each node has a pool of its own. (Before redis-py 7 these are the nodes it has found so far.)
                nodes: Any = getattr(server, "startup_nodes", None) or server.nodes_manager.startup_nodes.values()
                connectors += [_connector(node) for node in nodes]
            else:
                raise ConfigurationError(
                    "servers: expected a URL, a list of URLs or a redis.asyncio client (Redis, RedisCluster), "
                    f"not {_kind(server)}"
                )
        remap = clients[0].nodes_manager.address_remap if isinstance(clients[0], RedisCluster) else None
        first = listed[0]
        url = checked(first) if isinstance(first, str) and not is_sentinel_url(first) else None
        return cls(tuple(connectors), clients[0], tuple(ours), url, remap)


def _kind(server: object) -> str:
    """What it is, and what to give instead of it."""
    kind = type(server)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(server, SyncRedis | SyncRedisCluster):
        return (
            f"the synchronous client {name}: give one of redis.asyncio, or its URL; "
            "in synchronous code, give it to asynclock.sync.Locker"
        )
    if isinstance(server, Sentinel | SyncSentinel):
        return f"{name}: give a client of redis.asyncio.Sentinel.master_for, or a redis+sentinel:// URL"
    if isinstance(server, redis.ConnectionPool):
        return f"{name}: give redis.asyncio.Redis(connection_pool=pool)"
    return name


def cluster_client(url: str, addresses: Sequence[Address]) -> RedisCluster:
    """A client for the cluster, with the URL's settings. It starts from ``addresses``, since the URL's may be down."""
    kwargs = tls.options_of(url)
    for where in ("host", "port", "path"):
        kwargs.pop(where, None)
    if kwargs.pop("connection_class", None) is SSLConnection:
        kwargs["ssl"] = True
    return RedisCluster(startup_nodes=[ClusterNode(*address) for address in addresses], **kwargs)


def _client_of(url: str) -> redis.Redis:
    with contextlib.suppress(ValueError, TypeError):
        # Only a default: redis-py prefers what the URL says.
        names = {k: v for k, v in tls.options_of(url).items() if k == "ssl_check_hostname"}
        return redis.Redis.from_url(url, **names)
    # Quotes neither the URL nor redis-py's message: both may contain parts of a password.
    raise wrong("redis-py does not accept an option, or a character, in it")


def _connector_of(client: redis.Redis) -> Connector:
    if isinstance(client.connection_pool, SentinelConnectionPool):
        return SentinelConnector(client)
    return _connector(client.connection_pool)


def _connector(pool: Any) -> Connector:
    """:param pool: of redis-py; or a ``ClusterNode``, which has the same attributes"""
    kind, kwargs = getattr(pool, "connection_class", pool), getattr(pool, "connection_kwargs", None)
    unix = isinstance(kind, type) and issubclass(kind, redis.UnixDomainSocketConnection)
    if unix and not hasattr(asyncio, "open_unix_connection"):
        raise ConfigurationError("servers: Python has no unix sockets on this platform; use redis:// or rediss://")
    return Connector(kind, kwargs if isinstance(kwargs, dict) else {}, pool)
