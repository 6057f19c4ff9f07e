"""Waiter: one attempt of a task to acquire a lock, as its room sees it."""

from __future__ import annotations

import asyncio

from ..core.lease import Lease
from ..core.room import Room


class Waiter:
    """Waits in ``room`` until ``future`` is done, which it is once ``lease`` or ``error`` is set.

    The future carries neither of them: a task that is cancelled in that very moment never reads its result.
    """

    __slots__ = ("error", "future", "lease", "room")

    def __init__(self, room: Room[Waiter], future: asyncio.Future[None]) -> None:
        self.room = room
        self.future = future
        self.lease: Lease | None = None
        self.error: Exception | None = None

    def done(self) -> None:
        """Wake up the task, for it to look at ``lease`` and ``error``."""
        if not self.future.done():
            self.future.set_result(None)
