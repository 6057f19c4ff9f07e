"""Suspends: a machine that was suspended wakes with timers that are late by as long."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..wire.background import Ticker

LOOK_EVERY = 0.5  # seconds
MAX_LAG = 0.05  # seconds by which a clock that runs on through a suspend may move against one that does not


class Suspends:
    """Tells when the machine has been suspended: connected or not, what waits for a time is to look at it anew."""

    def __init__(self, clock: Callable[[], float], on_wake: Callable[[], None]) -> None:
        """:param clock: one that runs on through a suspend; the event loop's does not"""
        self._clock = clock
        self._on_wake = on_wake
        self._lag = clock() - time.monotonic()
        self._ticker = Ticker("looking for a suspend of the machine", self._check, LOOK_EVERY)

    def stop(self) -> None:
        self._ticker.stop()

    def _check(self) -> None:
        lag = self._clock() - time.monotonic()
        slept, self._lag = lag - self._lag > MAX_LAG, lag
        if slept:
            self._on_wake()
