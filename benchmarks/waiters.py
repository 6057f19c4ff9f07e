"""The cost of many tasks of one process that wait for one name, which another process holds."""

from __future__ import annotations

import asyncio
import time

from asynclock import Locker
from asynclock.testing import Server

from .figures import at_most
from .many import resident
from .others import PATIENCE, Crew, Outsider, key
from .run import NotHereError, Run

BEYOND_A_BARE_TASK = 1_500  # bytes
SETTLED = 0.3  # seconds after which all tasks wait


async def waiters(run: Run) -> None:
    """Many tasks wait for one name that another process holds, and get it in the end"""
    count = run.times(10_000, 1_000)
    seconds = run.seconds(10.0, 0.2)
    await room(run, count)  # first, since later the heap would have free memory to reuse
    with Server(run.kind) as server, Outsider.of(server) as outsider:
        async with Locker(server.url) as locker, Crew.of(server, run.loop) as crew:
            await crew.tell("acquire", "job")
            await asyncio.sleep(0.1)

            async def watch(seconds: float) -> tuple[float, float]:
                """Commands a second at the server, and this process's CPU seconds in 10."""
                before, cpu = int(outsider.info("total_commands_processed")), time.process_time()
                since = time.monotonic()
                await asyncio.sleep(seconds)
                elapsed, cpu = time.monotonic() - since, time.process_time() - cpu
                # An INFO is counted once it has answered: the first is in the difference.
                commands = int(outsider.info("total_commands_processed")) - before - 1
                return commands / elapsed, cpu / elapsed * 10

            run.step("holder alone", 0, 2)
            alone, _ = await watch(seconds)
            run.step(f"{count:,} waiters", 1, 2)
            tasks = [asyncio.create_task(locker.acquire("job")) for _ in range(count)]
            await asyncio.sleep(SETTLED)
            crowded, cpu = await watch(seconds)
            if any(task.done() for task in tasks):
                raise RuntimeError("a waiter got a lock that another process holds")
            run.record("commands, no waiters", "1/s", [alone])
            run.record(f"commands, {count:,} waiters", "1/s", [crowded])
            run.record(f"commands, what {count:,} waiters add", "1/s", [crowded - alone], at_most(1))
            run.record(f"CPU of {count:,} waiters, in 10 s", "s", [cpu])
            since = await crew.tell("release")
            for task in tasks:
                await (await asyncio.wait_for(task, PATIENCE)).release()
            if outsider.execute("EXISTS", key("job")):
                raise RuntimeError("the key is still there after the last release")
            run.record(f"{count:,} waiters, one by one", "ms", [(time.monotonic() - since) * 1000])


async def room(run: Run, count: int) -> None:
    """Measure the memory of waiters first, and then of bare tasks in addition: neither reuses the other's memory."""
    with Server(run.kind) as server:
        async with Locker(server.url) as locker, Crew.of(server, run.loop) as crew:
            await crew.tell("acquire", "job")
            loop = asyncio.get_running_loop()

            async def bare(future: asyncio.Future[None]) -> None:
                await future

            tasks: list[asyncio.Task[object]] = []
            try:
                sizes = [resident()]
                tasks += [asyncio.create_task(locker.acquire("job")) for _ in range(count)]
                await asyncio.sleep(SETTLED)
                sizes.append(resident())
                tasks += [asyncio.create_task(bare(loop.create_future())) for _ in range(count)]
                await asyncio.sleep(SETTLED)
                sizes.append(resident())
            except NotHereError:
                return
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            waiter, task_alone = (sizes[1] - sizes[0]) / count, (sizes[2] - sizes[1]) / count
            run.record("a bare task that awaits a future", "bytes", [task_alone])
            run.record("a waiter beyond that", "bytes", [waiter - task_alone], at_most(BEYOND_A_BARE_TASK))
