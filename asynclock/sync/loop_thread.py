"""The thread of this process that runs an event loop for all others, and their calls into it."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from .._engine import forks
from ..errors import ConfigurationError, LockerClosedError
from ..locker import Locker as AsyncLocker

T = TypeVar("T")

# anyio would import this at its first use. Were another thread to fork in that moment, the child would have half of it.
importlib.import_module("anyio._backends._asyncio")

UNDO = 1.0  # seconds that a thread whose call was interrupted waits for that to be undone
AT_EXIT = 0.5  # seconds that the end of the process waits for daemon threads to leave their blocks
STOP = 5.0  # seconds within which the loop ends, or the process ends without that


def refuse_in_event_loop() -> None:
    """:raises ConfigurationError: an event loop runs in this thread, and would be blocked"""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigurationError(
        "asynclock.sync blocks its thread, and an event loop runs in this one: use asynclock.Locker, with 'async with' "
        "and 'await', or make the call in another thread, with asyncio.to_thread"
    )


def _refuse_greenlets() -> None:
    """:raises ConfigurationError: gevent or eventlet has replaced threads

    All that they call threads runs in one, and so would the loop: every wait for it would find it there.
    """
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    if gevent is not None and gevent.is_module_patched("threading"):
        library = "gevent"
    elif eventlet is not None and eventlet.is_monkey_patched("thread"):
        library = "eventlet"
    else:
        return
    raise ConfigurationError(
        f"asynclock.sync extends locks in a thread of its own, and {library} has replaced the threads of this process: "
        "use workers with real threads or processes (gunicorn --worker-class gthread, celery --pool prefork or threads)"
    )


class Latch:
    """Is set once, by any thread, and one thread waits for that.

    To set it never blocks. That of ``threading.Event`` does, for ever, if a signal's handler has raised an exception at
    the wrong place of a wait; and what blocks the loop loses every lock of the process.
    """

    __slots__ = ("_lock", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        self.is_set = True
        with contextlib.suppress(RuntimeError):  # it was set before
            self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, at most ``timeout`` seconds."""
        if not self.is_set:
            self._lock.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))
        return self.is_set


class LoopThread:
    """A thread that runs an event loop, from the first locker that is used until the last one is closed.

    It hosts an anyio ``BlockingPortal``, which keeps the loop running until it is stopped. Calls go to the loop
    directly: the portal answers once when it has begun a call, and again when that has ended, which doubles the time of
    a lock's cycle.

    Invariants: ``lockers`` are those that are to be closed before the loop ends; it is changed under ``_process.lock``.
    Every call that a thread waits for is in ``calls`` until it is over, and is over at the latest when the loop has
    ended: no thread waits for a loop that will never answer. In the child of a fork, nothing is ever sent to the loop,
    whose thread is the parent's.
    """

    _loop: asyncio.AbstractEventLoop
    _portal: BlockingPortal

    def __init__(self) -> None:
        """Start it. Raises what prevented that: OSError (no file descriptor is left), RuntimeError (no thread),
        ConfigurationError (it would be no thread)."""
        _refuse_greenlets()
        self.lockers: set[AsyncLocker] = set()
        self.calls: set[Call[Any]] = set()
        self.ending = False  # what runs in the loop is cancelled now, and nothing begins any more
        self.ended = False
        self.exiting = False  # the process ends
        self.forked = False
        self._failure: Exception | None = None
        self._unwanted = False
        self._tasks: set[asyncio.Task[Any]] = set()  # asyncio itself does not keep them
        self._ready = Latch()
        self._thread = threading.Thread(target=self._run, name="asynclock", daemon=True)
        forks.register(self)
        try:
            self._thread.start()
            self._ready.wait()
            if self._failure is not None:
                raise self._failure
        except BaseException:  # of those, or KeyboardInterrupt, or what a signal's handler has raised
            self._unwanted = True
            if self._ready.is_set and not self.ended:
                self.stop()
            raise

    def is_this(self) -> bool:
        """Does this run in that thread, as callbacks do?"""
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        try:
            anyio.run(self._serve)
        except Exception as error:
            if self._ready.is_set:
                raise
            self._failure = error
        finally:
            self.ended = True
            self._ready.set()
            for call in list(self.calls):
                call.end()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with BlockingPortal() as self._portal:
            self._ready.set()
            if not self._unwanted:
                await self._portal.sleep_until_stopped()
        self.ending = True

    def fork(self) -> None:
        self.forked = True
        forks.keep(self)

    @property
    def gone(self) -> bool:
        """Nothing is done in the loop any more."""
        return self.forked or self.ended

    # From any thread

    def post(self, call: Callable[[], object]) -> bool:
        """Call it soon in the loop. False: the loop has ended."""
        if self.gone:
            return False
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            return False  # it is closed
        return True

    def stop(self) -> None:
        """End the loop, soon."""
        self.post(lambda: self.spawn(self._portal.stop()))

    def join(self, timeout: float | None = None) -> None:
        """Wait until the loop has ended."""
        self._thread.join(timeout)

    def end_with_process(self) -> None:
        """While the process exits, block a daemon thread, so that it ends with the process and prints no traceback. (It
        goes on after ``2 * AT_EXIT`` seconds if the process still runs: something may wait for the thread.)"""
        if self.exiting and threading.current_thread().daemon:
            Latch().wait(2 * AT_EXIT)

    def dismiss(self, locker: AsyncLocker) -> bool:
        """The locker is closed. True: it was the last one, and the loop ends soon."""
        with _process.lock:
            self.lockers.discard(locker)
            if self.lockers:
                return False
            if _process.thread is self:
                _process.thread = None
        self.stop()
        return True

    # In the loop

    def spawn(self, work: Coroutine[Any, Any, object]) -> None:
        if self.ending:
            work.close()
            return
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def forget(self, locker: AsyncLocker) -> None:
        """Close a locker that the program has forgotten."""

        async def close() -> None:
            try:
                await locker.aclose()
            finally:
                self.dismiss(locker)

        self.spawn(close())

    async def close_all(self) -> None:
        """The process ends: close every locker. Daemon threads have a moment to leave their blocks."""
        closing = [asyncio.ensure_future(locker.aclose()) for locker in self.lockers]
        if closing:
            await asyncio.wait(closing, timeout=AT_EXIT)
            for each in closing:
                each.cancel()  # then it does not wait for blocks any more
            await asyncio.gather(*closing, return_exceptions=True)


class Call(Generic[T]):
    """A coroutine that runs in the loop, for a thread that waits for it.

    Invariant: ``over`` is set once, by ``end``. If the thread stops waiting (KeyboardInterrupt, or what a signal's
    handler raises), the coroutine is cancelled, and ``undo`` is awaited with what it has returned, or with ``None``.
    """

    __slots__ = ("_error", "_given_up", "_task", "_thread", "_undo", "_value", "_work", "over")

    def __init__(
        self,
        thread: LoopThread,
        work: Callable[[], Coroutine[Any, Any, T]],
        undo: Callable[[T | None], Coroutine[Any, Any, object]] | None = None,
    ) -> None:
        self._thread = thread
        self._work = work
        self._undo = undo
        self._task: asyncio.Task[None] | None = None
        self._value: tuple[T] | None = None
        self._error: Exception | None = None
        self._given_up = False
        self.over = Latch()

    # In the thread

    def start(self) -> None:
        try:
            self._thread.calls.add(self)
            if not self._thread.post(self._begin) or self._thread.ended:
                self.end()
        except BaseException:  # interrupted
            self._thread.calls.discard(self)
            raise

    def result(self) -> T:
        """Start, and wait for the end. Raises what the coroutine raises.

        :raises LockerClosedError: the loop has ended before
        """
        try:
            self.start()
            self.over.wait()
            if self._value is not None:
                return self._value[0]
        except BaseException:
            self._given_up = True
            undoing = Call(self._thread, self._take_back)
            undoing.start()
            undoing.over.wait(UNDO)
            raise
        error, self._error = self._error, None
        error = error or LockerClosedError("the locker was closed, or the process ends: make a new Locker")
        if isinstance(error, LockerClosedError):
            self._thread.end_with_process()
        try:
            raise error
        finally:
            del error  # no cycle through its traceback

    # In the loop

    def _begin(self) -> None:
        if self._given_up or self._thread.ending:
            self.end()
        else:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            self._value = (await self._work(),)
        except asyncio.CancelledError:
            pass  # given up, or the loop ends
        except Exception as error:
            self._error = error
        finally:
            self.end()

    async def _take_back(self) -> None:
        if self._task is not None:  # else it was not begun, and never will be
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._undo is not None:
            await self._undo(None if self._value is None else self._value[0])

    # In either

    def end(self) -> None:
        self._thread.calls.discard(self)
        self.over.set()


class _Process:
    """What there is once in a process, and anew in the child of a fork.

    Invariant: ``thread`` takes new lockers. One that has had its last locker closed is here no more.
    """

    thread: LoopThread | None
    ends_as_child: bool  # it is known what to do when a child of multiprocessing ends

    def __init__(self) -> None:
        self._begin()

    def fork(self) -> None:
        self._begin()  # with another lock: a thread that is not here may hold this one

    def _begin(self) -> None:
        self.lock = threading.RLock()  # a signal's handler may close a locker while its thread makes one
        self.thread = None
        self.ends_as_child = False

    def enlist(self, locker: AsyncLocker) -> LoopThread:
        """The thread that serves the locker, until ``dismiss``."""
        with self.lock:
            if self.thread is None or self.thread.ended:
                self.thread = LoopThread()
                if not self.ends_as_child:
                    self.ends_as_child = True
                    _at_end_of_child()
            self.thread.lockers.add(locker)
            return self.thread


_process = _Process()
forks.register(_process)
enlist = _process.enlist


def close_all() -> None:
    """The process ends. Daemon threads may still run, others do not."""
    thread = _process.thread
    if thread is not None:
        thread.exiting = True
        call = Call(thread, thread.close_all)
        call.start()
        call.over.wait(STOP)
        thread.stop()
        thread.join(STOP)


# At import, and so after the functions of most others, which may still use locks.
atexit.register(close_all)


def _at_end_of_child() -> None:
    """A child of multiprocessing, if it was forked, ends without calling what ``atexit`` knows."""
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None and multiprocessing.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, _close_child, exitpriority=0)


def _close_child() -> None:
    for thread in threading.enumerate():  # multiprocessing waits for these, too, but only after this
        if thread is not threading.current_thread() and not thread.daemon:
            with contextlib.suppress(RuntimeError):
                thread.join()
    close_all()
