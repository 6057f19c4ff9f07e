"""Changes: tells tasks of changes."""

from __future__ import annotations

import asyncio


class Changes:
    """Tells any number of tasks that something has changed.

    One that stops waiting costs the same, however many others wait. (With one future for all, or an ``asyncio.Event``,
    that takes as long as there are others: 8,000 that time out together would block the event loop for seconds.)

    Invariant: ``_waiting`` has a future for each task that waits, and for no other.
    """

    __slots__ = ("_waiting", "count")

    def __init__(self) -> None:
        self.count = 0  #: how many there were
        self._waiting: dict[asyncio.Future[None], None] = {}

    def tell(self) -> None:
        """There was one."""
        self.count += 1
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def after(self, count: int) -> None:
        """Wait until there were more than ``count``."""
        if self.count > count:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        try:
            await future
        finally:
            del self._waiting[future]
