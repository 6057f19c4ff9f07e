"""The deployments: their servers, and the proxies in front of these."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

from asynclock.core.keys import Slots, layouts
from asynclock.testing import Clock, Cluster, Proxy, Sentinels, Server
from asynclock.testing.executables import find_executable
from asynclock.testing.nodes import view

from .logs import semaphore_of

PREFIX = "asynclock"
COUNTER = re.compile(rb"%b:f\d+:" % PREFIX.encode())  # of fencing tokens
PACE = 2.0  # seconds; the durations of faults are multiples of it
VALIDITY = 2.0
LONG = 30.0  # seconds: a validity so long that no expiry hides a lost message
SILENT = 5.0  # seconds until an idle connection is found dead: pinged once a second, with 2 s to answer; plus slack
QUIET = (0, 2)  # places of workers whose connections are idle, with the long validity
CROWD = "crowd-"  # prefix of the many names that are only there to be lost: their waits are not judged
ROOM = 1.0  # seconds of slack for a busy machine, on top of all limits for waits
Key = tuple[str, int]  # a lock's name, and which of its keys


class Deployment(ABC):
    """``servers``: those that store keys."""

    name: ClassVar[str]
    title: ClassVar[str]
    majority: ClassVar[int] = 1
    patience: ClassVar[float] = math.inf
    """Seconds for which a server may be silent without a failover."""
    by_name: ClassVar[tuple[int, ...]] = ()
    """Places of the workers that connect by host name. (Not on uvloop, which resolves names without Python.)"""
    has_roles: ClassVar[bool] = False
    """Does it have failovers?"""
    pause: ClassVar[float] = 1.0
    """Longest pause, in seconds, between a client's attempts to reconnect."""
    validity: ClassVar[float] = VALIDITY
    spared: ClassVar[tuple[str, ...]] = ()
    """Kinds of faults that are not injected here."""
    options: ClassVar[dict[str, Any]] = {}
    """Of all lockers."""

    def __init__(self, names: Iterable[str], crowd: Iterable[str] = ()) -> None:
        """
        :param names: of locks, and of the slots of semaphores
        :param crowd: further names, which faults hit only together with others
        """
        self.names = list(names)
        self.crowd = list(crowd)
        self.servers: list[Server] = []
        self.clocks: dict[int, Clock] = {}  # server's port -> its own clock, if it has one
        self.offsets: dict[int, float] = {}  # server's port -> seconds by which that clock is off
        self.proxies: list[dict[int, Proxy]] = []  # worker's place -> server's port -> its proxy
        self._stack = contextlib.AsyncExitStack()
        self._resources = contextlib.ExitStack()
        layout = layouts(PREFIX, self.keys, spread=self.options.get("spread_keys", False))[0]
        self._layout = layout
        self._slots_layout = Slots(layout, PREFIX.encode(), self.keys)

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
        """The keys that this server stores as their current primary. Blocks."""

    def homes(self) -> list[Server]:
        """The current primaries. Blocks."""
        return self.servers

    @property
    def keys(self) -> int:
        return 2 * self.majority - 1

    @property
    def settled(self) -> float:
        """Seconds that the servers need after a fault before they grant locks: for an election or a quarantine."""
        return 0.0

    @property
    def longest_gap(self) -> float:
        """Seconds after a fault for which a lock with waiters may have no holder: until a dead holder's key has
        expired, the servers have recovered, and the clients have reconnected."""
        return self.validity + self.settled + self.pause + ROOM

    def key(self, key: Key) -> str:
        name, index = key
        if semaphore := semaphore_of(name):
            slot = int(name.removeprefix(f"{semaphore}#"))
            return self._slots_layout.keys(semaphore.encode(), slot)[index].decode()
        return self._layout.keys(name.encode())[index].decode()

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
        """Make sure that all servers run, and are healthy. Blocks."""
        for server in self.servers:
            if server.running:
                server.resume()
            server.start()

    def left(self) -> list[str]:
        """All keys on the servers, without those that stay for a day: counters of fencing tokens, and the numbers of
        permits. Blocks."""
        found = []
        semaphores = filter(None, map(semaphore_of, self.names))
        markers = {key for semaphore in semaphores for key in self._slots_layout.markers(semaphore.encode())}
        for server in self.homes():
            keys = server.execute("KEYS", f"{PREFIX}:*")
            assert isinstance(keys, list)
            locks = [key for key in keys if isinstance(key, bytes) and key not in markers and not COUNTER.match(key)]
            found += [key.decode(errors="replace") for key in locks]
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
            return False  # the package with Redis 6.2 does not support newer Pythons
        return True

    def _start_servers(self, count: int) -> None:
        """Start them, each with a clock of its own that can jump, and with its keys on disk."""
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
    """Elsewhere a key expires within two seconds, which hides many a mistake. Here it does not."""

    name = "long"
    title = f"one server, a validity of {LONG:g} s"
    validity = LONG
    spared = (  # these leave a key behind, or lose a push: only the end of the long validity makes up for that
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
        return self.validity  # the quarantine of a restarted server

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
        return 5.0  # until a node counts as failed, an election is over, and clients have refreshed the slots

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
        """Migrate the key's slot to another shard."""
        slot = self.cluster.slot_of(self.key(key))
        others = [server for server in self.homes() if server is not self.cluster.owner(slot)]
        to = others[int(where * len(others))]
        if atomically:
            self.cluster.migrate_atomically(slot, to)
        else:
            self.cluster.migrate(slot, to)

    def _slots(self) -> dict[int, Server]:
        """The owner of each key's slot, as the nodes currently see it."""
        by_port = {server.port: server for server in self.servers}
        claims = [node for server in self.servers if server.awake for node in view(server) if node.slots]
        claims.sort(key=lambda node: node.epoch)
        wanted = {self.cluster.slot_of(self.key((name, index))) for name in self.names for index in range(self.keys)}
        return {slot: by_port[node.port] for node in claims for slot in wanted if node.has(slot)}


class Spread(Clustered):
    """The faults move slots for good, so now and then two of a lock's keys are on one shard all the same."""

    name = "spread"
    title = "the same cluster, with spread_keys"
    options = {"spread_keys": True}  # noqa: RUF012 - nobody changes it


class Monitored(Deployment):
    name = "sentinel"
    title = "a primary with two replicas, and three Sentinels"
    has_roles = True
    patience = 0.2
    pause = 0.15

    @property
    def settled(self) -> float:
        return 5.0  # until the primary counts as down, and a replica is promoted

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
    kind.name: kind for kind in (One, Three, Clustered, Spread, Monitored, OldRedis, NewRedis, Evicting, Long)
}
