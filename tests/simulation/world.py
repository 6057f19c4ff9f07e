"""A world for the core to live in: processes, servers and time, all simulated.

Nothing here sleeps or opens a socket. What is to happen (deliveries, timers, what tasks do, accidents) waits in one
heap, ordered by virtual time; one seeded ``random.Random`` chooses every delay, so a seed is a whole history.

    world = World(Setting(Rules(...), servers=3), seed)
    task = world.clients[0].acquire("a")
    world.run(5.0)
    assert task.state == "held"

``world.watch`` is called after every event that can have changed something: the place for checks.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Any

from asynclock.core.clock import MIN_PRECISION, PRECISION
from asynclock.core.lease import Lease
from asynclock.core.pace import BURST
from asynclock.core.rules import NEVER, LossReason, Rules

from .processes import Client, Task
from .servers import MAX_DRIFT, Server

EPOCH = 1000.0  # when every world begins, in seconds
QUICK = 0.002  # seconds that an ordinary packet takes at most


@dataclass(frozen=True, slots=True)
class Setting:
    """What kind of world it is; the seed does the rest."""

    rules: Rules
    servers: int = 1
    clients: int = 3
    quarantine: bool = False  # does a server that was just started give no votes, as with independent servers?
    drift: float = MAX_DRIFT  # share by which servers' clocks may run fast or slow


class World:
    """Everything there is, and what is going to happen."""

    def __init__(self, setting: Setting, seed: int, recording: bool = False) -> None:
        self.random = random.Random(seed)
        self.rules = rules = setting.rules
        self.quarantine = setting.quarantine
        self.drift = setting.drift
        self.now = EPOCH
        self.slow = self.random.choice((0.0, 0.1, 0.5))  # the share of packets that take long
        self.longest = QUICK  # seconds that a packet took so far
        self.noloop = self.random.random() < 0.8
        self.apart = seed % 4 == 0  # do pushes come over a connection of their own, as where there is no RESP3?
        self.evicting = self.random.random() < 0.3  # do servers say from the beginning that they evict keys?
        self.table = self.random.choice((1, 3)) if self.random.random() < 0.15 else NEVER  # keys that a server tracks
        self.burst = self.random.choice((3.0, BURST))  # looks in vain before there are fewer
        # Milliseconds for which a key may be told to live, more than which nobody that was told the time may say.
        self.longest_life = (rules.validity + max(MIN_PRECISION, rules.validity * PRECISION)) * 1000 * 1.01 + 3
        self.long_lived = ""  # ... and somebody did
        self.disturbed = self.slow > 0  # has anything happened that can make an extension fail?
        self.calm = False  # no packets take long any more
        self.silence = max(0.5, (rules.validity - rules.extend_interval) / 2)
        self.hold: Callable[[], float] | None = None  # how long tasks hold what they are granted; None: until ended
        self.through: Callable[[Task], None] = lambda task: (
            None
        )  # ... and who is through: has done so, or lost it, or failed
        self.watch: Callable[[], None] = lambda: None
        self.acted: Client | None = None  # the process that did something in the event that is being looked at
        self.altered = False  # did it change what is in a key?
        self.recording = recording
        self.history: list[tuple[float, str]] = []
        # (key, token) for which the servers' word to the owner was broken: overwritten, deleted, forgotten.
        self.touched: set[tuple[bytes, bytes]] = set()
        self.forgotten: set[tuple[bytes, bytes]] = set()  # ... of these, those that nobody else can have got yet
        self.losses: list[tuple[Client, Lease, LossReason, int | None]] = []
        self.cut = False  # has a connection been lost, or a process stopped for so long that answers came too late?
        self.failed: list[Task] = []  # tasks that were refused, or failed
        self.granted = 0
        self.progress = self.now  # when a lock was granted last
        self.set_back = 0.0  # seconds by which servers' clocks were set back: what keys may have gained
        self._events: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._count = count()
        self._numbers = count(1)
        self.servers = [Server(self, name) for name in range(setting.servers)]
        self.past: list[Client] = []  # processes that have ended
        self.clients = [Client(self, "ABCDEFGH"[index]) for index in range(setting.clients)]

    @property
    def events(self) -> int:
        """How many there were, and are still to be."""
        return int(repr(self._count)[6:-1])

    def home(self, index: int) -> int:
        """The server of a key."""
        return index % len(self.servers)

    def number(self) -> int:
        return next(self._numbers)

    def delay(self) -> float:
        """Of a packet: mostly short, sometimes not."""
        chance = self.random.random
        if self.calm or not self.slow or chance() >= self.slow:
            return 0.0001 + chance() * (QUICK - 0.0001)
        delay = 0.002 + chance() * 0.05 if chance() < 0.8 else 0.05 + chance() * 0.55
        self.longest = max(self.longest, delay)
        return delay

    def at(self, when: float, what: Callable[..., object], *arguments: Any) -> None:
        if when < NEVER:
            heappush(self._events, (when, next(self._count), what, arguments))

    def run(self, seconds: float) -> None:
        """Let everything happen that does in so long."""
        until = self.now + seconds
        events = self._events
        while events and events[0][0] <= until:
            when, _, what, arguments = heappop(events)
            if when > self.now:
                self.now = when
            what(*arguments)
            if self.altered or self.acted is not None:
                self.watch()
        self.now = until

    # Accidents

    def touch(self, key: bytes, value: bytes | None, *, forgotten: bool = False) -> None:
        """Somebody breaks the servers' word to the owner of ``value``. ``forgotten``: the server did,
        and gives no votes until the owner cannot count on it any more."""
        if value is not None:
            self.touched.add((key, value))
            if forgotten:
                self.forgotten.add((key, value))
            else:
                self.forgotten.discard((key, value))

    def freeze(self, client: Client, seconds: float) -> None:
        """The process, or its machine, stops for a while; its clock runs on."""
        self.cut = True
        client.frozen = max(client.frozen, self.now + seconds)
        client.stopped = max(client.stopped, client.frozen - self.now)
        self.at(client.frozen, self._thaw, client)

    def _thaw(self, client: Client) -> None:
        if (
            client.alive and client.frozen <= self.now and self.random.random() < 0.5
        ):  # a suspend is noticed, a pause is not
            self.acted = client
            for room in list(client.rooms.values()):
                room.woken(self.now)

    def replace(self, client: Client) -> None:
        """The process is to end; another one takes its place."""
        self.past.append(client)
        client.past = True
        self.clients[self.clients.index(client)] = Client(self, client.name + "'")

    # What happened

    def log(self, text: str, *values: object) -> None:
        """``values`` are put into ``text`` (``%``); only of a schedule that is told."""
        if self.recording:
            self.history.append((self.now, text % values))

    @staticmethod
    def ms(when: float) -> float:
        """Milliseconds since the world began."""
        return (when - EPOCH) * 1000
