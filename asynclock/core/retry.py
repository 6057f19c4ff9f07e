"""When to try again after an attempt has failed."""

from __future__ import annotations

from .lease import Lease
from .rules import NEVER, Rules

MAX_BACKOFF = 1.0  # seconds between attempts while a server answers with errors that may pass
MAX_AT_ONCE = 3  # attempts in a row without a pause
SAME = 0.01  # seconds by which the time at which a key expires may seem to move, beside what its answer took


class Retries:
    """What one room knows of its last attempts, none of which was successful."""

    __slots__ = ("_at_once", "_expires", "_failures", "_invalidated", "_known_since", "_took", "counts")

    def __init__(self) -> None:
        self.counts = False  #: has anything been counted since the last ``reset``?
        self._at_once = 0  # attempts in a row that followed without a pause
        self._failures = 0  # errors of servers, since a lock was acquired or verified
        self._invalidated = False  # is the next attempt, or the one under way, due to an invalidation?
        self._expires = NEVER  # when the key that refused the last attempt was to expire
        self._known_since = NEVER  # ... and since when that has been known
        self._took = 0.0  # ... and how long that answer took

    def may_follow_at_once(self) -> bool:
        """May the next attempt follow without a pause? Counts it, if so."""
        if self._at_once >= MAX_AT_ONCE:
            self._at_once = 0
            return False
        self._at_once += 1
        self.counts = True
        return True

    def pause(self) -> None:
        """No attempt follows at once."""
        self._at_once = 0

    def reset(self) -> None:
        """The lock was acquired, or nobody wants it any more."""
        self._at_once = self._failures = 0
        self.counts = False

    def servers_work(self) -> None:
        """Servers have answered as they should."""
        self._failures = 0

    def invalidated(self) -> None:
        """A key that an attempt needs may have changed."""
        self._invalidated = True

    def backoff(self, rules: Rules, chance: float) -> float:
        """Seconds to leave a server alone after another error, jittered by ``chance`` in [0, 1)."""
        self._failures += 1
        self.counts = True
        pause = min(rules.try_next_after * 2.0 ** min(self._failures, 10), MAX_BACKOFF)
        return pause * (0.5 + chance / 2)

    def needless(self, expires: float, took: float, now: float) -> bool:
        """Was the attempt due to an invalidation of a key that has not changed?

        :param expires: when the key expires, now that it has refused the attempt. A new holder, or an extension, moves
            that time. A holder that has just got the key looks like the one before.
        :param took: seconds that the answer took: ``expires`` is uncertain by as much
        """
        invalidated, self._invalidated = self._invalidated, False
        same = SAME + max(took, self._took)
        if abs(expires - self._expires) < same:
            return invalidated and now > self._known_since + 2 * same
        self._expires, self._known_since, self._took = expires, now, took
        return False


def possible_at(lease: Lease, rules: Rules, now: float) -> float:
    """When another attempt may do better than ``lease``, as far as is known."""
    if lease.unsent and lease.refused:  # stopped at a refusal: what that key does decides
        again = min(when for index, when in lease.free_at.items() if lease.refused >> index & 1)
        return min(again, now + rules.validity)  # then an attempt requests the others all the same
    return enough_free_at(lease, rules, now)


def enough_free_at(lease: Lease, rules: Rules, now: float) -> float:
    """When enough keys that could not be taken may be free for a majority to be possible."""
    missing = len(lease.free_at) - (rules.keys - rules.majority)
    if missing <= 0:
        return now
    return sorted(lease.free_at.values())[missing - 1]
