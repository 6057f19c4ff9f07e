"""The cost of several names at once instead of one: requests for all of them leave together."""

from __future__ import annotations

from collections.abc import Callable

from asynclock import Locker
from asynclock.testing import Server

from .figures import at_most
from .floor import Floor
from .run import Run
from .turns import Cycle, spend

NAMES = 3
TASKS = (1, 64)
RATIO = 1.5  # to the cycle of one name


async def several(run: Run) -> None:
    """Acquire and release three names at once, beside one name; each task its own names"""
    rounds = run.times(11, 2)
    seconds = run.seconds(0.3, 0.01)
    with Server(run.kind) as server:
        floor = await Floor.open(server.port)
        try:
            async with Locker(server.url) as locker:
                for tasks in TASKS:
                    what = "1 task" if tasks == 1 else f"{tasks} tasks"
                    ways = {
                        (ours, count): make(count)
                        for count in (1, NAMES)
                        for ours, make in ((True, _locks(locker)), (False, _bare(floor)))
                    }
                    spent: dict[tuple[bool, int], list[float]] = {way: [] for way in ways}
                    for done in range(rounds):
                        for way, cycle in ways.items():
                            run.step(what, done, rounds)
                            estimate = await spend(tasks, max(tasks, 20), "job {}", cycle)
                            cycles = max(tasks, round(seconds / estimate.wall * 1e6))
                            spent[way].append((await spend(tasks, cycles, "job {}", cycle)).wall)
                    for ours in (True, False):
                        by = {} if ours else {"by": "a bare protocol"}
                        one, all_of_them = spent[ours, 1], spent[ours, NAMES]
                        run.record(f"{what}, 1 name", "µs", one, **by)
                        run.record(f"{what}, {NAMES} names", "µs", all_of_them, **by)
                        ratios = [each / single for each, single in zip(all_of_them, one, strict=True)]
                        targets = (at_most(RATIO),) if ours else ()
                        run.record(f"{what}: ratio to 1 name", "x", ratios, *targets, **by)
        finally:
            floor.close()


def _locks(locker: Locker) -> Callable[[int], Cycle]:
    def make(count: int) -> Cycle:
        async def cycle(name: str) -> None:
            async with locker.with_context(*_names(name, count)):
                pass

        return cycle

    return make


def _bare(floor: Floor) -> Callable[[int], Cycle]:
    """``SET`` to all, wait for the answers, then ``DEL`` to all: what the server and asyncio take for that."""

    def make(count: int) -> Cycle:
        async def cycle(name: str) -> None:
            names = _names(name, count)
            for command in (floor.set, floor.delete):
                for answer in [command(each) for each in names]:
                    await answer

        return cycle

    return make


def _names(name: str, count: int) -> list[str]:
    return [f"{name} {number}" for number in range(count)]
