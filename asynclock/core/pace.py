"""How soon a key is looked at after a push that says that it has changed: at once, as long as pushes mean something."""

from __future__ import annotations

PAUSE = 1.3  # seconds from one look at a key to the next, while pushes mean nothing
BURST = 50.0  # looks in vain that are done at once
RATE = 30.0  # ... and as many more a second
LULL = 5.0  # seconds without any, after which pushes mean something again: locks that are looked at together leave some
FLUSHES = 20.0  # flushes that are told at once
FLUSH_RATE = 10.0  # ... and as many more a second: each is a look at every lock


class Pace:
    """What the pushes of one server have been worth of late.

    Some mean nothing: a tracking table that is full drops entries and tells so, and each look drops another one's;
    a flush of another database is told to everybody. To look at every key after every such push would be a storm
    without an end. So looks that find nothing changed are counted, as by a leaky bucket; while it is full, no key
    is looked at more often than every ``PAUSE`` seconds. What happens to a key is told that much later then.
    """

    __slots__ = ("_burst", "_flushed_at", "_flushes", "_level", "_since")

    def __init__(self, burst: float = BURST) -> None:
        self._burst = burst
        self._level = self._flushes = 0.0
        self._since = self._flushed_at = 0.0

    def needless(self, now: float) -> None:
        """A key was looked at, and nothing had changed."""
        self._level = min(self._leaked(now) + 1, self._burst + RATE * LULL)
        self._since = now

    def pause(self, now: float) -> float:
        """Seconds between two looks at a key, at least."""
        return PAUSE if self._level and self._leaked(now) >= self._burst else 0.0

    def flushed(self, now: float) -> float:
        """A database was flushed, perhaps another one. Returns the seconds in which that is to be told: flushes that
        come meanwhile are told with it."""
        flushes = max(0.0, self._flushes - (now - self._flushed_at) * FLUSH_RATE)
        self._flushes, self._flushed_at = flushes + 1, now
        return max(0.0, flushes - FLUSHES) / FLUSH_RATE

    def _leaked(self, now: float) -> float:
        return max(0.0, self._level - (now - self._since) * RATE)
