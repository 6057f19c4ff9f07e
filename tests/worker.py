"""A process of its own that uses locks: what another service does while a test looks on.

``hold``   acquire, say so; at each line on stdin release and acquire again
``force``  take the lock over, say so, hold it until stdin ends
``count``  TASKS tasks together acquire TIMES times, and add 1 to a counter that only the lock guards
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from asynclock import Locker


def tell(event: str, **more: Any) -> None:
    print(json.dumps({"event": event, "at": time.monotonic(), **more}), flush=True)


async def line() -> bool:
    return bool(await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline))


async def hold(locker: Locker, name: str) -> None:
    while True:
        async with locker.with_context(name):
            tell("held")
            if not await line():
                return
        tell("released")
        if not await line():
            return


async def force(locker: Locker, name: str) -> None:
    async with locker.force_with_context(name):
        tell("held")
        await line()


async def count(locker: Locker, name: str, tasks: str, times: str) -> None:
    left = int(times)
    counted = 0

    async def one() -> None:
        nonlocal left, counted
        while left:
            left -= 1
            async with locker.with_context(name):
                value = int(await locker.client.get("counter") or 0)
                await locker.client.set("counter", value + 1)
                counted += 1

    tell("ready")
    await line()
    await asyncio.gather(*(one() for _ in range(int(tasks))))
    tell("counted", counted=counted)


async def main(url: str, validity: str, what: str, name: str, *more: str) -> None:
    async with Locker(url, key_validity=float(validity)) as locker:
        await {"hold": hold, "force": force, "count": count}[what](locker, name, *more)


asyncio.run(main(*sys.argv[1:]))
