"""Timers: wakes the rooms of one locker in time, with few timers of the event loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, Final

from ..core.room import Room
from ..core.rules import NEVER, on_grid

AGAIN: Final = 1.0  # seconds until a room is woken again that raised an exception, which is a bug here
NEAR: Final = 0.01  # seconds: a room that is due within these gets a timer of its own


class Timers:
    """Calls ``room.woken`` at the time ``room.wake``.

    Each acquisition changes that time several times, mostly to a later one, before it comes. So rooms are woken in
    batches: all that are due within the same 8 ms (``rules.GRID``) share one timer of the event loop. A room whose time
    moves to later stays in its batch. When the time of the batch comes, rooms that are not due yet join a later one.

    Invariants: a room is in at most one batch. ``room.due`` is when the room is looked at next: the time of its own
    ``timer`` if it has one, else that of its ``batch``, else NEVER. It is never later than ``room.wake``.
    """

    __slots__ = ("_batches", "_clock", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._clock = clock
        self._batches: dict[float, tuple[dict[Room[Any], None], asyncio.TimerHandle]] = {}  # by their times

    def set(self, room: Room[Any], when: float) -> None:
        """``room.wake`` has changed to ``when``, which is earlier than ``room.due``."""
        if room.timer is not None:
            room.timer.cancel()
            room.timer = None
        at = on_grid(when)
        batch = self._batches.get(at)
        if batch is None:
            delay = when - self._clock()
            if delay < NEAR:
                # In whole milliseconds: uvloop rounds down, and would call back too early again and again.
                room.timer = self._loop.call_later(math.ceil(max(0.0, delay) * 1000) / 1000, self._wake, room)
                room.due = when
                return
            timer = self._loop.call_later(max(0.0, delay - (when - at)), self._wake_batch, at)
            batch = self._batches[at] = {}, timer
        if room.batch != NEVER:
            self._leave_batch(room)  # a later one
        batch[0][room] = None
        room.batch = room.due = at

    def forget(self, room: Room[Any]) -> None:
        """Do not wake that room, until its time is set again."""
        if room.timer is not None:
            room.timer.cancel()
            room.timer = None
        self._leave_batch(room)
        room.due = NEVER

    def _leave_batch(self, room: Room[Any]) -> None:
        if room.batch != NEVER:
            rooms, timer = self._batches[room.batch]
            del rooms[room]
            if not rooms:
                timer.cancel()
                del self._batches[room.batch]
            room.batch = NEVER

    def _wake_batch(self, at: float) -> None:
        """The time of that batch has come."""
        rooms, _ = self._batches.pop(at)
        for room in rooms:
            room.batch = NEVER
            if room.timer is None:
                room.due = NEVER
        now = self._clock()
        for room in rooms:
            self._check(room, now)

    def _wake(self, room: Room[Any]) -> None:
        """The time of the room's own timer has come."""
        room.timer = None
        room.due = room.batch
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
