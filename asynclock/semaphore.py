"""Semaphore: at most so many scopes of one name at once, each as good as a lock."""

from __future__ import annotations

import asyncio
from asyncio import current_task
from functools import partial
from threading import get_ident
from types import CoroutineType, TracebackType
from typing import Any, NoReturn

from ._engine.attempts import connect
from ._engine.manager import LockManager
from ._engine.permits import Permits
from ._engine.waiter import Waiter
from .core.lease import Lease
from .core.reasons import LossReason
from .core.room import Room
from .core.rules import NEVER
from .core.search import Search
from .errors import (
    AcquireTimeoutError,
    AsyncLockError,
    ConfigurationError,
    LockerClosedError,
    NotLockedError,
    ServerError,
)
from .options import Seconds, check_timeout, check_wait_release
from .scope import LockScope, ScopeRef


class Semaphore:
    """At most ``permits`` scopes at once, in all processes together: returned by :meth:`Locker.semaphore`.

    A permit is a lock on one of as many slots, so the limit holds on several servers, too. A permit's scope is a
    :class:`LockScope`: its block is cancelled when the permit is lost. It has no fencing tokens: those of different
    permits would not be ordered.

    Tasks of this process get permits first come, first served. Processes take turns as with a lock.
    """

    __slots__ = ("_locker", "_manager", "_permits")

    def __init__(self, locker: object, manager: LockManager, permits: Permits) -> None:
        self._locker = locker  # kept as long as this is
        self._manager = manager
        self._permits = permits

    def __repr__(self) -> str:
        return f"<Semaphore {self.name!r} with {self.permits} permits>"

    @property
    def name(self) -> str:
        """What it is called."""
        return self._permits.name

    @property
    def permits(self) -> int:
        """How many scopes there may be at once."""
        return self._permits.permits

    async def acquire(self, *, timeout: Seconds | None = None) -> LockScope:
        """Wait for a permit, and hold it until the scope is released or left.

        :param timeout: seconds to wait, as in :meth:`Locker.acquire`; ``None``: without a limit; 0: do not wait
        :raises AcquireTimeoutError: no permit was free within that time
        :raises ServerError: the servers cannot be reached when the locker connects, or they refuse
        :raises LockerClosedError: the locker is closed, or is closed during the wait
        :raises ConfigurationError: the timeout is negative or not a number, or the locker is connected in another event
            loop or process
        """
        return await _acquire(self, True, timeout)

    async def try_acquire(self) -> LockScope:
        """Hold a permit if one is free, without waiting for one.

        :raises NotLockedError: none is free
        :raises ServerError: as :meth:`acquire`, and where that would wait until a server is available again
        :raises LockerClosedError: as :meth:`acquire`
        :raises ConfigurationError: as :meth:`acquire`
        """
        return await _acquire(self, False)

    def with_context(self, *, timeout: Seconds | None = None, wait_release: bool | None = None) -> PermitAcquisition:
        """``async with semaphore.with_context() as scope:`` acquires a permit as :meth:`acquire`, holds it in the
        block, and releases it at the end.

        :param wait_release: whether the end of the block waits for the answer to the release; ``None``: as the option
            of the locker
        """
        return PermitAcquisition(self, True, timeout, wait_release)

    def try_with_context(self, *, wait_release: bool | None = None) -> PermitAcquisition:
        """As :meth:`with_context`, with :meth:`try_acquire`."""
        return PermitAcquisition(self, False, None, wait_release)


class PermitAcquisition:
    """A permit that ``async with`` acquires on entry and releases on exit: returned by :meth:`Semaphore.with_context`
    and :meth:`Semaphore.try_with_context`.

    ``async with semaphore.with_context() as scope:`` is all that it is for; ``scope`` is the held permit, a
    :class:`LockScope`. Until then nothing is sent to a server. It is for one block: call ``with_context`` again for
    the next.

    Entering raises as :meth:`Semaphore.acquire`, and ``RuntimeError`` the second time. Leaving raises as
    :class:`LockScope`.
    """

    __slots__ = ("_scope", "_semaphore", "_timeout", "_used", "_wait", "_wait_release")

    _scope: LockScope

    def __init__(self, semaphore: Semaphore, wait: bool, timeout: Seconds | None, wait_release: bool | None) -> None:
        self._semaphore = semaphore
        self._used = False
        self._wait = wait
        self._timeout = timeout
        options = semaphore._manager.options
        self._wait_release = options.wait_release if wait_release is None else check_wait_release(wait_release)

    # As in Acquisition: no ``async def``, one frame less to resume.

    def __aenter__(self) -> CoroutineType[Any, Any, LockScope]:
        return _acquire(self._semaphore, self._wait, self._timeout, self)  # type: ignore[return-value]  # as in Acquisition

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> CoroutineType[Any, Any, bool | None]:
        return self._scope.__aexit__(kind, error, traceback)  # type: ignore[return-value]  # as in Acquisition


class PermitScope(LockScope):
    """A permit. When it ends, the board hears of it right before the room of its slot does."""

    __slots__ = ("_permits", "_slot")

    def __init__(
        self,
        semaphore: Semaphore,
        room: Room[Any],
        lease: Lease,
        slot: int,
        wait_release: bool,
        task: asyncio.Task[Any] | None,
    ) -> None:
        """:param wait_release, task: as for ``LockScope``"""
        super().__init__(semaphore._locker, semaphore._manager, room, lease, wait_release, task)
        self._permits = semaphore._permits
        self._slot = slot

    def _end(self) -> Lease | None:
        lease = super()._end()
        if lease is not None:
            if self._here():
                self._permits.ended(self._slot)
            else:  # another thread, or a coroutine that is closed while the loop does not run
                self._manager.life.call_soon(partial(self._permits.ended, self._slot))
        return lease

    def _on_lost(self, reason: LossReason, detail: str) -> None:
        self._permits.lost(self._slot)
        super()._on_lost(reason, detail)

    def _keeps(self, name: str) -> bool:
        return False  # a permit is no lock, though a lock may have the same name

    def _fenced(self, name: str | None) -> Lease:
        raise ConfigurationError(
            f"semaphore {self.name!r} has no fencing tokens: those of different permits would not be ordered; use a "
            "lock where a number has to say who came later"
        )

    def _drop(self, lease: Lease) -> None:
        self._manager.life.call_soon(partial(self._permits.ended, self._slot))
        super()._drop(lease)


async def _acquire(
    semaphore: Semaphore, wait: bool, timeout: Seconds | None = None, context: PermitAcquisition | None = None
) -> LockScope:
    """As ``acquisition.acquire``, for a permit.

    :param context: the context manager that is entered; None: a scope without a block
    """
    if context is not None:
        if context._used:
            raise RuntimeError("this context manager was used before; call with_context() again")
        context._used = True
    manager, permits = semaphore._manager, semaphore._permits
    life = manager.life
    loop = life.serving
    began = now = manager.clock()
    seconds, until = None, NEVER
    if timeout is not None:
        seconds = check_timeout(timeout)
        if seconds:
            until = now + seconds
        else:
            wait = False
    # The task is not kept in a variable: it may keep the error that is raised here, which would be a cycle.
    if loop is None or life.thread != get_ident() or current_task(loop) is None:
        try:
            await connect(manager, permits.name, seconds, began)
        except ConfigurationError:
            if context is not None:
                context._used = False  # it can be entered in another event loop
            raise
        loop, now = life.loop, manager.clock()
    assert loop is not None and current_task(loop) is not None
    if not permits.open:
        permits.start(manager)
    manager.semaphores.used(permits)
    search = Search(permits.board, wait, now)
    while True:
        slot = search.attempt(now)
        if slot is None and not wait:
            if search.look(now):
                await _look(manager, permits, began)
                now = manager.clock()
                continue
            failure: AsyncLockError = permits.not_free()
            if seconds == 0 and isinstance(failure, NotLockedError):
                failure = AcquireTimeoutError(permits.name, 0.0, failure.why)
            manager.reports.not_acquired(permits.name, manager.clock() - began, failure)
            try:
                raise failure
            finally:
                del failure  # no cycle through its traceback
        # One that queues is in no room until it gets a slot: that of slot 0 stands in.
        room = permits.room(0 if slot is None else slot)
        waiter = Waiter(room, loop.create_future(), began)
        timer = None
        if seconds:
            timer = loop.call_later(max(0.0, until - now), permits.time_out, waiter, seconds)
        if slot is None:
            permits.join(waiter)
        else:
            room.try_join(waiter, now)
            search.attempted(now)
        try:
            await waiter.future
        except BaseException as error:
            # As in ``acquisition.acquire``: cancelled, perhaps when it had the permit; or the coroutine is closed.
            lease = permits.leave(waiter, slot)
            manager.reports.not_acquired(permits.name, manager.clock() - began, error)
            if lease is not None and isinstance(error, asyncio.CancelledError):
                await manager.pending_releases.wait(lease)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        now = manager.clock()
        lease = waiter.take_lease(now)
        if lease is not None:
            if slot is None:
                slot = permits.slot_of(waiter)
            if context is None:
                scope = PermitScope(semaphore, waiter.room, lease, slot, manager.options.wait_release, None)
            else:
                scope = PermitScope(semaphore, waiter.room, lease, slot, context._wait_release, current_task(loop))
                context._scope = scope
            lease.scope_ref = ScopeRef(scope)
            scope._hold = manager.reports.begun(permits.name, now, now - began)
            return scope
        outcome = waiter.error
        lost = outcome is None  # before the task could run: the caller never had it
        if slot is not None:
            refused = isinstance(outcome, NotLockedError)
            permits.attempt_failed(slot, refused)
            goes_on = search.failed(refused or lost) and (lost or isinstance(outcome, NotLockedError | ServerError))
        else:
            goes_on = lost
            if lost:
                permits.lost_before(waiter)
        del outcome  # no cycle through its traceback
        if not goes_on:
            await _fail(manager, permits, waiter, began)
        try:
            manager.check_open()
        except LockerClosedError as error:
            manager.reports.not_acquired(permits.name, manager.clock() - began, error)
            raise


async def _look(manager: LockManager, permits: Permits, began: float) -> None:
    """Wait until the look that is under way has ended."""
    try:
        await permits.looks.after(permits.looks.count)
        manager.check_open()
    except BaseException as error:
        manager.reports.not_acquired(permits.name, manager.clock() - began, error)
        raise


async def _fail(manager: LockManager, permits: Permits, waiter: Waiter, began: float) -> NoReturn:
    """Raise the error of ``waiter``, once what it had is given back."""
    failure, cancelled = waiter.take_error(), None
    try:
        if waiter.lease is not None:
            cancelled = await manager.pending_releases.wait(waiter.lease)
        raise failure if cancelled is None else cancelled
    finally:
        manager.reports.not_acquired(permits.name, manager.clock() - began, failure)
        del failure, cancelled  # no cycle through its traceback
