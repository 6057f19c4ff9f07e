"""A world for the core to live in: processes, servers and time, all simulated.

Nothing here sleeps or opens a socket. What is to happen (deliveries, timers, what tasks do, accidents) waits in one
heap, ordered by virtual time; one seeded ``random.Random`` chooses every delay, so a seed is a whole history.

    world = World(seed, Rules(...), servers=3, clients=2)
    task = world.clients[0].acquire("a")
    world.run(5.0)          # or world.step()
    assert task.state == "held"

``world.watch`` is called after every event: the place for checks.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from itertools import count
from typing import Any

from asynclock.core.lease import Lease
from asynclock.core.room import NEVER
from asynclock.core.rules import LossReason, Rules

from .processes import Client, Task
from .servers import Server


class World:
    """Everything there is, and what is going to happen."""

    def __init__(self, seed: int, rules: Rules, servers: int = 1, clients: int = 2) -> None:
        self.random = random.Random(seed)
        self.rules = rules
        self.now = 1000.0
        self.slow = self.random.choice((0.0, 0.1, 0.5))  # the share of packets that take long
        self.noloop = self.random.random() < 0.8
        self.disturbed = self.slow > 0  # has anything happened that can make an extension fail?
        self.calm = False  # no packets take long any more
        self.silence = max(0.5, (rules.validity - rules.extend_interval) / 2)
        self.hold: Callable[[], float] | None = None  # how long tasks hold what they are granted; None: until ended
        self.watch: Callable[[], None] = lambda: None
        self.history: list[tuple[float, str]] = []
        self.touched: set[tuple[bytes, bytes]] = set()  # (key, token) that others have overwritten, or servers forgot
        self.stranded: set[bytes] = set()  # tokens whose release was answered with an error
        self.losses: list[tuple[Client, Lease, LossReason, int | None]] = []
        self.cut = False  # has a connection been lost, or a process stopped for so long that answers came too late?
        self.through: list[Task] = []  # tasks that were refused, or failed
        self.progress = self.now  # when a lock was granted last
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = count()
        self._numbers = count(1)
        self.servers = [Server(self, name, self.random.uniform(-4000, 4000)) for name in range(servers)]
        self.past: list[Client] = []  # processes that have ended
        self.clients = [Client(self, "ABCDEFGH"[index]) for index in range(clients)]

    def home(self, index: int) -> int:
        """The server of a key."""
        return index % len(self.servers)

    def number(self) -> int:
        return next(self._numbers)

    def delay(self) -> float:
        """Of a packet: mostly short, sometimes not."""
        if self.calm or self.random.random() >= self.slow:
            return self.random.uniform(0.0001, 0.002)
        return self.random.uniform(0.002, 0.05) if self.random.random() < 0.8 else self.random.uniform(0.05, 0.6)

    def at(self, when: float, what: Callable[..., None], *arguments: Any) -> None:
        if when < NEVER:
            heapq.heappush(self._events, (when, next(self._count), what, arguments))

    def step(self) -> bool:
        """Let the next thing happen."""
        if not self._events:
            return False
        when, _, what, arguments = heapq.heappop(self._events)
        self.now = max(self.now, when)
        what(*arguments)
        self.watch()
        return True

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._events and self._events[0][0] <= until:
            self.step()
        self.now = until

    def touch(self, server: Server, key: bytes, value: bytes | None) -> None:
        """Somebody breaks the servers' word to the owner of ``value``."""
        if value is not None:
            self.touched.add((key, value))

    def freeze(self, client: Client, seconds: float) -> None:
        """The process, or its machine, stops for a while; its clock runs on."""
        self.cut = True
        client.frozen = max(client.frozen, self.now + seconds)
        self.at(client.frozen, self._thaw, client)

    def _thaw(self, client: Client) -> None:
        if (
            client.alive and client.frozen <= self.now and self.random.random() < 0.5
        ):  # a suspend is noticed, a pause is not
            for room in list(client.rooms.values()):
                room.woken(self.now)

    def replace(self, client: Client) -> None:
        """The process is to end; another one takes its place."""
        self.past.append(client)
        self.clients[self.clients.index(client)] = Client(self, client.name + "'")

    def log(self, text: str) -> None:
        self.history.append((self.now, text))
