"""While tasks wait for a lock: how soon one gets it, and what their waiting costs."""

from __future__ import annotations

import asyncio
import time

from asynclock import Locker, LockScope
from asynclock.testing import Server

from .others import PATIENCE, Crew, Outsider, key
from .run import Run


async def acquired(locker: Locker, name: str) -> tuple[float, LockScope]:
    """When the lock was there, and the lock."""
    scope = await locker.acquire(name)
    return time.monotonic(), scope


async def waiting(run: Run) -> None:
    """A waiter gets the lock that another process has released, or was killed with"""
    with Server(run.kind) as server, Outsider.of(server) as outsider:
        times = run.times(300, 10)
        values = []
        async with Locker(server.url) as locker, Crew.of(server, run.loop) as crew:
            for done in range(times):
                run.step("released", done, times)
                await crew.tell("acquire", "job")
                waiter = asyncio.create_task(acquired(locker, "job"))
                await asyncio.sleep(0.005)  # it has asked, and waits for the server's push
                since = await crew.tell("release")
                at, scope = await asyncio.wait_for(waiter, PATIENCE)
                values.append((at - since) * 1000)
                await scope.release()
        run.record("released in another process", "ms", values)

        times = run.times(20, 1)
        values = []
        async with Locker(server.url, key_validity=0.5) as locker:
            for done in range(times):
                run.step("killed", done, times)
                async with Crew.of(server, run.loop, validity=0.5) as crew:
                    await crew.tell("acquire", "job")
                    waiter = asyncio.create_task(acquired(locker, "job"))
                    await asyncio.sleep(0.005)
                    await crew.kill()
                    expiry = outsider.expiry("job")
                    at, scope = await asyncio.wait_for(waiter, PATIENCE)
                    values.append((at - expiry) * 1000)
                    await scope.release()
        run.record("killed: after its key's expiry", "ms", values)


async def waiters(run: Run) -> None:
    """Many tasks wait for one name that another process holds, and get it in the end"""
    count = run.times(1000, 100)
    seconds = 0.2 if run.quick else 10.0
    with Server(run.kind) as server, Outsider.of(server) as outsider:
        async with Locker(server.url) as locker, Crew.of(server, run.loop) as crew:
            await crew.tell("acquire", "job")
            await asyncio.sleep(0.1)

            async def watch() -> tuple[float, float]:
                """Commands a second at the server, and this process's CPU seconds in 10."""
                before, cpu = int(outsider.info("total_commands_processed")), time.process_time()
                since = time.monotonic()
                await asyncio.sleep(seconds)
                elapsed, cpu = time.monotonic() - since, time.process_time() - cpu
                # An INFO is counted once it has answered: the first is in the difference.
                commands = int(outsider.info("total_commands_processed")) - before - 1
                return commands / elapsed, cpu / elapsed * 10

            run.step("holder alone", 0, 2)
            alone, _ = await watch()
            run.step(f"{count:,} waiters", 1, 2)
            tasks = [asyncio.create_task(locker.acquire("job")) for _ in range(count)]
            await asyncio.sleep(0.2)
            crowded, cpu = await watch()
            if any(task.done() for task in tasks):
                raise RuntimeError("a waiter got a lock that another process holds")
            run.record("commands, no waiters", "1/s", [alone])
            run.record(f"commands, {count:,} waiters", "1/s", [crowded])
            run.record(f"CPU of {count:,} waiters, in 10 s", "s", [cpu])
            since = await crew.tell("release")
            for task in tasks:
                await (await asyncio.wait_for(task, PATIENCE)).release()
            if outsider.execute("EXISTS", key("job")):
                raise RuntimeError("the key is still there after the last release")
            run.record(f"{count:,} waiters, one by one", "ms", [(time.monotonic() - since) * 1000])
