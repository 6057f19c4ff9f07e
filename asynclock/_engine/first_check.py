"""FirstCheck: a lock that is still held after a millisecond gets its keys tracked, and is extended from then on.

Most locks are released before that, and save both.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from ..core.lease import Lease

CHECK_AFTER: Final = 0.001  # seconds after a lock was acquired
MAX_CHECKS: Final = 200  # locks that are checked in one turn of the event loop


class FirstCheck:
    """Calls ``Room.first_check`` for each lease that was just acquired, unless it is done by then.

    Invariant: while ``_leases`` is not empty, ``_timer`` is set or a call of ``_check`` is scheduled, also after
    ``Room.first_check`` has raised: nothing else comes back to these leases.
    """

    __slots__ = ("_clock", "_leases", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._clock = clock
        self._leases: deque[Lease] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def soon(self, lease: Lease) -> None:
        """As ``core.port.Port.first_check_soon``."""
        if not self._leases:
            # Behind the tasks that are about to run: they may release their locks.
            self._timer = self._loop.call_later(CHECK_AFTER, self._loop.call_soon, self._check)
        self._leases.append(lease)

    def close(self) -> None:
        """Check nothing more."""
        self._leases.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        leases = self._leases
        now = self._clock()
        try:
            for _ in range(min(len(leases), MAX_CHECKS)):
                lease = leases.popleft()
                if not lease.done:
                    lease.room.first_check(lease, now)
        finally:
            if leases:  # thousands were acquired at once: let other callbacks run in between
                self._loop.call_soon(self._check)
