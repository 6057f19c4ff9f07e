"""Detects that a connection is dead or slow, which the kernel may not notice."""

from __future__ import annotations

import logging

from ..messages import about
from ..options import Options
from .background import Ticker
from .connection import Connection

log = logging.getLogger("asynclock")

MIN_SILENCE = 0.5  # seconds without a reply after which a connection counts as dead, at least
MAX_SILENCE = 2.0  # ... and at most


def max_silence(options: Options) -> float:
    """Seconds without a reply after which a connection counts as dead: short enough to reconnect, and to extend a lock
    whose extension was due, before it expires."""
    return min(max(MIN_SILENCE, (options.key_validity - options.extend_interval) / 2), MAX_SILENCE)


class Watchdog:
    """Checks one connection every ``silence / 2`` seconds, and more often while something is wrong.

    - Dead: a reply has been awaited for ``silence`` seconds. The connection is dropped.
    - Idle: nothing has arrived for a while. It is pinged, so that a dead connection is noticed before a lock needs it:
      routers and load balancers drop idle connections silently. (TCP keepalive does not show that: a proxy in between
      answers it, and so does the kernel of a server that hangs.)
    - Slow: replies are more than ``silence`` seconds late. New votes would come too late, and every pending request
      takes memory. So the connection is marked slow (``Connection.slow``), and carries no requests for new locks until
      everything that was sent before the last late check is answered.

    It takes two checks in a row to find a connection dead or slow: at the first, the event loop may just have been
    blocked, with the replies unread. ``_was_dead`` and ``_was_late`` are the results of the last check.
    """

    def __init__(self, connection: Connection, label: str, silence: float) -> None:
        self._connection = connection
        self._label = label
        self._silence = silence
        self._was_dead = self._was_late = False
        self._late_at: float | None = None  # when a check last found replies late; None: never
        self._ticker = Ticker(f"watching the connection to {label}", self._check, silence / 2)

    def stop(self) -> None:
        self._ticker.stop()

    def _check(self) -> float | None:
        """Returns the seconds until the next check; None: the usual interval."""
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
                    extra=about("server_slow", server=self._label, late=silence),
                )
            self._late_at = now
            connection.slow_down()
        elif connection.slow and self._late_at is not None and connection.oldest_sent() > self._late_at:
            connection.catch_up()
        if now - connection.heard > silence / 2:
            connection.ping(now)
        self._was_dead, self._was_late = dead, late
        return silence / 8 if dead or late or connection.slow else None
