"""Rooms: the rooms of one locker, by name, and when empty ones are dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..core.room import Room
from .waiter import Waiter

MIN_SWEEP = 2_000_000  # bytes that all rooms may take, roughly, before the empty ones are dropped
ROOM = 1000  # bytes, roughly, that one room takes beside its keys
SWEEP_AGAIN = 60.0  # seconds until the next sweep, if one has left more than half of MIN_SWEEP

_OF_A_SLOT = "\udc00"  # begins what a slot's room is called: no lock can have that name


def room_name(name: str, slot: int) -> str:
    """What the room of a slot is called among those of all locks."""
    return f"{_OF_A_SLOT}{slot}:{name}"


def slot_and_name(room: str) -> tuple[int, str] | None:
    """The slot and the semaphore of the room that is called that; None: it is a lock's."""
    if not room.startswith(_OF_A_SLOT):
        return None
    slot, _, name = room[len(_OF_A_SLOT) :].partition(":")
    return int(slot), name


class Rooms(dict[str, Room[Waiter]]):
    """``rooms[name]`` makes the room of that name if there is none. The room of a semaphore's slot is kept under
    ``room_name``, which no lock can have. Its ``Room.name`` is the semaphore's, for errors and reports: never look a
    room up by that.

    An empty room stays, since most names are used again. A sweep drops the empty ones, so that names that are never
    used again do not take memory for ever. It comes when the rooms take twice as much as the last sweep has left: its
    cost per new room does not depend on how many there are. If many are left, it also comes after a while: they may
    all become empty soon, and no new name may follow.

    Invariants: rooms are added in ``__missing__``, and removed in ``_sweep`` and ``close``, nowhere else.
    There are none before ``open``. While they take more than half of MIN_SWEEP after a sweep, ``_timer`` is set.
    """

    __slots__ = ("_bytes", "_forget", "_make", "_sweep_at", "_timer")

    _make: Callable[[str], Room[Waiter]]
    _forget: Callable[[Room[Waiter]], None]

    def __init__(self) -> None:
        self._bytes = 0  # roughly
        self._sweep_at = MIN_SWEEP
        self._timer: asyncio.TimerHandle | None = None

    def open(self, make: Callable[[str], Room[Waiter]], forget: Callable[[Room[Waiter]], None]) -> None:
        """From now on there may be rooms.

        :param make: raises ConfigurationError if a lock cannot have that name
        :param forget: called with every room that is dropped
        """
        self._make = make
        self._forget = forget

    def __missing__(self, name: str) -> Room[Waiter]:
        room = self._make(name)
        size = _size(room)
        if self._bytes + size > self._sweep_at:
            self._sweep()
        self._bytes += size
        self[name] = room
        return room

    def busy(self) -> list[str]:
        """The names of the locks that somebody in this process holds or waits for."""
        return [name for name, room in self.items() if not room.empty]

    def close(self) -> None:
        """Drop all of them at once: they know their manager, and would wait for the garbage collector."""
        for room in self.values():
            self._forget(room)
        self.clear()
        self._stop()

    def _sweep(self) -> None:
        for name, room in [(name, room) for name, room in self.items() if room.empty]:
            del self[name]
            self._forget(room)
        self._bytes = sum(map(_size, self.values()))
        self._sweep_at = max(MIN_SWEEP, 2 * self._bytes)
        self._stop()
        if self._bytes > MIN_SWEEP / 2:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_AGAIN, self._sweep)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _size(room: Room[Waiter]) -> int:
    return ROOM + sum(map(len, room.keys))
