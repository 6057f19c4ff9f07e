"""A separate process that uses locks, as another service would: ``helpers.worker`` runs it.

It prints a line of JSON for each event. What it does:

``hold``       acquire, and print it; at each line on stdin release, and acquire again
``hold_many``  acquire COUNT names, NAME and a number, 20 ms apart; print it, and hold them until stdin ends
``force``      take the lock over, print it, and hold the lock until stdin ends
``contend``    acquire and release TIMES times in a row; print how many seconds each acquisition took
``fence``      acquire TIMES times, and append each fencing token to the list on the first server while it is held
``permit``     acquire one of PERMITS of a semaphore, print it, and hold it until it is lost (print it) or stdin ends
``permits``    TASKS tasks acquire one of PERMITS TIMES times in all; print how many scopes there were at once, at most
``several``    TASKS tasks acquire some of COUNT names at once, TIMES times each, chosen with SEED; print of each time
               which names, when it was begun, when acquired, and when released
``count``      TASKS tasks acquire TIMES times in all; each time, add 1 to a counter that only the lock guards
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from typing import Any

import redis.asyncio as redis

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


async def hold_many(locker: Locker, name: str, count: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for number in range(int(count)):
            await stack.enter_async_context(locker.with_context(f"{name} {number}"))
            await asyncio.sleep(0.02)
        tell("held")
        await line()


async def force(locker: Locker, name: str) -> None:
    async with locker.force_with_context(name):
        tell("held")
        await line()


async def permit(locker: Locker, name: str, permits: str) -> None:
    scope = await locker.semaphore(name, int(permits)).acquire()
    tell("held")
    ended = asyncio.ensure_future(line())
    lost = asyncio.ensure_future(scope.wait_lost())
    await asyncio.wait([ended, lost], return_when=asyncio.FIRST_COMPLETED)
    if lost.done():
        tell("lost", reason=lost.result())
        await ended


async def permits(locker: Locker, name: str, permits: str, tasks: str, times: str) -> None:
    semaphore = locker.semaphore(name, int(permits))
    left, acquired, most = int(times), 0, 0

    async def one() -> None:
        nonlocal left, acquired, most
        while left:
            left -= 1
            async with semaphore.with_context():
                most = max(most, int(await locker.client.incr("inside")))
                acquired += 1
                await asyncio.sleep(0.002)
                await locker.client.decr("inside")

    tell("ready")
    await line()
    await asyncio.gather(*(one() for _ in range(int(tasks))))
    tell("done", acquired=acquired, most=most)


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


async def fence(locker: Locker, name: str, times: str, first: str) -> None:
    async with redis.Redis.from_url(first) as client:
        tell("ready")
        await line()
        for _ in range(int(times)):
            async with locker.with_context(name) as scope:
                await client.rpush("tokens", await scope.fencing_token())
        tell("through")


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


async def several(locker: Locker, name: str, tasks: str, times: str, count: str, seed: str) -> None:
    held: list[tuple[list[int], float, float, float]] = []

    async def one(chance: random.Random) -> None:
        for _ in range(int(times)):
            numbers = chance.sample(range(int(count)), chance.randint(1, int(count)))
            since = time.monotonic()
            async with locker.with_context(*(f"{name} {number}" for number in numbers)) as scope:
                begin = time.monotonic()
                await asyncio.sleep(chance.random() * 0.001)
                scope.check()
                held.append((numbers, since, begin, time.monotonic()))

    await (await locker.acquire(f"{name} to warm up {seed}")).release()
    tell("ready")
    await line()
    await asyncio.gather(*(one(random.Random(f"{seed} {number}")) for number in range(int(tasks))))
    tell("through", held=held)


async def main(url: str, how: str, what: str, name: str, *more: str) -> None:
    """``how``: options as JSON, or only the validity in seconds."""
    servers = url.split(",")
    options = json.loads(how)
    if not isinstance(options, dict):
        options = {"key_validity": options}
    async with Locker(servers, restart_quarantine=False, **options) as locker:
        do = {
            "hold": hold,
            "hold_many": hold_many,
            "force": force,
            "fence": fence,
            "contend": contend,
            "permit": permit,
            "permits": permits,
            "several": several,
            "count": count,
        }
        await do[what](locker, name, *more)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
