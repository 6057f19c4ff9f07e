"""Acquire and release, again and again: what one cycle costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from asynclock import Locker
from asynclock.testing import Server

from .floor import Floor
from .run import Run

Cycle = Callable[[str], Awaitable[None]]


async def spend(tasks: int, cycles: int, name: str, cycle: Cycle) -> float:
    """µs a cycle, when so many tasks do so many of them together. A ``{}`` in the name is the task's number."""

    async def work(name: str) -> None:
        for _ in range(cycles // tasks):
            await cycle(name)

    since = time.perf_counter()
    await asyncio.gather(*(work(name.format(number)) for number in range(tasks)))
    return (time.perf_counter() - since) / (cycles // tasks * tasks) * 1e6


async def cycle(run: Run) -> None:
    """Acquire and release, each task its own name; and the floor, in turn with it"""
    rounds = run.times(9, 2)
    with Server(run.kind) as server:
        async with Locker(server.url) as locker:
            floor = await Floor.open(server.port)

            async def lock(name: str) -> None:
                async with locker.with_context(name):
                    pass

            for tasks, full in {1: 2_000, 64: 20_000, 512: 40_000}.items():
                what = "1 task" if tasks == 1 else f"{tasks} tasks"
                cycles = run.times(full, 4 * tasks)
                await spend(tasks, cycles // 4, "job {}", lock)
                bare, real = [], []
                for done in range(rounds):
                    run.step(what, done, rounds)
                    bare.append(await spend(tasks, cycles, "job {}", floor.cycle))
                    real.append(await spend(tasks, cycles, "job {}", lock))
                run.record(what, "µs", real)
                run.record(f"{what}: the floor", "µs", bare)
                run.record(f"{what}: ratio", "x", [r / b for r, b in zip(real, bare, strict=True)])
            floor.close()


async def one_name(run: Run) -> None:
    """Acquire and release, all tasks of a process the same name"""
    rounds = run.times(9, 2)
    with Server(run.kind) as server:
        async with Locker(server.url) as locker:

            async def lock(name: str) -> None:
                async with locker.with_context(name):
                    pass

            for tasks in (10, 64):
                cycles = run.times(10_000, 500)
                await spend(tasks, cycles // 4, "job", lock)
                values = []
                for done in range(rounds):
                    run.step(f"{tasks} tasks", done, rounds)
                    values.append(await spend(tasks, cycles, "job", lock))
                run.record(f"{tasks} tasks", "µs", values)
