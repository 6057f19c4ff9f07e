"""Waiter: one attempt of a task to acquire a lock, as its room sees it."""

from __future__ import annotations

import asyncio

from ..core.lease import Lease
from ..core.room import Room


class Waiter:
    """Waits in ``room`` until ``future`` is done, which it is once the wait has ended: by ``granted`` or ``fail``.

    Invariants: ``lease`` without ``error`` is the lease that the task holds now. With ``error``, it is the lease whose
    release was sent because the wait has ended. The future carries neither of them: a task that is cancelled in that
    very moment never reads its result.
    """

    __slots__ = ("error", "future", "lease", "room", "since")

    def __init__(self, room: Room[Waiter], future: asyncio.Future[None], since: float) -> None:
        """:param since: when the wait began"""
        self.room = room
        self.since = since
        self.future = future
        self.lease: Lease | None = None
        self.error: Exception | None = None

    def granted(self, lease: Lease) -> None:
        """The task has the lock. If it was cancelled meanwhile, it is about to give the lease back."""
        self.lease = lease
        lease.scope_ref = None
        if not self.future.done():
            self.future.set_result(None)

    def fail(self, error: Exception, released: Lease | None = None) -> None:
        """The task does not get the lock.

        :param released: the lease whose release was sent for that
        """
        self.error, self.lease = error, released
        if not self.future.done():
            self.future.set_result(None)

    def take_lease(self, now: float) -> Lease | None:
        """The lease, if the task has it. None: the wait has failed, or the lock was lost before the task could run."""
        lease = self.lease
        if self.error is not None or lease is None:
            return None
        if now >= lease.deadline and not lease.done:
            self.room.woken(now)  # the event loop was blocked until then
        return None if lease.done else lease

    def take_error(self) -> Exception:
        """The error, for the task to raise. It is not kept here: the traceback would lead back, in a cycle."""
        error, self.error = self.error, None
        assert error is not None
        return error
