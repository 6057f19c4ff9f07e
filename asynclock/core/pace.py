"""How soon a key is checked after an invalidation: at once, as long as invalidations mean something."""

from __future__ import annotations

from .rules import NEVER

PAUSE = 1.3  # seconds between two checks of a key, while invalidations mean nothing
BURST = 50.0  # needless checks that may come at once
RATE = 30.0  # ... and as many more a second
LULL = 5.0  # seconds without a needless check, after which invalidations mean something again
FLUSHES = 20.0  # flushes that are reported at once
FLUSH_RATE = 10.0  # ... and as many more a second: each is a check of every lock


class Pace:
    """What the invalidations of one server have been worth recently.

    Some mean nothing. A tracking table that is full drops entries, and sends an invalidation for each; and each check
    of a key drops the entry of another one. A flush of another database is sent to everybody. To check every key after
    every such message would be a storm without an end. So checks that find nothing changed are counted, by a leaky
    bucket. While it is full, a key is checked every ``PAUSE`` seconds at most, and changes are noticed that much later.
    """

    __slots__ = ("_burst", "_flushes", "_needless")

    def __init__(self, burst: float = BURST) -> None:
        self._burst = burst
        self._needless = _Bucket(RATE)
        self._flushes = _Bucket(FLUSH_RATE)

    def needless(self, now: float) -> None:
        """A key was checked, and had not changed."""
        self._needless.add(now, self._burst + RATE * LULL)

    def pause(self, now: float) -> float:
        """Seconds between two checks of a key, at least."""
        return PAUSE if self._needless.level(now) >= self._burst else 0.0

    def flushed(self, now: float) -> float:
        """A database was flushed, perhaps another one. Returns in how many seconds to report it: flushes until then are
        reported with it."""
        before = self._flushes.level(now)
        self._flushes.add(now)
        return max(0.0, before - FLUSHES) / FLUSH_RATE


class _Bucket:
    """A leaky bucket: what is added leaks out at ``rate`` a second."""

    __slots__ = ("_level", "_rate", "_since")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._level = self._since = 0.0

    def level(self, now: float) -> float:
        return max(0.0, self._level - (now - self._since) * self._rate)

    def add(self, now: float, most: float = NEVER) -> None:
        self._level, self._since = min(self.level(now) + 1, most), now
