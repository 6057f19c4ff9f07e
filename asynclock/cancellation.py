"""Cancel a task, and again if nobody in it has heard.

``task.cancel()`` can get lost on the way: in Python 3.11, ``asyncio.wait_for`` returns its result
when the cancellation comes in the moment in which that is ready (python/cpython#86296), and redis-py
sends every command through it. Measured with redis-py 8.1 on 3.11: up to 66 of 300 cancellations
that came just after a command was sent never reached the caller. Work that goes on with a lost lock
is what this library is there to prevent.

Whether a cancellation was heard can be seen by its exception: while a ``finally`` or ``except`` block
handles it, or it is on its way out, it is alive, and so is its message. When the message dies and the
task has neither ended nor left the block, the exception was dropped, and the task goes on as if
nothing had happened: then it is cancelled again. So clean-up code is left in peace however long it
takes, inside ``finally`` and ``except``; also while it handles an exception that was made anew on the
way (``asyncio.to_thread`` does that), or somebody else's cancellation.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

MAX_DEPTH = 1000  # coroutines that await each other
MAX_PAUSE = 0.1  # seconds between cancellations of a task that drops every one


class _Message(str):
    """A string that can be watched."""


class Cancellation:
    """A cancellation of ``task`` that insists until ``stop``, or until the task is done."""

    __slots__ = ("__weakref__", "_alive", "_loop", "_message", "_next", "_task", "count")

    def __init__(self, task: asyncio.Task[Any], message: str) -> None:
        self.count = 0  #: how many ``uncancel()`` it takes to undo it
        self._task: asyncio.Task[Any] | None = task
        self._loop = asyncio.get_running_loop()
        self._message = message
        self._alive: weakref.ref[_Message] | None = None
        self._next: asyncio.TimerHandle | None = None
        self._strike()

    def stop(self) -> None:
        """Insist no more."""
        self._task = self._alive = None
        if self._next is not None:
            self._next.cancel()

    def _strike(self) -> None:
        task = self._task
        if task is None or task.done():
            return
        if self.count and _handles_cancellation(task):
            # Another one's, or one that a library made anew: heard all the same. Look again later.
            self._next = self._loop.call_later(MAX_PAUSE, self._strike)
            return
        self.count += 1
        message = _Message(self._message)
        self._alive = weakref.ref(message, self._died)
        task.cancel(message)
        # A task that was about to run keeps the message beside the exception: let go of it then.
        self._loop.call_soon(self._let_go)

    def _let_go(self) -> None:
        task = self._task
        if task is not None and isinstance(getattr(task, "_cancel_message", None), _Message):
            if task._must_cancel:  # type: ignore[attr-defined]  # as above: asyncio's own, long-standing names
                self._loop.call_soon(self._let_go)  # not thrown yet
            else:
                task._cancel_message = None  # type: ignore[attr-defined]  # likewise

    def _died(self, _: object) -> None:
        # In whichever thread the garbage was collected.
        if self._task is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._again)

    def _again(self) -> None:
        if self._task is not None and not self._task.done():
            pause = min(0.001 * 2.0 ** min(self.count, 10), MAX_PAUSE) if self.count > 1 else 0.0
            self._next = self._loop.call_later(pause, self._strike)


def _handles_cancellation(task: asyncio.Task[Any]) -> bool:
    """Is a suspended frame of ``task`` inside an ``except`` or ``finally`` that a cancellation has entered?

    A suspended coroutine or generator keeps the exception that it handles where the garbage collector
    can see it. (A local variable that holds one is seen too: then it is left in peace.)
    """
    awaited: Any = task.get_coro()
    for _ in range(MAX_DEPTH):
        if awaited is None or isinstance(awaited, asyncio.Future):
            break
        below = None
        for each in gc.get_referents(awaited):
            error = each
            while isinstance(error, BaseException):
                if isinstance(error, asyncio.CancelledError):
                    return True
                error = error.__context__
            if type(awaited).__name__ in _WRAPPERS and hasattr(each, "ag_await"):
                below = each  # async for, asynccontextmanager: the generator inside
        for name in ("cr_await", "gi_yieldfrom", "ag_await"):
            below = below or getattr(awaited, name, None)
        awaited = below
    return False


_WRAPPERS = ("async_generator_asend", "async_generator_athrow")
