"""What the workers lock on: servers of one kind of deployment, and the proxies in front of them."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

from asynclock.testing import Proxy, Server

PREFIX = "asynclock"
Key = tuple[str, int]  # a lock's name, and which of its keys


class Deployment(ABC):
    """``servers``: those that have keys."""

    name: ClassVar[str]
    title: ClassVar[str]
    majority: ClassVar[int] = 1
    options: ClassVar[dict[str, Any]] = {}
    """Of the locker."""
    settled: ClassVar[float] = 0.0
    """Seconds that the servers themselves need after a fault until a lock can be had: an election, a quarantine."""
    pause: ClassVar[float] = 1.0
    """Seconds between a client's attempts to reconnect, at most."""

    def __init__(self, names: Iterable[str], validity: float) -> None:
        self.names = list(names)
        self.validity = validity
        self.servers: list[Server] = []
        self.proxies: list[dict[int, Proxy]] = []  # for each worker's place: by the server's port
        self._stack = contextlib.AsyncExitStack()
        self._resources = contextlib.ExitStack()

    async def start(self, places: int) -> None:
        await asyncio.to_thread(self._start)
        for _ in range(places):
            proxies = {}
            for server in self.servers:
                proxies[server.port] = await self._stack.enter_async_context(Proxy(server.port))
            self.proxies.append(proxies)

    async def aclose(self) -> None:
        await self._stack.aclose()
        await asyncio.to_thread(self._resources.close)

    @abstractmethod
    def _start(self) -> None:
        """Blocks."""

    @abstractmethod
    def how(self, place: int) -> dict[str, Any]:
        """For ``connecting.Servers``."""

    @abstractmethod
    def keys_on(self, server: Server) -> list[Key]:
        """Those of which this server now is the one that counts. Blocks."""

    def homes(self) -> list[Server]:
        """The servers whose keys count. Blocks."""
        return self.servers

    @property
    def keys(self) -> int:
        return 2 * self.majority - 1

    @property
    def recovery(self) -> float:
        """Seconds after a fault until all should be as before."""
        return self.validity + self.settled + 1.0

    @staticmethod
    def key(key: Key) -> str:
        name, index = key
        return f"{PREFIX}:{index}:{name}"

    def fronts(self, place: int) -> dict[int, int]:
        return {port: proxy.port for port, proxy in self.proxies[place].items()}

    def repair(self) -> None:
        """All servers run, and are well. Blocks."""
        for server in self.servers:
            if server.running:
                server.resume()
            server.start()

    def left(self) -> list[str]:
        """The keys that there are. Blocks."""
        found = []
        for server in self.homes():
            keys = server.execute("KEYS", f"{PREFIX}:*")
            assert isinstance(keys, list)
            found += [key.decode(errors="replace") for key in keys if isinstance(key, bytes)]
        return found


class One(Deployment):
    name = "one"
    title = "one server"

    def _start(self) -> None:
        self.servers = [self._resources.enter_context(Server(persist=True))]

    def how(self, place: int) -> dict[str, Any]:
        return {"urls": [proxy.url for proxy in self.proxies[place].values()]}

    def keys_on(self, server: Server) -> list[Key]:
        return [(name, 0) for name in self.names]


DEPLOYMENTS: dict[str, type[Deployment]] = {kind.name: kind for kind in (One,)}
