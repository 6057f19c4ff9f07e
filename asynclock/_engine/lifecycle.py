"""Lifecycle: where a locker is in its life, and what moves it on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from enum import Enum
from threading import get_ident

from ..errors import ConfigurationError, LockerClosedError

NEW_LOOPS = "asyncio.run() and async_to_sync() start a new one each time; synchronous code uses asynclock.sync.Locker"
NO_LOOP = "use asynclock.sync.Locker in synchronous code and, with trio, in a thread (trio.to_thread.run_sync)"


class State(Enum):
    NEW = "new"  #: not connected
    OPENING = "opening"  #: connecting
    OPEN = "open"  #: connected: locks can be acquired
    CLOSING = "closing"  #: no lock can be acquired any more; keys and connections are still being given up
    CLOSED = "closed"  #: nothing of it runs
    FORKED = "forked"  #: a copy in the child of a fork: its connections are the parent's, and nothing is ever sent


def closed_error(locker: str) -> LockerClosedError:
    return LockerClosedError(f"{locker}: make a new Locker")


class Lifecycle:
    """The state of one locker. Each arrow is taken in one place: ``open``, ``_open``, ``_failed``, ``close``,
    ``end`` and ``fork``::

              open()          connected            close()             work is done
        NEW ----------> OPENING ----------> OPEN ----------> CLOSING ---------------> CLOSED
         ^                 |                                    ^
         +---- failed -----+------------- close() --------------+  (and from NEW)

        OPENING, OPEN, CLOSING, CLOSED ---- fork(), in the child ----> FORKED

    Invariants:

    - ``loop`` is the event loop that the locker belongs to: set with OPENING, for good unless connecting fails.
    - ``serving`` is that loop while OPEN, otherwise None; ``thread`` is the thread that it runs in. Acquiring a lock
      looks at these two and at nothing else.
    - ``connected`` is set when connecting succeeds, for good: all that follows from the servers' kind is known.
    - ``opening`` is the task that connects while OPENING, otherwise None. ``_closing`` is set with CLOSING, for good.
    """

    __slots__ = ("_closing", "_hurry", "connected", "loop", "opening", "serving", "state", "thread")

    _hurry: asyncio.Future[None]  # set with _closing; once it is done, close does not wait for blocks to be left

    def __init__(self) -> None:
        self.state = State.NEW
        self.loop: asyncio.AbstractEventLoop | None = None
        self.serving: asyncio.AbstractEventLoop | None = None
        self.thread = 0
        self.connected = False
        self.opening: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        """For programmers who use the locker: new, open, closed or forked."""
        if self.forked:
            return "forked"
        return "closed" if self.closed else "open" if self.connected else "new"

    @property
    def forked(self) -> bool:
        return self.state is State.FORKED

    @property
    def closed(self) -> bool:
        """It is closed, or being closed."""
        return self.state is State.CLOSING or self.state is State.CLOSED

    @property
    def needs_closing(self) -> bool:
        """Is it OPENING or OPEN? Any thread may ask."""
        return self.serving is not None or self.opening is not None

    @property
    def can_send(self) -> bool:
        """May there be a connection to send something on? Not if its loop is closed, nor in a forked child's copy."""
        return not self.forked and self.loop is not None and not self.loop.is_closed()

    def check(self, locker: str) -> None:
        """Can ``locker`` (its repr) acquire locks here, or be connected here?

        :raises ConfigurationError: it belongs to another process or event loop
        :raises LockerClosedError: it is closed
        """
        if self.forked:
            raise ConfigurationError(f"{locker} was connected before a fork; make a new Locker in the child process")
        if self.closed:
            raise closed_error(locker)
        self.check_loop(locker, f"make a Locker for each event loop, inside of it; {NEW_LOOPS}")

    def check_loop(self, locker: str, advice: str) -> None:
        """:raises ConfigurationError: it belongs to another event loop than the running one, or none runs here"""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError(
                f"{locker} needs an event loop of asyncio, and none runs here; {NO_LOOP}"
            ) from None
        if self.loop is not None and self.loop is not running:
            raise ConfigurationError(f"{locker} belongs to another event loop; {advice}")

    def call_soon(self, call: Callable[[], object]) -> None:
        """Call it in the loop, from whatever thread. Not if nothing runs in that loop any more."""
        if self.loop is not None and not self.forked:
            with contextlib.suppress(RuntimeError):  # it is closed
                self.loop.call_soon_threadsafe(call)

    # The arrows: what moves a locker from one state to the next

    def open(self, connect: Callable[[], Awaitable[None]], name: str) -> asyncio.Task[None]:
        """Connect in the running loop, once for all callers. The task raises as ``connect``; ``close`` cancels it."""
        if self.opening is not None:
            if not self.opening.done():
                return self.opening
            self._failed()  # cancelled before its first step, and ``_opened`` is still to be called
        assert self.state is State.NEW
        self.state = State.OPENING
        self.loop = asyncio.get_running_loop()
        opening = self.loop.create_task(self._open(connect), name=name)
        opening.add_done_callback(self._opened)
        if not opening.done():  # an eager task may fail before it is known here
            self.opening = opening
        return opening

    async def _open(self, connect: Callable[[], Awaitable[None]]) -> None:
        try:
            await connect()
        except BaseException:
            self._failed()
            raise
        self.opening = None
        self.connected = True
        if self.state is State.OPENING:
            self.state = State.OPEN
            self.serving, self.thread = self.loop, get_ident()

    def _opened(self, opening: asyncio.Task[None]) -> None:
        if not opening.cancelled():
            opening.exception()  # if nobody waits for it any more, asyncio would complain that nobody looked at it
        if self.opening is opening:
            self._failed()  # cancelled before its first step

    def _failed(self) -> None:
        self.opening = self.loop = None
        if self.state is State.OPENING:
            self.state = State.NEW

    def close(
        self,
        work: Callable[[asyncio.Future[None]], Awaitable[None]],
        name: str,
        *,
        hurry: bool = False,
        cancelled: Callable[[], object] = lambda: None,
    ) -> None:
        """Stop connecting, then do the ``work`` in a task of the running loop.

        :param work: called with a future; once that is done, it does not wait for blocks to be left
        :param hurry: it is done already
        :param cancelled: called if somebody has cancelled the task, as programs do that cancel every task at their
            end, perhaps before its first step: does what can be done without waiting
        """
        assert not self.closed and not self.forked
        self.state = State.CLOSING
        opening, self.opening, self.serving = self.opening, None, None
        loop = asyncio.get_running_loop()
        self._hurry = loop.create_future()
        if hurry:
            self._hurry.set_result(None)
        self._closing = loop.create_task(self._close(opening, work), name=name)
        self._closing.add_done_callback(lambda closing: self._closed(closing, cancelled))

    async def _close(
        self, opening: asyncio.Task[None] | None, work: Callable[[asyncio.Future[None]], Awaitable[None]]
    ) -> None:
        try:
            if opening is not None:
                opening.cancel()
                await asyncio.wait([opening])
        finally:
            try:
                await work(self._hurry)
            finally:
                self.end()

    def _closed(self, closing: asyncio.Task[None], cancelled: Callable[[], object]) -> None:
        if closing.cancelled():
            try:
                cancelled()
            finally:
                self.end()

    def end(self) -> None:
        """Nothing of it runs any more."""
        self.serving = None
        if not self.forked:
            self.state = State.CLOSED

    async def wait_closed(self) -> None:
        """Wait until the work of ``close`` has ended, and raise what it raised. If somebody has cancelled that work,
        return: what could be done without waiting is done. If the caller is cancelled, the work hurries, and this still
        waits for its end."""
        closing, cancelled = self._closing, None
        while closing is not None and not closing.done():
            try:
                await asyncio.wait([closing])
            except asyncio.CancelledError as error:
                cancelled = error
                if not self._hurry.done():
                    self._hurry.set_result(None)
        if cancelled is not None:
            try:
                raise cancelled
            finally:
                del cancelled  # no cycle through its traceback
        if closing is not None and not closing.cancelled():
            closing.result()

    def fork(self) -> bool:
        """This process is the child of a fork. False: the locker was not connected, and can be used here."""
        if self.loop is None:
            return False
        self.state = State.FORKED
        self.opening = self.serving = None
        return True
