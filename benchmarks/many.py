"""Many locks in one process: the time to acquire them, the memory that they take, and the CPU that they need."""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path
from types import ModuleType

import asynclock
from asynclock import Locker, LockScope
from asynclock.testing import Server

from . import builds
from .figures import OURS, PURE, at_most
from .run import NotHereError, Run

AT_ONCE = 100


def resident() -> int:
    """Resident memory of this process, in bytes. :raises NotHereError: there is no /proc"""
    gc.collect()
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        raise NotHereError("no /proc") from None
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


async def longest_stall(seconds: float) -> float:
    """The longest delay, in ms, of a 1 ms timer that is set repeatedly."""
    worst, end = 0.0, time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        await asyncio.sleep(0.001)
        worst = max(worst, time.monotonic() - now - 0.001)
    return worst * 1000


async def held(run: Run) -> None:
    """Many names held by one process, each extended every 2.5 s"""
    count = run.times(10_000, 1_000)
    seconds = run.seconds(10.0, 0.2)
    with Server(run.kind) as server:
        spent = [await _hold(run, server, count, seconds, asynclock)]
        if asynclock.compiled:
            spent += [await _hold(run, server, count, seconds, builds.pure())]
            run.record(f"CPU of holding {count:,}: compiled, of pure Python", "x", [spent[0] / spent[1]], at_most(0.65))


async def _hold(run: Run, server: Server, count: int, seconds: float, build: ModuleType) -> float:
    """Returns the CPU seconds of holding them for 10 seconds."""
    by = OURS if build is asynclock else f"{OURS}, {PURE}"
    async with build.Locker(server.url, extend_interval=2.5) as locker:
        run.step("loop without locks", 0, 4)
        idle = await longest_stall(seconds / 4)
        # Warm up, so that one-time allocations are not counted.
        for scope in await asyncio.gather(*(locker.acquire(f"warm {n}") for n in range(AT_ONCE))):
            await scope.release()

        before = resident()
        scopes: list[LockScope] = []
        for n in range(0, count, AT_ONCE):
            run.step("acquiring", 1, 4)
            scopes += await asyncio.gather(*(locker.acquire(f"name {n + i}") for i in range(AT_ONCE)))
        first = build is asynclock  # the second one uses the memory again that the first has left
        if first:
            run.record(f"a lock, of {count:,} just acquired", "bytes", [(resident() - before) / count])

        run.step("held: CPU", 2, 4)
        cpu, since = time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        spent = (time.process_time() - cpu) / (time.monotonic() - since)
        run.record(f"CPU of holding {count:,}, in 10 s", "s", [spent * 10], at_most(0.6), by=by)
        if first:
            grown = (resident() - before) / count
            run.record(f"a lock, of {count:,} held for {seconds:g} s", "bytes", [grown], at_most(3_000))

        run.step("held: stalls", 3, 4)
        run.record(f"longest stall, {count:,} held", "ms", [await longest_stall(seconds * 0.75)], at_most(20), by=by)
        run.record("longest stall, none held", "ms", [idle], by=by)
        lost = sum(not scope.held for scope in scopes)
        if lost:
            raise RuntimeError(f"{lost} of {count} locks were lost")
        for n in range(0, count, AT_ONCE):
            await asyncio.gather(*(scope.release() for scope in scopes[n : n + AT_ONCE]))
        return spent * 10


async def at_once(run: Run) -> None:
    """Many names acquired at once, and released at once"""
    count = run.times(10_000, 1_000)
    rounds = run.times(5, 1)
    acquired, released = [], []
    with Server(run.kind) as server:
        async with Locker(server.url) as locker:
            for done in range(rounds):
                run.step("acquiring and releasing", done, rounds)
                gc.collect()
                since = time.monotonic()
                scopes = await asyncio.gather(*(locker.acquire(f"name {n}") for n in range(count)))
                acquired.append(time.monotonic() - since)
                lost = sum(not scope.held for scope in scopes)
                since = time.monotonic()
                await asyncio.gather(*(scope.release() for scope in scopes))
                released.append(time.monotonic() - since)
                if lost:
                    raise RuntimeError(f"{lost} of {count} locks were lost")
    run.record(f"{count:,} acquired", "s", acquired, at_most(0.6))
    run.record(f"{count:,} released", "s", released)
