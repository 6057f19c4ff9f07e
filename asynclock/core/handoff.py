"""Local hand-off: how often a lock passes from task to task inside this process before others have a chance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .rules import Rules

if TYPE_CHECKING:
    from .lease import Lease

MANY = 1 << 20  # hand-offs: in practice, only the time limits them


class LocalHandoffs:
    """The hand-offs that one room may still make (lock cohorting: Dice, Marathe, Shavit 2012).

    A run of hand-offs begins when the lock is acquired. It ends after ``allowance`` of them, or after
    ``Rules.handoff_time``, whichever comes first. The allowance
    grows while nobody else is seen to want the lock.
    """

    __slots__ = ("_left", "_since", "allowance", "lease")

    def __init__(self) -> None:
        self.allowance = 0  #: hand-offs in a run
        self.lease: Lease | None = None  #: the one that passes on, or the attempt that continues its run
        self._since = 0.0  # when the run began
        self._left = 0

    def take(self, lease: Lease, now: float, rules: Rules) -> bool:
        """May the lock stay in this process once more, now that ``lease`` is released?"""
        if lease is not self.lease:
            self.lease, self._since, self._left = lease, lease.acquired_at, self.allowance
        if self._left <= 0 or now - self._since >= rules.handoff_time:
            return False
        self._left -= 1
        return True

    def grow(self, rules: Rules) -> None:
        """Others had their chance, and nobody took it."""
        self.allowance = min(max(2 * self.allowance, rules.first_handoffs), MANY)
