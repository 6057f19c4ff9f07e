"""The grace period after a connection is lost (``disconnect_grace``)."""

from __future__ import annotations

from collections.abc import Callable

from .background import Timer


class Grace:
    """Decides when a disconnected server counts as gone, and every key on it as lost.

    It is gone once two things are true: a new connection was refused (the server is not running), and the grace period
    since the disconnect is over. A server that is merely silent is not gone, since it may still have its keys.

    Invariant: ``_lost_at`` is set from the disconnect until the server counts as gone, is connected again, or the node
    closes; ``_timer`` only runs while ``_lost_at`` is set. So "gone" is reported at most once for each disconnect.
    """

    __slots__ = ("_clock", "_lost_at", "_seconds", "_timer")

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lost_at: float | None = None
        self._timer = Timer()

    def lost(self) -> None:
        """The connection is lost; the grace period begins."""
        self._lost_at = self._clock()

    def refused(self, on_gone: Callable[[], None]) -> None:
        """A new connection was refused. Call ``on_gone`` when the grace period ends, or now if it has ended."""
        if self._lost_at is None or self._timer.running:
            return
        left = self._lost_at + self._seconds - self._clock()
        if left <= 0:
            self._end(on_gone)
        else:
            self._timer.start(left, self._end, on_gone)

    def stop(self) -> None:
        """The server is connected again, or the node closes."""
        self._lost_at = None
        self._timer.stop()

    def _end(self, on_gone: Callable[[], None]) -> None:
        self.stop()
        on_gone()
