"""Suspends: notices that the machine was suspended, since all timers are late by that time."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..wire.background import Ticker

CHECK_EVERY = 0.5  # seconds
MAX_LAG = 0.05  # seconds that the two clocks may drift apart between two checks without a suspend


class Suspends:
    """Calls ``on_wake`` after a suspend, whether a server is connected or not."""

    def __init__(self, clock: Callable[[], float], on_wake: Callable[[], None]) -> None:
        """:param clock: runs on during a suspend; the event loop's clock does not"""
        self._clock = clock
        self._on_wake = on_wake
        self._lag = clock() - time.monotonic()
        self._ticker = Ticker("looking for a suspend of the machine", self._check, CHECK_EVERY)

    def stop(self) -> None:
        self._ticker.stop()

    def _check(self) -> None:
        lag = self._clock() - time.monotonic()
        slept, self._lag = lag - self._lag > MAX_LAG, lag
        if slept:
            self._on_wake()
