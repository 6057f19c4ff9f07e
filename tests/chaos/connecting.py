"""How a worker reaches the servers: what it gives to ``Locker``, through the proxies that are its own."""

from __future__ import annotations

from typing import Any

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.sentinel import Sentinel, SentinelManagedConnection

HOST = "127.0.0.1"


class Servers:
    """``how`` says what they are, and the ``protocol`` (2 or 3) to speak with them:

    - ``{"urls": [...]}``: one server, or independent ones;
    - ``{"cluster": [port, ...], "fronts": {port: port of the proxy}}``;
    - ``{"sentinels": [port, ...], "primary": name, "fronts": {...}}``.
    """

    def __init__(self, how: dict[str, Any]) -> None:
        self.argument: Any
        self._clients: list[Any] = []
        protocol = how["protocol"]
        fronts = {int(port): front for port, front in how.get("fronts", {}).items()}
        if urls := how.get("urls"):
            self.argument = [f"{url}?protocol={protocol}" for url in urls]
        elif ports := how.get("cluster"):
            self.argument = RedisCluster(
                startup_nodes=[ClusterNode(HOST, fronts[port]) for port in ports],
                address_remap=lambda address: (address[0], fronts.get(address[1], address[1])),
                protocol=protocol,
            )
            self._clients.append(self.argument)
        else:

            class ThroughProxy(SentinelManagedConnection):
                async def connect_to(self, address: tuple[str, int]) -> None:
                    await super().connect_to((address[0], fronts[address[1]]))  # type: ignore[no-untyped-call]  # redis-py's own gap

            manager = Sentinel([(HOST, port) for port in how["sentinels"]])  # type: ignore[no-untyped-call]  # redis-py's own gap
            self.argument = manager.master_for(how["primary"], connection_class=ThroughProxy, protocol=protocol)
            self._clients.extend([self.argument, *manager.sentinels])

    async def aclose(self) -> None:
        """After the locker."""
        for client in self._clients:
            await client.aclose()
