"""Block: what there is to stop and to wait for in the ``async with`` of a scope, its body and its tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .cancellation import Cancellation
from .whereabouts import Home

LEFT = "the block of lock {!r} is being left"


class Block:
    """The body of a scope, which runs in ``parent``, and the tasks beside it.

    There is one as soon as a scope has tasks, is stopped, or is left by an exception: most scopes never need it.

    Invariants: the parent is never cancelled once ``left`` is set; ``aborting`` is set before anything is
    cancelled, and whatever is added after that is cancelled too. Nothing is cancelled while a task runs. Once the
    block is ``closed`` (by a GeneratorExit) nobody waits for its tasks, and nobody is left to raise their errors to.
    """

    __slots__ = (
        "_done",
        "_exit",
        "_name",
        "_parent",
        "_soon",
        "_stopping",
        "_why",
        "aborting",
        "base_error",
        "cancellation",
        "closed",
        "errors",
        "failed",
        "home",
        "left",
        "stopped",
        "tasks",
        "when_done",
    )

    def __init__(self, name: str, parent: asyncio.Task[object], home: Home) -> None:
        self.tasks: set[asyncio.Task[object]] = set()
        self.errors: list[BaseException] = []  #: of tasks
        self.base_error: BaseException | None = None  #: the first of those that end the program
        self.left = False  #: the body is through
        self.aborting = False  #: body and tasks are being cancelled
        self.failed = False  #: ... because a task failed
        self.stopped = False  #: ... because of ``cancel``
        self.cancellation: Cancellation | None = None  #: of the parent
        self.closed = False
        self.when_done: Callable[[], None] | None = None  #: to be called when it is closed and all tasks are done
        self.home = home
        self._name = name
        self._parent = parent
        self._why = ""
        self._stopping: dict[asyncio.Task[object], Cancellation] = {}
        self._soon: asyncio.Handle | None = None  # to stop what there is to stop
        self._done: asyncio.Future[None] | None = None  # all tasks are
        self._exit: asyncio.Future[None] | None = None  # the scope has been left

    def add(self, task: asyncio.Task[object]) -> None:
        """Run beside the body."""
        self.tasks.add(task)
        task.add_done_callback(self._task_done)
        if self.aborting:  # an eager task may have ended the scope before it was known
            self._stop_soon()

    def abort(self, why: str) -> None:
        """Cancel the tasks, and the body if it is still inside."""
        if not self.aborting:
            self.aborting = True
            self._why = why
            self._stop_soon()

    def _stop_soon(self) -> None:
        """Not while a task runs. If it is the parent, that would be struck at the first await after the block if the
        body has none left. Or the parent waits for it; it may also be one that has begun eagerly (Python 3.12), inside
        of another. What a task awaits next then would get the cancellation, and nobody could tell who that is."""
        if asyncio.current_task() is None:
            self._stop()
        elif self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon(self._stop)

    def _stop(self) -> None:
        self._soon = None
        for task in list(self.tasks):
            if task not in self._stopping:
                self._stopping[task] = Cancellation(task, self._why)
        if not self.left and self.cancellation is None:
            self.cancellation = Cancellation(self._parent, self._why, self.home)

    def leave(self) -> None:
        """The body is through: it is not to be cancelled any more."""
        self.left = True
        if self.cancellation is not None:
            self.cancellation.stop()

    def take_back(self) -> None:
        """The parent is no longer to be stopped by this."""
        if self.cancellation is not None:
            for _ in range(self.cancellation.count):
                self._parent.uncancel()

    async def tasks_done(self, why: Callable[[], str]) -> asyncio.CancelledError | None:
        """Wait for the tasks. A cancellation meanwhile stops them, and is returned."""
        cancelled = None
        while self.tasks:
            self._done = asyncio.get_running_loop().create_future()
            try:
                await self._done
            except asyncio.CancelledError as outside:
                cancelled = outside
                self.abort(why())
            self._done = None
        try:
            return cancelled
        finally:
            del cancelled  # no cycle through its traceback

    def tell_loop(self, errors: list[BaseException]) -> None:
        """Of tasks, when there is nobody else to be told."""
        for error in errors:
            message = f"a task of lock {self._name!r} failed, and its block was closed"
            asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})

    def exit(self) -> asyncio.Future[None]:
        """Done when the scope has been left."""
        if self._exit is None:
            self._exit = asyncio.get_running_loop().create_future()
        return self._exit

    def excuse(self) -> None:
        """Whoever waits for the exit need not."""
        if self._exit is not None and not self._exit.done():
            self._exit.set_result(None)

    def close(self) -> None:
        """The scope has been left."""
        self.excuse()
        if self._soon is not None:
            self._soon.cancel()
        for each in self._stopping.values():
            each.stop()
        self._stopping.clear()
        self.errors = []  # no cycles through tracebacks: the group has the old list
        self.base_error = None

    def _task_done(self, task: asyncio.Task[object]) -> None:
        self.tasks.discard(task)
        if self._done is not None and not self.tasks and not self._done.done():
            self._done.set_result(None)
        error = None if task.cancelled() else task.exception()
        if self.when_done is not None and not self.tasks:
            self.when_done()
        if error is None:
            return
        if self.closed:
            self.tell_loop([error])
            return
        self.errors.append(error)
        if self.base_error is None and isinstance(error, SystemExit | KeyboardInterrupt):
            self.base_error = error
        if not self.aborting:
            self.failed = True
            self.abort(LEFT.format(self._name))
