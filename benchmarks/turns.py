"""Measures contestants in turn, round by round, on the same server in the same event loop.

So other load on the machine hits all of them, and their ratio in a round is more reliable than their times. Each opens
its connections for a round and closes them after it, so that nobody's idle connections disturb the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

from asynclock.testing import Server

from .contestants import ASYNCLOCK, Contestant, why_not
from .figures import OURS, Target
from .floor import Floor
from .run import Run, not_ours

Cycle = Callable[[str], Awaitable[object]]

FEW_AND_MANY = (1, 64)  # tasks
FLOOR = "the floor"
PATIENCE = 30.0  # seconds after which a round of another library fails
GRACE = 0.5  # seconds after the end of a round until waiters of another library are cancelled


class Spent(NamedTuple):
    """µs for each cycle."""

    wall: float
    cpu: float  #: of this process


async def spend(tasks: int, cycles: int, name: str, cycle: Cycle) -> Spent:
    """What a cycle takes, if ``tasks`` tasks do ``cycles`` cycles in all. ``{}`` in the name is the task's number."""
    each = max(1, cycles // tasks)

    async def work(name: str) -> None:
        for _ in range(each):
            await cycle(name)

    since, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work(name.format(number)) for number in range(tasks)))
    wall, cpu = time.perf_counter() - since, time.process_time() - cpu
    return Spent(wall / (each * tasks) * 1e6, cpu / (each * tasks) * 1e6)


async def beside(run: Run, ways: Mapping[str, Cycle], *targets: Target, by: str = OURS) -> None:
    """Record µs for each cycle, by 1 and 64 tasks with names of their own, and the ratio of each way to the first.

    :param targets: for the ratio of the times
    """
    rounds, seconds = run.times(11, 2), run.seconds(0.3, 0.01)
    first, *others = ways
    for tasks in FEW_AND_MANY:
        what = "1 task" if tasks == 1 else f"{tasks} tasks"
        spent: dict[str, list[Spent]] = {way: [] for way in ways}
        for done in range(rounds):
            for way, cycle in ways.items():
                run.step(what, done, rounds)
                estimate = await spend(tasks, max(tasks, 20), "job {}", cycle)
                cycles = max(tasks, round(seconds / estimate.wall * 1e6))
                spent[way].append(await spend(tasks, cycles, "job {}", cycle))
        for way, values in spent.items():
            run.record(f"{what}, {way}", "µs", [each.wall for each in values], by=by)
        for way in others:
            pairs = list(zip(spent[way], spent[first], strict=True))
            run.record(f"{what}: ratio to {first}", "x", [each.wall / one.wall for each, one in pairs], *targets, by=by)
            run.record(f"{what}: CPU ratio to {first}", "x", [each.cpu / one.cpu for each, one in pairs], by=by)


async def crowd(tasks: int, seconds: float, name: str, cycle: Cycle, grace: float) -> tuple[float, int]:
    """µs for each cycle, if ``tasks`` tasks contend for one name for ``seconds``; and how many still wait after
    ``grace`` seconds more.

    Cycles that end after ``seconds`` do not count: a last waiter that polls a free lock is no throughput. A waiter that
    is cancelled may leave the name locked for a while.
    """
    end = time.perf_counter() + seconds
    through = 0

    async def work() -> None:
        nonlocal through
        while time.perf_counter() < end:
            await cycle(name)
            through += time.perf_counter() < end

    working = [asyncio.create_task(work()) for _ in range(tasks)]
    try:
        _, late = await asyncio.wait(working, timeout=seconds + grace)
    finally:
        for task in working:
            task.cancel()
        ends = await asyncio.gather(*working, return_exceptions=True)
    for end_of_one in ends:
        if isinstance(end_of_one, Exception):
            raise end_of_one
    return seconds / max(1, through) * 1e6, len(late)


class Turns:
    """µs for each cycle of each contestant, round by round. Each task has its own name, or (``shared``) all have one.

    With their own names, the first round determines the number of cycles: as many as take ``seconds``, but at least one
    for each task. A library that raises is left out from then on.
    """

    def __init__(self, run: Run, server: Server, seconds: float, *, shared: bool = False) -> None:
        self._run, self._server, self._seconds, self._shared = run, server, seconds, shared
        self._cycles: dict[str, int] = {}
        self._names = 0
        self.spent: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}  # of the same rounds, if tasks have names of their own

    async def floor(self, tasks: int) -> float:
        """Always with a name for each task: it cannot wait."""
        return await self._own(FLOOR, self._open_floor(), tasks)

    async def ours(self, tasks: int, way: Contestant = ASYNCLOCK) -> float:
        return await self._take(way, tasks)

    async def peers(self, peers: Sequence[Contestant], tasks: int) -> None:
        for peer in peers:
            if peer.name in self._run.outcome.absent:
                continue
            try:
                async with asyncio.timeout(PATIENCE):
                    with not_ours():
                        await self._take(peer, tasks)
            except Exception as error:  # another library may fail in any way: record it, and go on
                self._run.leave_out(peer.name, why_not(peer, error))
                self.spent.pop(peer.name, None)

    def best(self, peers: Sequence[Contestant]) -> str | None:
        """The fastest of them; None: all were left out."""
        there = [peer.name for peer in peers if peer.name in self.spent]
        return min(there, key=lambda name: statistics.median(self.spent[name]), default=None)

    async def _take(self, contestant: Contestant, tasks: int) -> float:
        way = self._one_name if self._shared else self._own
        return await way(contestant.name, self._open_lock(contestant, tasks), tasks)

    async def _own(self, who: str, opening: AbstractAsyncContextManager[Cycle], tasks: int) -> float:
        async with opening as cycle:
            await spend(tasks, tasks, "job {}", cycle)  # warm up: open connections, load scripts
            if who not in self._cycles:
                estimate = await spend(tasks, max(tasks, 20), "job {}", cycle)
                self._cycles[who] = max(tasks, round(self._seconds / estimate.wall * 1e6))
            gc.collect()  # so that nobody collects another's garbage
            spent = await spend(tasks, self._cycles[who], "job {}", cycle)
            self.cpu.setdefault(who, []).append(spent.cpu)
            return self._note(who, spent.wall)

    async def _one_name(self, who: str, opening: AbstractAsyncContextManager[Cycle], tasks: int) -> float:
        async with opening as cycle:
            await spend(tasks, tasks, "job {}", cycle)
            gc.collect()
            self._names += 1
            name, ours = f"job {self._names} for {tasks}", who == OURS
            # Other libraries open connections while they wait: in a longer round, that weighs less.
            seconds, grace = (self._seconds, PATIENCE) if ours else (self._seconds * 2, GRACE)
            value, late = await crowd(tasks, seconds, name, cycle, grace)
            if late and ours:
                raise RuntimeError(f"{late} of {tasks} tasks still wait for {name!r} after {PATIENCE:g} s")
            return self._note(who, value)

    def _note(self, who: str, value: float) -> float:
        self.spent.setdefault(who, []).append(value)
        return value

    @contextlib.asynccontextmanager
    async def _open_floor(self) -> AsyncIterator[Cycle]:
        floor = await Floor.open(self._server.port)
        try:
            yield floor.cycle
        finally:
            floor.close()

    @contextlib.asynccontextmanager
    async def _open_lock(self, contestant: Contestant, tasks: int) -> AsyncIterator[Cycle]:
        async with contestant.open(self._server.url, tasks) as enter:

            async def cycle(name: str) -> None:
                async with enter(name):
                    pass

            yield cycle
