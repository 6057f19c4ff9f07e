"""Redlock's delayed restart: a server that may have forgotten votes gives no new ones for a while."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from ..errors import ServerError
from ..messages import about
from .background import Timer

log = logging.getLogger("asynclock")


class Quarantine:
    """How long one of several independent servers gives no new votes.

    A server that was restarted may have lost keys that their holders still count. Its quarantine ends once all of them
    must have expired. It was restarted if its ``run_id`` differs from that of the last connection. The uptime that it
    reports is used only at the first connection: it comes from a wall clock, which may have been set.

    Invariant: while ``until`` is in the future, ``_timer`` is running, and will call ``on_end``.
    """

    def __init__(self, clock: Callable[[], float], validity: float, *, enabled: bool) -> None:
        self.enabled = enabled  #: False: ``connected`` gets neither a ``run_id`` nor ``started``
        self.until = 0.0  #: the server gives no new votes before that time; 0: it is not in quarantine
        self._clock = clock
        self._validity = validity
        self._run_id = ""
        self._restarted = -math.inf  # when the current ``run_id`` replaced another one
        self._timer = Timer()

    def connected(self, label: str, run_id: str, started: float | None, on_end: Callable[[], None]) -> None:
        """:param started: the latest possible start according to the server, on the client's clock; None: unknown"""
        self.stop()
        now = self._clock()
        if run_id and self._run_id and run_id != self._run_id:
            self._restarted = now  # at some time since the last connection
        self._run_id = run_id or self._run_id
        left = max(self._restarted, -math.inf if started is None else started) + self._validity - now
        if left > 0:
            log.info(
                "asynclock: %s was just started, and gives no votes for %.1f s",
                label,
                left,
                extra=about("quarantine", server=label, seconds=left),
            )
            self.until = now + left
            self._timer.start(left, self._end, on_end)

    def trouble(self, label: str) -> ServerError | None:
        """The error for new acquisitions during the quarantine; None: it is over."""
        left = self.until - self._clock()
        if left <= 0:
            return None
        return ServerError(
            label,
            f"was just started and may have lost votes, so it gives no new ones for {left:.1f} s (restart_quarantine)",
        )

    def stop(self) -> None:
        self.until = 0.0
        self._timer.stop()

    def _end(self, on_end: Callable[[], None]) -> None:
        self.stop()
        on_end()
