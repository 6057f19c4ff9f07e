"""The time of day on a server, as far as the client knows it."""

from __future__ import annotations

from typing import Final

from .rules import DRIFT, SLACK

MAX_AGE: Final = 20.0  # seconds for which a measurement is used, at most
PRECISION: Final = 0.02  # how far off a measurement may be, as a share of the validity
MIN_PRECISION: Final = 0.01  # seconds
FRESH: Final = 0.1  # seconds for which a measurement is not repeated
ASK_AGAIN: Final = 1.0  # ... and if it was not precise enough


class ServerClock:
    """An estimate of the server's wall clock that is never behind it.

    ``TIME`` was answered with ``server`` at some instant between ``sent`` and ``received``. So at
    ``sent`` the server's clock showed at most ``server``, and ``now + (server - sent)`` is at least
    what it shows now. So an expiry computed from it is never earlier than the holder counts on, but may be
    later by the time that the command travelled. The newest measurement wins: only that one knows of a step of
    either clock.

    A measurement is used for no longer than a key lives. The two clocks may drift apart for as long as it is used, and
    then for as long as the key lives; the holder's allowance (``DRIFT``, 1 %) is for both together.

    An answer that took long is not precise: the keys of a holder that is killed would live longer by as much. Such an
    answer only confirms an older measurement, or ends it. Without one, keys get a time to live (``PX``) instead.
    """

    __slots__ = ("_asked", "_max_age", "_measured", "_offset", "_precision", "measured")

    def __init__(self, validity: float) -> None:
        self._max_age = min(validity, MAX_AGE)
        self._precision = max(MIN_PRECISION, validity * PRECISION)
        self._offset = 0.0
        self._asked = float("-inf")  # when the last answer came that was not precise enough
        self.measured = float("-inf")  #: when, on the client's clock
        self._measured = float("-inf")  # the same, though it is not to be used any more

    def observe(self, sent: float, server: float, received: float) -> bool:
        """``TIME`` was sent at ``sent``, and answered with ``server`` at ``received``.

        True: the server's clock was set since the measurement before. Keys whose expiry was computed from that one end
        earlier than their holders expect, or later. (Half of what holders allow for is not noticed: clocks drift.)
        """
        allowed = SLACK + DRIFT / 2 * (received - self._measured)
        was_set = not server - received - allowed <= self._offset <= server - sent + self._precision + allowed
        if received - sent > self._precision:
            if not server - received <= self._offset <= server - sent:
                self.measured = float("-inf")
            if was_set:
                self._measured = float("-inf")  # said once
            self._asked = received
        else:
            self._offset = server - sent
            self.measured = self._measured = sent
        return was_set

    def forget(self) -> None:
        """The server may be another one now, or its clock was set."""
        self.measured = float("-inf")

    def due(self, now: float) -> bool:
        """Is it time for a new measurement? It is sent before the command that needs it, and answered before that one:
        so a clock that was set is noticed before the holder counts on what the command has written."""
        return now - self.measured > FRESH and now - self._asked > ASK_AGAIN

    def usable(self, now: float) -> bool:
        return now - self.measured < self._max_age

    def at_most(self, now: float) -> float:
        """The latest time that the server's clock can show at ``now``, in Unix seconds."""
        return now + self._offset
