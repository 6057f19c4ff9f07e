"""Clients: the redis-py clients of a locker, which programs may borrow for other commands."""

from __future__ import annotations

import redis.asyncio as redis
from redis.asyncio.cluster import RedisCluster

from ..topology import Cluster, Servers, Topology, cluster_client
from . import forks


class Clients:
    """The servers as they were given, and a client to lend.

    Invariant: whatever was made here is closed by ``aclose``. What the program has made is the program's to close.
    """

    __slots__ = ("_cluster", "_given", "lent", "servers")

    def __init__(self, given: object) -> None:
        """:raises ConfigurationError: these are no servers
        :raises ServerError: a client cannot be made just now
        """
        self._given = [*given] if isinstance(given, list) else given
        self.servers = Servers.of(given)
        self.lent = False  #: the program has had a client, which may have connections
        self._cluster: RedisCluster | None = None  # made once the servers turn out to be a cluster

    def lend(self, topology: Topology | None) -> redis.Redis | RedisCluster:
        """The client for other commands.

        :param topology: None before the locker is connected
        """
        self.lent = True
        servers = self.servers
        if servers.url is None or not isinstance(topology, Cluster):
            return servers.client
        if self._cluster is None:
            addresses = [(node.connector.host, node.connector.port) for node in topology.nodes]
            self._cluster = cluster_client(servers.url, addresses)
        return self._cluster

    async def aclose(self) -> None:
        """Close those that were made here."""
        for client in self.servers.ours:
            await client.aclose()
        if self._cluster is not None:
            await self._cluster.aclose()

    def fork(self) -> None:
        """In the child of a fork, before the locker was connected: its connections, if it has any, are the parent's."""
        if self.lent:
            forks.keep(self.servers)
            self.servers = Servers.of(self._given)
            self.lent = False
