"""A world for the core to live in: processes, servers and time, all simulated.

Nothing here sleeps or opens a socket. Future events (deliveries, timers, steps of tasks, accidents) are in one heap,
ordered by virtual time. One seeded ``random.Random`` chooses every delay, so a seed determines the whole history.

    world = World(Setting(Rules(...), servers=3), seed)
    task = world.clients[0].acquire("a")
    world.run(5.0)
    assert task.state == "held"

``world.watch`` is called after every event that may have changed something: checks go there.
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
from asynclock.core.reasons import LossReason
from asynclock.core.rules import NEVER, Rules

from .processes import Client, Task
from .replicas import LAGS
from .servers import MAX_DRIFT, Server
from .several import Group
from .stays import Stay

EPOCH = 1000.0  # seconds: the time at which every world begins
QUICK = 0.002  # seconds that an ordinary packet takes, at most


@dataclass(frozen=True, slots=True)
class Setting:
    """What kind of world it is; the seed chooses the rest."""

    rules: Rules
    servers: int = 1
    clients: int = 3
    quarantine: bool = False  # does a server that was just started give no votes, as with independent servers?
    fencing: bool = False  # do tasks ask for fencing tokens?
    at_least: bool = False  # do tasks want locks to stay for a least time?
    several: bool = False  # do tasks want several names at once?
    replicas: bool = False  # does each server have one, which must have a key before it counts (``min_replicas``)?
    permits: int = 0  # of the semaphores that the tasks want; 0: they want locks
    drift: float = MAX_DRIFT  # share by which servers' clocks may run fast or slow


class World:
    """All servers and processes, and the events to come."""

    def __init__(self, setting: Setting, seed: int, recording: bool = False) -> None:
        self.random = random.Random(seed)
        # For fencing tokens and several names: what else happens is the same without them.
        self.chance = random.Random(~seed)
        self.several = setting.several
        self.fencing = setting.fencing
        self.permits = setting.permits
        self.stay_chance = random.Random(~seed - 1)  # for least times, likewise
        self.at_least = setting.at_least
        self.replicas = setting.replicas
        self.replica_chance = random.Random(~seed - 2)
        self.lag = self.replica_chance.choice(LAGS) if setting.replicas else 0.0
        self.close_clocks = self.fencing and self.chance.random() < 0.5  # do servers' clocks differ by less than 0.1 s?
        self.rules = rules = setting.rules
        self.quarantine = setting.quarantine
        self.drift = setting.drift
        self.now = EPOCH
        self.slow = self.random.choice((0.0, 0.1, 0.5))  # share of slow packets
        self.longest = QUICK  # seconds: the longest delay of a packet so far
        self.noloop = self.random.random() < 0.8
        self.apart = seed % 4 == 0  # do pushes have a connection of their own, as with RESP2?
        self.evicting = self.random.random() < 0.3  # are servers configured to evict keys from the beginning?
        self.table = self.random.choice((1, 3)) if self.random.random() < 0.15 else NEVER  # keys that a server tracks
        self.burst = self.random.choice((3.0, BURST))  # needless checks before the rate is limited
        # The longest time to live, in ms, that a client may set by PXAT if it knows the server's clock.
        self.longest_life = (rules.validity + max(MIN_PRECISION, rules.validity * PRECISION)) * 1000 * 1.01 + 3
        self.long_lived = ""  # set if a client has set a longer one
        self.disturbed = self.slow > 0  # has anything happened that can make an extension fail?
        self.calm = False  # True: no more slow packets
        self.silence = max(0.5, (rules.validity - rules.extend_interval) / 2)
        self.hold: Callable[[], float] | None = None  # seconds for which tasks hold a lock; None: until ended
        # Called with a task that is done: it has released the lock, lost it, or failed.
        self.through: Callable[[Task | Group], None] = lambda task: None
        self.watch: Callable[[], None] = lambda: None
        self.acted: Client | None = None  # the process that acted in the current event
        self.altered = False  # has the current event changed a key?
        self.recording = recording
        self.history: list[tuple[float, str]] = []
        # (key, token) that the owner has lost before its time: overwritten, deleted, or lost by the server.
        self.touched: set[tuple[bytes, bytes]] = set()
        self.forgotten: set[tuple[bytes, bytes]] = set()  # those of them that the server gives to nobody else yet
        self.losses: list[tuple[Client, Lease, LossReason, int | None]] = []
        self.cut = False  # was a connection lost, or a process stopped so long that replies came too late?
        self.failed: list[Task] = []  # tasks that were refused, or failed
        self.granted = 0
        self.progress = self.now  # when a lock was last granted
        self.served = self.now  # when a task last got all that it wanted
        self.groups = 0  # how often one got several names
        self.tokens: list[tuple[Task, int]] = []  # fencing tokens that were given out
        self.stays: list[Stay] = []  # locks that are to stay for a least time
        self.longest_stay = 0.0  # seconds: the longest of these times
        self.moved: set[tuple[bytes, bytes]] = set()  # (key, token) whose expiry a KEEP has moved
        self.keeps: list[Lease] = []  # leases for which a KEEP was sent
        self.deleted: list[bytes] = []  # tokens whose owner has deleted a key of them, where locks are to stay
        self.grants: list[Task] = []  # tasks that have got a lock
        # Name -> when a counter last started anew on a server whose clock was behind what the counter had been.
        self.behind: dict[str, float] = {}
        self.failovers = 0
        self.unconfirmed = 0  # number of writes that the replica did not confirm in time
        self.returned: set[tuple[bytes, bytes]] = set()  # (key, token) that were deleted, and are back after a failover
        self.deletes_late = 0.0  # seconds that servers take to delete keys that ended when their clocks were set ahead
        self.set_back = 0.0  # seconds by which servers' clocks were set back: keys may live longer by that
        self._events: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._count = count()
        self._numbers = count(1)
        self.servers = [Server(self, name) for name in range(setting.servers)]
        # For so long that locks are extended meanwhile: one key of three is not confirmed, and the others must do.
        if (
            (away := self.servers[-1].replica) is not None
            and setting.servers > 2
            and self.replica_chance.random() < 0.8
        ):
            self.log("-- the replica of server %d is away for 10 s", setting.servers - 1)
            away.stay_away(10.0)
        self.past: list[Client] = []  # processes that have ended
        self.clients = [Client(self, "ABCDEFGH"[index]) for index in range(setting.clients)]

    @property
    def events(self) -> int:
        """The number of events so far, including those to come."""
        return int(repr(self._count)[6:-1])

    def home(self, index: int) -> int:
        """The server of a key."""
        return index % len(self.servers)

    def number(self) -> int:
        return next(self._numbers)

    def delay(self) -> float:
        """The delay of a packet: mostly short, sometimes long."""
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
        """Run all events of the next ``seconds``."""
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
        """The owner of ``value`` loses the key before its time. ``forgotten``: the server has lost it, and gives no
        votes until the owner no longer counts on it."""
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
        # Half of the time it is a suspend of the machine, which is noticed; a mere pause is not.
        if client.alive and client.frozen <= self.now and self.random.random() < 0.5:
            self.acted = client
            for room in list(client.rooms.values()):
                room.woken(self.now)
            for semaphore in client.semaphores.values():
                semaphore.all_changed()

    def replace(self, client: Client) -> None:
        """The process ends; another one takes its place."""
        self.past.append(client)
        client.past = True
        self.clients[self.clients.index(client)] = Client(self, client.name + "'")

    # What happened

    def log(self, text: str, *values: object) -> None:
        """Add a line to the history (``text % values``), if it is recorded."""
        if self.recording:
            self.history.append((self.now, text % values))

    @staticmethod
    def ms(when: float) -> float:
        """Milliseconds since the world began."""
        return (when - EPOCH) * 1000
