"""LockScope: a lock that a thread holds."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import warnings
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..core.reasons import LossReason
from ..errors import AlreadyHeldError, LockerClosedError, LockLostError
from ..locker import Locker as AsyncLocker
from ..options import Seconds, check_timeout
from ..scope import LockScope as AsyncScope
from ..semaphore import PermitScope
from .loop_thread import Call, Latch, LoopThread, refuse_in_event_loop

if TYPE_CHECKING:
    from .locker import Locker


class LockScope:
    """A lock that a thread holds. :meth:`Locker.acquire` and :meth:`Locker.with_context` return it; do not make one
    yourself.

    **Nothing can stop a thread.** When the lock is lost, its body goes on, and has to notice: call :meth:`check` before
    everything that counts, wait with :meth:`wait_lost` instead of sleeping, or stop the work in a callback
    (:meth:`on_lost`). The end of the ``with`` block raises :class:`LockLostError` if the lock was lost; if the body
    raises an exception of its own, that one comes out.

    Any thread may use any method, whichever thread acquired the lock. Those that wait refuse to in a thread that runs
    an event loop: :meth:`release`, :meth:`wait_lost`, and the beginning and end of ``with``.
    """

    # Invariants: _block is what has entered the scope in the loop, for the block that a thread is inside of. _open is
    # true until the loop knows that the lock is to be given back. It is unset last: a scope whose release was
    # interrupted before is released when it is forgotten.

    __slots__ = (
        "__weakref__",
        "_block",
        "_cancelled",
        "_lock",
        "_locker",
        "_open",
        "_scope",
        "_thread",
        "_watch",
        "name",
    )

    def __init__(self, locker: Locker, thread: LoopThread, scope: AsyncScope) -> None:
        self.name = scope.name
        self._locker = locker  # kept as long as this is: a locker that nobody has is closed
        self._thread = thread
        self._scope = scope
        self._open = True
        self._cancelled = False
        self._block: Block | None = None
        self._lock = threading.RLock()  # a signal's handler may call what it has interrupted
        self._watch: Watch | None = None

    def __repr__(self) -> str:
        return f"<asynclock.sync.{repr(self._scope)[1:]}"

    # State

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its locks: one, or all that were given to ``with_context`` or ``acquire``. :attr:`name` is the
        first."""
        return self._scope.names

    @property
    def held(self) -> bool:
        """Is the lock still held, as far as this process knows now?"""
        return not self._cancelled and self._scope.held

    @property
    def lost_reason(self) -> LossReason | None:
        """Why the lock was lost. ``None`` if it is still held or was released."""
        return self._scope.lost_reason

    def remaining(self) -> float:
        """Seconds until the lock is lost unless it is extended before; 0.0 if it is not held. It is extended every
        ``extend_interval`` seconds by itself, whatever the threads do."""
        return 0.0 if self._cancelled else self._scope.remaining()

    def check(self) -> None:
        """Return if the lock is still held, and raise if not. It asks no server and takes microseconds, so call it
        often, and before everything that counts.

        :raises LockLostError: the lock is lost, has expired, was released or cancelled
        :raises ConfigurationError: called in the child of a fork: the lock is the parent's
        """
        if self._cancelled and not self._thread.forked:
            raise LockLostError(self.name, LossReason.RELEASED)
        self._scope.check()

    def wait_lost(self, *, timeout: Seconds | None = None) -> LossReason | None:
        """Wait until the lock is lost, and return why; ``None`` if it is released or cancelled instead, or if the time
        is over. So it serves as a sleep that a loss ends at once.

        :param timeout: seconds to wait; ``None``: as long as it takes
        :raises ConfigurationError: the timeout is negative or not a number, an event loop runs in this thread, or this
            is the child of a fork: the lock is the parent's
        """
        refuse_in_event_loop()
        seconds = check_timeout(timeout)
        watch = self._watched()
        if not self._cancelled:
            watch.wait(seconds)
        return None if self._cancelled else self.lost_reason

    def fencing_token(self, name: str | None = None) -> int:
        """A number that is greater than every one that was given out for this name before, to any scope in any process;
        the same every time within a scope. Pass it on to what the lock protects, which then refuses work with an older
        number than it has seen.

        The first call asks the servers: see :meth:`asynclock.LockScope.fencing_token`.

        :param name: which of :attr:`names`, for a scope with several
        :raises LockLostError: the lock is lost, has expired, was released or cancelled, before or meanwhile
        :raises ServerError: the servers do not let this user run the script that it takes. The message says what to
            grant
        :raises ConfigurationError: an event loop runs in this thread, or this is the child of a fork: the lock is the
            parent's
        """
        refuse_in_event_loop()
        self.check()
        number = Call(self._thread, lambda: self._scope.fencing_token(name)).result()
        self.check()
        return number

    def on_lost(self, callback: Callable[[LossReason], object] | Callable[[], object]) -> None:
        """Call ``callback`` once when the lock is lost, or now if it is; never if it is released or cancelled. The
        callback gets the :class:`LossReason`, or nothing if it takes no argument: ``scope.on_lost(process.kill)``.

        It runs in a thread of its own, so it may wait. What it raises goes to :func:`threading.excepthook`.

        :raises ConfigurationError: called in the child of a fork: the lock is the parent's
        """
        watch = self._watched()
        watch.callbacks.append(_with_reason(callback))
        reason = self.lost_reason
        if reason is not None and not self._cancelled:
            watch.tell(reason)  # it came too late for the loop

    def _watched(self) -> Watch:
        if self._thread.forked:
            self._scope.check()  # raises
        with self._lock:
            if self._watch is None:
                watch = Watch(self._thread, self._scope)
                watch.start()
                self._watch = watch  # not before: if that was interrupted, nothing would ever end it
            return self._watch

    # Ending

    def release(self) -> None:
        """Give the lock back, and wait for the server's answer, at most ``try_next_after`` seconds if it is silent.
        Does nothing if the lock is lost or was released before.

        The body goes on; to tell it to stop, call :meth:`cancel`.

        :raises ConfigurationError: an event loop runs in this thread
        """
        refuse_in_event_loop()
        if not self._thread.gone:
            with contextlib.suppress(LockerClosedError):  # just now: then the lock is given back, too
                Call(self._thread, self._scope.release, lambda _: self._scope.release()).result()
        if self._block is None:
            self._open = False

    def cancel(self) -> None:
        """Tell the body to stop: from now on :attr:`held` is ``False``, :meth:`check` raises, and :meth:`wait_lost`
        returns. The lock is released when the body has left the block, which then ends silently, whether the body
        returns or lets the error of ``check`` pass.

        Without a ``with`` block, it releases the lock and does not wait for the server's answer. Does nothing if the
        lock is lost.
        """
        if self.lost_reason is not None:
            return
        self._cancelled = True
        with self._lock:
            if self._watch is not None:
                self._watch.callbacks.clear()
                self._watch.end()
        if self._block is None:
            self._abandon()

    # The block

    def __enter__(self) -> LockScope:
        return self._enter(None)

    def _enter(self, wait_release: bool | None) -> LockScope:
        """:param wait_release: whether leaving the block waits for the answer to the release; None: as the locker"""
        refuse_in_event_loop()
        if self._block is not None:
            raise RuntimeError(f"lock {self.name!r}: a scope can be entered once; acquire the lock again")
        self.check()
        try:
            if wait_release is not None:
                self._scope._wait_release = wait_release
            self._block = Block(self._locker._here.locker, self._thread, self._scope)
            self._block.enter()
            return self
        except BaseException:  # interrupted
            self._not_entered()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._thread.forked:  # the block is the parent's, and goes on there
            return None
        refuse_in_event_loop()
        try:
            if self._block is not None:
                self._block.leave()
                self._open = False
        except BaseException:  # interrupted
            self._abandon()
            raise
        if self._cancelled:
            return isinstance(error, LockLostError) and (error.name, error.reason) == (self.name, LossReason.RELEASED)
        if error is None and self.lost_reason is not None:
            self._scope.check()  # raises
        return None

    def _not_entered(self) -> None:
        """The block was not entered: release the lock soon, and let others have it at once (``at_least``)."""
        self._thread.post(partial(self._scope._stay, 0.0))
        self._abandon()

    def _abandon(self) -> None:
        """Nobody will release the lock, so do it soon, wherever the call that acquired it has been interrupted."""
        if self._block is not None:
            self._block.leave_soon()
        self._thread.post(self._scope.cancel)
        self._open = False

    def __del__(self) -> None:
        # In any thread, also that of the loop; in a forked child; at the end of the interpreter.
        if not getattr(self, "_open", False) or self._thread.gone or (self._block is None and not self._scope.held):
            return
        self._abandon()
        warnings.warn(
            f"the scope of lock {self.name!r} was forgotten without release; use 'with', or call release()",
            ResourceWarning,
            source=self,
            stacklevel=2,
        )


class Block:
    """The ``with`` block of a thread, as the event loop sees it: a task that is inside of ``async with`` of the scope
    for as long as the thread is inside of its block.

    So all that is true for the block of a task is true for that of a thread: when the locker closes, nobody else gets
    the lock before the thread has left, or the lock would have expired.
    """

    __slots__ = ("_call", "_excused", "_inside", "_left", "_locker", "_scope", "_thread")

    def __init__(self, locker: AsyncLocker, thread: LoopThread, scope: AsyncScope) -> None:
        self._thread = thread
        self._left = asyncio.Event()
        self._excused = False
        self._inside = _inside.blocks
        self._locker = locker
        self._scope = scope  # not the thread's: a reference here would keep a forgotten one from being released
        self._call = Call(thread, self._run)

    def enter(self) -> None:
        self._inside.append(self)
        self._call.start()

    def leave(self) -> None:
        """Wait until the lock is released."""
        self.leave_soon()
        self._call.over.wait()

    def leave_soon(self) -> None:
        with contextlib.suppress(ValueError):
            self._inside.remove(self)
        self._thread.post(self._left.set)

    async def _run(self) -> None:
        with contextlib.suppress(LockLostError):  # the thread asks the scope
            async with self._scope:
                try:
                    await self._left.wait()
                except asyncio.CancelledError:
                    # The lock is lost, but nobody can cancel the thread. Or the loop ends; a lock that was released
                    # before has no other end, and nobody waits for it.
                    if not self._excused and self._scope.lost_reason is not None:
                        await self._left.wait()
                    raise

    # In the thread that is inside of it

    def holds(self, locker: AsyncLocker, name: str) -> bool:
        """Does it hold this lock?"""
        if isinstance(self._scope, PermitScope):
            return False  # a permit of a semaphore, which may have a lock's name
        return self._locker is locker and name in self._scope.names and self._scope.held

    def excuse(self, locker: AsyncLocker) -> None:
        """If it is a block of this locker, which is about to be closed here: do not wait for it."""
        if self._locker is locker:
            self._excused = True


class _Inside(threading.local):
    """The blocks that this thread is inside of."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []


_inside = _Inside()


def refuse_own(locker: AsyncLocker, name: str) -> None:
    """:raises AlreadyHeldError: this thread is inside of a block that holds the lock"""
    if any(block.holds(locker, name) for block in _inside.blocks):
        raise AlreadyHeldError(name)


def excuse_own(locker: AsyncLocker) -> None:
    """The locker is about to be closed in this thread: do not wait for the blocks that the thread is inside of."""
    for block in _inside.blocks:
        block.excuse(locker)


class Watch(Call[None]):
    """Tells threads, and callbacks of the program, that a lock is over.

    Invariant: whoever adds a latch or a callback looks afterwards whether the lock is over, and the loop does what is
    to be done then before it looks for latches and callbacks. So none is forgotten.
    """

    __slots__ = ("_latches", "_scope", "callbacks")

    def __init__(self, thread: LoopThread, scope: AsyncScope) -> None:
        self._scope = scope  # not the thread's: see Block
        self._latches: deque[Latch] = deque()
        self.callbacks: deque[Callable[[LossReason], object]] = deque()
        super().__init__(thread, self._wait_lost)

    def wait(self, seconds: float | None) -> None:
        """Wait until the lock is over, at most that long."""
        latch = Latch()
        self._latches.append(latch)
        if not self.over.is_set:
            latch.wait(seconds)
        with contextlib.suppress(ValueError):
            self._latches.remove(latch)

    async def _wait_lost(self) -> None:
        reason = await self._scope.wait_lost()
        if reason is not None:
            self.tell(reason)

    def tell(self, reason: LossReason) -> None:
        """Call every callback, each in a thread of its own."""
        with contextlib.suppress(IndexError):
            while True:
                callback = self.callbacks.popleft()
                name = f"asynclock: {self._scope.name} lost"
                told = threading.Thread(target=callback, args=(reason,), name=name, daemon=True)
                try:
                    told.start()
                except RuntimeError:  # no thread can be started, as at the end of the process: better here than never
                    _call_here(callback, reason)

    def end(self) -> None:
        super().end()
        with contextlib.suppress(IndexError):
            while True:
                self._latches.popleft().set()


def _call_here(callback: Callable[[LossReason], object], reason: LossReason) -> None:
    try:
        callback(reason)
    except Exception as error:
        threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, None)))


def _with_reason(callback: Any) -> Callable[[LossReason], object]:
    """The callback, to be called with a reason."""
    try:
        inspect.signature(callback).bind(LossReason.DELETED)
    except (TypeError, ValueError):  # ValueError: it is written in C, and does not say what it takes
        return lambda _: callback()
    found: Callable[[LossReason], object] = callback
    return found
