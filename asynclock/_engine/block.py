"""Block: the ``async with`` block of a scope, from the first thing that must be stopped until it has been left."""

from __future__ import annotations

import asyncio
import sys
from asyncio import current_task
from typing import Any, Protocol

from ..errors import LockLostError
from .cancellation import Cancellation
from .tasks import Tasks
from .whereabouts import Whereabouts, on_its_way


class HeldLock(Protocol):
    """The lock of a scope, for its block. (The block keeps no reference to it, which would be a cycle.)"""

    @property
    def lost(self) -> bool: ...

    def error(self) -> LockLostError:
        """The loss, as an exception."""

    def why_stopped(self) -> str:
        """The message for those who are cancelled."""

    def send_release(self) -> None:
        """Give the lock back, without waiting for the answer."""

    async def give_back(self) -> asyncio.CancelledError | None:
        """Give the lock back, and find out whether it had been lost. Returns a cancellation that came meanwhile."""


def being_left(name: str) -> str:
    return f"the block of lock {name!r} is being left"


class Block:
    """The body of a scope, which runs in the task ``parent``, and the tasks beside it.

    A scope makes one when it gets a task, is stopped, or is left by an exception. Most scopes never need one.

    Invariants: The parent is never cancelled once ``body_ended`` is set, and is uncancelled as often as it was
    cancelled. ``aborting`` is set before anything is cancelled; tasks that are added later are cancelled too. Nothing
    is cancelled while a task runs. When a block is closed (by a GeneratorExit) while tasks run, it keeps the lock until
    they are done; then nobody waits for them, and their errors go to the event loop.
    """

    __slots__ = (
        "_baseline",
        "_cancellation",
        "_exited",
        "_failed",
        "_kept",
        "_name",
        "_parent",
        "_soon",
        "_stopped",
        "_why",
        "aborting",
        "body_ended",
        "tasks",
        "whereabouts",
    )

    def __init__(self, name: str, parent: asyncio.Task[Any], baseline: int, whereabouts: Whereabouts) -> None:
        """:param baseline: ``parent.cancelling()`` when it entered the block"""
        self.tasks = Tasks()
        self.whereabouts = whereabouts
        self.body_ended = False
        self.aborting = False  #: body and tasks are being cancelled
        self._failed = False  # ... because a task failed
        self._stopped = False  # ... because of stop(), while the lock was held
        self._name = name
        self._parent = parent
        self._baseline = baseline
        self._why = ""
        self._cancellation: Cancellation | None = None  # of the parent
        self._soon: asyncio.Handle | None = None  # to cancel what there is to cancel
        self._kept: HeldLock | None = None  # by a block that was closed while tasks ran
        self._exited: asyncio.Future[None] | None = None  # see exited()

    # While the body runs

    @property
    def accepts_tasks(self) -> bool:
        return not self.aborting and (not self.body_ended or bool(self.tasks.running))

    @property
    def body_cancelled(self) -> bool:
        """Has the body got a cancellation?"""
        return self._cancellation is not None and self._cancellation.count > 0

    def add(self, task: asyncio.Task[object]) -> None:
        """Run a task beside the body."""
        self.tasks.add(task, self._task_done)
        if self.aborting:  # by the task itself, if it has begun eagerly
            self._cancel_soon()

    def stop(self, lock: HeldLock) -> None:
        """Cancel everything. If the lock is not lost by now, the block ends silently."""
        if not self._stopped:
            self._stopped = not lock.lost
            self.abort(lock.why_stopped())

    def abort(self, why: str) -> None:
        """Cancel the tasks, and the body if it has not ended."""
        if not self.aborting:
            self.aborting = True
            self._why = why
            self._cancel_soon()

    def _cancel_soon(self) -> None:
        """Cancel, but not while a task runs. If that is the parent, the cancellation would strike at its next await,
        which may come after the block. If it is another that has begun eagerly inside the parent (Python 3.12), or
        that the parent waits for, what it awaits next would be cancelled, and nobody could tell who did that."""
        if current_task() is None:
            self._cancel()
        elif self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon(self._cancel)

    def _cancel(self) -> None:
        self._soon = None
        self.tasks.cancel(self._why)
        if not self.body_ended and self._cancellation is None:
            self._cancellation = Cancellation(self._parent, self._why, self.whereabouts)

    def _task_done(self, task: asyncio.Task[object]) -> None:
        error = self.tasks.end(task)
        lock = self._kept
        if lock is not None and not self.tasks.running:
            self._kept = None
            lock.send_release()
            self._end()
        if error is None:
            return
        if lock is not None:
            self._tell_loop(error)
            return
        self.tasks.failed(error)
        if not self.aborting:
            self._failed = True
            self.abort(being_left(self._name))

    # Leaving it. The rules are those of asyncio.TaskGroup.__aexit__ (Python 3.13), with two more causes to stop the
    # body, the loss and scope.cancel(), and with the body's own exception left bare.

    async def leave(self, lock: HeldLock, error: BaseException | None) -> bool:
        """The body has ended, with ``error``. Returns whether that is suppressed."""
        closed = False
        try:
            return await self._leave(lock, error)
        except GeneratorExit:
            closed = True  # see close()
            raise
        finally:
            if not closed:
                self._end()

    async def _leave(self, lock: HeldLock, error: BaseException | None) -> bool:
        self._end_body()
        cancelled = error if isinstance(error, asyncio.CancelledError) else None
        if error is not None:
            self.abort(lock.why_stopped())
        if self.tasks.running:
            cancelled = await self._tasks_done(lock) or cancelled
        cancelled = await lock.give_back() or cancelled
        self._uncancel()
        leaver, by_others = self._leaver()
        if cancelled is not None and self._cancellation is not None:
            cancelled = await self._from_others(cancelled) if by_others else None  # else it was the block's own

        if self.tasks.base_error is not None:
            raise self.tasks.base_error
        own = None if isinstance(error, asyncio.CancelledError) else error
        if cancelled is not None and own is None and not self.tasks.errors:
            if cancelled is error:
                return False
            try:
                raise cancelled
            finally:
                del cancelled  # no cycle: whoever swallows this one has to be cancelled again
        if cancelled is not None and by_others and sys.version_info >= (3, 13):
            # What is raised now goes before the cancellation, which comes at the next await. Before
            # 3.13 uncancel() leaves such a one pending, and its owner could not take it back.
            leaver.uncancel()
            leaver.cancel()
        if own is not None:
            if not self.tasks.errors:
                return False
            self.tasks.errors.append(own)
        self._raise_failures(lock)
        return error is not None

    def close(self, lock: HeldLock) -> None:
        """The coroutine or generator that the block is in is being closed: nothing can be awaited any more. Raises
        what ``leave`` would raise, if the task that entered the block closes it, and else tells the event loop."""
        self._end_body()
        self.abort(lock.why_stopped())
        self._uncancel()
        if self.tasks.running:
            self._kept = lock
        else:
            lock.send_release()
        try:
            # Any other task that closes it (the garbage collector's) has not worked with this lock. And one that
            # others have cancelled is on its way out already.
            if current_task() is not self._parent or self._leaver()[1]:
                self._tell_loop(*self.tasks.errors)
                return
            if self.tasks.base_error is not None:
                raise self.tasks.base_error
            own = on_its_way()
            if own is not None and not isinstance(own, asyncio.CancelledError):
                if not self.tasks.errors:
                    return
                self.tasks.errors.append(own)
            self._raise_failures(lock)
        finally:
            if self._kept is None:
                self._end()

    def _end_body(self) -> None:
        self.body_ended = True
        if self._cancellation is not None:
            self._cancellation.stop()

    async def _tasks_done(self, lock: HeldLock) -> asyncio.CancelledError | None:
        """Wait for the tasks. A cancellation meanwhile cancels them, and is returned."""
        cancelled = None
        while self.tasks.running:
            try:
                await self.tasks.wait()
            except asyncio.CancelledError as outside:
                cancelled = outside
                self.abort(lock.why_stopped())
        try:
            return cancelled
        finally:
            del cancelled  # no cycle through its traceback

    def _uncancel(self) -> None:
        if self._cancellation is not None:
            for _ in range(self._cancellation.count):
                self._parent.uncancel()

    def _leaver(self) -> tuple[asyncio.Task[Any], bool]:
        """The task that leaves the block, mostly the one that has entered it. Have others cancelled it?"""
        leaver = current_task() or self._parent
        return leaver, leaver.cancelling() > (self._baseline if leaver is self._parent else 0)

    async def _from_others(self, cancelled: asyncio.CancelledError) -> asyncio.CancelledError:
        """The cancellation to raise if both the block and others have cancelled the task.

        Both arrive as one exception, with the message of the later one. An anyio scope knows its own by the message,
        and repeats it until the task has left that scope: get that one."""
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError as outside:
            return outside
        return cancelled

    def _raise_failures(self, lock: HeldLock) -> None:
        """Raise the errors of the tasks, and the loss of the lock."""
        lost = lock.lost and not self._stopped
        if self.tasks.errors:
            group = BaseExceptionGroup(f"unhandled errors in the tasks of lock {self._name!r}", self.tasks.errors)
            try:
                if lost and not self._failed:
                    raise lock.error() from group
                raise group from None
            finally:
                del group  # no cycle, as above
        if lost:
            raise lock.error() from None

    def _tell_loop(self, *errors: BaseException) -> None:
        for error in errors:
            message = f"a task of lock {self._name!r} failed, and its block was closed"
            asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})

    def _end(self) -> None:
        """The block has been left."""
        self.excuse()
        if self._soon is not None:
            self._soon.cancel()
        self.tasks.forget()

    # For those who close the locker

    @property
    def closed_under_tasks(self) -> bool:
        """The block was closed, and keeps the lock until its tasks are done."""
        return self._kept is not None

    def exited(self) -> asyncio.Future[None]:
        """Done when the block has been left."""
        if self._exited is None:
            self._exited = asyncio.get_running_loop().create_future()
        return self._exited

    def excuse(self) -> None:
        """End the wait of those who wait for ``exited``."""
        if self._exited is not None and not self._exited.done():
            self._exited.set_result(None)
