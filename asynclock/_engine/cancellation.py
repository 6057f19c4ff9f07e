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

An exception that was dropped may live on, and must not keep the task going:

- The futures that passed the cancellation on to the task keep the message, and the tasks of an
  ``asyncio.gather`` the exception too, for as long as somebody keeps them. It is taken from them.
- A function that has held its exception in a variable and raised it again is part of a cycle through
  the traceback, until the garbage collector comes by (``asyncio.TaskGroup.__aexit__`` is such a one
  in Python 3.11 and the first 3.12 and 3.13). So that is asked to come, for young objects, while the
  frames of the task show no exception, and once for all objects if that goes on. The frames alone would
  not do: what a ``finally`` in a greenlet handles (SQLAlchemy's asyncio runs so) is in none of them,
  and that one is left in peace.

What cannot be told from an exception that is to be raised again later is one that the program itself
still keeps, in an attribute or a variable: that task is left in peace too.

A task that runs beside its block, which is in a generator that it has left at a ``yield``, is cancelled once, and
again only when it is in there again (whereabouts.py).
"""

from __future__ import annotations

import asyncio
import gc
import math
import time
import weakref
from typing import Any

from .whereabouts import Home, awaited_by, cancelled_with, frames

MAX_PAUSE = 0.1  # seconds between cancellations of a task that drops every one
FIRST_LOOK, LAST_LOOK = 0.001, 0.25  # seconds between looks at a task that has not ended; each twice the one before
PATIENCE = 0.2  # seconds in which no frame shows an exception, and it lives: then old objects are collected too


class _Message(str):
    """A string that can be watched."""


class Cancellation:
    """A cancellation of ``task`` that insists until ``stop``, or until the task is done."""

    __slots__ = ("__weakref__", "_alive", "_dropped", "_home", "_loop", "_message", "_next", "_task", "_told", "count")

    def __init__(self, task: asyncio.Task[Any], message: str, home: Home | None = None) -> None:
        self.count = 0  #: how many ``uncancel()`` it takes to undo it
        self._task: asyncio.Task[Any] | None = task
        self._loop = asyncio.get_running_loop()
        self._message = message
        self._home = home  # of the block, if this is the task that has entered one
        self._alive: weakref.ref[_Message] | None = None
        self._dropped = math.inf  # since when no frame shows it
        self._told: dict[asyncio.Future[Any], bool] = {}  # who was given the message; was it done at the last look?
        self._next: asyncio.Handle | None = None  # strike or look
        self._strike()

    def stop(self) -> None:
        """Insist no more."""
        self._task = self._alive = None
        self._told = {}
        if self._next is not None:
            self._next.cancel()

    def _strike(self) -> None:
        task = self._task
        if task is None or task.done():
            return
        if self.count and (_handles_cancellation(task) or (self._home is not None and self._home.is_beside(task))):
            # Another one's, or one that a library made anew: heard all the same. Or not its business now. Look again.
            self._next = self._loop.call_later(MAX_PAUSE, self._strike)
            return
        self.count += 1
        message = _Message(self._message)
        self._alive = weakref.ref(message, self._died)
        self._told = cancelled_with(task)
        try:
            task.cancel(message)
        except Exception as error:
            # The task awaits a future with a cancel() of its own, and that has failed. Others wait to be told of
            # their locks, so it goes no further. This task may await something else later.
            if self.count == 1:
                what = f"{message}, and a task in it cannot be cancelled: {task!r}"
                self._loop.call_exception_handler({"message": what, "exception": error, "task": task})
            self._next = self._loop.call_later(MAX_PAUSE, self._strike)
            return
        self._next = self._loop.call_soon(self._look, FIRST_LOOK)

    def _look(self, pause: float) -> None:
        """Has the task dropped the exception, and is it only kept by those who have no use for it?"""
        task = self._task
        if task is None or task.done():
            return
        self._next = self._loop.call_later(pause, self._look, min(2 * pause, LAST_LOOK))
        at_once = pause == FIRST_LOOK
        self._let_go(at_once)
        if at_once or _handles_cancellation(task):
            self._dropped = math.inf
        else:
            self._dropped = min(self._dropped, time.monotonic())
            _collect(self._dropped)

    def _let_go(self, at_once: bool) -> None:
        for future, was_done in list(self._told.items()):
            if isinstance(getattr(future, "_cancel_message", None), _Message):
                # In asyncio's own, long-standing names. A task that was about to run needs it until it does.
                if getattr(future, "_must_cancel", False):
                    continue
                future._cancel_message = self._message  # type: ignore[attr-defined]  # its type does not tell of it
            if was_done:
                # Whoever waited for it has the exception by now. Who comes later is given one of their own.
                if future.cancelled():
                    future._make_cancelled_error()  # type: ignore[attr-defined]  # likewise; it lets go of the exception
                del self._told[future]
            else:  # timers may go before what is about to run: so not yet at the first look, which is none
                self._told[future] = future.done() and not at_once

    def _died(self, _: object) -> None:
        # In whichever thread the garbage was collected.
        if self._task is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._again)

    def _again(self) -> None:
        if self._task is not None and not self._task.done():
            if self._next is not None:
                self._next.cancel()  # the look
            pause = min(0.001 * 2.0 ** min(self.count, 10), MAX_PAUSE) if self.count > 1 else 0.0
            self._next = self._loop.call_later(pause, self._strike)


def _collect(since: float) -> None:
    """Collect what may be garbage for as long as that: of many tasks that go on, one has old objects collected too."""
    global _all_collected
    now = time.monotonic()
    if now - since >= PATIENCE and _all_collected - since < PATIENCE:
        _all_collected = now
        gc.collect()
    else:
        gc.collect(1)


_all_collected = -math.inf


def _handles_cancellation(task: asyncio.Task[Any]) -> bool:
    """Is ``task``, or one that it waits for, inside an ``except`` or ``finally`` that a cancellation has entered?"""
    return any(_shows_cancellation(frame) for each in awaited_by(task) for frame in frames(each))


def _shows_cancellation(frame: Any) -> bool:
    """Does a suspended frame handle a cancellation?

    A suspended coroutine or generator keeps the exception that it handles where the garbage collector
    can see it. (A local variable that holds one is seen too: then it is left in peace.)
    """
    for error in gc.get_referents(frame):
        # Not isinstance: it asks the object, which may be a proxy that stands for nothing now.
        while issubclass(type(error), BaseException):
            if isinstance(error, asyncio.CancelledError):
                return True
            error = error.__context__
    return False
