"""What the workers lock on: servers of one kind of deployment, and the proxies in front of them."""

from __future__ import annotations

import asyncio
import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

from asynclock.testing import Clock, Cluster, Proxy, Sentinels, Server
from asynclock.testing.executables import find_executable
from asynclock.testing.nodes import view

PREFIX = "asynclock"
PACE = 2.0  # seconds that the durations of faults are multiples of
VALIDITY = 2.0
LONG = 30.0  # a validity beside which no lost message is made up for by chance
SILENT = 5.0  # seconds until a connection that is asked nothing is found dead: asked once a second, and 2 s of patience
QUIET = (0, 2)  # the places of workers whose connections are idle, where the validity is long
CROWD = "crowd-"  # how the names of many locks begin that are there to be lost, and not to be waited for
ROOM = 1.0  # seconds that a busy machine needs on top of all that was promised of waits
Key = tuple[str, int]  # a lock's name, and which of its keys


class Deployment(ABC):
    """``servers``: those that have keys."""

    name: ClassVar[str]
    title: ClassVar[str]
    majority: ClassVar[int] = 1
    patience: ClassVar[float] = math.inf
    """Seconds for which a server may be silent without being replaced by another one."""
    by_name: ClassVar[tuple[int, ...]] = ()
    """The places of the workers that look the servers' names up. (Not on uvloop, which asks no Python for that.)"""
    has_roles: ClassVar[bool] = False
    """A server may take another one's place."""
    pause: ClassVar[float] = 1.0
    """Seconds between a client's attempts to reconnect, at most."""
    validity: ClassVar[float] = VALIDITY
    spared: ClassVar[tuple[str, ...]] = ()
    """Kinds of faults that do not happen here."""

    def __init__(self, names: Iterable[str], crowd: Iterable[str] = ()) -> None:
        """:param crowd: names of locks that get lost with the others, but are no fault's own"""
        self.names = list(names)
        self.crowd = list(crowd)
        self.servers: list[Server] = []
        self.clocks: dict[int, Clock] = {}  # of each server, by its port, where it has one
        self.offsets: dict[int, float] = {}  # ... and how far it is off
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
    def settled(self) -> float:
        """Seconds that the servers themselves need after a fault until a lock can be had: an election, a quarantine."""
        return 0.0

    @property
    def longest_gap(self) -> float:
        """Seconds after a fault for which nobody may have a lock that is waited for: until the key of a dead holder is
        over, the servers are well, and the clients have found them."""
        return self.validity + self.settled + self.pause + ROOM

    @staticmethod
    def key(key: Key) -> str:
        name, index = key
        return f"{PREFIX}:{index}:{name}"

    @classmethod
    def possible(cls) -> bool:
        """Its servers are installed."""
        return True

    def fronts(self, place: int) -> dict[int, int]:
        return {port: proxy.port for port, proxy in self.proxies[place].items()}

    def wait_until_replaced(self, server: Server) -> None:
        """Blocks."""
        raise NotImplementedError(f"{self.title}: there is no other server in place of one")

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
    by_name = (0,)
    kind: ClassVar[str] = "valkey-9.1"
    config: ClassVar[dict[str, str]] = {}

    def _start(self) -> None:
        self._start_servers(1)

    def how(self, place: int) -> dict[str, Any]:
        urls = [proxy.url for proxy in self.proxies[place].values()]
        if place in self.by_name:
            urls = [url.replace("127.0.0.1", "localhost") for url in urls]
        return {"urls": urls}

    def keys_on(self, server: Server) -> list[Key]:
        return [(name, 0) for name in (*self.names, *self.crowd)]

    @classmethod
    def possible(cls) -> bool:
        try:
            find_executable(cls.kind)
        except RuntimeError:
            return False  # there is no Redis 6.2 in a package for newer Pythons
        return True

    def _start_servers(self, count: int) -> None:
        """Each with its own clock, which may jump, and with its keys on disk."""
        for _ in range(count):
            clock = self._resources.enter_context(Clock())
            server = Server(self.kind, persist=True, config=self.config, environment=clock.environment)
            self._resources.enter_context(server)
            self.clocks[server.port] = clock
            self.servers.append(server)


class OldRedis(One):
    name = "redis-6.2"
    title = "one server, Redis 6.2"
    kind = "redis-6.2"


class NewRedis(One):
    name = "redis-8.2"
    title = "one server, Redis 8.2"
    kind = "redis-8.2"


class Evicting(One):
    name = "evicting"
    title = "one server that evicts keys"
    config = {"maxmemory-policy": "allkeys-random"}  # noqa: RUF012 - nobody changes it


class Long(One):
    """What is made up for within two seconds elsewhere, because a key's time is over, is not here."""

    name = "long"
    title = f"one server, a validity of {LONG:g} s"
    validity = LONG
    spared = (  # what leaves a key, or costs a push, is made up for when the validity is over
        "worker SIGKILL",
        "worker SIGSTOP past the validity",
        "pushes swallowed",
        "server's time of day jumps ahead",
        "server's time of day jumps back",
    )

    @property
    def longest_gap(self) -> float:
        return SILENT + self.pause + ROOM


class Three(One):
    name = "three"
    title = "three independent servers"
    majority = 2

    @property
    def settled(self) -> float:
        return self.validity  # the quarantine of one that was started anew

    def _start(self) -> None:
        self._start_servers(3)

    def keys_on(self, server: Server) -> list[Key]:
        return [(name, self.servers.index(server)) for name in self.names]


class Clustered(Deployment):
    name = "cluster"
    title = "a cluster of three shards, each with a replica"
    majority = 2
    has_roles = True
    patience = 1.0

    @property
    def settled(self) -> float:
        return 5.0  # until a node counts as failed, an election, and a look at the slots

    def _start(self) -> None:
        self.cluster = self._resources.enter_context(Cluster())
        self.servers = self.cluster.servers

    def how(self, place: int) -> dict[str, Any]:
        fronts = self.fronts(place)
        return {"cluster": list(fronts)[:3], "fronts": fronts}

    def keys_on(self, server: Server) -> list[Key]:
        slots = self._slots()
        keys = [(name, index) for name in self.names for index in range(self.keys)]
        return [key for key in keys if slots.get(self.cluster.slot_of(self.key(key))) is server]

    def homes(self) -> list[Server]:
        owners = set(self._slots().values())
        return [server for server in self.servers if server in owners]

    def repair(self) -> None:
        super().repair()
        self.cluster.wait_until_ok(20.0)

    def wait_until_replaced(self, server: Server) -> None:
        self.cluster.wait_until_ok(15.0)

    def failover(self, server: Server) -> None:
        if replicas := self.cluster.replicas_of(server):
            self.cluster.failover(replicas[0])

    def migrate(self, key: Key, where: float, atomically: bool) -> None:
        """The key's slot, to another shard."""
        slot = self.cluster.slot_of(self.key(key))
        others = [server for server in self.homes() if server is not self.cluster.owner(slot)]
        to = others[int(where * len(others))]
        if atomically:
            self.cluster.migrate_atomically(slot, to)
        else:
            self.cluster.migrate(slot, to)

    def _slots(self) -> dict[int, Server]:
        """Whose each slot of a key is, as far as the nodes have heard."""
        by_port = {server.port: server for server in self.servers}
        claims = [node for server in self.servers if server.awake for node in view(server) if node.slots]
        claims.sort(key=lambda node: node.epoch)
        wanted = {self.cluster.slot_of(self.key((name, index))) for name in self.names for index in range(self.keys)}
        return {slot: by_port[node.port] for node in claims for slot in wanted if node.has(slot)}


class Monitored(Deployment):
    name = "sentinel"
    title = "a primary with two replicas, and three Sentinels"
    has_roles = True
    patience = 0.2
    pause = 0.15

    @property
    def settled(self) -> float:
        return 5.0  # until the primary counts as down, and another one is at work

    def _start(self) -> None:
        self.sentinels = self._resources.enter_context(Sentinels())
        self.servers = self.sentinels.servers

    def how(self, place: int) -> dict[str, Any]:
        ports = [port for _, port in self.sentinels.addresses]
        return {"sentinels": ports, "primary": self.sentinels.name, "fronts": self.fronts(place)}

    def keys_on(self, server: Server) -> list[Key]:
        return [(name, 0) for name in self.names] if server is self.sentinels.primary else []

    def homes(self) -> list[Server]:
        return [self.sentinels.primary]

    def repair(self) -> None:
        super().repair()
        self.sentinels.wait_until_ok(20.0)

    def wait_until_replaced(self, server: Server) -> None:
        self.sentinels.wait_for_failover(server)


DEPLOYMENTS: dict[str, type[Deployment]] = {
    kind.name: kind for kind in (One, Three, Clustered, Monitored, OldRedis, NewRedis, Evicting, Long)
}
