"""Observations: who holds a lock, read again after each change, while somebody watches."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any

from ..core.holders import Holder, KeyState, holder_of, is_clear, is_unknown
from ..core.room import Room
from ..core.rules import Rules
from ..errors import AsyncLockError, ServerError
from ..events import Acquired, Event, GaveUp, Lost, Released, TimedOut
from ..topology import Topology
from ..wire.background import Timer
from .changes import Changes
from .reading import key_state, read_key, with_unread
from .reports import Reports

PAUSE = 0.01  # seconds between two readings of one key: a lock may change hands far more often than anybody looks
EXPIRED = 0.002  # seconds after a key's end in which the server may still count it as there


class Observation:
    """The keys of one name, read again whenever they may have changed: after an invalidation, and when one expires.

    Invariants: between ``start`` and ``stop``, each key is being read (``_reading``), or will be read at the time in
    ``_due`` (``_timer`` is set for the first of these), or its state in ``keys`` is what the server said last, and the
    server will push an invalidation at the next change. ``changes`` tells those who watch of each answer. After
    ``patience`` seconds (``_patience``), a server that has not answered at all holds up nobody whom the others serve.
    """

    def __init__(
        self, topology: Topology, rules: Rules, room: Room[Any], clock: Callable[[], float], patience: float
    ) -> None:
        """:param patience: seconds"""
        self.watchers = 0
        self.room = room
        self.keys: list[KeyState | None] = [None] * rules.keys
        self.changes = Changes()
        self._topology = topology
        self._rules = rules
        self._clock = clock
        self._reading = 0  # bit i: key i is being read
        self._stale = 0  # bit i: it may have changed since that began
        self._read_at = [float("-inf")] * rules.keys
        self._due: dict[int, float] = {}
        self._timer = Timer()
        self._patience = Timer()
        self._patience.start(patience, self.changes.tell)
        self.look_again()

    def is_known(self) -> bool:
        """Were enough keys read to say who holds the lock? Before that, ``holder`` means nothing."""
        states, majority = self._states(), self._rules.majority
        if None in self.keys and (self._patience.running or not is_clear(states, majority)):
            return False
        return not is_unknown(states, majority)

    def holder(self) -> Holder | None:
        return holder_of(self.room.name, self._states(), self._rules.majority)

    def _states(self) -> list[KeyState]:
        return with_unread(self.keys, self.room)

    def look_again(self) -> None:
        """Any key may have changed."""
        for index in range(self._rules.keys):
            self.look(index)

    def look(self, index: int) -> None:
        """Key ``index`` may have changed."""
        if self._reading >> index & 1:
            self._stale |= 1 << index
        else:
            self._read_by(index, self._read_at[index] + PAUSE)

    def stop(self) -> None:
        self._timer.stop()
        self._patience.stop()
        self._reading = ~0  # whatever comes, nothing is read any more

    def _read_by(self, index: int, when: float) -> None:
        """Read it then, or before."""
        if when <= self._clock():
            self._read(index)
        else:
            self._due[index] = min(when, self._due.get(index, when))
            self._plan()

    def _plan(self) -> None:
        if self._due:
            self._timer.start(max(0.0, min(self._due.values()) - self._clock()), self._read_due)
        else:
            self._timer.stop()

    def _read_due(self) -> None:
        now = self._clock()
        for index in [index for index, when in self._due.items() if when <= now]:
            self._read(index)
        self._plan()

    def _read(self, index: int) -> None:
        self._due.pop(index, None)
        self._reading |= 1 << index
        self._stale &= ~(1 << index)
        self._read_at[index] = self._clock()
        read_key(self._topology, self.room, index, partial(self._answered, index))

    def _answered(
        self, index: int, server: str, value: bytes | None, ttl: int | None, error: ServerError | None
    ) -> None:
        if self._reading < 0:  # stopped
            return
        now, rules = self._clock(), self._rules
        self._reading &= ~(1 << index)
        self.keys[index] = key_state(self.room, index, server, value, ttl, error)
        self.changes.tell()
        if self._stale >> index & 1:
            self._read_by(index, self._read_at[index] + PAUSE)
        elif error is not None:
            self._read_by(index, now + rules.extend_interval)  # or when its server is back
        elif ttl is not None and ttl >= 0:
            self._read_by(index, now + max(PAUSE, ttl / 1000 + EXPIRED))
        if not rules.tracking:
            self._read_by(index, now + rules.extend_interval)


class Observations(dict[str, Observation]):
    """Every name that somebody watches.

    Invariants: a name is in here while its ``Observation`` has watchers. After ``close`` there are none. While there
    are some, this subscribes to the reports of its own locker: with NOLOOP, servers push no invalidation of what that
    locker changes itself.
    """

    _make: Callable[[Room[Any]], Observation]
    _reports: Reports
    _closed: AsyncLockError | None = None
    _unsubscribe: Callable[[], None] | None = None

    def open(
        self, topology: Topology, rules: Rules, clock: Callable[[], float], patience: float, reports: Reports
    ) -> None:
        """The locker is connected: names can be watched."""
        self._reports = reports
        self._make = lambda room: Observation(topology, rules, room, clock, patience)

    def invalidated(self, name: str, index: int) -> None:
        """The server says that a key has changed."""
        if (observation := self.get(name)) is not None:
            observation.look(index)

    def look_again(self) -> None:
        """Any key of any name may have changed."""
        for observation in list(self.values()):
            observation.look_again()

    def _happened_here(self, event: Event) -> None:
        # A wait that was given up may have had the lock for a moment.
        if isinstance(event, Acquired | Released | Lost | GaveUp | TimedOut):
            observation = self.get(event.name)
            if observation is not None:
                observation.look_again()

    def close(self, error: AsyncLockError) -> None:
        """Those who watch raise ``error``."""
        self._closed = error
        for observation in self.values():
            observation.stop()
            observation.changes.tell()
        self.clear()
        self._subscribe()

    def _subscribe(self) -> None:
        """Subscribe while there are names, and not otherwise."""
        if self and self._unsubscribe is None:
            self._unsubscribe = self._reports.subscribe(self._happened_here)
        elif not self and self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    async def watch(self, room: Room[Any]) -> AsyncGenerator[Holder | None]:
        """As ``Locker.watch``."""
        observation = self.get(room.name)
        if observation is None:
            observation = self[room.name] = self._make(room)
            self._subscribe()
        observation.watchers += 1
        told, known = False, None
        try:
            while True:
                count = observation.changes.count
                if self._closed is not None:
                    raise type(self._closed)(*self._closed.args)
                if observation.is_known():
                    holder = observation.holder()
                    if not told or _identity(holder) != _identity(known):
                        told, known = True, holder
                        yield holder
                        continue  # it may have changed meanwhile
                await observation.changes.after(count)
        finally:
            observation.watchers -= 1
            if not observation.watchers and self.get(room.name) is observation:
                del self[room.name]
                observation.stop()
                self._subscribe()


def _identity(holder: Holder | None) -> bytes | None:
    """The same holder has the same value; that its lock was extended is no change."""
    return None if holder is None else holder.value
