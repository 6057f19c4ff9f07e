"""Looking after a connection: whether it is dead or slow, whatever the kernel believes."""

from __future__ import annotations

import logging

from .background import Ticker
from .connection import Connection

log = logging.getLogger("asynclock")

MIN_SILENCE = 0.5  # seconds without an answer before a connection counts as dead, at least
MAX_SILENCE = 2.0  # ... and at most


def silence_of(key_validity: float, extend_interval: float) -> float:
    """How long answers may be missing before a connection counts as dead: early enough to reconnect and
    extend before a lock that was due for its extension is over."""
    return min(max(MIN_SILENCE, (key_validity - extend_interval) / 2), MAX_SILENCE)


class Watchdog:
    """Looks at one wire from time to time.

    - Answers that are missing for ``silence`` seconds mean that it is dead: it is dropped.
    - One on which nothing is asked is pinged, so that it is found dead before somebody needs it: routers and load
      balancers forget idle connections, and tell nobody. (TCP keepalive would not do: a proxy in between answers
      it, and a hung server too.)
    - Answers that are late, one after the other, mean that the server is slow: new votes would come too late, and
      what is kept for each would be without a bound. It is asked for none until it has caught up.
    """

    def __init__(self, connection: Connection, label: str, silence: float) -> None:
        self._connection = connection
        self._label = label
        self._silence = silence
        self._struck = self._late = False
        self._ticker = Ticker(f"looking after the connection to {label}", self._check, silence / 2)

    def stop(self) -> None:
        self._ticker.stop()

    def _check(self) -> float | None:
        connection, silence = self._connection, self._silence
        now = connection.clock()
        dead = connection.missing(now) > silence
        late = not connection.slow and now - connection.asked_at() > silence
        # Not at the first look: the loop may have been blocked, and the answers unread.
        if dead and self._struck:
            connection.abort(TimeoutError(f"no answer for {silence:g} s"))
            return None
        if late and self._late:
            if not connection.slow_since:
                log.warning("asynclock: %s is slow to answer, and is asked for no new votes until it has", self._label)
            connection.slow_down(now)
        elif connection.slow and connection.asked_at() > connection.slow_since:
            connection.catch_up()
        if now - connection.heard > silence / 2:
            connection.ping(now)
        self._struck, self._late = dead, late
        return silence / 8 if dead or late or connection.slow else None
