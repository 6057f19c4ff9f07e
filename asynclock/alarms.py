"""Alarms: when the rooms of one locker are to be woken, with few timers of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from .core.room import NEVER, Room
from .core.rules import on_grid

NEAR = 0.01  # seconds: what is due so soon gets a timer of its own


class Alarms:
    """Calls ``room.woken`` when the time ``room.wake`` has come.

    That time changes several times with each acquisition, and mostly nothing comes of it. So a room
    is put into a slot of 8 ms (``rules.GRID``), for which the loop has one timer, and stays there when its time is
    put off: when the slot's time comes, it is put into the one that it then belongs to.

    Invariant: a room whose ``wake`` is finite has a ``timer`` for that instant, or is in the slot
    ``room.slot``, which begins no later than that; no room is in two slots.
    """

    __slots__ = ("_clock", "_loop", "_slots")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._clock = clock
        self._slots: dict[float, tuple[dict[Room[Any], None], asyncio.TimerHandle]] = {}

    def set(self, room: Room[Any], when: float) -> None:
        """``room.wake`` is ``when`` now."""
        if room.timer is not None:
            room.timer.cancel()
            room.timer = None
        if when == NEVER:
            return
        slot = on_grid(when)
        if room.slot <= slot:
            return  # it will be looked at by then
        left = when - self._clock()
        if left < NEAR:
            room.timer = self._loop.call_later(max(0.0, left), self._ring, room)
            return
        self._leave(room)
        room.slot = slot
        if slot not in self._slots:
            self._slots[slot] = {}, self._loop.call_later(max(0.0, left - (when - slot)), self._open, slot)
        self._slots[slot][0][room] = None

    def forget(self, room: Room[Any]) -> None:
        """That room is no more."""
        if room.timer is not None:
            room.timer.cancel()
            room.timer = None
        self._leave(room)

    def close(self) -> None:
        """Wake nobody any more."""
        for rooms, timer in self._slots.values():
            timer.cancel()
            for room in rooms:
                room.slot = NEVER
        self._slots.clear()

    def _leave(self, room: Room[Any]) -> None:
        if room.slot != NEVER:
            rooms, timer = self._slots[room.slot]
            del rooms[room]
            if not rooms:
                timer.cancel()
                del self._slots[room.slot]
            room.slot = NEVER

    def _open(self, slot: float) -> None:
        """The time of that slot has come."""
        rooms, _ = self._slots.pop(slot)
        for room in rooms:
            room.slot = NEVER
        now = self._clock()
        for room in rooms:
            if room.wake <= now:
                room.woken(now)
            elif room.slot == NEVER and room.timer is None:  # nor was it woken by another in the meantime
                self.set(room, room.wake)

    def _ring(self, room: Room[Any]) -> None:
        room.timer = None
        now = self._clock()
        if room.wake <= now:
            room.woken(now)
        else:
            self.set(room, room.wake)
