"""LockScope: a task group that ends with its lock."""

from __future__ import annotations

import asyncio
import warnings
import weakref
from asyncio import current_task
from collections.abc import Coroutine
from contextvars import Context
from types import TracebackType
from typing import Any, TypeVar

from ._engine.fence import Fence
from ._engine.frames import handling_cancellation
from ._engine.held import Held, HeldByScope
from ._engine.whereabouts import may_be_used_by_others
from .core.lease import Lease
from .core.reasons import LossReason
from .errors import ConfigurationError

T = TypeVar("T")


class LockScope(Held):
    """A held lock. ``Locker.acquire`` and ``with_context`` return it; do not make one yourself.

    Inside ``async with scope:`` it works like :class:`asyncio.TaskGroup`: the end of the block waits for the tasks
    made with :meth:`create_task`, and a task that fails cancels the others and the body. When the lock is lost, the
    body and the tasks are cancelled, and the block raises :class:`LockLostError`.

    Without ``async with``, nothing is cancelled. Look at :attr:`held`, call :meth:`check` or await :meth:`wait_lost`,
    and call :meth:`release` in the end.

    Any thread may use :attr:`name`, :attr:`names`, :attr:`held`, :attr:`lost_reason`, :meth:`remaining` and
    :meth:`check`. Everything else belongs to the event loop of the locker, and elsewhere raises
    :class:`ConfigurationError` and changes nothing.
    From a thread, call ``loop.call_soon_threadsafe(scope.cancel)`` or
    ``asyncio.run_coroutine_threadsafe(scope.release(), loop)``.
    """

    __slots__ = ("__weakref__", "_fences")

    # By name. Set by the first call of ``fencing_token``: to set it in every scope would cost every acquisition.
    _fences: dict[str, Fence]

    def __repr__(self) -> str:
        state = (
            f"lost: {self._loss.reason}"
            if self._loss is not None
            else f"held for {self.remaining():.3f} s more"
            if self._lease is not None
            else "released"
        )
        return f"<LockScope {', '.join(map(repr, self.names))} {state}>"

    # State

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its locks: one, or all that were given to ``with_context`` or ``acquire``. :attr:`name` is the
        first."""
        return (self.name,)

    @property
    def held(self) -> bool:
        """Is the lock still held, as far as this process knows now?"""
        self._check()
        return not self._over()

    @property
    def lost_reason(self) -> LossReason | None:
        """Why the lock was lost. ``None`` if it is still held or was released."""
        self._check()
        return None if self._loss is None else self._loss.reason

    def remaining(self) -> float:
        """Seconds until the lock is lost unless it is extended before; 0.0 if it is not held. It is extended every
        ``extend_interval`` seconds by itself."""
        lease = self._lease
        return 0.0 if lease is None or self._manager.life.forked else max(0.0, lease.deadline - self._manager.clock())

    def check(self) -> None:
        """Return if the lock is still held, and raise if not. It awaits nothing, so call it in threads and after long
        synchronous code, before anything that counts.

        :raises LockLostError: the lock is lost, has expired, or was released
        :raises ConfigurationError: called in the child of a fork: the lock is the parent's
        """
        self._check()
        if self._manager.life.forked:
            raise ConfigurationError(
                f"lock {self.name!r}: its scope was copied by a fork, and the lock is the parent's; acquire it here"
            )
        if self._over():
            raise self._error()

    async def wait_lost(self) -> LossReason | None:
        """Wait until the lock is lost, and return why; ``None`` if it is released instead.

        :raises ConfigurationError: called in another event loop or thread than the locker's
        """
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
        return None if self._loss is None else self._loss.reason

    async def fencing_token(self, name: str | None = None) -> int:
        """A number that is greater than every one that was given out for this name before, to any scope in any process.
        Pass it on to what the lock protects, which then refuses work with an older number than it has seen.

        The servers give it out in the same step in which they check that they still have the lock for this scope: one
        round trip on one server, two where a majority of several has to agree. Within a scope it is the same number
        every time, and only the first call asks the servers. It fits into 53 bits, so JSON and SQL can hold it.

        While too few servers answer, it waits, for as long as the lock is held.

        :param name: which of :attr:`names`, for a scope with several
        :raises LockLostError: the lock is lost, has expired, or was released, before or meanwhile
        :raises ServerError: the servers do not let this user run the script that it takes. The message says what to
            grant
        :raises ConfigurationError: called in another event loop or thread than the locker's, or the scope has several
            names and ``name`` is none of them
        """
        self._check_here()
        self.check()
        lease = self._fenced(name)
        fences: dict[str, Fence] | None = getattr(self, "_fences", None)
        if fences is None:
            fences = self._fences = {}
        fence = fences.get(lease.room.name)
        if fence is None or fence.error is not None:
            fence = fences[lease.room.name] = Fence(self._manager, lease)
        number = fence.number
        if number is None:
            if self._waiting is None:
                self._waiting = []
            future = fence.wait()
            self._waiting.append(future)  # done, too, when the lock is lost or released
            try:
                await future
            finally:
                if self._waiting is not None:
                    self._waiting.remove(future)
            self.check()
            if fence.error is not None:
                raise fence.error.copy()
            number = fence.number
            assert number is not None
        return number

    def _keeps(self, name: str) -> bool:
        """Does this lock stay with the scope until somebody ends it? Any thread may ask."""
        return name == self.name and self.held

    def _fenced(self, name: str | None) -> Lease:
        """The lease that a fencing token of ``name`` belongs to, while all is held."""
        if name is not None and name != self.name:
            raise ConfigurationError(f"lock {name!r} is not in this scope; its names are {self.names}")
        assert self._lease is not None
        return self._lease

    # Ending

    async def release(self) -> None:
        """Give the lock back, and wait for the server's answer, at most ``try_next_after`` seconds if it is silent.
        A server that is down releases it when it is back, unless it has expired by then. Does nothing if the lock is
        lost or was released before; if one of several is lost, it gives the others back, and does not wait.

        The body and the tasks of the scope go on; to stop them too, call :meth:`cancel`.

        :raises ConfigurationError: called in another event loop or thread than the locker's
        """
        can_send = self._can_send()
        if can_send:
            self._check_here()
        lease = self._end()
        if lease is not None and can_send:
            manager = self._manager
            now = manager.clock()
            manager.give_back(self._room, lease, now)
            await self._wait_for_release(lease, now)

    async def _wait_for_release(self, lease: Lease, now: float) -> None:
        """Wait for the answer to a release that was sent ``now``."""
        pending_releases = self._manager.pending_releases
        cancelled = await pending_releases.wait(lease, now + pending_releases.patience)
        self._find_out(lease)
        try:
            if cancelled is not None:
                raise cancelled
        finally:
            del cancelled  # no cycle through its traceback

    def cancel(self) -> None:
        """Cancel the body and the tasks, and release the lock. The block then ends silently, without an exception.

        Does nothing while the block is being left. Without ``async with``, it releases the lock and does not wait for
        the server's answer.

        :raises ConfigurationError: called in another event loop or thread than the locker's
        """
        if not self._can_send():
            self._end()
            return
        self._check_here()
        if self._exiting:
            return
        if self._parent is None:
            self._send_release()
            return
        self._get_block().stop(HeldByScope(self))

    def create_task(
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[T]:
        """Run ``coro`` in a task of the scope, as :meth:`asyncio.TaskGroup.create_task`: the end of the block waits for
        it, and a loss of the lock cancels it.

        :param name: of the task
        :param context: for the task to run in; by default, a copy of the current one
        :raises LockLostError: the lock is lost or was released
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
        elif not (block := self._get_block()).accepts_tasks:
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
        # The usual way out, without a Block: nothing is to be stopped, and no task to be waited for.
        if error is None and (left := self._leave_at_once()):
            if left is not True:
                try:
                    missed = await left
                except asyncio.CancelledError:
                    lease = self._awaited_release
                    assert lease is not None
                    await self._wait_for_release(lease, lease.released_at)
                    raise
                if missed:
                    self._raise_if_lost()
            return None
        if isinstance(error, GeneratorExit):
            return self._close()
        if self._can_send():
            self._check_here()
        self._exiting = True
        try:
            return await self._get_block().leave(HeldByScope(self), error)
        except GeneratorExit:
            self._close()
            raise

    def _keepers(self) -> list[object]:
        """What leads from the engine to this scope."""
        lease = self._lease
        return [lease, None if lease is None else lease.scope_ref]

    def _drop(self, lease: Lease) -> None:
        """The scope was forgotten, and its lock is still held."""
        self._manager.dropped(self._room, lease, self._hold)

    def __del__(self) -> None:
        lease = self._lease
        if lease is not None and not self._manager.life.forked:  # in the child of a fork, it is the parent's
            self._drop(lease)
            warnings.warn(
                f"the scope of lock {self.name!r} was forgotten without release; use 'async with', or call release()",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )


class ScopeRef(weakref.ref[LockScope]):
    """A weak reference, so that a scope that nobody has is released: ``_engine.scope_link.ScopeLink``."""

    __slots__ = ()

    def lost(self, reason: LossReason, detail: str) -> None:
        scope = self()
        if scope is not None:
            scope._on_lost(reason, detail)

    def extension_late(self, remaining: float) -> None:
        scope = self()
        if scope is not None:
            scope._manager.reports.extension_late(scope.name, scope._hold, remaining)

    def exited(self, caller: asyncio.Task[Any] | None) -> asyncio.Future[None] | None:
        scope = self()
        if scope is None:
            return None
        block, parent = scope._block, scope._parent
        if block is not None and block.closed_under_tasks:  # it waits for its tasks, and for nobody else
            return block.exited()
        if parent is None or parent is caller or parent.done():
            return None
        return scope._get_block().exited()

    def excuse(self, task: asyncio.Task[Any]) -> None:
        scope = self()
        if scope is not None and scope._parent is task:
            scope._get_block().excuse()

    def only_ended_by(self, task: asyncio.Task[Any]) -> bool:
        scope = self()
        if scope is None or scope._parent is not task or scope._exiting:
            return False
        block = scope._block
        if block is not None and block.aborting and not (block.body_cancelled and handling_cancellation()):
            return False  # a cancellation ends the wait. But clean-up code that has got one gets no other
        return not may_be_used_by_others(scope, task, [*scope._keepers(), None if block is None else block.whereabouts])
