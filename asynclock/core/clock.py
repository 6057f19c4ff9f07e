"""What time it is on a server, in the client's terms."""

from __future__ import annotations

STALE = 10.0  # seconds after which a measurement is no longer worth setting an absolute expiry by
REFRESH = 1.0  # seconds after which the next command brings a new measurement along


class ServerClock:
    """The server's wall clock, never behind it.

    ``TIME`` was answered with ``server`` at some instant between ``sent`` and ``received``. So at
    ``sent`` the server's clock showed at most ``server``, and ``now + (server - sent)`` is at least
    what it shows now. An expiry set from that is never earlier than the holder counts on; it may be
    later by the time that the command travelled. The newest measurement wins: it is the only one
    that knows about a step of either clock.
    """

    __slots__ = ("_offset", "measured")

    def __init__(self) -> None:
        self._offset = 0.0
        self.measured = float("-inf")  #: when, on the client's clock

    def observe(self, sent: float, server: float) -> None:
        self._offset = server - sent
        self.measured = sent

    def forget(self) -> None:
        """The server may be another one now, or its clock was seen to be off."""
        self.measured = float("-inf")

    def due(self, now: float) -> bool:
        return now - self.measured > REFRESH

    def usable(self, now: float) -> bool:
        return now - self.measured < STALE

    def at_most(self, now: float) -> float:
        """The latest time that the server's clock can show at ``now``, in Unix seconds."""
        return now + self._offset
