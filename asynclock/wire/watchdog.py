"""Finds out that a connection is dead or slow, whatever the kernel believes of it."""

from __future__ import annotations

import logging

from ..options import Options
from .background import Ticker
from .connection import Connection

log = logging.getLogger("asynclock")

MIN_SILENCE = 0.5  # seconds without an answer after which a connection counts as dead, at least
MAX_SILENCE = 2.0  # ... and at most


def max_silence(options: Options) -> float:
    """Seconds for which answers may be missing before a connection counts as dead.

    Short enough to reconnect and extend a lock that was due for its extension before it expires.
    """
    return min(max(MIN_SILENCE, (options.key_validity - options.extend_interval) / 2), MAX_SILENCE)


class Watchdog:
    """Checks one connection every ``silence / 2`` seconds, and more often while something is wrong.

    - Dead: answers have been missing for ``silence`` seconds. The connection is dropped.
    - Idle: nothing was heard for a while. It is pinged, so that it is found dead before somebody needs it: routers and
      load balancers forget idle connections, and tell nobody. (TCP keepalive does not show that: a proxy in between
      answers it, and so does the kernel of a server that hangs.)
    - Slow: answers come, but more than ``silence`` seconds late. New votes would come too late, and every request that
      waits takes memory. So the connection is marked slow (``Connection.slow``), and carries no requests for new locks
      until it has answered all that was sent before the last check that found it late.

    Neither "dead" nor "slow" is believed at the first check: the event loop may have been blocked, and the answers be
    there, unread. So each takes two checks in a row: ``_was_dead`` and ``_was_late`` are what the last one found.
    """

    def __init__(self, connection: Connection, label: str, silence: float) -> None:
        self._connection = connection
        self._label = label
        self._silence = silence
        self._was_dead = self._was_late = False
        self._late_at: float | None = None  # the last check that found answers late; None: none did so far
        self._ticker = Ticker(f"looking after the connection to {label}", self._check, silence / 2)

    def stop(self) -> None:
        self._ticker.stop()

    def _check(self) -> float | None:
        """Returns the seconds until the next check; None: the usual ones."""
        connection, silence = self._connection, self._silence
        now = connection.clock()
        dead = connection.missing(now) > silence
        late = not connection.slow and now - connection.oldest_sent() > silence
        if dead and self._was_dead:
            connection.abort(TimeoutError(f"no answer for {silence:g} s"))
            return None
        if late and self._was_late:
            if self._late_at is None:
                log.warning(
                    "asynclock: %s answers more than %g s late: no new locks are requested until it catches up",
                    self._label,
                    silence,
                )
            self._late_at = now
            connection.slow_down()
        elif connection.slow and self._late_at is not None and connection.oldest_sent() > self._late_at:
            connection.catch_up()
        if now - connection.heard > silence / 2:
            connection.ping(now)
        self._was_dead, self._was_late = dead, late
        return silence / 8 if dead or late or connection.slow else None
