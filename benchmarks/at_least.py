"""The cost of a lock that stays after its block: the release gives its key an end instead of deleting it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from asynclock import Locker
from asynclock.testing import Server

from .contestants import VALIDITY
from .run import Run
from .turns import Cycle, beside

AT_LEAST = 0.05  # seconds: short, so that the server has to hold few keys at a time


async def at_least(run: Run) -> None:
    """Acquire and release a new name, which stays for 50 ms, beside one that is freed at once"""
    numbers = itertools.count()  # both ways share it: nobody comes to a name that is still kept
    with Server(run.kind) as server:
        async with Locker(server.url, key_validity=VALIDITY) as locker:
            ways = {"freed": _lock(locker, numbers, None), "kept": _lock(locker, numbers, AT_LEAST)}
            await beside(run, ways)


def _lock(locker: Locker, numbers: Iterator[int], least: float | None) -> Cycle:
    async def cycle(name: str) -> None:
        async with locker.with_context(f"{name} {next(numbers)}", at_least=least):
            pass

    return cycle
