"""Closing: what becomes of the locks of a locker that closes, and of those who wait for one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ..core.lease import Lease
from ..core.room import Room
from .lifecycle import closed_error
from .pending_releases import PendingReleases
from .rooms import Rooms
from .scope_link import ScopeLink
from .waiter import Waiter

TURNS = 5  # of the event loop, between telling scopes that the locker closes and giving their keys back


class Closing:
    """Takes every lock from its scope at once, and gives the keys back when that is safe.

    A scope that is notified of its loss still has to stop its work. Nobody else gets the lock before that.
    """

    __slots__ = ("_clock", "_give_back", "_leases", "_waited_for")

    def __init__(
        self, rooms: Rooms, locker: str, clock: Callable[[], float], give_back: Callable[[Room[Waiter], Lease], None]
    ) -> None:
        """Tell all scopes and waiters.

        :param locker: its repr, for the error that waiters raise
        :param give_back: releases the keys of a lease
        """
        self._clock = clock
        self._give_back = give_back
        self._leases: list[tuple[Room[Waiter], Lease]] = []
        self._waited_for: list[ScopeLink] = []
        for room in list(rooms.values()):
            lease = room.holder
            for waiter in room.close(clock()):
                waiter.fail(closed_error(locker))
            if lease is not None:
                self._leases.append((room, lease))

    def give_back(self) -> None:
        """Give all keys back."""
        for room, lease in self._leases:
            self._give_back(room, lease)

    async def give_back_when_left(
        self, caller: asyncio.Task[Any] | None, hurry: asyncio.Future[None], pending_releases: PendingReleases
    ) -> None:
        """Give all keys back once every block has been left, or the lock would have been over by itself, or in a
        ``hurry``. Then wait for the answers, as long as for any release.

        :param caller: waits for this; so do not wait for its block
        """
        exits: dict[asyncio.Future[None], float] = {}
        for _, lease in self._leases:
            link: ScopeLink | None = lease.scope_ref
            if link is not None and (exited := link.exited(caller)) is not None:
                exits[exited] = min(lease.deadline, exits.get(exited, lease.deadline))
                self._waited_for.append(link)
        try:
            while exits and not hurry.done():
                timeout = max(0.0, min(exits.values()) - self._clock())
                await asyncio.wait([*exits, hurry], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                now = self._clock()
                exits = {exited: until for exited, until in exits.items() if not exited.done() and until > now}
            # Nobody can wait for a scope without a block. Tasks in ``wait_lost`` are notified before the keys are
            # released.
            for _ in range(TURNS if self._leases else 0):
                await asyncio.sleep(0)
        finally:  # also if every task of the program is cancelled
            self.give_back()
        until = self._clock() + pending_releases.patience
        for lease in [*(lease for _, lease in self._leases), *pending_releases.unattended]:
            await pending_releases.wait(lease, until)

    def excuse(self, task: asyncio.Task[Any] | None) -> None:
        """This task waits for the locker to close, too: do not wait for its blocks."""
        for link in self._waited_for:
            if task is not None:
                link.excuse(task)
