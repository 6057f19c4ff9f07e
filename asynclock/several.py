"""Several names in one scope: all or none."""

from __future__ import annotations

import asyncio
import warnings
from asyncio import current_task
from collections.abc import Callable, Sequence
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from ._engine.attempts import connect, fail
from ._engine.block import HeldLock
from ._engine.diagnosis import NOTICED_LATE
from ._engine.held import Loss
from ._engine.manager import LockManager
from ._engine.reports import Hold
from ._engine.scope_link import ScopeLink
from ._engine.waiter import Waiter
from .core.lease import Lease
from .core.reasons import LossReason
from .core.room import Room
from .core.rules import NEVER
from .core.several import Several, Step, agreed_order
from .errors import (
    AcquireTimeoutError,
    AlreadyHeldError,
    ConfigurationError,
    LockerClosedError,
    LockLostError,
)
from .options import Seconds, check_name, check_timeout
from .scope import LockScope, ScopeRef

if TYPE_CHECKING:
    from .acquisition import Acquisition

Enter = Callable[[Room[Waiter], Waiter, float], None]  # Room.join, Room.try_join or Room.force
FORCE_PAUSE = 0.02  # seconds: how long those who force pause at most when they met another; then twice as long, up to
MAX_FORCE_PAUSE = 1.0
_FINAL = (LockerClosedError, AcquireTimeoutError)  # waiting for the lock would not help


class SeveralScope(LockScope):
    """A scope that holds several locks: one that is lost ends it, as if it were the only one.

    Invariants: ``_parts`` are the locks that are held, as far as is known here. ``_lease`` is that of one of them while
    the scope holds them all, and None once one was lost or the scope has ended. After a loss, the others stay in
    ``_parts`` until the block is left, or the scope is released or forgotten: the work under them is still being
    stopped. ``_closed`` are those that were lost since the locker closes; their keys are given back at that time, too.
    """

    __slots__ = ("_closed", "_lost_name", "_names", "_parts")

    def __init__(
        self,
        locker: object,
        manager: LockManager,
        names: tuple[str, ...],
        waiters: list[Waiter],
        wait_release: bool,
        task: asyncio.Task[Any] | None,
    ) -> None:
        """
        :param waiters: who got the locks, in the agreed order
        :param wait_release, task: as for ``LockScope``
        """
        super().__init__(locker, manager, waiters[0].room, cast(Lease, waiters[0].lease), wait_release, task)
        self.name = names[0]
        self._names = names
        self._closed: list[Part] = []
        self._lost_name = ""
        self._parts = []
        for waiter in waiters:
            part = Part(self)
            part.of, part.lease, part.hold = waiter.room, cast(Lease, waiter.lease), None
            part.lease.scope_ref = part
            self._parts.append(part)

    # State

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    def remaining(self) -> float:
        if self._lease is None or self._manager.life.forked:
            return 0.0
        # In another thread, the scope may end just now.
        return max(0.0, min((part.lease.deadline for part in self._parts), default=0.0) - self._manager.clock())

    def _check(self) -> None:
        if self._lease is not None and self._here():
            for part in list(self._parts):
                if self._manager.clock() >= part.lease.deadline:
                    self._manager.time_is_over(part.of)

    def _over(self) -> bool:
        return self._lease is None or self._manager.life.forked or self._expired() is not None

    def _expired(self) -> Part | None:
        """One whose time is over, though nobody has said so yet."""
        now = self._manager.clock()
        return next((part for part in self._parts if now >= part.lease.deadline), None)

    def part_lost(self, part: Part, reason: LossReason, detail: str) -> None:
        """As ``Held._on_lost``, for one of the locks."""
        first = self._loss is None
        if first:  # before ``_parts``: other threads must not find the rest, and take it for all
            self._lost_name, self._loss, self._lease = part.of.name, Loss(reason, detail), None
        self._parts = [each for each in self._parts if each is not part]  # == would compare the scopes
        if reason is LossReason.CLOSED:
            self._closed.append(part)  # with its link: whoever closes asks when the block is left
        else:
            part.lease.scope_ref = None  # the two refer to each other
            if first:
                self._stay(0.0)  # nothing of a lost scope does
        self._manager.reports.lost(part.lease, part.hold, reason, detail, held=True)
        if first:
            self._wake()
            if self._parent is not None:
                self._get_block().abort(self._why_stopped())

    def _why_stopped(self) -> str:
        if self._loss is None:
            return super()._why_stopped()
        return f"lock {self._lost_name!r} was lost: {self._loss.reason}"

    def _error(self) -> LockLostError:
        if self._loss is not None:
            return LockLostError(self._lost_name, *self._loss)
        if self._lease is None:
            return LockLostError(self.name, LossReason.RELEASED)
        expired = self._expired()
        return LockLostError(self.name if expired is None else expired.of.name, LossReason.EXPIRED)

    def _fenced(self, name: str | None) -> Lease:
        if name is None:
            raise ConfigurationError(
                f"fencing_token() needs a name here, for this scope has several locks: one of {self.names}"
            )
        for part in self._parts:
            if part.of.name == name:
                return part.lease
        return super()._fenced(name)

    # Ending

    def _stay(self, seconds: float) -> None:
        until = self._manager.clock() + seconds if seconds else 0.0
        for part in self._parts:
            part.lease.keep(until)

    def _end(self) -> Lease | None:
        self._end_all()
        return None

    def _end_all(self) -> list[Part]:
        """The scope gives all locks up. Returns those that were held."""
        parts, self._parts, self._lease = self._parts, [], None
        for part in parts:
            part.lease.scope_ref = None
            if part.hold is not None:
                self._manager.reports.released(part.of.name, part.hold)
        self._wake()
        return parts

    def _end_closed(self) -> list[Part]:
        """Returns those that were lost since the locker closes."""
        closed, self._closed = self._closed, []
        for part in closed:
            part.lease.scope_ref = None
        return closed

    def send_releases(self) -> list[Part]:
        """Give everything back, without waiting for the answers. Returns what was held and not handed on to another
        task: from now on, only the answers to these show whether the scope had lost them."""
        held, closed = self._end_all(), self._end_closed()
        if self._can_send():
            now = self._manager.clock()
            for part in (*held, *closed):
                self._manager.give_back(part.of, part.lease, now)
        return [part for part in held if part.lease.unreleased]

    async def wait_for_releases(
        self, parts: Sequence[Part], until: float | None = None
    ) -> asyncio.CancelledError | None:
        """Wait for the answers, and find out whether a lock had been lost. Returns a cancellation that came meanwhile.

        :param until: as for ``PendingReleases.wait``
        """
        cancelled = await self._manager.pending_releases.wait_for_all([part.lease for part in parts], until)
        self._find_out_all(parts)
        try:
            return cancelled
        finally:
            del cancelled  # no cycle through its traceback

    def _find_out_all(self, parts: Sequence[Part]) -> None:
        """As ``Held._find_out``."""
        for part in parts:
            reason = part.lease.loss_found_by_release()
            if reason is not None:
                if self._loss is None:
                    self._lost_name, self._loss = part.of.name, Loss(reason, NOTICED_LATE)
                self._manager.reports.lost(part.lease, part.hold, reason, NOTICED_LATE, held=False)

    def leave_unattended(self, parts: Sequence[Part], now: float) -> list[Part]:
        """Returns those whose releases are to be waited for: with ``wait_release``, all that were not handed on."""
        parts = [part for part in parts if part.lease.unreleased]
        if self._wait_release:
            return parts
        pending_releases, waited_for = self._manager.pending_releases, []
        for part in parts:
            if pending_releases.may_leave_unattended(part.lease, now):
                pending_releases.leave_unattended(part.lease, part.hold)
            else:
                waited_for.append(part)
        return waited_for

    async def release(self) -> None:
        can_send = self._can_send()
        if can_send:
            self._check_here()
        if self._loss is not None:  # as at the end of a block
            self._for_block().send_release()
            return
        parts = self.send_releases()
        if parts and can_send:
            manager = self._manager
            cancelled = await self.wait_for_releases(parts, manager.clock() + manager.pending_releases.patience)
            try:
                if cancelled is not None:
                    raise cancelled
            finally:
                del cancelled  # no cycle through its traceback

    def _give_back_soon(self) -> None:
        for part in (*self._end_all(), *self._end_closed()):
            self._manager.give_back_soon(part.of, part.lease)

    def _for_block(self) -> HeldLock:
        return SeveralByScope(self)

    # The block

    def _leave_at_once(self) -> asyncio.Future[int] | bool:
        return False  # ``__aexit__`` does it

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        manager = self._manager
        serving, now = manager.life.serving, manager.clock()
        if (
            error is not None
            or self._block is not None
            or self._lease is None
            or serving is None
            or asyncio._get_running_loop() is not serving
            or any(now >= part.lease.deadline for part in self._parts)
        ):
            return await super().__aexit__(kind, error, traceback)
        self._exiting = True
        parts = self._end_all()
        for part in parts:
            part.of.release(part.lease, now)
        waited_for = self.leave_unattended(parts, now)
        pending_releases = manager.pending_releases
        until = now + pending_releases.patience
        missed = 0
        try:
            for answered in [pending_releases.begin(part.lease, until) for part in waited_for]:
                missed |= await answered
        except asyncio.CancelledError:
            await self.wait_for_releases(waited_for, until)
            raise
        if missed:
            self._find_out_all(waited_for)
            if self._loss is not None:
                raise self._error()
        return None

    def _keepers(self) -> list[object]:
        leases = [part.lease for part in self._parts]
        return [*leases, *(lease.scope_ref for lease in leases)]

    def __del__(self) -> None:
        if self._manager.life.forked:  # in the child of a fork, they are the parent's
            return
        held = self._lease is not None
        for part in self._parts:
            self._manager.dropped(part.of, part.lease, part.hold)
        for part in self._end_closed():  # lost, as was told: only the key is given back
            self._manager.dropped(part.of, part.lease, None)
        if held:
            warnings.warn(
                f"the scope of locks {', '.join(map(repr, self.names))} was forgotten without release; "
                "use 'async with', or call release()",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )


class Part(ScopeRef):
    """One of the locks of a scope, and the link from its lease to the scope."""

    __slots__ = ("hold", "lease", "of")

    of: Room[Any]
    lease: Lease
    hold: Hold | None  # for its events

    def room(self) -> Room[Any] | None:
        return None if self() is None else self.of

    def lost(self, reason: LossReason, detail: str) -> None:
        scope = self()
        if isinstance(scope, SeveralScope):
            scope.part_lost(self, reason, detail)

    def extension_late(self, remaining: float) -> None:
        scope = self()
        if isinstance(scope, SeveralScope):
            scope._manager.reports.extension_late(self.of.name, self.hold, remaining)


class SeveralByScope:
    """What the block may do with the locks of its scope: ``_engine.block.HeldLock``."""

    __slots__ = ("_scope",)

    def __init__(self, scope: SeveralScope) -> None:
        self._scope = scope

    @property
    def lost(self) -> bool:
        return self._scope._loss is not None

    def error(self) -> LockLostError:
        return self._scope._error()

    def why_stopped(self) -> str:
        return self._scope._why_stopped()

    def send_release(self) -> None:
        scope = self._scope
        for part in scope.send_releases():
            scope._manager.pending_releases.leave_unattended(part.lease, part.hold)

    async def give_back(self) -> asyncio.CancelledError | None:
        scope = self._scope
        scope._check()
        if scope._loss is not None:  # after a loss, nothing waits for a server
            self.send_release()
            return None
        parts = scope.send_releases()
        return await scope.wait_for_releases(scope.leave_unattended(parts, scope._manager.clock()))


async def acquire_several(
    locker: object,
    manager: LockManager,
    names: tuple[str, ...],
    enter: Enter,
    timeout: Seconds | None = None,
    context: Acquisition | None = None,
) -> LockScope:
    """As ``acquisition.acquire``, for several names: all or none."""
    if context is not None:
        if context._locker is None:
            raise RuntimeError("this context manager was used before; call with_context() again")
        context._locker = None
    began = manager.clock()
    seconds, until = None, NEVER
    if timeout is not None:
        seconds = check_timeout(timeout)
        if seconds:
            until = began + seconds
        else:
            enter = Room.try_join
    order = _in_order(names)
    life = manager.life
    loop = life.serving
    task = None if loop is None or life.thread != get_ident() else current_task(loop)
    if task is None:
        try:
            await connect(manager, order[0], seconds, began)
        except ConfigurationError:
            if context is not None:
                context._locker = locker  # not used yet: it can be entered in another event loop
            raise
        loop, task = life.loop, current_task()
    assert loop is not None and task is not None
    waiters: list[Waiter | None] = [None] * len(order)  # who has a lock, or waits for it
    several = Several()
    pause = FORCE_PAUSE

    def busy(place: int) -> bool:
        room = manager.rooms[order[place]]
        return room.contended or not room.empty

    failed: Waiter | None = None
    wanted = order[0]  # what is waited for, for the reports
    try:
        while failed is None:
            now = manager.clock()
            held = [waiter is not None and waiter.take_lease(now) is not None for waiter in waiters]
            if all(held):
                break
            manager.check_open()
            missing = [place for place, has in enumerate(held) if not has]
            # To try and to force is no waiting, so the order does not matter.
            step = several.step(held, busy) if enter is Room.join else Step([], missing, False)
            if step.wait:
                for wanted in (order[place] for place in missing):
                    if _held_around(manager.rooms.get(wanted), task):
                        raise AlreadyHeldError(wanted)
            for place in step.give_back:
                if (given_back := waiters[place]) is not None:
                    manager.leave(given_back)
                    waiters[place] = None
            asked: list[Waiter] = []
            wanted = order[step.request[0]]
            for place in step.request:
                room = manager.rooms[order[place]]
                waiters[place] = waiter = Waiter(room, loop.create_future(), began)
                asked.append(waiter)
                (Room.try_join if enter is Room.join and not step.wait else enter)(room, waiter, now)
            timer = None
            if seconds:
                timer = loop.call_later(max(0.0, until - now), _time_out, manager, asked, seconds)
            try:
                for waiter in asked:
                    await waiter.future
            finally:
                if timer is not None:
                    timer.cancel()
            for place, waiter in zip(step.request, asked, strict=True):
                if waiter.error is None:
                    continue
                if step.wait or enter is not Room.join or isinstance(waiter.error, _FINAL):
                    failed = failed or waiter
                else:
                    waiters[place] = None  # the next step waits for it
            if enter is Room.force and failed is None and any(map(_is_lost, waiters)):
                # Another one forces, too. Without a pause of random length, the two could go on in step, and take the
                # locks from each other for ever.
                await asyncio.sleep(manager.chance() * pause)
                pause = min(2 * pause, MAX_FORCE_PAUSE)
    except BaseException as error:
        task = None  # which keeps the error: no cycle through its traceback
        leases = _leave(manager, waiters)
        manager.reports.not_acquired(wanted, manager.clock() - began, error)
        cancelled = None
        try:
            if not isinstance(error, GeneratorExit):  # that one cannot await anything
                cancelled = await manager.pending_releases.wait_for_all(leases)
            if cancelled is not None and not isinstance(error, asyncio.CancelledError):
                raise cancelled from None
        finally:
            del cancelled  # no cycle, as above
        raise
    if failed is not None:
        task = None  # as above
        await fail(manager, failed, seconds, _leave(manager, waiters), began)
    holding = cast(list[Waiter], waiters)
    if context is None:
        scope = SeveralScope(locker, manager, names, holding, manager.options.wait_release, None)
    else:
        scope = context._scope = SeveralScope(locker, manager, names, holding, context._wait_release, task)
    reports, waited = manager.reports, now - began
    if waited > reports.longest_wait:
        reports.longest_wait = waited
    if not reports.listeners:
        reports.acquisitions += len(holding)
    else:
        for part in scope._parts:
            reports.acquisitions += 1
            part.hold = reports.acquired(part.of.name, now, waited)
    return scope


def _in_order(names: tuple[str, ...]) -> list[str]:
    """:raises ConfigurationError: one is not a valid name, or comes twice"""
    for number, name in enumerate(names):
        check_name(name)
        if name in names[:number]:
            raise ConfigurationError(f"lock {name!r} is given twice; give each name once")
    return agreed_order(names)


def _held_around(room: Room[Waiter] | None, task: asyncio.Task[Any]) -> bool:
    """Does a block around the call hold it? It would be waited for in vain, and perhaps so would those before it: their
    holder may wait for this one."""
    link: ScopeLink | None = None if room is None or room.holder is None else room.holder.scope_ref
    return link is not None and link.only_ended_by(task)


def _is_lost(waiter: Waiter | None) -> bool:
    return waiter is None or waiter.lease is None or waiter.lease.done


def _time_out(manager: LockManager, waiters: list[Waiter], timeout: float) -> None:
    for waiter in waiters:
        manager.time_out(waiter, timeout)


def _leave(manager: LockManager, waiters: list[Waiter | None]) -> list[Lease]:
    """Give back what there is. Returns the leases whose releases were sent."""
    leases = [manager.leave(waiter) for waiter in waiters if waiter is not None]
    return [lease for lease in leases if lease is not None]
