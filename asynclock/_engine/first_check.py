"""First looks: a lock that is still held after a moment has its keys tracked, and is extended from then on."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from ..core.lease import Lease
from ..core.room import Room

LOOK_AFTER = 0.001  # seconds after a lock was acquired
LOOKS_AT_ONCE = 200  # such locks, at most, in one turn of the event loop


class FirstCheck:
    """Calls ``room.look`` for each lease that was just acquired, unless it is done by then.

    Invariant: while ``_leases`` has some, ``_timer`` is set, or a call of ``_check`` is due. Nothing else would
    come back to them: what one of them raises must not be the end of the others.
    """

    __slots__ = ("_clock", "_leases", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._clock = clock
        self._leases: deque[tuple[Room[Any], Lease]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def soon(self, room: Room[Any], lease: Lease) -> None:
        """As ``core.room.Port.first_check_soon``."""
        if not self._leases:
            # Who is to be resumed already goes first: it may be about to give the lease back.
            self._timer = self._loop.call_later(LOOK_AFTER, self._loop.call_soon, self._check)
        self._leases.append((room, lease))

    def close(self) -> None:
        """Look at nothing more."""
        self._leases.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        leases = self._leases
        now = self._clock()
        try:
            for _ in range(min(len(leases), LOOKS_AT_ONCE)):
                room, lease = leases.popleft()
                if not lease.done:
                    room.first_check(lease, now)
        finally:
            if leases:  # after thousands of acquisitions at once: let others run in between
                self._loop.call_soon(self._check)
