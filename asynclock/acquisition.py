"""Acquiring: from the arguments of a call to a scope, by ``await`` or by ``async with``."""

from __future__ import annotations

import asyncio
from asyncio import current_task
from collections.abc import Callable
from threading import get_ident
from types import CoroutineType, TracebackType
from typing import Any

from ._engine.holder import Holder
from ._engine.manager import LockManager
from ._engine.waiter import Waiter
from .core.room import Room
from .core.rules import NEVER
from .errors import AcquireTimeoutError, AlreadyHeldError, ConfigurationError, NotLockedError, ServerError
from .options import Seconds, check_name, check_timeout
from .scope import LockScope

Enter = Callable[[Room[Waiter], Waiter, float], None]  # how to enter a room: join, try_join or force


class Acquisition:
    """What ``with_context``, ``try_with_context`` and ``force_with_context`` return: acquires the lock when the block
    is entered, and releases it when the block is left.

    ``async with`` it, once: ``async with locker.with_context("my_lock") as scope:``. The :class:`LockScope` that this
    gives is the held lock. Nothing is sent before that, so an Acquisition that is never entered costs nothing. For
    another block, call ``with_context`` again.

    :raises RuntimeError: it is entered a second time

    Everything else that entering and leaving raise is told at :meth:`Locker.acquire` and :class:`LockScope`.
    """

    __slots__ = ("_enter", "_locker", "_manager", "_name", "_scope", "_timeout")

    _scope: LockScope

    def __init__(
        self, locker: object, manager: LockManager, name: str, enter: Enter, timeout: Seconds | None = None
    ) -> None:
        self._locker: object | None = locker  # until it is used
        self._manager = manager
        self._name = name
        self._enter = enter
        self._timeout = timeout

    # Not coroutines themselves: one less to be resumed through. CoroutineType is what an async def returns to pyright,
    # which wants that of a context manager; to mypy it is any Coroutine.

    def __aenter__(self) -> CoroutineType[Any, Any, LockScope]:
        return acquire(self._locker, self._manager, self._name, self._enter, self._timeout, self)  # type: ignore[return-value]  # as above

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> CoroutineType[Any, Any, bool | None]:
        return self._scope.__aexit__(kind, error, traceback)  # type: ignore[return-value]  # as above


async def acquire(
    locker: object,
    manager: LockManager,
    name: str,
    enter: Enter,
    timeout: Seconds | None = None,
    context: Acquisition | None = None,
) -> LockScope:
    """Wait for the lock and hold it.

    :param locker: kept alive by this, and by the scope
    :param context: enter the block of the scope, too, on behalf of this one
    """
    if context is not None:
        if context._locker is None:
            raise RuntimeError("this context manager was used before; call with_context() again")
        context._locker = None
    life = manager.life
    loop = life.serving
    now = manager.now()
    seconds, until = None, NEVER
    if timeout is not None:
        seconds = check_timeout(timeout)
        if seconds:
            until = now + seconds
        else:
            enter = Room.try_join
    if type(name) is not str:
        check_name(name)
    # Is this a task of the locker's loop? Two looks, since asyncio.get_running_loop() asks for the process in 3.11.
    task = None if loop is None or life.thread != get_ident() else current_task(loop)
    if task is None:
        check_name(name)
        try:
            async with asyncio.timeout(seconds or None):
                await manager.ready()
        except ConfigurationError:
            if context is not None:
                context._locker = locker  # another event loop, perhaps: it was not used
            raise
        except TimeoutError:
            assert seconds is not None
            why = ServerError(manager.where(), "has not answered yet")
            raise AcquireTimeoutError(name, seconds, str(why)) from why
        loop, task = life.loop, current_task()
        now = manager.now()
    assert loop is not None and task is not None
    while True:
        room = manager.rooms[name]
        waiter = Waiter(room, loop.create_future())
        timer = None
        if room.holder is not None and enter is Room.join:
            holder: Holder | None = room.holder.scope_ref
            if holder is not None and holder.only_ended_by(task):
                raise AlreadyHeldError(name)
        if seconds:
            timer = loop.call_later(max(0.0, until - now), manager.time_out, waiter, seconds)
        enter(room, waiter, now)
        try:
            await waiter.future
        except BaseException as error:
            # Cancelled, before, while or after the lock was granted: give back what there is.
            # Or the coroutine is being closed (GeneratorExit), and nothing can be awaited.
            lease = manager.leave(waiter)
            if lease is not None and isinstance(error, asyncio.CancelledError):
                await manager.pending_releases.wait(lease)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        lease = waiter.lease
        if waiter.error is not None:
            if lease is not None and (cancelled := await manager.pending_releases.wait(lease)) is not None:
                raise cancelled
            if seconds == 0 and isinstance(waiter.error, NotLockedError):
                raise AcquireTimeoutError(name, 0.0, waiter.error.why)
            try:
                raise waiter.error
            finally:
                waiter.error = None  # no cycle through its traceback
        assert lease is not None
        now = manager.now()
        if not lease.done:
            if now >= lease.deadline:
                room.woken(now)  # the loop was blocked for that long
            if not lease.done:
                if context is None:
                    return LockScope(locker, manager, room, lease)
                scope = context._scope = LockScope(locker, manager, room, lease, task)
                return scope
        # Lost between being granted and getting here: it never was this caller's. Again.
        manager.check_open()
