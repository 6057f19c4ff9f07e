"""Tasks: those that run beside the body of a block."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .cancellation import Cancellation


class Tasks:
    """The tasks of a block that still run, and the errors of those that failed."""

    __slots__ = ("_all_done", "_cancellations", "base_error", "errors", "running")

    def __init__(self) -> None:
        self.running: set[asyncio.Task[object]] = set()
        self.errors: list[BaseException] = []
        self.base_error: BaseException | None = None  #: the first SystemExit or KeyboardInterrupt
        self._cancellations: dict[asyncio.Task[object], Cancellation] = {}
        self._all_done: asyncio.Future[None] | None = None  # while somebody waits for it

    def add(self, task: asyncio.Task[object], done: Callable[[asyncio.Task[object]], None]) -> None:
        self.running.add(task)
        task.add_done_callback(done)

    def end(self, task: asyncio.Task[object]) -> BaseException | None:
        """``task`` is done. Returns its error, if it failed."""
        self.running.discard(task)
        if self._all_done is not None and not self.running and not self._all_done.done():
            self._all_done.set_result(None)
        return None if task.cancelled() else task.exception()

    def failed(self, error: BaseException) -> None:
        """Keep the error of a task."""
        self.errors.append(error)
        if self.base_error is None and isinstance(error, SystemExit | KeyboardInterrupt):
            self.base_error = error

    def cancel(self, why: str) -> None:
        """Cancel those that have not been cancelled yet."""
        for task in list(self.running):
            if task not in self._cancellations:
                self._cancellations[task] = Cancellation(task, why)

    async def wait(self) -> None:
        """Wait until none is running."""
        self._all_done = asyncio.get_running_loop().create_future()
        await self._all_done

    def forget(self) -> None:
        """The block has been left."""
        for each in self._cancellations.values():
            each.stop()
        self._cancellations.clear()
        self.errors = []  # no cycles through tracebacks: the exception group has the old list
        self.base_error = None
