"""Simulated servers: expiry, key tracking, wrong clocks, and everything that can go wrong with a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from asynclock.core.fencing import NOT_OURS
from asynclock.core.operation import NO_END, NO_KEY
from asynclock.core.rules import NEVER
from asynclock.wire.noloop import EvictionReport

from .replicas import Replica

if TYPE_CHECKING:
    from .links import Link
    from .world import World

MAX_DRIFT = 0.0005  # share by which a clock may run fast or slow: the maximum slew rate of NTP
LATE = 0.2  # seconds at most until a key is deleted that ended when the clock was set ahead


class Trouble(Exception):
    """An error reply. ``lasting``: a retry will not help."""

    def __init__(self, lasting: bool = False) -> None:
        super().__init__("NOPERM" if lasting else "LOADING")
        self.lasting = lasting


class Expiry(NamedTuple):
    """``PX`` with a time to live, or ``PXAT`` with a time on the server's clock, as the client knows it; in ms."""

    how: str
    when: int
    measured: float = 0.0


class Server:
    """One server. Every command is atomic; an operation of a lease is one to three commands."""

    def __init__(self, world: World, name: int) -> None:
        self.world = world
        self.name = name
        self.data: dict[bytes, tuple[bytes, int | None]] = {}
        self.promised: dict[bytes, float] = {}  # the latest time, in the world's time, until which each key was to live
        self.tracked: dict[bytes, dict[Link, None]] = {}
        self.links: dict[Link, None] = {}
        self.started = -NEVER  # when it was last started without its keys
        self.down = 0.0  # until when it is down
        self.stalled = 0.0  # until when it hangs
        self.troubled = 0.0  # until when every command is answered with ``trouble``
        self.trouble = Trouble()
        self.stepped = -NEVER  # when its clock was set
        self.process = 0  # number of its process: restarts change it, as they change the run_id
        self.forgot: set[tuple[bytes, bytes]] = set()  # (key, token) that it lost at its last restart
        self.lies = False  # is its uptime wrong, since its clock was behind when it was started?
        self.evicts = world.evicting  # does its policy evict keys?
        self.evicted = 0  # number of evicted keys
        self.full_at = -NEVER  # when its tracking table was last full: real ones stay so until they are asked
        # (client, key) -> when the key, or its tracking entry, was changed without a push to the client
        self.hidden: dict[tuple[object, bytes], float] = {}
        self.counters: dict[bytes, int] = {}  # the counter beside each key, for fencing tokens
        self.highest: dict[bytes, int] = {}  # ... and its highest value, though the server may have forgotten it
        self.replica = Replica(self) if world.replicas else None
        self._rate = 1 + (world.random.random() * 2 - 1) * world.drift
        off = (world.random.random() * 2 - 0.5) * (0.05 if world.close_clocks else 3600)  # seconds
        self._shift = off + world.now * (1 - self._rate)

    @property
    def up(self) -> bool:
        return self.world.now >= self.down

    @property
    def quarantined(self) -> bool:
        """Is it known that it may have lost keys that their holders still count?"""
        return self.world.quarantine and self.world.now < self.started + self.world.rules.validity

    # Time

    def time(self) -> float:
        """The time on its clock, in seconds."""
        return self.world.now * self._rate + self._shift

    def milliseconds(self) -> int:
        return int(self.time() * 1000)

    def ends(self, expiry: int) -> float:
        """The world's time at which a key expires that expires at ``expiry`` on this server's clock."""
        return ((expiry + 1) / 1000 - self._shift) / self._rate

    # Keys

    def peek(self, key: bytes) -> tuple[bytes, int | None] | None:
        """The key's value and expiry, without side effects."""
        entry = self.data.get(key)
        return entry if entry is None or entry[1] is None or self.milliseconds() <= entry[1] else None

    def has(self, key: bytes, value: bytes) -> bool:
        """Does the key have that value? Expired keys count until they are deleted."""
        entry = self.data.get(key)
        return entry is not None and entry[0] == value

    def look(self, key: bytes) -> bytes | None:
        """The key's value. Expiry is lazy: a read deletes an expired key, with a push to everybody, NOLOOP or not."""
        entry = self.data.get(key)
        if entry is None:
            return None
        if entry[1] is not None and self.milliseconds() > entry[1]:
            self._delete(key, None)
            return None
        return entry[0]

    def put(self, key: bytes, value: bytes, expiry: int | None, by: Link | None) -> None:
        self.world.altered = True
        self.world.returned.discard((key, value))
        self._set(key, (value, expiry))
        end = NEVER if expiry is None else self.ends(expiry)
        if end > self.promised.get(key, 0.0):
            self.promised[key] = end
        if self.world.random.random() < 0.5:  # else the active expiry cycle never finds it
            self.world.at(end + self.world.random.random() * 0.2, self.look, key)
        self.tell(key, by)

    def _delete(self, key: bytes, by: Link | None) -> None:
        self.world.altered = True
        self._set(key, None)
        self.tell(key, by)

    def _set(self, key: bytes, entry: tuple[bytes, int | None] | None) -> None:
        if entry is None:
            del self.data[key]
        else:
            self.data[key] = entry
        if self.replica is not None:
            self.replica.written(key, entry)

    def tell(self, key: bytes, by: Link | None, own: bool = True) -> None:
        """Push an invalidation to all that have read the key, except with NOLOOP to the client that changed it. The
        key is not tracked for any of them after that.

        ``own``: did ``by`` mean to? Else the server did that by itself, while it ran a command of theirs.
        """
        if key in self.tracked:
            for link in self.tracked.pop(key):
                if link is not by or not link.noloop:
                    link.push(key)
                elif not own:
                    self.hidden[link.client, key] = self.world.now

    def evict(self, key: bytes, during: Link | None) -> None:
        """Evict a key for lack of memory, during some client's command."""
        self.evicted += 1
        self.evicts = True
        if self.world.chance.random() < 0.5:
            self.counters.pop(key, None)
        if key in self.data:
            self.world.touch(key, self.data[key][0])
            self.world.altered = True
            self._set(key, None)
            self.tell(key, during, own=False)

    def _limit_tracking(self, link: Link) -> None:
        """Drop entries from a full tracking table, during some client's command."""
        while len(self.tracked) > self.world.table:
            self.full_at = self.world.now
            self.tell(self.world.random.choice(list(self.tracked)), link, own=False)

    def execute(self, command: str, key: bytes, token: bytes, expiry: Expiry, link: Link) -> Any:
        reply = self._execute(command, key, token, expiry, link)
        if self.world.recording and command != "TIME":
            told = f"server {self.name}, {link.client.name}: {command} {key.decode()} {token.decode()} -> {reply!r}"
            self.world.log("%s", told)
        return reply

    def _execute(self, command: str, key: bytes, token: bytes, expiry: Expiry, link: Link) -> Any:
        world = self.world
        if len(self.tracked) > world.table:
            self._limit_tracking(link)
        if command == "INFO":
            full, link.informed = self.full_at >= link.informed, world.now
            return EvictionReport(self.evicts, self.evicted, full)
        if command == "TRACKING":
            link.noloop = False
            return b"OK"
        if world.now < self.troubled:
            return self.trouble
        if command == "TIME":
            return self.time()
        found = self.look(key)
        if command in ("GET", "PTTL", "COUNT") and world.rules.tracking:  # a read makes the server track the key
            self.tracked.setdefault(key, {})[link] = None
        if command == "GET":
            return found
        if command == "PTTL":
            expiry_now = self.data[key][1] if found is not None else 0
            return NO_KEY if found is None else NO_END if expiry_now is None else expiry_now - self.milliseconds()
        if command == "COUNT":
            return self.count(key, expiry.when) if found == token else NOT_OURS
        if command == "DELIFEQ":
            if found != token:
                return 0
            self._delete(key, link)
            if world.stays:
                world.deleted.append(token)
            return 1
        if (command == "SET NX" and found is not None) or (command in ("SET IFEQ", "KEEP") and found != token):
            return None
        if command == "KEEP":
            world.moved.add((key, token))
        if found is not None and found != token:
            world.touch(key, found)
        if expiry.how == "PX":
            self.put(key, token, self.milliseconds() + expiry.when, link)
        else:
            if expiry.measured > self.stepped and expiry.when > self.milliseconds() + world.longest_life:
                world.long_lived = (
                    f"{key!r} on server {self.name} is to live for {expiry.when - self.milliseconds()} ms"
                )
            self.put(key, token, expiry.when, link)
            if expiry.measured <= self.stepped:  # the client cannot know that the clock was set since
                world.touch(key, token)
        return b"OK"

    # Fencing tokens

    def count(self, key: bytes, floor: int) -> int:
        """What the script in ``asynclock.wire.commands`` does for the owner of the key."""
        last, highest = self.counters.get(key, 0), self.highest.get(key, 0)
        if not floor and last < highest and self.microseconds() <= highest:
            self.world.behind[key[2:].decode()] = self.world.now
        number = max(last, floor) if floor else self.new_number(last)
        self.counters[key] = number
        self.highest[key] = max(number, highest)
        return number

    def new_number(self, last: int) -> int:
        return max(last + 1, self.microseconds())

    def microseconds(self) -> int:
        return int(self.time() * 1e6)

    # Changes by others, and accidents

    def meddle(self, key: bytes, change: str) -> None:
        """Another program deletes the key, overwrites it, or shortens its life. It may also delete the counter."""
        found = self.look(key)
        if self.world.chance.random() < 0.3:
            self.counters.pop(key, None)
        if change == "write":
            self.world.touch(key, found)
            self.put(key, b"somebody", self.milliseconds() + 300, None)
        elif found is not None:
            self.world.touch(key, found)
            if change == "shorten":
                self.put(key, found, min(self.data[key][1] or 1 << 62, self.milliseconds() + 200), None)
            else:
                self._delete(key, None)

    def flush(self) -> None:
        self._forget(known=False)
        self.tracked.clear()
        for link in self.links:
            link.push(None)

    def crash(self, seconds: float, amnesia: bool) -> None:
        """Go down for ``seconds``, and restart with or without the keys (``amnesia``)."""
        for link in list(self.links):
            link.drop()
        self.down = self.world.now + seconds
        if amnesia:
            self.started = self.down
            self.process += 1
            self.lies = self.world.random.random() < 0.5
            self._forget(known=self.world.quarantine)
            if self.replica is not None:
                self.replica.forget()

    def fail_over(self, seconds: float) -> None:
        """Its replica becomes the primary after ``seconds``, and gets a new replica after as many."""
        assert self.replica is not None
        self.world.failovers += 1
        for link in list(self.links):
            link.drop()
        before, self.data = self.data, self.replica.promote(2 * seconds)
        self.world.returned.update(
            (key, value) for key, (value, _) in self.data.items() if key not in before or before[key][0] != value
        )
        self.world.altered = True
        self.down = self.world.now + seconds
        self.process += 1

    def set_clock(self, seconds: float) -> None:
        """Set its clock forward or back, so that keys expire earlier or later by that."""
        self._shift += seconds
        self.stepped = self.world.now
        self.world.altered = True
        if seconds > 0:
            self.world.deletes_late = LATE
            for key, (value, expiry) in self.data.items():
                self.world.touch(key, value)
                if expiry is not None:
                    soon = max(self.world.now, self.ends(expiry)) + self.world.random.random() * LATE
                    self.world.at(soon, self.look, key)
        else:
            self.world.set_back -= seconds
            self.promised = {key: end - seconds for key, end in self.promised.items()}

    def _forget(self, known: bool) -> None:
        """Lose all keys. ``known``: it will give no votes until they would have expired."""
        self.world.altered = True
        self.forgot = {(key, value) for key, (value, _) in self.data.items()}
        for key, (value, _) in self.data.items():
            if (key, value) not in self.world.touched or not known:
                self.world.touch(key, value, forgotten=known)
        for key in list(self.data):
            self._set(key, None)
        self.counters.clear()
