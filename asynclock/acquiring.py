"""Acquiring a lock: from the arguments of a call to a scope."""

from __future__ import annotations

import asyncio
from asyncio import current_task
from collections.abc import Callable
from threading import get_ident
from typing import Any

from ._engine.holder import Holder
from ._engine.manager import LockManager
from ._engine.native import mypyc_attr
from ._engine.waiter import Waiter
from .core.room import Room
from .core.rules import NEVER
from .errors import AcquireTimeoutError, AlreadyHeldError, ConfigurationError, NotLockedError, ServerError
from .options import Seconds, check_name, check_timeout
from .scope import LockScope, ScopeRef

Enter = Callable[[Room[Waiter], Waiter, float], None]  # Room.join, Room.try_join or Room.force


@mypyc_attr(allow_interpreted_subclasses=True)
class Entry:
    """How a lock is to be acquired, for one block: ``Acquisition`` without its public face."""

    __slots__ = ("_enter", "_locker", "_manager", "_name", "_scope", "_timeout")

    _scope: LockScope

    def __init__(
        self, locker: object, manager: LockManager, name: Any, enter: Enter, timeout: Seconds | None = None
    ) -> None:
        self._locker: object | None = locker  # until it is used
        self._manager = manager
        self._name = name
        self._enter = enter
        self._timeout: Any = timeout


async def acquire(
    locker: object,
    manager: LockManager,
    name: Any,
    enter: Enter,
    timeout: Any = None,
    context: Entry | None = None,
) -> LockScope:
    """As ``Locker.acquire``.

    :param name, timeout: whatever the caller has given; it is checked here
    :param locker: the Locker of ``manager``. It is closed once nobody has a reference to it: this keeps one, and so
        does the scope.
    :param enter: how to enter the room
    :param context: its block is entered, too
    """
    if context is not None:
        if context._locker is None:
            raise RuntimeError("this context manager was used before; call with_context() again")
        context._locker = None
    life = manager.life
    loop = life.serving
    now = manager.clock()
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
        connected = False
        try:
            async with asyncio.timeout(seconds or None):
                await manager.ready()
            connected = True
        except ConfigurationError:
            if context is not None:
                context._locker = locker  # not used yet: it can be entered in another event loop
            raise
        except TimeoutError:
            assert seconds is not None
        if not connected:
            why = ServerError(manager.where(), "has not answered yet")
            timed_out = AcquireTimeoutError(name, seconds or 0.0, str(why))
            timed_out.__cause__ = why  # "raise ... from" does not set it in compiled code
            raise timed_out
        loop, task = life.loop, current_task()
        now = manager.clock()
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
        stopped: BaseException | None = None
        try:
            await waiter.future
        except BaseException as error:
            stopped = error
        if timer is not None:
            timer.cancel()
        if stopped is not None:
            # Cancelled before the lock was granted, or in the same turn of the event loop: give back what there is.
            # Or the coroutine is being closed (GeneratorExit), and cannot await anything. This is not in the handler:
            # compiled code does not know what to raise again there, once it has awaited something.
            lease = manager.leave(waiter)
            if lease is not None and isinstance(stopped, asyncio.CancelledError):
                await manager.pending_releases.wait(lease)
            try:
                raise stopped
            finally:
                del stopped  # no cycle through its traceback
        lease = waiter.lease
        if waiter.error is not None:
            if lease is not None and (cancelled := await manager.pending_releases.wait(lease)) is not None:
                raise cancelled
            if seconds == 0 and isinstance(waiter.error, NotLockedError):
                raise AcquireTimeoutError(name, 0.0, waiter.error.why)
            raise waiter.take_error()
        assert lease is not None
        now = manager.clock()
        if not lease.done:
            if now >= lease.deadline:
                room.woken(now)  # the event loop was blocked until then
            if not lease.done:
                scope = LockScope(locker, manager, room, lease, None if context is None else task)
                lease.scope_ref = ScopeRef(scope)
                if context is not None:
                    context._scope = scope
                return scope
        # Lost before this task could run: the caller never had it. Try again.
        manager.check_open()
