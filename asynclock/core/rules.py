"""The numbers that the rules of the lock work with."""

from __future__ import annotations

from typing import Final

NEVER: Final = float("inf")
GRID: Final = 1 / 128  # seconds; a power of two, so that what is on the grid stays there
COARSE: Final = 0.1  # seconds: shorter intervals between extensions are exact, not on the grid


def on_grid(when: float) -> float:
    """The last instant of the grid at or before ``when``."""
    return when // GRID * GRID


FIRST_HANDOFFS: Final = 64  # hand-offs inside a process before it finds out whether others want the lock
DRIFT: Final = 0.01  # how far two clocks may drift apart, as a share of the validity (Redlock's CLOCK_DRIFT_FACTOR)
SLACK: Final = 0.002  # seconds, for expiries that are rounded to a millisecond, and for the timer that ends the lock


class Rules:
    """The constants of one locker. Durations are in seconds. Nothing changes after ``__init__``."""

    __slots__ = (
        "extend_interval",
        "first_handoffs",
        "handoff_time",
        "handoffs",
        "keys",
        "majority",
        "no_requests",
        "no_votes",
        "reserve",
        "term",
        "tracking",
        "try_next_after",
        "validity",
    )

    def __init__(
        self,
        *,
        majority: int,
        validity: float,
        extend_interval: float,
        try_next_after: float,
        tracking: bool = True,
        handoffs: int = 0,
        handoff_time: float = 0.05,
    ) -> None:
        """
        :param tracking: do servers send invalidations of keys that were read?
        :param handoffs: how often a lease may pass on inside this process before others have a chance
        :param handoff_time: seconds after it was acquired for which it may, whatever ``handoffs`` allows
        """
        self.majority = majority
        self.validity = validity
        self.extend_interval = extend_interval
        self.try_next_after = try_next_after
        self.tracking = tracking
        self.handoffs = handoffs
        self.handoff_time = handoff_time
        self.first_handoffs = max(handoffs, FIRST_HANDOFFS)  # while nobody else was ever seen to want the lock
        self.keys = 2 * majority - 1  # how many keys a name has
        # What each lease begins with a copy of: to make them takes longer.
        self.no_votes = [0.0] * self.keys
        self.no_requests = [0] * self.keys
        self.term = self.term_of(validity)  # how long a granted key counts, from when it was requested
        self.reserve = self.term - extend_interval  # how much of that is left when an extension is due

    def extension(self, now: float, share: float = 1.0) -> float:
        """When to extend next. On the grid, so that one timer and one write extend many locks."""
        when = now + self.extend_interval * share
        return when if self.extend_interval < COARSE else on_grid(when)

    @staticmethod
    def term_of(validity: float) -> float:
        """How long a holder may count on a key that lives for ``validity`` on the server."""
        return validity - validity * DRIFT - SLACK
