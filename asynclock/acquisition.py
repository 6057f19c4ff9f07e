"""Acquisition: one call of acquire, from its arguments to a scope; and the block around that."""

from __future__ import annotations

import asyncio
import weakref
from asyncio import current_task
from collections.abc import Callable
from threading import get_ident
from types import CoroutineType, TracebackType
from typing import Any, Protocol

from ._engine.manager import LockManager, Waiter
from .core.lease import Lease
from .core.room import Room
from .core.rules import NEVER
from .errors import (
    AcquireTimeoutError,
    AlreadyHeldError,
    ConfigurationError,
    LockerClosedError,
    NotLockedError,
    ServerError,
)
from .options import Seconds, check_name, check_timeout
from .scope import LockScope

Enter = Callable[[Room[Waiter], Waiter, float], None]  # how to enter a room: join, try_join or force


class Opens(Protocol):
    """A locker."""

    _manager: LockManager
    _closing: asyncio.Task[None] | None

    async def _ready(self) -> None: ...
    def _closed_error(self) -> LockerClosedError: ...


class Acquisition:
    """One acquisition of a lock: ``async with`` it to acquire, hold and release. For one use.

    In its room it is the waiter: ``future`` is done when ``lease`` or ``error`` is set. The future carries
    neither, since a task that is cancelled in that very moment never reads it.
    """

    __slots__ = ("_enter", "_locker", "_scope", "_timeout", "error", "future", "lease", "name", "room")

    lease: Lease | None
    error: Exception | None
    future: asyncio.Future[None]
    room: Room[Waiter]
    _scope: LockScope

    def __init__(self, locker: Opens, name: str, enter: Enter, timeout: Seconds | None = None) -> None:
        self._locker: Opens | None = locker
        self.name = name
        self._enter = enter
        self._timeout = timeout

    def done(self) -> None:
        """Go on, with what there is."""
        if not self.future.done():
            self.future.set_result(None)

    # Not coroutines themselves: one less to be resumed through. CoroutineType is what an async def returns to pyright,
    # which wants that of a context manager; to mypy it is any Coroutine.

    def __aenter__(self) -> CoroutineType[Any, Any, LockScope]:
        return self.acquire(True)  # type: ignore[return-value]  # as above

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> CoroutineType[Any, Any, bool | None]:
        return self._scope.__aexit__(kind, error, traceback)  # type: ignore[return-value]  # as above

    async def acquire(self, block: bool = False) -> LockScope:
        """Wait for the lock and hold it.

        :param block: enter the scope, too
        """
        locker, self._locker = self._locker, None
        if locker is None:
            raise RuntimeError("this context manager was used before; call with_context() again")
        name, enter = self.name, self._enter
        manager = locker._manager
        loop = manager.serving
        now = manager.now()
        seconds, until = None, NEVER
        if self._timeout is not None:
            seconds = check_timeout(self._timeout)
            if seconds:
                until = now + seconds
            else:
                enter = Room.try_join
        if type(name) is not str:
            check_name(name)
        # Is this a task of the locker's loop? Two looks, since asyncio.get_running_loop() asks for the process in 3.11.
        task = None if loop is None or manager.thread != get_ident() else current_task(loop)
        if task is None:
            check_name(name)
            try:
                async with asyncio.timeout(seconds or None):
                    await locker._ready()
            except ConfigurationError:
                self._locker = locker  # another event loop, perhaps: it was not used
                raise
            except TimeoutError:
                assert seconds is not None
                why = ServerError(manager.where(), "has not answered yet")
                raise AcquireTimeoutError(name, seconds, str(why)) from why
            if locker._closing is not None:
                raise locker._closed_error()  # in this very moment
            loop, task = manager.loop, current_task()
            now = manager.now()
        assert loop is not None
        while True:
            self.room = room = manager.rooms.get(name) or manager.room(name)
            self.future = loop.create_future()
            self.lease = self.error = timer = None
            if room.holder is not None and enter is Room.join:
                owner = room.holder.scope_ref
                if owner is not None and (scope := owner()) is not None and scope._only_ended_by(task):
                    raise AlreadyHeldError(name)
            if seconds:
                timer = loop.call_later(max(0.0, until - now), manager.time_out, self, seconds)
            enter(room, self, now)
            try:
                await self.future
            except BaseException as error:
                # Cancelled, before, while or after the lock was granted: give back what there is.
                # Or the coroutine is being closed (GeneratorExit), and nothing can be awaited.
                lease = manager.leave(self)
                if lease is not None and isinstance(error, asyncio.CancelledError):
                    await manager.pending_releases.wait(lease)
                raise
            finally:
                if timer is not None:
                    timer.cancel()
            lease = self.lease
            if self.error is not None:
                if lease is not None and (cancelled := await manager.pending_releases.wait(lease)) is not None:
                    raise cancelled
                if seconds == 0 and isinstance(self.error, NotLockedError):
                    raise AcquireTimeoutError(name, 0.0, self.error.why)
                try:
                    raise self.error
                finally:
                    self.error = None  # no cycle through its traceback
            assert lease is not None
            now = manager.now()
            if not lease.done:
                if now >= lease.deadline:
                    room.woken(now)  # the loop was blocked for so long
                if not lease.done:
                    scope = LockScope(manager, room, lease)
                    scope._locker = locker
                    lease.scope_ref = weakref.ref(scope)
                    if block:
                        self._scope = scope
                        scope._enter(task)
                    return scope
            # Lost between being granted and getting here: it never was this caller's. Again.
            if locker._closing is not None:
                raise locker._closed_error()
