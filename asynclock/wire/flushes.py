"""Reports FLUSHALL and FLUSHDB, at a limited rate."""

from __future__ import annotations

from collections.abc import Callable

from ..core.pace import Pace
from .background import Timer


class Flushes:
    """Reports flushes at once while they are rare. When there are many, one report stands for several.

    A server does not say which database was flushed, so each report makes asynclock check every lock on the server.

    Invariant: every flush has been reported after it happened, or ``_timer`` is running and will report it, or the
    connection was lost meanwhile (``stop``), and then every lock is checked after the reconnect. (``Pace`` counts
    flushes over all connections to a server.)
    """

    __slots__ = ("_pace", "_timer")

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._timer = Timer()

    def flushed(self, now: float, report: Callable[[], None]) -> None:
        """A database was flushed: call ``report``, now or later."""
        if self._timer.running:
            return
        seconds = self._pace.flushed(now)
        if seconds:
            self._timer.start(seconds, report)
        else:
            # Not in a later turn: replies that follow in the same read show that keys are gone, but not why.
            report()

    def stop(self) -> None:
        """Drop the pending report."""
        self._timer.stop()
