"""LockScope: a task group that ends with its lock."""

from __future__ import annotations

import asyncio
import sys
import warnings
import weakref
from asyncio import _get_running_loop, current_task
from collections.abc import Coroutine
from contextvars import Context
from types import TracebackType
from typing import Any, TypeVar

from ._engine.block import LEFT, Block
from ._engine.manager import LockManager
from ._engine.whereabouts import Home, may_be_used_by_others, on_its_way
from .core.lease import Lease
from .core.room import Room
from .core.rules import LossReason
from .errors import ConfigurationError, LockLostError

T = TypeVar("T")


class LockScope:
    """A held lock. Made by ``Locker.acquire`` and its kin; not to be made by hand.

    Inside ``async with scope:`` it works like :class:`asyncio.TaskGroup`: tasks made with
    :meth:`create_task` are awaited at the end of the block, and one that fails cancels its siblings
    and the body. When the lock is lost, body and tasks are cancelled and the block raises
    :class:`LockLostError`. Without ``async with``, nothing is cancelled: look at :attr:`held`, call
    :meth:`check`, or await :meth:`wait_lost`; and call :meth:`release`.

    :attr:`name`, :attr:`held`, :attr:`lost_reason`, :meth:`remaining` and :meth:`check` may be called from any
    thread. Everything else belongs to the event loop of the locker, and raises :class:`ConfigurationError`
    elsewhere, where it changes nothing; from a thread, ``loop.call_soon_threadsafe(scope.cancel)`` and
    ``asyncio.run_coroutine_threadsafe(scope.release(), loop)`` do it.

    Invariants: ``_lease`` is set while the lock is held, as far as is known here; the three ways to
    end it are ``_on_lost``, ``_end`` by ``release`` or exit, and ``__del__``. The parent task is
    never cancelled once ``_exiting`` is set, and is uncancelled as often as it was cancelled.
    """

    __slots__ = (
        "__weakref__",
        "_baseline",
        "_block",
        "_detail",
        "_exiting",
        "_lease",
        "_locker",
        "_manager",
        "_parent",
        "_reason",
        "_room",
        "_unreleased",
        "_waiting",
        "name",
    )

    def __init__(
        self,
        locker: object,
        manager: LockManager,
        room: Room[Any],
        lease: Lease,
        task: asyncio.Task[Any] | None = None,
    ) -> None:
        """:param task: has entered the block"""
        self.name = room.name
        self._locker = locker  # kept as long as this is: a locker that nobody has is closed
        self._manager = manager
        self._room = room
        self._lease: Lease | None = lease
        self._unreleased: Lease | None = None
        self._reason: LossReason | None = None
        self._detail = ""
        self._parent = task
        self._baseline = 0 if task is None else task.cancelling()  # on entry
        self._exiting = False
        self._block: Block | None = None  # once there is something to stop or to wait for
        self._waiting: list[asyncio.Future[None]] | None = None
        lease.scope_ref = _Holder(self)

    def __repr__(self) -> str:
        state = (
            f"lost: {self._reason}"
            if self._reason
            else f"held for {self.remaining():.3f} s more"
            if self._lease is not None
            else "released"
        )
        return f"<LockScope {self.name!r} {state}>"

    # State

    @property
    def held(self) -> bool:
        """Is the lock this scope's, as far as can be known here and now?"""
        self._check()
        return not self._over()

    @property
    def lost_reason(self) -> LossReason | None:
        """Why the lock was lost, or ``None``: it is held, or was released."""
        self._check()
        return self._reason

    def remaining(self) -> float:
        """Seconds that are left if no extension succeeds from now on; 0.0 if the lock is not held."""
        lease = self._lease
        return 0.0 if lease is None else max(0.0, lease.deadline - self._manager.now())

    def check(self) -> None:
        """Go on only if the lock is still held. Does not await, so it serves after a long synchronous
        stretch, and in a thread (``asyncio.to_thread``).

        :raises LockLostError: it is lost, its time is over, or it was released
        """
        self._check()
        if self._over():
            raise self._error()

    async def wait_lost(self) -> LossReason | None:
        """Wait until the lock is lost, and return why; ``None`` if it is released instead."""
        self._check_here()
        self._check()
        if self._lease is not None:
            future = asyncio.get_running_loop().create_future()
            if self._waiting is None:
                self._waiting = []
            self._waiting.append(future)
            try:
                await future
            finally:
                if self._waiting is not None:
                    self._waiting.remove(future)
        return self._reason

    # Ending

    async def release(self) -> None:
        """Give the lock back. Waits for the server's answer, for ``try_next_after`` seconds if it is
        silent; the key of a server that is down dies by its time to live. Does nothing for a lock
        that is lost or released. Tasks of the scope go on; to stop them too, use :meth:`cancel`.

        :raises ConfigurationError: called in another event loop or thread than the locker's
        """
        gone = self._gone()
        if not gone:
            self._check_here()
        lease = self._end()
        if lease is not None and not gone:
            manager = self._manager
            now = manager.now()
            manager.give_back(self._room, lease, now)
            await self._wait_for_release(lease, now)

    async def _wait_for_release(self, lease: Lease, now: float) -> None:
        """The release has been sent ``now``."""
        pending_releases = self._manager.pending_releases
        cancelled = await pending_releases.wait(lease, now + pending_releases.patience)
        self._find_out(lease)
        try:
            if cancelled is not None:
                raise cancelled
        finally:
            del cancelled  # no cycle through its traceback

    def cancel(self) -> None:
        """Stop the body and the tasks, release, and let the block end silently. Without
        ``async with``: release, without waiting for the server.

        :raises ConfigurationError: called in another event loop or thread than the locker's
        """
        if self._gone():
            self._end()
            return
        self._check_here()
        if self._exiting:
            return
        if self._parent is None:
            lease = self._end()
            if lease is not None:
                self._manager.give_back(self._room, lease, self._manager.now())
            return
        block = self._to_stop()
        if not block.stopped:
            block.stopped = self._reason is None
            self._abort()

    def create_task(
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[T]:
        """Run ``coro`` while the lock is held. As :meth:`asyncio.TaskGroup.create_task`.

        :raises LockLostError: the lock is lost
        :raises RuntimeError: not inside ``async with``, or the block is being left
        :raises ConfigurationError: called in another event loop or thread than the locker's
        """
        self._check()
        problem: Exception | None = None
        if not self._here():
            problem = self._elsewhere()
        elif self._parent is None:
            problem = RuntimeError(f"lock {self.name!r}: create_task needs 'async with' around it")
        elif self._lease is None:
            problem = self._error()
        elif (block := self._to_stop()).aborting or (self._exiting and not block.tasks):
            problem = RuntimeError(f"lock {self.name!r}: the block is being left, no task can be added")
        if problem is not None:
            coro.close()
            raise problem
        task = asyncio.get_running_loop().create_task(coro, name=name, context=context)
        block.add(task)
        return task

    # The block

    async def __aenter__(self) -> LockScope:
        self._check_here()
        if self._parent is not None:
            raise RuntimeError(f"lock {self.name!r}: a scope can be entered once; acquire the lock again")
        self.check()
        parent = current_task()
        if parent is None:
            raise RuntimeError(f"lock {self.name!r}: 'async with' needs a task around it")
        self._parent = parent
        self._baseline = parent.cancelling()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        lease, manager = self._lease, self._manager
        if (
            error is None
            and lease is not None
            and self._block is None
            and _get_running_loop() is manager.life.serving is not None
            and (now := manager.now()) < lease.deadline
        ):
            # Nothing to stop, nobody to wait for: just give the lock back.
            self._exiting = True
            self._end()
            self._room.release(lease, now)
            if lease.unreleased:
                try:
                    await manager.pending_releases.begin(lease, now + manager.pending_releases.patience)
                except asyncio.CancelledError:
                    await self._wait_for_release(lease, now)
                    raise
            if lease.missed:
                self._find_out(lease)
            if self._reason is not None:
                raise self._error()
            return None
        if isinstance(error, GeneratorExit):
            return self._closed()
        if not self._gone():
            self._check_here()
        closed = False
        try:
            return await self._exit(error)
        except GeneratorExit:
            closed = True
            self._closed()
            raise
        finally:
            if not closed:
                self._to_stop().close()

    async def _exit(self, error: BaseException | None) -> bool:
        """The rules are those of ``asyncio.TaskGroup.__aexit__`` (Python 3.13), with two more causes
        to stop the body, the loss and ``cancel``, and with the body's own exception left bare."""
        self._exiting = True
        block = self._to_stop()
        block.leave()
        cancelled = error if isinstance(error, asyncio.CancelledError) else None
        cancellation = block.cancellation
        if error is not None:
            self._abort()
        if block.tasks:
            cancelled = await block.tasks_done(self._why_stopped) or cancelled

        self._check()
        lease = self._finish()
        if lease is not None:
            cancelled = await self._manager.pending_releases.wait(lease) or cancelled
            self._find_out(lease)

        block.take_back()
        leaver, outside_too = self._leaver()
        if cancelled is not None and cancellation is not None:
            if not outside_too:
                cancelled = None  # it was this scope's own
            else:
                # Two cancellations arrive as one exception, the later one's. An anyio scope knows
                # its own by the message, and repeats it until the task is out: hear it again.
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError as outside:
                    cancelled = outside

        if block.base_error is not None:
            raise block.base_error
        own = error is not None and not isinstance(error, asyncio.CancelledError)
        if cancelled is not None and not block.errors and not own:
            if cancelled is error:
                return False
            try:
                raise cancelled
            finally:
                del cancelled  # no cycle: whoever swallows this one has to be cancelled again
        if outside_too and cancelled is not None and sys.version_info >= (3, 13):
            # What is raised now goes before the cancellation, which comes at the next await. Before
            # 3.13 uncancel() leaves such a one pending, and its owner could not take it back.
            leaver.uncancel()
            leaver.cancel()
        if own and error is not None:
            if not block.errors:
                return False
            block.errors.append(error)
        self._tell(block)
        return error is not None

    def _tell(self, block: Block) -> None:
        """Raise what has become of the tasks and of the lock."""
        lost = self._reason is not None and not block.stopped
        if block.errors:
            group = BaseExceptionGroup(f"unhandled errors in the tasks of lock {self.name!r}", block.errors)
            try:
                if lost and not block.failed:
                    raise self._error() from group
                raise group from None
            finally:
                del group  # no cycle, as above
        if lost:
            raise self._error() from None

    def _leaver(self) -> tuple[asyncio.Task[Any], bool]:
        """The task that leaves the block, mostly the one that has entered it; is it cancelled by others?"""
        parent = self._parent
        assert parent is not None
        leaver = current_task() or parent
        return leaver, leaver.cancelling() > (self._baseline if leaver is parent else 0)

    def _closed(self) -> bool:
        """The generator or coroutine that the block is in is being closed: nothing can be awaited any more."""
        self._exiting = True
        if self._gone():
            self._end()
        elif self._here():
            self._close()
        elif self._block is not None:
            self._manager.life.call_soon(self._close)
        elif (lease := self._end()) is not None:
            self._manager.dropped(self._room, lease)
        return False

    def _close(self) -> None:
        block = self._to_stop()
        block.leave()
        self._abort()
        block.take_back()
        block.closed = True
        if block.tasks:
            block.when_done = self._closed_under_tasks  # they hold the lock until then, and it this scope
        else:
            self._finish()
        try:
            # Whoever else closes it (the garbage collector, in a task of its own) has not worked with this lock; and
            # what was cancelled by others is on its way out already.
            if current_task() is not self._parent or self._leaver()[1]:
                block.tell_loop(block.errors)
            elif block.base_error is not None:
                raise block.base_error
            else:
                own = on_its_way()
                if own is not None and not isinstance(own, asyncio.CancelledError):
                    if not block.errors:
                        return
                    block.errors.append(own)
                self._tell(block)
        finally:
            if block.when_done is None:
                block.close()

    def _closed_under_tasks(self) -> None:
        block = self._to_stop()
        block.when_done = None
        self._finish()
        block.close()

    # What the locker tells, and what follows from it

    def _on_lost(self, reason: LossReason, detail: str) -> None:
        """The lock is no longer this scope's: stop everything, and never ask a server about it."""
        if reason is LossReason.CLOSED:
            self._unreleased = self._lease  # to be given back when the body is out
        self._detail = detail
        self._reason = reason
        self._lease = None  # last: a thread that finds it gone may ask why
        self._wake()
        if self._parent is not None:
            self._abort()

    def _check(self) -> None:
        """Has the time run out while nobody could say so (a blocked loop, a suspended machine)?"""
        lease = self._lease
        if lease is not None and self._manager.now() >= lease.deadline and self._here():
            self._manager.time_is_over(self._room)

    def _over(self) -> bool:
        lease = self._lease
        return lease is None or self._manager.now() >= lease.deadline

    def _here(self) -> bool:
        """Is this the locker's loop? From a thread, a scope may be looked at, and nothing be changed."""
        try:
            return asyncio.get_running_loop() is self._manager.life.loop
        except RuntimeError:
            return False

    def _check_here(self) -> None:
        if not self._here():
            raise self._elsewhere()

    def _elsewhere(self) -> ConfigurationError:
        return ConfigurationError(
            f"lock {self.name!r}: its scope belongs to the event loop of its locker, which does not run here; "
            "ask that loop to call it, with loop.call_soon_threadsafe or asyncio.run_coroutine_threadsafe"
        )

    def _gone(self) -> bool:
        """Is there no server left to be asked?"""
        return self._manager.life.gone

    def _find_out(self, lease: Lease) -> None:
        """Was the lock lost before, and that not noticed until its keys were to be released?"""
        if self._manager.lost_unnoticed(lease):
            self._reason = lease.cause or LossReason.DELETED
            self._detail = "found when it was released"

    def _error(self) -> LockLostError:
        reason = self._reason or (LossReason.RELEASED if self._lease is None else LossReason.EXPIRED)
        return LockLostError(self.name, reason, self._detail)

    def _end(self) -> Lease | None:
        """The scope ends by itself. Returns the lease to give back."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.scope_ref = None
            if self._waiting is not None:
                self._wake()
        return lease

    def _finish(self) -> Lease | None:
        """Send the release on leaving the block. Returns the lease whose release is worth waiting for."""
        lease = self._end()
        give_back = lease or self._unreleased
        if give_back is not None and not self._gone():
            self._manager.give_back(self._room, give_back, self._manager.now())
        return lease

    def _left(self, closing: asyncio.Task[Any] | None) -> asyncio.Future[None] | None:
        """For ``aclose`` in the task ``closing``: done when the block has been left. ``None``: nothing to wait for."""
        waits = self._block is not None and self._block.when_done is not None  # for its tasks, and for nobody else
        if not waits and (self._parent is None or self._parent is closing or self._parent.done()):
            return None
        return self._to_stop().exit()

    def _excuse(self, task: asyncio.Task[Any]) -> None:
        """Let ``aclose`` not wait for this block, if it is that of a task that waits for ``aclose``."""
        if self._parent is task:
            self._to_stop().excuse()

    def _only_ended_by(self, task: asyncio.Task[Any] | None) -> bool:
        """Is this the block of that task, which runs, and can nobody else leave it or release the lock?"""
        if task is None or self._parent is not task or self._exiting:
            return False
        return (self._block is None or not self._block.aborting) and not may_be_used_by_others(
            self, task, self._weakly_known()
        )

    def _weakly_known(self) -> list[object]:
        """Who keeps a weak reference to this scope, and does not let go of the lock by itself."""
        lease, block = self._lease, self._block
        return [lease, None if lease is None else lease.scope_ref, None if block is None else block.home]

    def _wake(self) -> None:
        for future in self._waiting or ():
            if not future.done():
                future.set_result(None)
        self._waiting = None

    def _to_stop(self) -> Block:
        """The block, now that it matters."""
        if self._block is None:
            assert self._parent is not None
            self._block = Block(self.name, self._parent, Home(self))
        return self._block

    def _abort(self) -> None:
        self._to_stop().abort(self._why_stopped())

    def _why_stopped(self) -> str:
        if self._reason is not None:
            return f"lock {self.name!r} was lost: {self._reason}"
        return LEFT.format(self.name)

    def __del__(self) -> None:
        lease = self._lease
        if lease is not None:
            self._manager.dropped(self._room, lease)
            warnings.warn(
                f"the scope of lock {self.name!r} was forgotten without release; use 'async with', or call release()",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )


class _Holder(weakref.ref[LockScope]):
    """What ``Lease.scope_ref`` is: as ``_engine.holder.Holder``. A scope that nobody has is released."""

    __slots__ = ()

    def room(self) -> Room[Any] | None:
        scope = self()
        return None if scope is None else scope._room

    def lost(self, reason: LossReason, detail: str) -> None:
        scope = self()
        if scope is not None:
            scope._on_lost(reason, detail)

    def left(self, caller: asyncio.Task[Any] | None) -> asyncio.Future[None] | None:
        scope = self()
        return None if scope is None else scope._left(caller)

    def excuse(self, task: asyncio.Task[Any]) -> None:
        scope = self()
        if scope is not None:
            scope._excuse(task)

    def only_ended_by(self, task: asyncio.Task[Any]) -> bool:
        scope = self()
        return scope is not None and scope._only_ended_by(task)
