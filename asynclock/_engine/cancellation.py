"""Cancel a task, and again if it goes on.

A cancellation is lost when its exception is dropped, as by ``asyncio.wait_for`` of Python 3.11, through which redis-py
sends its commands. Work that goes on with a lost lock is what this library must prevent; to cancel clean-up code again
and again is almost as bad. So a task is cancelled again only if no frame of it handles a cancellation
(``_engine/frames.py``), it is not in code outside the generator that its block is in (``_engine/whereabouts.py``), and
it waits for no task that was cancelled with it, to which the same rules apply; then

- at once if the message of its cancellation has died: the exception carries it, so nobody handles that any more;
- after ``PATIENCE`` if the message lives. A reference cycle, or asyncio, may keep it for good. But greenlets may handle
  the exception where no frame shows it, so a task with greenlets is left in peace.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

from .frames import cancel, drops_cancellation, handles_cancellation, has_greenlets, in_wait_for, waits_for
from .whereabouts import Whereabouts

PATIENCE = 1.0  # seconds
FIRST_PAUSE, MAX_PAUSE = 0.001, 0.25  # seconds between checks of a task that has not ended; each twice the one before


class _Message(str): ...  # other than a str, it can be weakly referenced


class Cancellation:
    """A cancellation of ``task`` that insists until ``stop``, or until the task is done."""

    __slots__ = ("_loop", "_message", "_next", "_others", "_since", "_task", "_where", "_why", "count")

    def __init__(self, task: asyncio.Task[Any], why: str, where: Whereabouts | None = None, new: bool = True) -> None:
        """:param new: False: asyncio has cancelled the task already, with another one"""
        self.count = 0  #: how many ``uncancel()`` it takes to undo it
        self._task, self._why, self._where = task, why, where
        # None: another's, which cannot be watched: it counts as alive, and PATIENCE as over.
        self._message = weakref.ref(_Message()) if new else None  # a dead one
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()  # when it was cancelled, or last seen to handle a cancellation
        self._others: dict[asyncio.Task[Any], Cancellation] = {}  # of those that have been cancelled with it
        if new and not drops_cancellation(task):
            self._strike()
        self._next: asyncio.Handle = self._loop.call_later(FIRST_PAUSE, self._check, 2 * FIRST_PAUSE)

    def stop(self) -> None:
        self._next.cancel()
        for each in self._others.values():
            each.stop()

    def _check(self, pause: float) -> None:
        if self._task.done():
            return
        if self._goes_on():
            if drops_cancellation(self._task):  # but not for long
                self._next = self._loop.call_soon(self._check, pause)
                return
            self._strike()
            pause = min(FIRST_PAUSE * self.count, MAX_PAUSE)
        self._next = self._loop.call_later(pause, self._check, min(2 * pause, MAX_PAUSE))

    def _goes_on(self) -> bool:
        others = {each for each in waits_for(self._task) if each.cancelling()}
        for ended in self._others.keys() - others:
            self._others.pop(ended).stop()
        for each in others - self._others.keys():
            self._others[each] = Cancellation(each, self._why, new=False)
        if others or handles_cancellation(self._task):
            self._since = self._loop.time()
            return False
        late = self._message is None or self._loop.time() - self._since >= PATIENCE
        dead = self._message is not None and self._message() is None
        dropped = dead or in_wait_for(self._task) or (late and not has_greenlets(self._task))
        return dropped and not (self._where is not None and self._where.is_beside(self._task))

    def _strike(self) -> None:
        self.count, self._since = self.count + 1, self._loop.time()
        message = _Message(self._why)
        self._message = weakref.ref(message)
        try:
            cancel(self._task, message)
        except Exception as error:  # of a future with a cancel() of its own. Others wait to be notified of a loss.
            self._message = weakref.ref(_Message())  # a dead one, though the error may keep the message
            if self.count == 1:
                what = f"{message}, and a task in it cannot be cancelled: {self._task!r}"
                self._loop.call_exception_handler({"message": what, "exception": error, "task": self._task})
