"""PendingReleases: the releases that are not answered yet, and who waits for them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable

from ..core.lease import Lease
from ..core.rules import NEVER
from ..wire.awaiting import Passing
from .reports import Hold


class PendingReleases:
    """All waits for a release to be answered, with one timer of the event loop; and the releases that nothing waits
    for.

    A wait ends with the answer (``release_answered``), or after ``patience`` seconds if the servers are silent.

    Invariants: A lease is in ``_until`` while its ``release_waiter`` is a future that is not done. ``_until`` is in the
    order in which the waits time out, since all are equally long. ``_unattended`` has the leases whose answers nothing
    waits for (while the locker closes, that does), until they are there.
    """

    __slots__ = ("_clock", "_loop", "_silent", "_timer", "_unattended", "_unattended_answered", "_until", "patience")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        patience: float,
        silent: Callable[[float], bool],
        unattended_answered: Callable[[Lease, Hold | None], None],
    ) -> None:
        """
        :param patience: seconds
        :param silent: have answers been missing for ``patience`` seconds?
        :param unattended_answered: called when the release of a lease is answered and nothing has waited for it: with
            the lease, and with what ``leave_unattended`` got
        """
        self.patience = patience
        self._loop = loop
        self._clock = clock
        self._silent = silent
        self._unattended_answered = unattended_answered
        self._until: dict[Lease, float] = {}
        self._unattended: dict[Lease, Hold | None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def may_leave_unattended(self, lease: Lease, now: float) -> bool:
        """May the block of ``lease`` be left without waiting for the release that was just sent?

        If this process acquires the lock again right behind its release, again and again, nobody else has a chance. So
        each name is waited for once in ``Rules.handoff_time``, as long as it does that.
        """
        room = lease.room
        if room.unattended_since == NEVER:
            room.unattended_since = now
        elif now - room.unattended_since >= room.rules.handoff_time:
            room.unattended_since = NEVER
            return False
        return True

    def leave_unattended(self, lease: Lease, hold: Hold | None) -> None:
        """Nothing waits for the release of ``lease``: report it when it is answered. (It has none if it was handed on
        to another task.)"""
        if lease.unreleased:
            self._unattended[lease] = hold

    @property
    def unattended(self) -> list[Lease]:
        """Those that nothing waits for, and that are not answered."""
        return list(self._unattended)

    def begin(self, lease: Lease, until: float) -> asyncio.Future[int]:
        """Returns a future that is done when the wait for the release is over. Its result: ``lease.missed``."""
        future: asyncio.Future[int] = self._loop.create_future()
        other: asyncio.Future[int] | None = lease.release_waiter
        if other is not None and not other.done():
            # Closing waits for it too: the task that it was granted to was cancelled before it got to run.
            other.add_done_callback(lambda _: None if future.done() else future.set_result(lease.missed))
            return future
        lease.release_waiter = future
        self._until[lease] = until
        if self._timer is None:
            self._timer = self._loop.call_later(self.patience, self._time_out)
        return future

    async def wait(self, lease: Lease, until: float | None = None) -> asyncio.CancelledError | None:
        """Wait until the release is answered or never will be. Give up at ``until`` (default: in ``patience``
        seconds), but not while the servers still answer other requests. A cancellation is returned, not raised."""
        cancelled = None
        now = self._clock()
        if until is None:
            until = now + self.patience
        while lease.unreleased and not (until <= now and self._silent(now)):
            try:
                waiting: Awaitable[object] = self.begin(lease, until)
                if sys.version_info >= (3, 12):
                    waiting = Passing(waiting)
                await waiting
            except asyncio.CancelledError as error:
                # The release has been sent; the rest of the wait is short and bounded.
                cancelled = error
            now = self._clock()
        try:
            return cancelled
        finally:
            del cancelled  # no cycle through its traceback: while the exception lives, it counts as handled

    async def wait_for_all(self, leases: Iterable[Lease], until: float | None = None) -> asyncio.CancelledError | None:
        """As ``wait``, for several; all of them within the same time."""
        if until is None:
            until = self._clock() + self.patience
        cancelled = None
        for lease in leases:
            cancelled = await self.wait(lease, until) or cancelled
        try:
            return cancelled
        finally:
            del cancelled  # as above

    def release_answered(self, lease: Lease) -> None:
        """Each RELEASE of the lease was answered, or never will be."""
        if lease.release_waiter is not None:
            self._end_wait(lease)
        if self._unattended and lease in self._unattended:
            hold = self._unattended.pop(lease)
            if lease.room.empty:  # others have had their chance
                lease.room.unattended_since = NEVER
            self._unattended_answered(lease, hold)

    def _end_wait(self, lease: Lease) -> None:
        """The release was answered, or the wait has timed out."""
        future: asyncio.Future[int] = lease.release_waiter
        lease.release_waiter = None
        del self._until[lease]
        if not future.done():
            future.set_result(lease.missed)

    def close(self) -> None:
        """Stop the timer, and expect nothing more."""
        self._unattended.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self, before: float = 0.0) -> None:
        """End the waits that have timed out, if the servers are silent.

        :param before: only waits that had timed out by then, which is when this was called last and the servers
            were silent already. Before the first call, the loop may have been blocked, and the answers not read yet.
        """
        self._timer = None
        now = self._clock()
        silent = self._silent(now)
        for lease, until in list(self._until.items()):
            if until > before or not silent:
                again = max(until - now, self.patience / 4)
                self._timer = self._loop.call_later(again, self._time_out, now if silent else 0.0)
                break
            self._end_wait(lease)
