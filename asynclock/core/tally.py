"""Tally: what a locker counts."""

from __future__ import annotations

from .reasons import LossReason


class Tally:
    """Counts since the locker was made, as ``Statistics`` explains them. The rules count what they decide, and
    ``Reports`` what it is told. (``Reports`` itself has the count of acquisitions and the longest wait.)"""

    __slots__ = (
        "extensions",
        "failed",
        "handed_off",
        "latest_extension",
        "lost",
        "lost_while_held",
        "reconnects",
        "refused",
        "timed_out",
    )

    def __init__(self) -> None:
        self.handed_off = 0
        self.timed_out = 0
        self.refused = 0
        self.failed = 0
        self.reconnects = 0
        self.extensions = 0
        self.latest_extension = 0.0
        self.lost: dict[LossReason, int] = {}
        self.lost_while_held = 0  # the others were found when the lock had been released

    def hand_off(self) -> None:
        """A lease passes to the next task of this process."""
        self.handed_off += 1

    def extension(self, late: float) -> None:
        """A lease is extended, ``late`` seconds after it was due."""
        self.extensions += 1
        if late > self.latest_extension:
            self.latest_extension = late
