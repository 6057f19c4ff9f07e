"""Timers: wakes the rooms of one locker in time, with few timers of the event loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

from ..core.room import Room
from ..core.rules import NEVER, on_grid

AGAIN = 1.0  # seconds until a room is woken again that raised an exception, which is a bug here
NEAR = 0.01  # seconds: a room that is due within these gets a timer of its own


class Timers:
    """Calls ``room.woken`` at the time ``room.wake``.

    Each acquisition changes that time several times, mostly to a later one, before it comes. So a room is put into
    a slot of 8 ms (``rules.GRID``), and each slot has one timer of the event loop. A room whose time moves to later
    stays in its slot. When the time of the slot comes, rooms that are not due yet are put into their new slots.

    Invariants: a room is in at most one slot. ``room.due`` is when the room is looked at next: the time of its own
    ``timer`` if it has one, else its ``slot``, else NEVER. It is never later than ``room.wake``.
    """

    __slots__ = ("_clock", "_loop", "_slots")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._clock = clock
        self._slots: dict[float, tuple[dict[Room[Any], None], asyncio.TimerHandle]] = {}

    def set(self, room: Room[Any], when: float) -> None:
        """``room.wake`` has changed to ``when``, which is earlier than ``room.due``."""
        if room.timer is not None:
            room.timer.cancel()
            room.timer = None
        slot = on_grid(when)
        opening = self._slots.get(slot)
        if opening is None:
            left = when - self._clock()
            if left < NEAR:
                # In whole milliseconds: uvloop rounds down, and would call back too early again and again.
                room.timer = self._loop.call_later(math.ceil(max(0.0, left) * 1000) / 1000, self._ring, room)
                room.due = when
                return
            timer = self._loop.call_later(max(0.0, left - (when - slot)), self._open, slot)
            opening = self._slots[slot] = {}, timer
        if room.slot != NEVER:
            self._leave(room)  # a later slot
        opening[0][room] = None
        room.slot = room.due = slot

    def forget(self, room: Room[Any]) -> None:
        """Do not wake that room, until its time is set again."""
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
            # A bug of asynclock. The other rooms still have to be woken, and this one too.
            what = f"asynclock: waking the room of lock {room.name!r} failed; it is woken again in {AGAIN:g} s"
            self._loop.call_exception_handler({"message": what, "exception": error})
            self.set(room, now + AGAIN)
