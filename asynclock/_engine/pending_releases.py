"""Settling: who waits for the answers to releases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..core.lease import Lease


class PendingReleases:
    """The waits for releases to be answered, with one timer of the event loop.

    A wait ends with the answer (``release_answered``), or after ``patience`` seconds if the servers are silent.

    Invariant: a lease is in ``_until`` while its ``release_waiter`` is a future that is not done. They are in the
    order in which they time out, since all wait equally long.
    """

    __slots__ = ("_clock", "_loop", "_silent", "_timer", "_until", "patience")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        patience: float,
        silent: Callable[[float], bool],
    ) -> None:
        self.patience = patience
        self._loop = loop
        self._clock = clock
        self._silent = silent  # have answers been missing for so long?
        self._until: dict[Lease, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, lease: Lease, until: float) -> asyncio.Future[None]:
        """Done when the wait for the release is over."""
        future = self._loop.create_future()
        other: asyncio.Future[None] | None = lease.release_waiter
        if other is not None and not other.done():
            # ``close`` waits for it too, since its waiter had not taken it yet, and was cancelled just then.
            other.add_done_callback(lambda _: None if future.done() else future.set_result(None))
            return future
        lease.release_waiter = future
        self._until[lease] = until
        if self._timer is None:
            self._timer = self._loop.call_later(self.patience, self._give_up)
        return future

    async def wait(self, lease: Lease, until: float | None = None) -> asyncio.CancelledError | None:
        """Wait until the release is answered, or will not be: until then, and as long as servers
        that were asked keep answering at all. A cancellation meanwhile is returned, not raised."""
        cancelled = None
        now = self._clock()
        if until is None:
            until = now + self.patience
        while lease.unreleased and not (until <= now and self._silent(now)):
            try:
                await self.begin(lease, until)
            except asyncio.CancelledError as error:
                # The release is on its way; what is left of the wait is short and bounded.
                cancelled = error
            now = self._clock()
        try:
            return cancelled
        finally:
            del cancelled  # no cycle through its traceback: while it lives it counts as heard

    def release_answered(self, lease: Lease) -> None:
        """Every RELEASE of the lease was answered, or never will be."""
        future: asyncio.Future[None] | None = lease.release_waiter
        if future is not None:
            lease.release_waiter = None
            del self._until[lease]
            if not future.done():
                future.set_result(None)

    def close(self) -> None:
        """Wait for nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self, before: float = 0.0) -> None:
        """Let those go on who have waited long enough for a server that says nothing, and had done so at
        the last look, ``before``: the loop may have been blocked, and the answers unread."""
        self._timer = None
        now = self._clock()
        silent = self._silent(now)
        for lease, until in list(self._until.items()):
            if until > before or not silent:
                again = max(until - now, self.patience / 4)
                self._timer = self._loop.call_later(again, self._give_up, now if silent else 0.0)
                break
            self.release_answered(lease)
