"""The clock that every deadline is counted on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

#: Seconds on a clock that runs on while the machine is suspended, and that nobody sets.
clock: Callable[[], float]
if hasattr(time, "CLOCK_BOOTTIME"):
    clock = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
elif sys.platform == "win32":  # time.monotonic moves in steps of 16 ms there, before Python 3.13
    clock = time.perf_counter
elif sys.platform == "darwin":  # where time.monotonic stops during a suspend
    clock = partial(time.clock_gettime, time.CLOCK_MONOTONIC_RAW)
else:
    clock = time.monotonic
