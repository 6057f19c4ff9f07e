"""Background work: tasks that repeat a step (``Loop``), periodic checks (``Ticker``), calls that are made once
(``Timer``), and the ``end`` of tasks.

Tasks that run as long as a node or a topology are a ``Loop``, and checks of a connection or of the machine are a
``Ticker``. They survive exceptions and run until they are closed. When a step raises, the exception is logged once, and
the step is retried: a lock must not be lost because of foreign code (a credential provider, redis-py, the resolver) or
a malformed reply.

Not all timers are here: ``_engine/`` sets its own, for rooms and for callers that wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVarTuple

from ..messages import about

log = logging.getLogger("asynclock")

CANCELLED_PAUSE = 0.5  # seconds from a foreign cancellation until the loop restarts; by then, a program that ends has
FIRST_PAUSE = 0.01  # seconds until a step that raised is retried; doubles at each failure, up to
MAX_PAUSE = 1.0

_Arguments = TypeVarTuple("_Arguments")


class Timer:
    """Makes one call later, unless it is stopped before.

    Invariant: ``_handle`` is set from ``start`` until the call begins, or until ``stop``. After ``stop`` the call is
    never made, even if its time has come and the event loop is late. So an owner that stops its timers when it closes
    needs no other check.
    """

    __slots__ = ("_handle",)

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None

    @property
    def running(self) -> bool:
        """Is a call due?"""
        return self._handle is not None

    def start(self, seconds: float, callback: Callable[[*_Arguments], object], *arguments: *_Arguments) -> None:
        """Call ``callback`` in ``seconds``. If another call is due, this one replaces it."""
        self.stop()
        self._handle = asyncio.get_running_loop().call_later(seconds, self._call, callback, arguments)

    def stop(self) -> None:
        """Do not make the call. Does nothing if none is due."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _call(self, callback: Callable[[*_Arguments], object], arguments: tuple[*_Arguments]) -> None:
        self._handle = None  # first: the callback may start the timer again
        callback(*arguments)


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel the tasks, and wait until all have ended, but for the caller's own. A cancellation of the caller is raised
    after that. Nobody looks at what the tasks return or raise."""
    cancelled = None
    running = {task for task in tasks if not task.done()} - {asyncio.current_task()}
    while running:
        for task in running:
            task.cancel()
        try:
            # On Python 3.11, a cancellation may get lost (cancellation.py): so again, soon.
            _, running = await asyncio.wait(running, timeout=0.01)
        except asyncio.CancelledError as error:
            cancelled = error
            running = {task for task in running if not task.done()}
    if cancelled is not None:
        try:
            raise cancelled
        finally:
            del cancelled  # no cycle through its traceback


class Loop:
    """Awaits ``step`` repeatedly, in a task. A step returns the seconds until the next one, or None: stop, until the
    next ``start``.

    Invariant: from ``start`` until a step returns None, or until ``aclose``, a step is running or scheduled.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], Awaitable[float | None]],
        on_error: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        """:param on_error: called with what a step has raised, before the step is retried"""
        self._name = name
        self._step = step
        self._on_error = on_error
        self._task: asyncio.Task[None] | None = None
        self._restart = Timer()  # runs after somebody else has cancelled the task
        self._closed = False

    @property
    def running(self) -> bool:
        return self._restart.running or (self._task is not None and not self._task.done())

    def start(self, pause: float = 0.0) -> None:
        """Run the first step in ``pause`` seconds. Does nothing if the loop runs already, or is closed."""
        if not self._closed and not self.running:
            self._task = asyncio.get_running_loop().create_task(self._run(pause), name=self._name)

    async def _run(self, pause: float | None) -> None:
        failures, known = 0, ""
        while pause is not None:
            try:
                await asyncio.sleep(pause)  # also for 0: with eager tasks, the step would run inside ``start``
                pause = await self._step()
                failures, known = 0, ""
                continue
            except asyncio.CancelledError as cancelled:
                task = asyncio.current_task()
                assert task is not None
                if self._closed:
                    raise
                if task.cancelling():
                    # The application cancels every task, perhaps because it ends. If it goes on, so does the loop.
                    self._restart.start(CANCELLED_PAUSE, self.start)
                    raise
                # Nobody has cancelled this task, but something that it awaited.
                error: Exception = RuntimeError(f"what it waited for was cancelled by somebody else {cancelled}")
            except Exception as caught:
                error = caught
            failures += 1
            pause = min(FIRST_PAUSE * 2.0 ** min(failures - 1, 10), MAX_PAUSE)
            if repr(error) != known:
                known = repr(error)
                log.error(
                    "asynclock: %s failed; retrying",
                    self._name,
                    exc_info=error,
                    extra=about("background_failed", work=self._name),
                )
            self._on_error(error)
            del error  # no reference cycle through its traceback

    def drop(self) -> bool:
        """Stop for good, as far as possible without waiting. True: ``aclose`` has work left."""
        self._closed = True
        self._restart.stop()
        if not self.running:
            return False
        assert self._task is not None
        self._task.cancel()
        return True

    async def aclose(self) -> None:
        """Stop for good: cancel the task, and wait until it has ended."""
        self._closed = True
        self._restart.stop()
        try:
            if self._task is not None:
                await end([self._task])
        finally:
            self._step, self._on_error = _no_step, lambda error: None  # no reference cycle with their owner


async def _no_step() -> float | None:
    return None


class Ticker:
    """Calls ``look`` repeatedly from a timer, first after ``usual`` seconds. ``look`` returns the seconds until the
    next call, or None for ``usual``.

    Invariant: until ``stop``, the timer is set or ``look`` is running.
    """

    def __init__(self, name: str, look: Callable[[], float | None], usual: float) -> None:
        self._name = name
        self._look: Callable[[], float | None] | None = look
        self._usual = usual
        self._known = ""
        self._timer = Timer()
        self._timer.start(usual, self._tick)

    @property
    def running(self) -> bool:
        return self._look is not None

    def stop(self) -> None:
        """Stop for good."""
        self._timer.stop()
        self._look = None  # no reference cycle with its owner

    def _tick(self) -> None:
        pause = None
        try:
            if self._look is not None:
                pause = self._look()
            self._known = ""
        except Exception as error:
            if repr(error) != self._known:
                self._known = repr(error)
                log.exception(
                    "asynclock: %s failed; retrying", self._name, extra=about("background_failed", work=self._name)
                )
        finally:
            if self._look is not None:
                self._timer.start(self._usual if pause is None else pause, self._tick)
