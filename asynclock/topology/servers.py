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

from ..errors import ConfigurationError
from ..wire import tls
from ..wire.door import Door
from ..wire.sentinel import SentinelDoor
from .base import Address
from .sentinel import client_of, is_sentinel_url


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers of a locker, as they were given."""

    doors: tuple[Door, ...]
    # Not shown: redis-py before 8 shows a client's password.
    client: redis.Redis | RedisCluster = field(repr=False)  #: for other commands: of the first server
    ours: tuple[redis.Redis, ...] = field(repr=False)  #: clients that were made from URLs, to be closed with the locker
    url: str | None = field(repr=False)  #: of the first server, if it was given as one
    remap: Callable[[Address], Address] | None = None  #: RedisCluster's address_remap

    @classmethod
    def of(cls, servers: object) -> Servers:
        """:raises ConfigurationError: they are no servers, or an even number"""
        listed = [*servers] if isinstance(servers, list | tuple) else [servers]
        if len(listed) % 2 == 0:
            raise ConfigurationError(
                f"servers: {len(listed)} of them; a majority needs an odd number (of a cluster, one is enough)"
            )
        doors: list[Door] = []
        clients: list[redis.Redis | RedisCluster] = []
        ours: list[redis.Redis] = []
        for server in listed:
            if isinstance(server, str) and is_sentinel_url(server):
                client, sentinel = client_of(server)
                ours += [client, *sentinel.sentinels]
                clients.append(client)
                doors.append(SentinelDoor(client))
            elif isinstance(server, str):
                client = _client_of(server)
                ours.append(client)
                clients.append(client)
                doors.append(_door_of(client))
            elif isinstance(server, redis.Redis):
                clients.append(server)
                doors.append(_door_of(server))
            elif isinstance(server, RedisCluster):
                if len(listed) > 1:
                    raise ConfigurationError("servers: a RedisCluster client in a list; give it alone")
                clients.append(server)
                # Each a pool of its own. (Before redis-py 7, the nodes that it has found meanwhile.)
                nodes: Any = getattr(server, "startup_nodes", None) or server.nodes_manager.startup_nodes.values()
                seeds: list[Any] = [*nodes]
                doors += [Door(node.connection_class, node.connection_kwargs, node) for node in seeds]
            else:
                raise ConfigurationError(
                    "servers: expected a URL, a list of URLs or a redis.asyncio client (Redis, RedisCluster), "
                    f"not {type(server).__name__}"
                )
        remap = clients[0].nodes_manager.address_remap if isinstance(clients[0], RedisCluster) else None
        url = listed[0] if isinstance(listed[0], str) else None
        return cls(tuple(doors), clients[0], tuple(ours), url, remap)


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
    raise ConfigurationError(
        "servers: not a server's URL: it starts with redis://, rediss://, unix:// or redis+sentinel://, "
        "and special characters in user name and password are percent-encoded"
    )


def _door_of(client: redis.Redis) -> Door:
    pool: Any = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        return SentinelDoor(client)
    if issubclass(pool.connection_class, redis.UnixDomainSocketConnection) and not hasattr(
        asyncio, "open_unix_connection"
    ):
        raise ConfigurationError("servers: Python has no unix sockets on this platform; use redis:// or rediss://")
    return Door(pool.connection_class, pool.connection_kwargs, pool)
