"""A server that takes locks away from their holders, and holds them as somebody else."""

import asyncio
import contextlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Generator
from concurrent.futures import Future, wait
from types import TracebackType
from typing import Any, Self

from ..locker import Locker
from .elsewhere import Elsewhere, Job
from .losses import Cause, HeldKeys, cause_of, find
from .servers import Server

_HELD_LIMIT = 10.0  # seconds within which somebody has to hold the lock that is to be lost
_POLL = 0.005


class LockServer(Server):
    """A :class:`Server` that also makes a holder lose its lock, and holds locks as another process would. The fixture
    ``lock_server`` is one. The parameters are those of :class:`Server`.

    What it does to locks, it does in a thread, over connections of its own: it never holds up the event loop of a
    test. In a coroutine, use ``async with`` or ``await``: ``with`` cannot wait there.
    """

    def __init__(self, kind: str | os.PathLike[str] = "valkey-9.1", **settings: Any) -> None:
        super().__init__(kind, **settings)
        self._elsewhere = Elsewhere()
        self._deeds: set[Deed] = set()

    def lose(self, name: str, reason: str = "deleted", after: float = 0.1) -> "PlannedLoss":
        """Make whoever holds the lock lose it, by what causes that loss in production::

            async with lock_server.lose("report", "disconnected"):   # or with, in a function without async
                with pytest.raises(LockLostError):
                    await work()

            lock_server.lose("report")                               # as a call: it happens in the background

        It happens once the lock has been held for ``after`` seconds, counted from this call if it is held already.
        Leaving the block waits until it has happened, unless the block raises, and clears up what would last. A call
        without a block is cleared up when the test ends (with the server, if you started that yourself).

        - ``deleted``: its keys are deleted
        - ``overwritten``: its keys are set to another value; until the end of the block
        - ``expired``: the server is silent until the keys have expired, which takes as long as they have left: at most
          the holder's ``key_validity``
        - ``flushed``: all keys are flushed
        - ``taken over``: another locker takes it over by force, and holds it until the end of the block
        - ``forgotten``: the connections break, and the server comes back without the keys
        - ``disconnected``: the server is killed, and is down until the end of the block; it comes back without keys

        ``expired``, ``flushed``, ``forgotten`` and ``disconnected`` happen to all locks and connections of the server.

        :param name: of the lock, with any ``key_prefix`` and ``key_majority``, in database 0
        :param reason: a ``LossReason`` or its text: the holder's ``lost_reason`` will be this one
        :param after: seconds
        :raises ValueError: there is no such reason, or nothing that happens to a server causes it (``closed``,
            ``released``); the message says what to do instead
        :raises RuntimeError: the server was never started
        """
        cause = cause_of(reason)
        _ = self.port  # raises before start()
        if not after >= 0:
            raise ValueError(f"after={after!r}: must be 0 or more seconds")
        return PlannedLoss(self, name, str(reason), cause, float(after))

    def hold(self, name: str, **options: Any) -> "Hold":
        """Hold the lock as another process would, with a ``Locker`` of its own, until the block is left::

            async with lock_server.hold("report"):        # or with, in a function without async
                assert (await client.post("/report")).status_code == 423

        Leaving the block releases it, which wakes whoever waits for it.

        :param name: of the lock
        :param options: of that locker, if yours has others than the defaults: ``key_prefix="jobs"``

        Entering raises ``NotLockedError`` if the lock is held already.
        """
        return Hold(self, name, options)

    def settle(self) -> None:
        """End every :meth:`lose` and :meth:`hold`, and clear up after them. The fixture does so when a test ends.

        :raises TimeoutError: a lock that was to be lost was never held for long enough; the message names it
        """
        errors = [error for deed in list(self._deeds) if (error := deed._finish()) is not None]
        if errors:
            raise errors[0]

    def reset(self) -> None:
        """:meth:`settle`, make sure that the server runs and answers, and delete all keys. The fixture does so before
        each test. Raises as :meth:`settle` and :meth:`start`."""
        self.settle()
        if self.running:
            self.resume()
        else:
            self.start()
        self.execute("FLUSHALL")

    def close(self) -> None:
        """:meth:`settle`, kill the server and remove its data directory. Does nothing the second time."""
        try:
            self.settle()
        finally:
            self._elsewhere.close()
            super().close()


class Deed(ABC):
    """What a :class:`LockServer` does in its thread, from its beginning to the end of a block."""

    # Invariants: _done is set when it has happened (the lock is lost, or held), or with the error that prevented it.
    # _job.over is set, after that, when all is cleared up. Nobody can cancel these futures: they are running. The
    # server keeps a deed until its block is left and all is cleared up, or until settle(), which tells what went wrong
    # unless the caller is _informed.

    def __init__(self, server: LockServer) -> None:
        self._server = server
        self._done: Future[None] = Future()
        self._done.set_running_or_notify_cancel()
        self._left = False
        self._informed = False
        self._job: Job | None = None

    def _start(self) -> None:
        if self._job is not None:
            raise RuntimeError(f"{self} was used before: call it again")
        self._server._deeds.add(self)
        self._job = self._server._elsewhere.start(self._live())
        self._job.over.add_done_callback(self._ended)

    @abstractmethod
    async def _live(self) -> None:
        """From the beginning to the end of it."""

    def _ended(self, over: Future[None]) -> None:
        error = over.exception()
        if not self._done.done():
            self._done.set_exception(error or RuntimeError(f"{self} was ended before it had happened"))
        if self._left and error is None:
            self._server._deeds.discard(self)

    def _end(self) -> Future[None]:
        """Begin to clear up. The future is done when that is done."""
        assert self._job is not None
        self._job.cancel()
        return self._job.over

    def _leave(self) -> Future[None]:
        """As :meth:`_end`, at the end of a block."""
        self._left = True
        return self._end()

    def _tell(self, future: Future[None]) -> None:
        """Raise the error of a future that is done, if it has one."""
        self._informed = True
        future.result()

    def _finish(self) -> BaseException | None:
        """End it, and return what went wrong, if nobody was told of that."""
        over = self._end()
        wait([over])
        self._server._deeds.discard(self)
        return None if self._informed else self._problem()

    def _problem(self) -> BaseException | None:
        assert self._job is not None
        return self._job.over.exception()


class PlannedLoss(Deed):
    """A loss that :meth:`LockServer.lose` causes in the background: a block, or something to wait for."""

    def __init__(self, server: LockServer, name: str, reason: str, cause: Cause, after: float) -> None:
        super().__init__(server)
        self._name = name
        self._reason = reason
        self._cause = cause
        self._after = after
        self._begun = False  # the holder may notice a moment before _done is set
        self._start()

    def __repr__(self) -> str:
        return f"lose({self._name!r}, {self._reason!r}, after={self._after:g})"

    @property
    def happened(self) -> bool:
        """Has it happened on the server? The holder notices within milliseconds after that."""
        return self._done.done() and self._done.exception() is None

    def wait(self) -> None:
        """Wait until it has happened. In a coroutine, use ``await`` instead.

        :raises TimeoutError: nobody has held the lock for ``after`` seconds within 10 s (and ``after``)
        :raises RuntimeError: called in an event loop
        """
        if _in_event_loop():
            raise RuntimeError(f"{self}: wait() would block the event loop; await it instead")
        wait([self._done])
        self._tell(self._done)

    def __await__(self) -> Generator[Any, None, None]:
        """Wait until it has happened. Raises as :meth:`wait`."""
        yield from _end_of(self._done).__await__()
        self._tell(self._done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if _in_event_loop():
            if error is None and self._begun:
                # The holder has noticed it already, or will: let it happen, and clear up then.
                self._left = True
                self._done.add_done_callback(lambda done: self._end())
                return
            self._leave()
            if error is None:
                self._informed = True
                raise RuntimeError(f"{self} has not happened when its block ended; 'async with' waits for it")
            return
        try:
            if error is None:
                self.wait()
        finally:
            over = self._leave()
            wait([over])
        if error is None:
            self._tell(over)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self
        finally:
            over = self._leave()
            await _end_of(over)
        if error is None:
            self._tell(over)

    def _problem(self) -> BaseException | None:
        problem = super()._problem()
        if problem is None and not (self._left or self._begun):
            problem = TimeoutError(
                f"{self} had not happened when the test ended: nobody held the lock for {self._after:g} s. "
                "Put the test into its block, or await it"
            )
        return problem

    async def _live(self) -> None:
        while True:
            held = await self._until_held()
            self._begun = True
            async with self._cause(self._server, held) as done:
                if done:
                    self._done.set_result(None)
                    await _for_ever()
            self._begun = False  # the lock was released just before

    async def _until_held(self) -> HeldKeys:
        """Wait until somebody has held the lock for as long as is wanted."""
        limit = time.monotonic() + _HELD_LIMIT + self._after
        since = None
        while True:
            held = None
            with contextlib.suppress(OSError):  # the test has stopped the server
                held = find(self._server, self._name)
            now = time.monotonic()
            if held is None:
                since = None
            elif now - (since := since or now) >= self._after:
                return held
            if now >= limit:
                raise TimeoutError(
                    f"{self}: nobody has held the lock for {self._after:g} s within {_HELD_LIMIT + self._after:g} s. "
                    f"Does what is tested use {self._server.url}, and is this the name of its lock?"
                )
            await asyncio.sleep(_POLL)


class Hold(Deed):
    """A lock that :meth:`LockServer.hold` holds in a block, as somebody else.

    ``with`` works in a coroutine too: it blocks the event loop for some milliseconds, ``async with`` does not.
    """

    def __init__(self, server: LockServer, name: str, options: dict[str, Any]) -> None:
        super().__init__(server)
        self._name = name
        self._options = options

    def __repr__(self) -> str:
        return f"hold({self._name!r})"

    def __enter__(self) -> Self:
        self._start()
        try:
            wait([self._done])
            self._tell(self._done)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        over = self._leave()
        wait([over])
        if error is None:
            self._tell(over)

    async def __aenter__(self) -> Self:
        self._start()
        try:
            await _end_of(self._done)
            self._tell(self._done)
        except BaseException:
            self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        over = self._leave()
        await _end_of(over)
        if error is None:
            self._tell(over)

    async def _live(self) -> None:
        async with Locker(self._server.url, **self._options) as locker:
            scope = await locker.try_acquire(self._name)
            try:
                self._done.set_result(None)
                await _for_ever()
            finally:
                await scope.release()


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _end_of(future: Future[None]) -> None:
    """Wait until it is done, whatever comes of it."""
    ended = asyncio.wrap_future(future)
    ended.add_done_callback(asyncio.Future.exception)  # or it is reported as never retrieved, after a cancellation here
    await asyncio.wait([ended])


async def _for_ever() -> None:
    await asyncio.get_running_loop().create_future()
