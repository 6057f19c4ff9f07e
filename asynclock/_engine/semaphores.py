"""Semaphores: the semaphores of one locker, by name, and when idle ones are forgotten."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from weakref import WeakValueDictionary

from ..errors import ConfigurationError, LockerClosedError
from .permits import Permits

MAX_KNOWN = 20_000  # once the known semaphores have more permits than this together, idle ones are forgotten


class Semaphores:
    """The semaphores of one locker, by name.

    Invariants: one that the program has is in ``_all``, and no second one of its name beside it. ``_recent`` keeps
    those that were used last, whether the program has them or not, and all in which somebody holds a permit or waits
    for one. They have ``_known`` permits together; idle ones are forgotten when that is more than ``_limit``.
    """

    def __init__(self) -> None:
        self._all: WeakValueDictionary[str, Permits] = WeakValueDictionary()
        self._recent: OrderedDict[str, Permits] = OrderedDict()
        self._known = 0
        self._limit = MAX_KNOWN
        self._stale = False  # is ``_look_again`` about to be called?

    def __iter__(self) -> Iterator[Permits]:
        return iter(list(self._all.values()))

    def get(self, name: str, permits: int) -> Permits:
        """:raises ConfigurationError: it has another number of permits here"""
        found = self._all.get(name)
        if found is None:
            found = self._all[name] = Permits(name, permits)
        elif found.permits != permits:
            raise ConfigurationError(
                f"permits={permits!r}: semaphore {name!r} has {found.permits} permits in this locker; give the same "
                "number everywhere"
            )
        self.used(found)
        return found

    def used(self, permits: Permits) -> None:
        """Remember it for a while."""
        recent = self._recent
        if permits.name not in recent:
            recent[permits.name] = permits
            self._known += permits.permits
            if self._known > self._limit:
                self._forget_idle()
        elif self._known > MAX_KNOWN // 2:
            recent.move_to_end(permits.name)

    def _forget_idle(self) -> None:
        for name, permits in list(self._recent.items())[:-1]:
            if self._known <= MAX_KNOWN // 2:
                break
            if permits.idle:
                del self._recent[name]
                self._known -= permits.permits
        self._limit = max(MAX_KNOWN, 2 * self._known)

    def changed(self, name: str, slot: int) -> None:
        """The server says that a key of that slot has changed."""
        permits = self._all.get(name)
        if permits is not None:
            permits.changed(slot)

    def all_changed(self) -> None:
        """What servers have told may be outdated. (They may say so for each key of each room: it is done once.)"""
        if not self._stale:
            self._stale = True
            asyncio.get_running_loop().call_soon(self._look_again)

    def _look_again(self) -> None:
        self._stale = False
        for permits in self:
            permits.all_changed()

    def stop(self, error: LockerClosedError) -> None:
        """The locker closes: all who wait raise ``error``."""
        for permits in self:
            permits.stop(error)

    def close(self) -> None:
        """Forget them."""
        for permits in self:
            permits.forget()
        self._recent.clear()

    def more_waiting(self) -> int:
        """How many more tasks wait than the queues of rooms say, which have tickets and probes instead. Any thread may
        ask."""
        more = 0
        for permits in list(self._recent.values()):
            board = getattr(permits, "board", None)  # it may be closed just now
            if board is not None:
                more += len(board.queue) - len(board.tickets) - len(board.probes)
        return more
