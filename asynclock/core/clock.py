"""What time it is on a server, in the client's terms."""

from __future__ import annotations

MAX_AGE = 20.0  # seconds that a measurement is used, at most
PRECISION = 0.02  # share of the validity by which a measurement may be off
MIN_PRECISION = 0.01  # seconds
ASK_AGAIN = 1.0  # seconds after a measurement that was of no use


class ServerClock:
    """The server's wall clock, never behind it.

    ``TIME`` was answered with ``server`` at some instant between ``sent`` and ``received``. So at
    ``sent`` the server's clock showed at most ``server``, and ``now + (server - sent)`` is at least
    what it shows now. An expiry set from that is never earlier than the holder counts on; it may be
    later by the time that the command travelled. The newest measurement wins: it is the only one
    that knows about a step of either clock.

    It is used for no longer than a key lives. Two clocks may run apart as long as it is used, and
    then as long as the key lives; the holder's allowance (``DRIFT``, 1 %) is for both together.

    An answer that took long says little: the keys of a holder that is killed would live for longer by as much. It
    confirms an older measurement, or puts an end to it; without one, a time to live is set (``PX``), which needs none.
    """

    __slots__ = ("_asked", "_max_age", "_offset", "_precision", "measured")

    def __init__(self, validity: float) -> None:
        self._max_age = min(validity, MAX_AGE)
        self._precision = max(MIN_PRECISION, validity * PRECISION)
        self._offset = 0.0
        self._asked = float("-inf")  # when the last answer was asked for that was of no use
        self.measured = float("-inf")  #: when, on the client's clock

    def observe(self, sent: float, server: float, received: float) -> None:
        """``TIME`` was asked at ``sent``, and answered with ``server`` at ``received``."""
        if received - sent > self._precision:
            if not server - received <= self._offset <= server - sent:
                self.measured = float("-inf")
            self._asked = received
        else:
            self._offset = server - sent
            self.measured = sent

    def forget(self) -> None:
        """The server may be another one now, or its clock was seen to be off."""
        self.measured = float("-inf")

    def due(self, now: float) -> bool:
        """Is it time for a new measurement? A lock that is extended twice in its life brings every other."""
        return now - self.measured > 0.6 * self._max_age and now - self._asked > ASK_AGAIN

    def usable(self, now: float) -> bool:
        return now - self.measured < self._max_age

    def at_most(self, now: float) -> float:
        """The latest time that the server's clock can show at ``now``, in Unix seconds."""
        return now + self._offset
