"""An event loop in a thread of its own: what runs there goes on whatever the caller's thread does."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any


class Job:
    """A coroutine that runs in :class:`Elsewhere`. ``over`` is done when it has ended, by itself or after
    :meth:`cancel`; then it has the exception, if that is not a cancellation."""

    def __init__(self, loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, None]) -> None:
        self.over: Future[None] = Future()
        self._loop = loop
        self._coro = coro
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        loop.call_soon_threadsafe(self._begin)

    def cancel(self) -> None:
        """Stop it. Does not wait, and does nothing the second time: a second one would stop the clearing up."""
        if not self._cancelled:
            self._cancelled = True
            self._loop.call_soon_threadsafe(self._stop)

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._coro)
        self._task.add_done_callback(self._end)

    def _stop(self) -> None:
        assert self._task is not None  # _begin was called first
        self._task.cancel()

    def _end(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is None:
            self.over.set_result(None)
        else:
            self.over.set_exception(error)


class Elsewhere:
    """The thread starts with the first job, and ends with :meth:`close`. It never keeps the interpreter from ending."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = threading.Lock()

    def start(self, coro: Coroutine[Any, Any, None]) -> Job:
        with self._starting:
            if self._loop is None:
                ready = threading.Event()
                self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True, name="asynclock.testing")
                self._thread.start()
                ready.wait()
        assert self._loop is not None
        return Job(self._loop, coro)

    def close(self) -> None:
        """Cancel what still runs, wait for its end, and end the thread. Does nothing the second time."""
        with self._starting:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._ending.set)
                self._thread.join()
                self._loop = None

    def _run(self, ready: threading.Event) -> None:
        with asyncio.Runner() as runner:  # cancels all tasks
            runner.run(self._serve(ready))

    async def _serve(self, ready: threading.Event) -> None:
        self._ending = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        ready.set()
        await self._ending.wait()
