"""Acquiring a lock: from the arguments of a call to a scope."""

from __future__ import annotations

import asyncio
from asyncio import current_task
from collections.abc import Callable, Coroutine
from threading import get_ident
from types import CoroutineType, TracebackType
from typing import Any

from ._engine.attempts import connect, fail
from ._engine.manager import LockManager
from ._engine.scope_link import ScopeLink
from ._engine.waiter import Waiter
from .core.room import Room
from .core.rules import NEVER
from .errors import AlreadyHeldError, ConfigurationError, LockerClosedError
from .options import Seconds, check_at_least, check_name, check_timeout, check_wait_release
from .scope import LockScope, ScopeRef
from .several import acquire_several

Enter = Callable[[Room[Waiter], Waiter, float], None]  # Room.join, Room.try_join or Room.force


class Acquisition:
    """A lock that ``async with`` acquires on entry and releases on exit: returned by :meth:`Locker.with_context`,
    :meth:`Locker.try_with_context` and :meth:`Locker.force_with_context`.

    ``async with locker.with_context("my_lock") as scope:`` is all that it is for; ``scope`` is the held lock, a
    :class:`LockScope`. Until then nothing is sent to a server. It is for one block: call ``with_context`` again for
    the next.

    Entering raises as :meth:`Locker.acquire`, and ``RuntimeError`` the second time. Leaving raises as
    :class:`LockScope`.
    """

    __slots__ = ("_enter", "_locker", "_manager", "_more", "_name", "_scope", "_timeout", "_wait_release")

    _scope: LockScope

    def __init__(
        self,
        locker: object,
        manager: LockManager,
        name: str,
        more: tuple[str, ...],
        enter: Enter,
        timeout: Seconds | None,
        wait_release: bool | None,
    ) -> None:
        self._locker: object | None = locker  # until it is used
        self._manager = manager
        self._name = name
        self._more = more
        self._enter = enter
        self._timeout = timeout
        self._wait_release = manager.options.wait_release if wait_release is None else check_wait_release(wait_release)

    # Plain functions that return a coroutine, not ``async def``: one frame less to resume. Pyright wants a context
    # manager to return CoroutineType, as an async def does; to mypy that is any Coroutine.

    def __aenter__(self) -> CoroutineType[Any, Any, LockScope]:
        if self._more:
            names = self._name, *self._more
            return acquire_several(self._locker, self._manager, names, self._enter, self._timeout, self)  # type: ignore[return-value]  # as above
        return acquire(self._locker, self._manager, self._name, self._enter, self._timeout, self)  # type: ignore[return-value]  # as above

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> CoroutineType[Any, Any, bool | None]:
        return self._scope.__aexit__(kind, error, traceback)  # type: ignore[return-value]  # as above


class AcquisitionThatStays(Acquisition):
    """One of a lock that stays for a least time. (A class of its own: most locks do not, and pay nothing for it.)"""

    __slots__ = ("_at_least",)

    def __init__(
        self,
        locker: object,
        manager: LockManager,
        name: str,
        more: tuple[str, ...],
        enter: Enter,
        timeout: Seconds | None,
        wait_release: bool | None,
        at_least: Seconds,
    ) -> None:
        super().__init__(locker, manager, name, more, enter, timeout, wait_release)
        self._at_least = at_least

    def __aenter__(self) -> CoroutineType[Any, Any, LockScope]:
        return that_stays(check_at_least(self._at_least), super().__aenter__())  # type: ignore[return-value]  # as above


async def that_stays(seconds: float, acquiring: Coroutine[Any, Any, LockScope]) -> LockScope:
    """Acquire a lock that stays for that long."""
    scope = await acquiring
    # No ``await`` in between: who is cancelled before has not got the lock, and it does not stay.
    scope._stay(seconds)
    return scope


async def acquire(
    locker: object,
    manager: LockManager,
    name: str,
    enter: Enter,
    timeout: Seconds | None = None,
    context: Acquisition | None = None,
) -> LockScope:
    """As ``Locker.acquire``.

    :param locker: the Locker of ``manager``. It is closed once nobody has a reference to it: this keeps one, and so
        does the scope.
    :param enter: how to enter the room
    :param context: the context manager that is entered; None: a scope without a block
    """
    if context is not None:
        if context._locker is None:
            raise RuntimeError("this context manager was used before; call with_context() again")
        context._locker = None
    life = manager.life
    loop = life.serving
    began = now = manager.clock()
    seconds, until = None, NEVER
    if timeout is not None:
        seconds = check_timeout(timeout)
        if seconds:
            until = now + seconds
        else:
            enter = Room.try_join
    if type(name) is not str:
        check_name(name)
    # Is this a task of the locker's loop? asyncio.get_running_loop() would make a system call in Python 3.11.
    task = None if loop is None or life.thread != get_ident() else current_task(loop)
    if task is None:
        check_name(name)
        try:
            await connect(manager, name, seconds, began)
        except ConfigurationError:
            if context is not None:
                context._locker = locker  # not used yet: it can be entered in another event loop
            raise
        loop, task = life.loop, current_task()
        now = manager.clock()
    assert loop is not None and task is not None
    while True:
        room = manager.rooms[name]
        future = loop.create_future()
        waiter = Waiter(room, future, began)
        timer = None
        if room.holder is not None and enter is Room.join:
            link: ScopeLink | None = room.holder.scope_ref
            if link is not None and link.only_ended_by(task):
                task = None  # which may keep the error: no cycle through its traceback
                manager.reports.not_acquired(name, manager.clock() - began, AlreadyHeldError(name))
                raise AlreadyHeldError(name)
        if seconds:
            timer = loop.call_later(max(0.0, until - now), manager.time_out, waiter, seconds)
        enter(room, waiter, now)
        try:
            await future
        except BaseException as error:
            # Cancelled before the lock was granted, or in the same turn of the event loop: give back what there is.
            # Or the coroutine is being closed (GeneratorExit), and cannot await anything.
            task = None  # as above
            lease = manager.leave(waiter)
            manager.reports.not_acquired(name, manager.clock() - began, error)
            if lease is not None and isinstance(error, asyncio.CancelledError):
                await manager.pending_releases.wait(lease)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        now = manager.clock()
        lease = waiter.take_lease(now)
        if lease is not None:
            if context is None:
                scope = LockScope(locker, manager, room, lease, manager.options.wait_release, None)
            else:
                scope = context._scope = LockScope(locker, manager, room, lease, context._wait_release, task)
            lease.scope_ref = ScopeRef(scope)
            reports = manager.reports
            reports.acquisitions += 1
            if now - began > reports.longest_wait:
                reports.longest_wait = now - began
            if reports.listeners:
                scope._hold = reports.acquired(name, now, now - began)
            return scope
        if waiter.error is not None:
            task = None  # as above
            await fail(manager, waiter, seconds, () if waiter.lease is None else (waiter.lease,), began)
        # Lost before this task could run: the caller never had it. Try again.
        try:
            manager.check_open()
        except LockerClosedError as error:
            task = None  # as above
            manager.reports.not_acquired(name, manager.clock() - began, error)
            raise
