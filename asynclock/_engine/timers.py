"""Alarms: when the rooms of one locker are to be woken, with few timers of the event loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

from ..core.room import Room
from ..core.rules import NEVER, on_grid

AGAIN = 1.0  # seconds after a fault
NEAR = 0.01  # seconds: what is due so soon gets a timer of its own


class Timers:
    """Calls ``room.woken`` when the time ``room.wake`` has come.

    That time changes several times with each acquisition, and mostly nothing comes of it. So a room
    is put into a slot of 8 ms (``rules.GRID``), for which the loop has one timer, and stays there when its time is
    put off: when the slot's time comes, it is put into the one that it then belongs to.

    Invariant: ``room.due`` is no later than ``room.wake``. It is when the ``timer`` of the room goes off,
    if it has one, or else its ``slot``, in which it is (no room is in two), or else never.
    """

    __slots__ = ("_clock", "_loop", "_slots")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._clock = clock
        self._slots: dict[float, tuple[dict[Room[Any], None], asyncio.TimerHandle]] = {}

    def set(self, room: Room[Any], when: float) -> None:
        """``room.wake`` is ``when`` now, and that is before ``room.due``."""
        if room.timer is not None:
            room.timer.cancel()
            room.timer = None
        slot = on_grid(when)
        opening = self._slots.get(slot)
        if opening is None:
            left = when - self._clock()
            if left < NEAR:
                # In whole milliseconds: uvloop makes nothing of half of one, and would come back to it again and again.
                room.timer = self._loop.call_later(math.ceil(max(0.0, left) * 1000) / 1000, self._ring, room)
                room.due = when
                return
            timer = self._loop.call_later(max(0.0, left - (when - slot)), self._open, slot)
            opening = self._slots[slot] = {}, timer
        if room.slot != NEVER:
            self._leave(room)  # another one: it is in a later one
        opening[0][room] = None
        room.slot = room.due = slot

    def forget(self, room: Room[Any]) -> None:
        """Do not look at that room again, until its time is set anew."""
        if room.timer is not None:
            room.timer.cancel()
            room.timer = None
        self._leave(room)
        room.due = NEVER

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
            if room.timer is None:
                room.due = NEVER
        now = self._clock()
        for room in rooms:
            self._check(room, now)

    def _ring(self, room: Room[Any]) -> None:
        room.timer = None
        room.due = room.slot
        self._check(room, self._clock())

    def _check(self, room: Room[Any], now: float) -> None:
        try:
            if room.wake <= now:
                room.woken(now)
            elif room.wake < room.due:
                self.set(room, room.wake)
        except Exception as error:
            # A fault here: it must not be the end of the other rooms, nor of this one.
            what = f"asynclock: the room of lock {room.name!r} could not be woken, and is tried again"
            self._loop.call_exception_handler({"message": what, "exception": error})
            self.set(room, now + AGAIN)
