"""Redlock's delayed restart: a server that may have forgotten votes gives no new ones for a while."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

log = logging.getLogger("asynclock")


class Quarantine:
    """For how long one of several independent servers gives no new votes.

    One that has restarted may have forgotten keys that still count elsewhere. When the last of them is over, so is its
    quarantine. It was restarted if it is another process than at the last connection (``run_id``), whatever it says of
    its uptime: that is read from a wall clock, which somebody may have set since. Only who connects for the first time
    has nothing but the uptime to go by.

    Invariant: while ``until`` is in the future, ``_timer`` is set, and calls ``on_end``.
    """

    def __init__(self, clock: Callable[[], float], validity: float, on_end: Callable[[], None]) -> None:
        self.until = 0.0  #: no new votes before that; 0: no quarantine
        self._clock = clock
        self._validity = validity
        self._on_end = on_end
        self._run_id = ""
        self._restarted = -math.inf  # when that process was first seen to be another one
        self._timer: asyncio.TimerHandle | None = None

    def connected(self, label: str, run_id: str, started: float | None) -> None:
        """:param started: when, on the client's clock and at the latest, as the server says; None: it does not"""
        self.stop()
        now = self._clock()
        if run_id and self._run_id and run_id != self._run_id:
            self._restarted = now  # at some time since the last connection
        self._run_id = run_id or self._run_id
        left = max(self._restarted, -math.inf if started is None else started) + self._validity - now
        if left > 0:
            log.info("asynclock: %s was just started, and gives no votes for %.1f s", label, left)
            self.until = now + left
            self._timer = asyncio.get_running_loop().call_later(left, self._end)

    def stop(self) -> None:
        self.until = 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        self.stop()
        self._on_end = lambda: None  # no cycle with its owner

    def _end(self) -> None:
        self.stop()
        self._on_end()
