"""What a block does to the process that runs it: how long the event loop was blocked, how much memory grew, and what
the event loop complained about."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from typing import Any, Self


class Watch:
    """What a block costs: ``blocked``, the longest time in seconds for which the event loop ran nothing else, and
    ``grown``, the largest increase in bytes of the memory that the process uses."""

    blocked = 0.0
    grown = 0

    async def __aenter__(self) -> Self:
        gc.collect()
        self._before = resident()
        self._task = asyncio.create_task(self._look())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0.01)  # notice if the loop was blocked just now
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _look(self) -> None:
        pause = 0.002
        while True:
            since = time.monotonic()
            await asyncio.sleep(pause)
            self.blocked = max(self.blocked, time.monotonic() - since - pause)
            self.grown = max(self.grown, resident() - self._before)


def resident() -> int:
    """The bytes of memory that this process uses."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def complaints() -> Any:
    """Collect what reaches the event loop's exception handler: a list, for the test to check."""
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    heard: list[object] = []
    loop.set_exception_handler(lambda _, context: heard.append(context.get("exception") or context["message"]))
    try:
        yield heard
    finally:
        loop.set_exception_handler(before)
