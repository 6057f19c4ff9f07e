"""What time it is on a server, in the client's terms."""

from __future__ import annotations

MAX_AGE = 20.0  # seconds that a measurement is used, at most


class ServerClock:
    """The server's wall clock, never behind it.

    ``TIME`` was answered with ``server`` at some instant between ``sent`` and ``received``. So at
    ``sent`` the server's clock showed at most ``server``, and ``now + (server - sent)`` is at least
    what it shows now. An expiry set from that is never earlier than the holder counts on; it may be
    later by the time that the command travelled. The newest measurement wins: it is the only one
    that knows about a step of either clock.

    It is used for no longer than a key lives. Two clocks may run apart as long as it is used, and
    then as long as the key lives; the holder's allowance (``DRIFT``, 1 %) is for both together.
    """

    __slots__ = ("_max_age", "_offset", "measured")

    def __init__(self, validity: float) -> None:
        self._max_age = min(validity, MAX_AGE)
        self._offset = 0.0
        self.measured = float("-inf")  #: when, on the client's clock

    def observe(self, sent: float, server: float) -> None:
        self._offset = server - sent
        self.measured = sent

    def forget(self) -> None:
        """The server may be another one now, or its clock was seen to be off."""
        self.measured = float("-inf")

    def due(self, now: float) -> bool:
        """Is it time for a new measurement? A lock that is extended twice in its life brings every other."""
        return now - self.measured > 0.6 * self._max_age

    def usable(self, now: float) -> bool:
        return now - self.measured < self._max_age

    def at_most(self, now: float) -> float:
        """The latest time that the server's clock can show at ``now``, in Unix seconds."""
        return now + self._offset
