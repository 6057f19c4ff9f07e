"""Many locks in one process: how soon they are held, how much room they take, and what holding them costs."""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path

from asynclock import Locker, LockScope
from asynclock.testing import Server

from .run import NotHereError, Run


def resident() -> int | None:
    """Bytes of memory that this process has; ``None`` where there is no /proc to say so."""
    gc.collect()
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


async def longest_stall(seconds: float) -> float:
    """By how many ms the loop was late at most, for a timer of a millisecond that is set again and again."""
    worst, end = 0.0, time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        await asyncio.sleep(0.001)
        worst = max(worst, time.monotonic() - now - 0.001)
    return worst * 1000


async def memory(run: Run) -> None:
    """Memory of held locks, acquired 100 at a time: what is resident, less what was before"""
    count = run.times(10_000, 1_000)
    at_once = 100
    with Server(run.kind) as server:
        async with Locker(server.url) as locker:
            # Whatever is there once, however many locks are held, is there before.
            for scope in await asyncio.gather(*(locker.acquire(f"warm {n}") for n in range(at_once))):
                await scope.release()
            before = resident()
            if before is None:
                raise NotHereError("no /proc")
            held: list[LockScope] = []
            for n in range(0, count, at_once):
                run.step("acquiring", n, count)
                held += await asyncio.gather(*(locker.acquire(f"name {n + i}") for i in range(at_once)))
            after = resident()
            assert after is not None
            run.record(f"a lock, of {count:,}", "bytes", [(after - before) / count])


async def held(run: Run) -> None:
    """Many locks: acquired at once, held and extended every 2.5 s, released at once"""
    count = run.times(10_000, 1_000)
    seconds = 0.2 if run.quick else 10.0
    with Server(run.kind) as server:
        async with Locker(server.url) as locker:
            run.step("loop without locks", 0, 4)
            idle = await longest_stall(seconds)

            run.step(f"{count:,} acquired at once", 1, 4)
            before, since = resident(), time.monotonic()
            scopes = await asyncio.gather(*(locker.acquire(f"name {n}") for n in range(count)))
            run.record(f"{count:,} names acquired at once", "s", [time.monotonic() - since])
            after = resident()
            if before is not None and after is not None:
                # With what so many tasks at once have left behind in the heap; `memory` has the locks alone.
                run.record("resident for each of them", "bytes", [(after - before) / count])

            run.step("held: CPU", 2, 4)
            cpu, since = time.process_time(), time.monotonic()
            await asyncio.sleep(seconds)
            spent = (time.process_time() - cpu) / (time.monotonic() - since)
            run.record(f"CPU of holding {count:,}, in 10 s", "s", [spent * 10])

            run.step("held: stalls", 3, 4)
            run.record(f"longest stall, {count:,} held", "ms", [await longest_stall(seconds)])
            run.record("longest stall, none held", "ms", [idle])
            lost = sum(not scope.held for scope in scopes)
            if lost:
                raise RuntimeError(f"{lost} of {count} locks were lost")

            since = time.monotonic()
            await asyncio.gather(*(scope.release() for scope in scopes))
            run.record(f"{count:,} names released at once", "s", [time.monotonic() - since])
