"""SeveralScope: a scope that holds several locks."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, cast

from ._engine.diagnosis import NOTICED_LATE
from ._engine.held import Loss
from ._engine.manager import LockManager
from ._engine.reports import Hold
from ._engine.waiter import Waiter
from .core.lease import Lease
from .core.reasons import LossReason
from .errors import ConfigurationError, LockLostError
from .scope import LockScope, ScopeRef


class SeveralScope(LockScope):
    """A scope that holds several locks: one that is lost ends it, as if it were the only one.

    Invariants: ``_parts`` are the locks that are held, as far as is known here. ``_lease`` is that of one of them while
    the scope holds them all, and None once one was lost or the scope has ended: it is unset before the parts are, since
    other threads look at both. After a loss, the others stay in
    ``_parts`` until the block is left, or the scope is released or forgotten: the work under them is still being
    stopped. ``_closed`` are those that were lost because the locker closes. Their keys are given back when the block is
    left, too.
    """

    __slots__ = ("_closed", "_lost_name", "_names", "_parts")

    def __init__(
        self,
        locker: object,
        manager: LockManager,
        names: tuple[str, ...],
        waiters: list[Waiter],
        wait_release: bool,
        task: asyncio.Task[Any] | None,
    ) -> None:
        """
        :param waiters: who got the locks, in the agreed order
        :param wait_release, task: as for ``LockScope``
        """
        super().__init__(locker, manager, waiters[0].room, cast(Lease, waiters[0].lease), wait_release, task)
        self.name = names[0]
        self._names = names
        self._closed: list[Part] = []
        self._lost_name = ""
        self._parts = []
        for waiter in waiters:
            part = Part(self)
            part.lease, part.hold = cast(Lease, waiter.lease), None
            part.lease.scope_ref = part
            self._parts.append(part)

    # State

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    def remaining(self) -> float:
        if self._lease is None or self._manager.life.forked:
            return 0.0
        # In another thread, the scope may end just now.
        return max(0.0, min((part.lease.deadline for part in self._parts), default=0.0) - self._manager.clock())

    def _check(self) -> None:
        if self._lease is not None and self._here():
            for part in list(self._parts):
                if self._manager.clock() >= part.lease.deadline:
                    self._manager.time_is_over(part.lease.room)

    def _over(self) -> bool:
        return self._lease is None or self._manager.life.forked or self._expired() is not None

    def _expired(self) -> Part | None:
        """One whose time is over, though nobody has said so yet."""
        now = self._manager.clock()
        return next((part for part in self._parts if now >= part.lease.deadline), None)

    def part_lost(self, part: Part, reason: LossReason, detail: str) -> None:
        """As ``Held._on_lost``, for one of the locks."""
        first = self._loss is None
        if first:  # before ``_parts``: other threads must not find the rest, and take it for all
            self._lost_name, self._loss, self._lease = part.lease.room.name, Loss(reason, detail), None
        self._parts = [each for each in self._parts if each is not part]  # == would compare the scopes
        if reason is LossReason.CLOSED:
            self._closed.append(part)  # its lease keeps the link, by which ``Closing`` waits for the block
        else:
            part.lease.scope_ref = None  # the two refer to each other
            if first:
                self._stay(0.0)  # a lost scope keeps nothing (``at_least``)
        self._manager.reports.lost(part.lease, part.hold, reason, detail, held=True)
        if first:
            self._wake()
            if self._parent is not None:
                self._get_block().abort(self._why_stopped())

    def _why_stopped(self) -> str:
        if self._loss is None:
            return super()._why_stopped()
        return f"lock {self._lost_name!r} was lost: {self._loss.reason}"

    def _error(self) -> LockLostError:
        if self._loss is not None:
            return LockLostError(self._lost_name, *self._loss)
        if self._lease is None:
            return LockLostError(self.name, LossReason.RELEASED)
        expired = self._expired()
        return LockLostError(self.name if expired is None else expired.lease.room.name, LossReason.EXPIRED)

    def _keeps(self, name: str) -> bool:
        if self._manager.life.forked:
            return False
        now = self._manager.clock()  # after a loss, too: the others stay until the block has been left
        return any(part.lease.room.name == name and now < part.lease.deadline for part in self._parts)

    def _fenced(self, name: str | None) -> Lease:
        if name is None:
            raise ConfigurationError(
                f"fencing_token() needs a name here, for this scope has several locks: one of {self.names}"
            )
        for part in self._parts:
            if part.lease.room.name == name:
                return part.lease
        return super()._fenced(name)

    # Ending

    def _stay(self, seconds: float) -> None:
        until = self._manager.clock() + seconds if seconds else 0.0
        for part in self._parts:
            part.lease.keep(until)

    def _end(self) -> Lease | None:
        self._end_all()
        return None

    def _end_all(self) -> list[Part]:
        """The scope gives all locks up. Returns those that were held."""
        if self._expired() is not None:  # lost, though nobody has noticed yet: none is kept (``at_least``)
            self._stay(0.0)
        # The lease first: other threads must not find it without the parts, which say when it is over.
        parts, self._lease, self._parts = self._parts, None, []
        for part in parts:
            part.lease.scope_ref = None
            if part.hold is not None:
                self._manager.reports.released(part.lease.room.name, part.hold)
        self._wake()
        return parts

    def _end_closed(self) -> list[Part]:
        """Those that were lost because the locker closes: the caller gives them back."""
        closed, self._closed = self._closed, []
        for part in closed:
            part.lease.scope_ref = None
        return closed

    def send_releases(self) -> list[Part]:
        """Give everything back, without waiting for the answers. Returns what was held and not handed on to another
        task: from now on, only the answers to these show whether the scope had lost them."""
        held, closed = self._end_all(), self._end_closed()
        if self._can_send():
            now = self._manager.clock()
            for part in (*held, *closed):
                self._manager.give_back(part.lease.room, part.lease, now)
        return [part for part in held if part.lease.unreleased]

    async def wait_for_releases(
        self, parts: Sequence[Part], until: float | None = None
    ) -> asyncio.CancelledError | None:
        """Wait for the answers, and find out whether a lock had been lost. Returns a cancellation that came meanwhile.

        :param until: as for ``PendingReleases.wait``
        """
        cancelled = await self._manager.pending_releases.wait_for_all([part.lease for part in parts], until)
        self._find_out_all(parts)
        try:
            return cancelled
        finally:
            del cancelled  # no cycle through its traceback

    def _find_out_all(self, parts: Sequence[Part]) -> None:
        """As ``Held._find_out``."""
        for part in parts:
            reason = part.lease.loss_found_by_release()
            if reason is not None:
                if self._loss is None:
                    self._lost_name, self._loss = part.lease.room.name, Loss(reason, NOTICED_LATE)
                self._manager.reports.lost(part.lease, part.hold, reason, NOTICED_LATE, held=False)

    def leave_unattended(self, parts: Sequence[Part], now: float) -> list[Part]:
        """Returns those whose releases are to be waited for: with ``wait_release``, all that were not handed on."""
        parts = [part for part in parts if part.lease.unreleased]
        if self._wait_release:
            return parts
        pending_releases, waited_for = self._manager.pending_releases, []
        for part in parts:
            if pending_releases.may_leave_unattended(part.lease, now):
                pending_releases.leave_unattended(part.lease, part.hold)
            else:
                waited_for.append(part)
        return waited_for

    async def release(self) -> None:
        can_send = self._can_send()
        if can_send:
            self._check_here()
        if self._loss is not None:  # as at the end of a block
            self._send_release()
            return
        parts = self.send_releases()
        if parts and can_send:
            manager = self._manager
            cancelled = await self.wait_for_releases(parts, manager.clock() + manager.pending_releases.patience)
            try:
                if cancelled is not None:
                    raise cancelled
            finally:
                del cancelled  # no cycle through its traceback

    def _give_back_soon(self) -> None:
        for part in (*self._end_all(), *self._end_closed()):
            self._manager.give_back_soon(part.lease.room, part.lease)

    def _send_release(self) -> None:
        for part in self.send_releases():
            self._manager.pending_releases.leave_unattended(part.lease, part.hold)

    async def _give_back(self) -> asyncio.CancelledError | None:
        self._check()
        if self._loss is not None:  # after a loss, nothing waits for a server
            self._send_release()
            return None
        parts = self.send_releases()
        return await self.wait_for_releases(self.leave_unattended(parts, self._manager.clock()))

    # The block

    def _leave_at_once(self) -> asyncio.Future[int] | bool:
        return False  # ``__aexit__`` does it

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        manager = self._manager
        serving, now = manager.life.serving, manager.clock()
        if (
            error is not None
            or self._block is not None
            or self._lease is None
            or serving is None
            or asyncio._get_running_loop() is not serving
            or any(now >= part.lease.deadline for part in self._parts)
        ):
            return await super().__aexit__(kind, error, traceback)
        self._exiting = True
        parts = self._end_all()
        for part in parts:
            part.lease.room.release(part.lease, now)
        waited_for = self.leave_unattended(parts, now)
        pending_releases = manager.pending_releases
        until = now + pending_releases.patience
        missed = 0
        try:
            for answered in [pending_releases.begin(part.lease, until) for part in waited_for]:
                missed |= await answered
        except asyncio.CancelledError:
            await self.wait_for_releases(waited_for, until)
            raise
        if missed:
            self._find_out_all(waited_for)
            if self._loss is not None:
                raise self._error()
        return None

    def _keepers(self) -> list[object]:
        leases = [part.lease for part in self._parts]
        return [*leases, *(lease.scope_ref for lease in leases)]

    def __del__(self) -> None:
        if self._manager.life.forked:  # in the child of a fork, they are the parent's
            return
        held = self._lease is not None
        if self._expired() is not None:  # as in ``_end_all``
            self._stay(0.0)
        for part in self._parts:
            self._manager.dropped(part.lease.room, part.lease, part.hold)
        for part in self._end_closed():  # lost, as was told: only the key is given back
            self._manager.dropped(part.lease.room, part.lease, None)
        if held:
            warnings.warn(
                f"the scope of locks {', '.join(map(repr, self.names))} was forgotten without release; "
                "use 'async with', or call release()",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )


class Part(ScopeRef):
    """One of the locks of a scope, and the link from its lease to the scope."""

    __slots__ = ("hold", "lease")

    lease: Lease
    hold: Hold | None  # for its events

    def lost(self, reason: LossReason, detail: str) -> None:
        scope = self()
        if isinstance(scope, SeveralScope):
            scope.part_lost(self, reason, detail)

    def extension_late(self, remaining: float) -> None:
        scope = self()
        if isinstance(scope, SeveralScope):
            scope._manager.reports.extension_late(self.lease.room.name, self.hold, remaining)
