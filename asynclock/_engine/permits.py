"""Permits: one semaphore in one process, between its board (``core/permits.py``) and rooms, servers and tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING

from ..core.lease import Lease
from ..core.permits import Board
from ..core.room import Room
from ..core.rules import NEVER
from ..errors import AcquireTimeoutError, LockerClosedError, NotLockedError, ServerError
from ..messages import about
from ..wire.background import Timer
from ..wire.commands import unbulk
from . import diagnosis
from .changes import Changes
from .look import Look
from .rooms import room_name
from .waiter import Waiter

if TYPE_CHECKING:
    from .manager import LockManager

log = logging.getLogger("asynclock")


class Permits:
    """The port of one board (``core.permits.BoardPort``), and what the tasks of this process ask of it.

    Invariants: ``board`` and ``_manager`` are there from ``start`` on, the board until ``forget``. ``open`` is true
    between ``start`` and ``stop``. What the board is told by rooms and servers makes it act in another turn of the loop
    (``_serve_soon``). A ticket, and a probe, is a ``Waiter`` whose future nobody awaits:
    its callback tells the board.
    """

    board: Board[Waiter]
    _manager: LockManager

    def __init__(self, name: str, permits: int) -> None:
        self.name = name
        self.permits = permits
        self.open = False
        self.looks = Changes()  #: tells of each look that has ended
        self._rooms: dict[int, str] = {}  # what the rooms of the slots are called that were used
        self._timer = Timer()
        self._due = NEVER
        self._serves_soon = False
        self._answered = False  # has any server ever said what is free?
        self._marks = True  # does the next look write how many permits there are?
        self._marked = False  # did the last one?
        self._warned = False
        self._look: Look | None = None  # the one that is under way
        self._error: ServerError | None = None  # why the last one failed
        self._trouble: ServerError | None = None  # why the last attempt for those who wait has failed, if not refused

    def start(self, manager: LockManager) -> None:
        """The first task wants a permit, and the locker is connected."""
        self.open = True
        self._manager = manager
        self.board = Board(self.permits, manager.rules, self)

    def stop(self, error: LockerClosedError) -> None:
        """The locker is closed. Those who wait raise ``error``."""
        if not self.open:
            return
        self.open = False
        self._timer.stop()
        if self._look is not None:
            self._look.cancel()
            self._look = None
        for waiter in self.board.close():
            waiter.fail(type(error)(*error.args))
        self.looks.tell()

    def forget(self) -> None:
        """It is closed, and its last tasks have been told: no reference cycle with the board."""
        if not self.open and hasattr(self, "board"):
            del self.board

    # For tasks

    @property
    def waiting(self) -> Collection[Waiter]:
        """Who waits for a permit, the longest first."""
        return self.board.queue if self.open else ()

    @property
    def idle(self) -> bool:
        """Does nobody here hold a permit, or want one?"""
        return not self.open or self.board.idle

    def join(self, waiter: Waiter) -> None:
        if not self.waiting:
            self._trouble = None
        self.board.join(waiter, waiter.since, self._manager.clock())

    def time_out(self, waiter: Waiter, timeout: float) -> None:
        """``timeout`` seconds are over."""
        if waiter.future.done():
            return
        now = self._manager.clock()
        reason = self.not_free() if waiter in self.waiting else self._unreachable(waiter.room) or self._not_answered()
        if isinstance(reason, ServerError):
            error = AcquireTimeoutError(self.name, timeout, str(reason))
            error.__cause__ = reason
        else:
            error = AcquireTimeoutError(self.name, timeout, reason.why)
        if self.board.leave(waiter, now):
            waiter.fail(error)
        else:
            waiter.fail(error, waiter.room.leave(waiter, now))

    def leave(self, waiter: Waiter, slot: int | None) -> Lease | None:
        """The task waits no longer. Returns the lease whose release was sent, if any.

        :param slot: of its own attempt; None: it waited for any
        """
        life = self._manager.life
        if asyncio._get_running_loop() is not life.loop:  # its coroutine is closed while the loop does not run
            life.call_soon(partial(self.leave, waiter, slot))
            return None
        if self.open and not life.forked:
            now = self._manager.clock()
            if self.board.leave(waiter, now):
                return None
            if slot is None and waiter.lease is not None and waiter.error is None:
                slot = self.slot_of(waiter)
            if slot is not None:
                self.board.ended(slot, now)
        return self._manager.leave(waiter)

    def slot_of(self, waiter: Waiter) -> int:
        """Of its room."""
        parsed = self._manager.slots.parsed(unbulk(waiter.room.keys[0]))
        assert parsed is not None
        return parsed[1]

    def ended(self, slot: int) -> None:
        """A scope is about to give the slot back."""
        if self.open and not self._manager.life.forked:
            self.board.ended(slot, self._manager.clock())

    def lost_before(self, waiter: Waiter) -> None:
        """The slot that the task has got was lost before it could run."""
        if self.open:
            self.lost(self.slot_of(waiter))

    def lost(self, slot: int) -> None:
        """A scope has lost the slot."""
        if self.open and not self._manager.life.forked:
            self.board.lost(slot)
            self._serve_soon()

    def attempt_failed(self, slot: int, refused: bool) -> None:
        """A task's own attempt for that slot has failed.

        :param refused: since somebody else has it
        """
        self._answered |= refused
        if self.open:
            self.board.attempt_failed(slot, refused, self._manager.clock())

    def _unreachable(self, room: Room[Waiter]) -> ServerError | None:
        trouble = diagnosis.unreachable(self._manager.topology, room)
        return None if trouble is None else trouble.copy()

    def _not_answered(self) -> NotLockedError:
        return NotLockedError(self.name, f"{diagnosis.where(self._manager.topology)} has not answered yet")

    def not_free(self) -> NotLockedError | ServerError:
        """Why no permit can be acquired now."""
        trouble = self._unreachable(self.room(0))
        if trouble is not None:
            return trouble
        if self._error is not None and self.board.needs_look:  # else a look could find nothing, and is not the reason
            return self._error.copy()
        if self._trouble is not None and self.waiting and self.board.may_be_had:
            return self._trouble.copy()
        if not self._answered and not self.board.all_here:
            return self._not_answered()
        where = diagnosis.where(self._manager.topology)
        what = f"of semaphore {self.name!r}"
        if self.permits == 1:
            why = f"the only permit {what} is not free on {where}"
        else:
            why = f"none of the {self.permits} permits {what} is free on {where}"
        return NotLockedError(self.name, why)

    # What servers tell

    def changed(self, slot: int) -> None:
        """A key of that slot has changed."""
        if self.open and self.board.changed(slot) and self.board.queue:
            self._serve_soon()

    def all_changed(self) -> None:
        """What servers have told may be outdated."""
        if self.open:
            self._timer.stop()  # after a suspend it is late, and would keep the place of one that is due later
            self._error = self._trouble = None
            self.board.all_changed()
            if self.board.queue:
                self._serve_soon()

    def _serve_soon(self) -> None:
        if not self._serves_soon:
            self._serves_soon = True
            asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        self._serves_soon = False
        if self.open:
            self.board.serve(self._manager.clock())

    # For the board (core.permits.BoardPort)

    def room(self, slot: int) -> Room[Waiter]:
        name = self._rooms.get(slot)
        if name is None:
            name = self._rooms[slot] = room_name(self.name, slot)
        return self._manager.rooms[name]

    def chance(self) -> float:
        return self._manager.chance()

    def ticket(self, slot: int) -> Waiter:
        ticket = Waiter(self.room(slot), asyncio.get_running_loop().create_future(), self._manager.clock())
        ticket.future.add_done_callback(partial(self._ticket_ended, slot, ticket))
        return ticket

    def has_ended(self, ticket: Waiter) -> bool:
        return ticket.future.done()

    def leave_room(self, ticket: Waiter, now: float) -> None:
        ticket.room.leave(ticket, now)
        ticket.future.cancel()  # or the future, its callback and this would refer to each other

    def _ticket_ended(self, slot: int, ticket: Waiter, future: asyncio.Future[None]) -> None:
        if future.cancelled():
            return
        manager = self._manager
        if not self.open:
            if ticket.lease is not None and ticket.error is None:
                manager.give_back(ticket.room, ticket.lease, manager.clock())
            return
        now = manager.clock()
        lease, error = ticket.take_lease(now), ticket.error
        ticket.error = None
        refused = isinstance(error, NotLockedError)
        self._trouble = error if isinstance(error, ServerError) else None
        lasting = self._trouble if self._trouble is not None and self._trouble.lasting else None
        self.board.ticket_ended(slot, ticket, lease, refused, lasting, now)

    def granted(self, waiter: Waiter, slot: int, lease: Lease) -> None:
        waiter.room = lease.room
        waiter.granted(lease)

    def failed(self, waiter: Waiter, error: Exception) -> None:
        self._manager.failed(waiter, error)

    def wake(self, when: float) -> None:
        if not self._timer.running or when < self._due:
            self._due = when
            self._timer.start(max(0.0, when - self._manager.clock()), self._serve)

    def look_at(self, slots: list[int], now: float) -> None:
        self._marked, self._marks = self._marks, False
        self._look = Look(self._manager, self, slots, now, marks=self._marked)

    def look_ended(self, found: dict[int, float], markers: list[bytes | None]) -> None:
        """A look has found when each slot may be free."""
        now = self._manager.clock()
        self._answered = True
        self._error = self._look = None
        self._limit(self.board.looked(found, now), now)
        self._compare(markers)
        self.looks.tell()
        self._serve()

    def look_failed(self, error: ServerError) -> None:
        """Too few servers have answered a look."""
        self._error, self._look = error, None
        self._marks = True
        self.board.look_failed(error if error.lasting else None, self._manager.clock())
        self.looks.tell()
        self._serve()

    def _limit(self, needless: int, now: float) -> None:
        """Look less often, while what servers say of changes means nothing (``Pace``)."""
        pause = 0.0
        for index in range(self._manager.rules.keys):
            for _ in range(needless):
                self._manager.needless(self.room(0), index, now)
            pause = max(pause, self._manager.pause(self.room(0), index, now))
        if pause:
            self.board.limit_looks(pause)

    def _compare(self, markers: list[bytes | None]) -> None:
        """Warn if others have written another number of permits."""
        if None in markers and not self._marked:
            self._marks = True  # it was forgotten
        for marker in markers:
            if marker is not None and marker != b"%d" % self.permits and not self._warned:
                self._warned = True
                theirs = marker.decode(errors="replace")[:20]
                log.warning(
                    "asynclock: semaphore %r on %s has %d permits here and %s elsewhere: the larger number is what "
                    "limits all; give all the same",
                    self.name,
                    diagnosis.where(self._manager.topology),
                    self.permits,
                    theirs,
                    extra=about("permits_differ", semaphore=self.name, permits=self.permits, elsewhere=theirs),
                )
