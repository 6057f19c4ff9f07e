"""Reports that a database was flushed, at a bounded rate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..core.pace import Pace


class Flushes:
    """Reports flushes at once while they are rare. When they come in numbers, one report stands for several.

    A server does not say which database was flushed, and each report makes every lock on it be checked.

    Invariant: a flush was reported after it happened, or ``_timer`` is set and will report it, or the connection
    was lost meanwhile (``stop``): after a reconnect every lock is checked anyway. (``Pace`` counts flushes over all
    connections to a server.)
    """

    __slots__ = ("_pace", "_timer")

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._timer: asyncio.TimerHandle | None = None

    def flushed(self, now: float, report: Callable[[], None]) -> None:
        """A database was flushed: call ``report``, now or in a while."""
        if self._timer is not None:
            return
        seconds = self._pace.flushed(now)
        if seconds:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._report, report)
        else:
            # Now: replies that come right after it show that keys are gone, but not why.
            report()

    def stop(self) -> None:
        """Report no flush that is still to be reported."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _report(self, report: Callable[[], None]) -> None:
        self._timer = None
        report()
