"""Local hand-off: how often a lock passes from task to task inside this process before others have a chance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .rules import Rules

if TYPE_CHECKING:
    from .lease import Lease

MANY = 1 << 20  # hand-offs: in practice, only the time limits them


class LocalHandoffs:
    """The hand-offs that one room may still make (lock cohorting: Dice, Marathe, Shavit 2012).

    A run of hand-offs begins when the lock is acquired. It ends after ``_allowance`` of them, or after
    ``Rules.handoff_time``, whichever comes first. The allowance grows while nobody else is seen to want the lock.
    """

    __slots__ = ("_allowance", "_remaining", "_since", "lease")

    def __init__(self) -> None:
        self._allowance = 0  # hand-offs in a run
        self.lease: Lease | None = None  #: the one that passes on, or the attempt that continues its run
        self._since = 0.0  # when the run began
        self._remaining = 0

    def take(self, lease: Lease, now: float, rules: Rules) -> bool:
        """May the lock stay in this process once more, now that ``lease`` is released?"""
        if lease is not self.lease:
            self.lease, self._since, self._remaining = lease, lease.acquired_at, self._allowance
        if self._remaining <= 0 or now - self._since >= rules.handoff_time:
            return False
        self._remaining -= 1
        return True

    def go_on_with(self, attempt: Lease | None) -> None:
        """The lease was released, and the run goes on with the attempt behind that."""
        self.lease = attempt

    def acquired(self, lease: Lease, rules: Rules) -> None:
        """The lock was acquired, and nobody else is known to want it."""
        if lease is not self.lease:
            self._allowance = rules.first_handoffs

    def limit(self, rules: Rules) -> None:
        """The lock was acquired, and others want it, too."""
        self._allowance = rules.handoffs

    def grow(self, rules: Rules) -> None:
        """The lock was acquired. Others had their chance, and nobody took it."""
        self._allowance = min(max(2 * self._allowance, rules.first_handoffs), MANY)

    def end(self) -> None:
        """The lock was released, and nobody here wants it."""
        self.lease = None
