"""What a user calls servers: URLs, or clients of redis-py; and the doors to them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis.asyncio as redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import SSLConnection
from redis.asyncio.sentinel import SentinelConnectionPool

from ..errors import ConfigurationError, ServerError
from ..wire import tls
from ..wire.connector import Connector
from ..wire.sentinel import SentinelDoor
from .base import Address
from .sentinel import client_of, is_sentinel_url
from .urls import checked, wrong


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers of a locker, as they were given."""

    connectors: tuple[Connector, ...]
    # Not shown: redis-py before 8 shows a client's password.
    client: redis.Redis | RedisCluster = field(repr=False)  #: for other commands: of the first server
    ours: tuple[redis.Redis, ...] = field(repr=False)  #: clients that were made from URLs, to be closed with the locker
    url: str | None = field(repr=False)  #: of the first server, if it was given as one
    remap: Callable[[Address], Address] | None = None  #: RedisCluster's address_remap

    @classmethod
    def of(cls, servers: object) -> Servers:
        """:raises ConfigurationError: they are no servers
        :raises ServerError: no file can be opened just now
        """
        try:
            return cls._of([*servers] if isinstance(servers, list | tuple) else [servers])
        except OSError as error:  # redis-py opens one, for its own version
            raise ServerError("servers", f"a client cannot be made just now: {error}") from error

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
                connectors.append(SentinelDoor(client))
            elif isinstance(server, str):
                client = _client_of(checked(server))
                ours.append(client)
                clients.append(client)
                connectors.append(_door_of(client))
            elif isinstance(server, redis.Redis):
                clients.append(server)
                connectors.append(_door_of(server))
            elif isinstance(server, RedisCluster):
                if len(listed) > 1:
                    raise ConfigurationError("servers: a RedisCluster client in a list; give it alone")
                clients.append(server)
                # Each a pool of its own. (Before redis-py 7, the nodes that it has found meanwhile.)
                nodes: Any = getattr(server, "startup_nodes", None) or server.nodes_manager.startup_nodes.values()
                connectors += [_connector(node) for node in nodes]
            else:
                raise ConfigurationError(
                    "servers: expected a URL, a list of URLs or a redis.asyncio client (Redis, RedisCluster), "
                    f"not {type(server).__name__}"
                )
        remap = clients[0].nodes_manager.address_remap if isinstance(clients[0], RedisCluster) else None
        first = listed[0]
        url = checked(first) if isinstance(first, str) and not is_sentinel_url(first) else None
        return cls(tuple(connectors), clients[0], tuple(ours), url, remap)


def cluster_client(url: str, addresses: Sequence[Address]) -> RedisCluster:
    """A client with the URL's settings for the cluster of these nodes; the URL's own may be down."""
    kwargs = tls.options_of(url)
    for where in ("host", "port", "path"):
        kwargs.pop(where, None)
    if kwargs.pop("connection_class", None) is SSLConnection:
        kwargs["ssl"] = True
    return RedisCluster(startup_nodes=[ClusterNode(*address) for address in addresses], **kwargs)


def _client_of(url: str) -> redis.Redis:
    with contextlib.suppress(ValueError, TypeError):
        # What the URL does not say; to what it says, redis-py gives way.
        names = {k: v for k, v in tls.options_of(url).items() if k == "ssl_check_hostname"}
        return redis.Redis.from_url(url, **names)
    # Neither the URL nor what redis-py says of it: parts of a password may be in there.
    raise wrong("redis-py does not accept an option, or a character, in it")


def _door_of(client: redis.Redis) -> Connector:
    if isinstance(client.connection_pool, SentinelConnectionPool):
        return SentinelDoor(client)
    return _connector(client.connection_pool)


def _connector(pool: Any) -> Connector:
    """:param pool: of redis-py; or a ``ClusterNode``, which is as good as one"""
    kind, kwargs = getattr(pool, "connection_class", pool), getattr(pool, "connection_kwargs", None)
    unix = isinstance(kind, type) and issubclass(kind, redis.UnixDomainSocketConnection)
    if unix and not hasattr(asyncio, "open_unix_connection"):
        raise ConfigurationError("servers: Python has no unix sockets on this platform; use redis:// or rediss://")
    return Connector(kind, kwargs if isinstance(kwargs, dict) else {}, pool)
