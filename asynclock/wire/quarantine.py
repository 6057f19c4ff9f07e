"""Redlock's delayed restart: a server that may have forgotten votes gives no new ones for a while."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

from ..errors import ServerError

log = logging.getLogger("asynclock")


class Quarantine:
    """How long one of several independent servers gives no new votes.

    A server that was restarted may have forgotten keys that still count elsewhere. Once the last of them must have
    expired, its quarantine is over. It was restarted if it is another process than at the last connection (``run_id``),
    however long it says it has been up: it reads that from a wall clock, which may have been set since. Only at the
    first connection there is nothing but that to go by.

    Invariant: while ``until`` is in the future, ``_timer`` is set, and calls ``on_end``.
    """

    def __init__(self, clock: Callable[[], float], validity: float, *, enabled: bool) -> None:
        self.enabled = enabled  #: False: ``connected`` is to be told neither a ``run_id`` nor when it was started
        self.until = 0.0  #: the server gives no new votes before that; 0: there is no quarantine
        self._clock = clock
        self._validity = validity
        self._run_id = ""
        self._restarted = -math.inf  # when that process was first seen to be another one
        self._timer: asyncio.TimerHandle | None = None

    def connected(self, label: str, run_id: str, started: float | None, on_end: Callable[[], None]) -> None:
        """:param started: when, at the latest, on the client's clock, as the server says; None: it was not asked"""
        self.stop()
        now = self._clock()
        if run_id and self._run_id and run_id != self._run_id:
            self._restarted = now  # at some time since the last connection
        self._run_id = run_id or self._run_id
        left = max(self._restarted, -math.inf if started is None else started) + self._validity - now
        if left > 0:
            log.info("asynclock: %s was just started, and gives no votes for %.1f s", label, left)
            self.until = now + left
            self._timer = asyncio.get_running_loop().call_later(left, self._end, on_end)

    def trouble(self, label: str) -> ServerError | None:
        """The error for those who want a vote, while there is a quarantine."""
        left = self.until - self._clock()
        if left <= 0:
            return None
        return ServerError(
            label,
            f"was started a moment ago and may have forgotten votes: it gives no new ones for {left:.1f} s "
            "(restart_quarantine)",
        )

    def stop(self) -> None:
        self.until = 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self, on_end: Callable[[], None]) -> None:
        self.stop()
        on_end()
