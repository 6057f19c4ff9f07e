"""Work that goes on in the background until it is closed, whatever is raised in it.

Every task and every timer of asynclock that runs for as long as a connection or a locker is one of these two. What a
step raises that nobody has thought of is logged once, told to ``on_error``, and the step is tried again: a lock must
not depend on foreign code (a credential provider, redis-py, the resolver) or on an answer that no server should give.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger("asynclock")

CANCELLED_PAUSE = (
    0.5  # seconds after somebody has cancelled a loop until it begins anew; a program that ends is through
)
FIRST_PAUSE = 0.01  # seconds after a step that failed in a way nobody has thought of; then twice as long, up to
MAX_PAUSE = 1.0


class Loop:
    """Awaits ``step`` again and again, in a task. It returns the seconds until it is to be done again, or None
    when it is through, until ``start``.

    Invariant: from ``start`` until ``step`` is through, or ``aclose``, a step is under way or due.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], Awaitable[float | None]],
        on_error: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self._name = name
        self._step = step
        self._on_error = on_error
        self._task: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None  # after somebody else has cancelled it
        self._closed = False

    @property
    def running(self) -> bool:
        return self._again is not None or (self._task is not None and not self._task.done())

    def start(self, pause: float = 0.0) -> None:
        """Begin, in so many seconds; unless it runs, or is closed."""
        if not self._closed and not self.running:
            self._task = asyncio.get_running_loop().create_task(self._run(pause), name=self._name)

    async def _run(self, pause: float | None) -> None:
        failures, known = 0, ""
        while pause is not None:
            try:
                await asyncio.sleep(pause)  # 0 too: an eager task begins within ``start``
                pause = await self._step()
                failures, known = 0, ""
                continue
            except asyncio.CancelledError as cancelled:
                task = asyncio.current_task()
                assert task is not None
                if self._closed:
                    raise
                if task.cancelling():
                    # An application that cancels all tasks that there are: at its end, or not.
                    self._again = asyncio.get_running_loop().call_later(CANCELLED_PAUSE, self._begin_anew)
                    raise
                # Nobody has cancelled this task: it is about something that was awaited here.
                error: Exception = RuntimeError(f"what it waited for was cancelled by somebody else {cancelled}")
            except Exception as caught:
                error = caught
            failures += 1
            pause = min(FIRST_PAUSE * 2.0 ** min(failures - 1, 10), MAX_PAUSE)
            if repr(error) != known:
                known = repr(error)
                log.error("asynclock: %s failed, and is tried again", self._name, exc_info=error)
            self._on_error(error)
            del error  # no cycle through its traceback

    def _begin_anew(self) -> None:
        self._again = None
        self.start()

    def _stop_anew(self) -> None:
        self._closed = True
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def drop(self) -> bool:
        """End it for good, as far as that can be done without waiting. Is there more to it, for ``aclose``?"""
        self._stop_anew()
        if not self.running:
            return False
        assert self._task is not None
        self._task.cancel()
        return True

    async def aclose(self) -> None:
        """End it for good. What it awaits is cancelled; nothing of it runs on."""
        self._stop_anew()
        while self.running:
            assert self._task is not None
            self._task.cancel()
            await asyncio.wait([self._task], timeout=0.01)  # on Python 3.11 one may get lost (cancellation.py)
        self._step, self._on_error = _over, lambda error: None  # no cycle with their owner


async def _over() -> float | None:
    return None


class Ticker:
    """Calls ``look`` again and again, by a timer, for the first time after the ``usual`` seconds. It returns the
    seconds until the next time, or None for the usual ones.

    Invariant: until ``stop``, a timer is set or a look is under way.
    """

    def __init__(self, name: str, look: Callable[[], float | None], usual: float) -> None:
        self._name = name
        self._look: Callable[[], float | None] | None = look
        self._usual = usual
        self._known = ""
        self._timer = asyncio.get_running_loop().call_later(usual, self._tick)

    @property
    def running(self) -> bool:
        return self._look is not None

    def stop(self) -> None:
        """For good."""
        self._timer.cancel()
        self._look = None  # no cycle with its owner

    def _tick(self) -> None:
        pause = None
        try:
            if self._look is not None:
                pause = self._look()
            self._known = ""
        except Exception as error:
            if repr(error) != self._known:
                self._known = repr(error)
                log.exception("asynclock: %s failed, and is tried again", self._name)
        finally:
            if self._look is not None:
                after = self._usual if pause is None else pause
                self._timer = asyncio.get_running_loop().call_later(after, self._tick)
