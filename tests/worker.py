"""A process of its own that uses locks: what another service does while a test looks on.

``hold``   acquire, say so; at each line on stdin release and acquire again
``force``  take the lock over, say so, hold it until stdin ends
``contend``  acquire and release TIMES times in a row; tell how long each acquisition took
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


async def contend(locker: Locker, name: str, times: str) -> None:
    await (await locker.acquire(f"{name} to warm up {id(locker)}")).release()
    tell("ready")
    await line()
    waits = []
    for _ in range(int(times)):
        since = time.monotonic()
        async with locker.with_context(name):
            waits.append(time.monotonic() - since)
    tell("through", waits=waits)


async def main(url: str, validity: str, what: str, name: str, *more: str) -> None:
    servers = url.split(",")
    async with Locker(servers, key_validity=float(validity), restart_quarantine=False) as locker:
        await {"hold": hold, "force": force, "contend": contend, "count": count}[what](locker, name, *more)


asyncio.run(main(*sys.argv[1:]))
