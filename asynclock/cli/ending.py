"""How ``status``, ``watch`` and ``break`` end: exit statuses, signals, and output that nobody reads any more."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import signal
import stat
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any

from asynclock import AsyncLockError, ConfigurationError

from .exit_status import FAILED, WRONG_USAGE
from .standard_files import open_standard_files
from .stderr import LinesOnStderr, write_line
from .texts import safe


class Stopped(BaseException):
    """A signal came while this thread was blocked."""


class Ending:
    """Runs a command, and turns whatever ends it into an exit status.

    State: ``_task`` is the command while it runs. ``_signal`` is the signal that ends it, and ``_unread`` is true if it
    ends since nobody reads its output any more. ``_blocked`` is true while this thread may wait for a reader or an
    answer: then the event loop cannot act on a signal.
    """

    def __init__(self, command: str, *, for_readers: bool = False) -> None:
        """:param for_readers: it ends, with status 0, when nobody reads its output any more. The others do what they
        are there for, and their exit status says what came of it"""
        self._command = command
        self._for_readers = for_readers
        self._task: asyncio.Task[int] | None = None
        self._signal: int | None = None
        self._unread = False
        self._blocked = False

    def run(self, work: Callable[[], Coroutine[Any, Any, int]]) -> int:
        """Run it. Returns the exit status."""
        open_standard_files()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._stop)
        log, handler = logging.getLogger("asynclock"), LinesOnStderr(logging.CRITICAL)
        log.addHandler(handler)
        try:
            return asyncio.run(self._run(work))
        except BaseException as error:
            return self._status(_first(error))
        finally:
            log.removeHandler(handler)

    def _status(self, error: BaseException) -> int:
        match error:
            case Stopped() | asyncio.CancelledError() if self._signal is not None:
                if isinstance(error, Stopped):
                    _forget_output()
                return 128 + self._signal
            case asyncio.CancelledError() if self._unread:
                _forget_output()
                return 0
            case BrokenPipeError() if self._for_readers:
                return 0
            case ConfigurationError():
                self.say(str(error))
                return WRONG_USAGE
            case AsyncLockError():
                self.say(str(error))
                return FAILED
            case OSError():  # the disk is full, for example
                _forget_output()
                self.say(str(error))
                return FAILED
            case Exception():
                self.say("failed:\n" + "".join(traceback.format_exception(error)))
                return FAILED
        raise error

    async def _run(self, work: Callable[[], Coroutine[Any, Any, int]]) -> int:
        self._task = asyncio.current_task()
        if self._signal is not None:
            raise asyncio.CancelledError
        loop = asyncio.get_running_loop()
        pipe = _stdout_pipe() if self._for_readers else None
        if pipe is not None:  # the other end may be closed long before there is something to write
            loop.add_reader(pipe, self._reader_gone, pipe)
        try:
            return await work()
        finally:
            if pipe is not None:
                loop.remove_reader(pipe)

    def _reader_gone(self, pipe: int) -> None:
        asyncio.get_running_loop().remove_reader(pipe)
        self._unread = True
        if self._task is not None:
            self._task.cancel()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        if self._blocked:
            raise Stopped
        if self._task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the command is ending anyway
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        """Around what waits for somebody: a reader that does not read, or an answer. In the task of the command only:
        elsewhere ``Stopped`` would not end it."""
        self._blocked = True
        try:
            yield
        finally:
            self._blocked = False

    @contextlib.contextmanager
    def output(self) -> Iterator[None]:
        """Around what writes to stdout, as ``blocked``. Nothing more is written once nobody reads it."""
        with self.blocked():
            try:
                yield
            except BrokenPipeError:
                _forget_output()
                if self._for_readers:
                    raise

    def tell(self, line: str) -> None:
        """A line on stdout, at once."""
        with self.output():
            print(line, flush=True)

    def ask(self, question: str) -> str:
        """The answer on stdin, in lower case; empty if there is none."""
        with self.blocked():
            print(question, end=" ", file=sys.stderr, flush=True)
            return sys.stdin.readline().strip().lower()

    def say(self, what: str) -> None:
        """A line on stderr."""
        lines = "\n".join(map(safe, what.splitlines()))
        write_line(f"asynclock {self._command}: {lines}")


def _first(error: BaseException) -> BaseException:
    """The first one, if it is a group of exceptions (of a task group)."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _forget_output() -> None:
    """What is still in the buffer of stdout cannot be written. Python would try again at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _stdout_pipe() -> int | None:
    """stdout, if it is a pipe that this process only writes to: it becomes readable when its reader is gone."""
    if sys.platform != "win32":
        import fcntl

        with contextlib.suppress(OSError):
            if stat.S_ISFIFO(os.fstat(1).st_mode) and fcntl.fcntl(1, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                return 1
    return None
