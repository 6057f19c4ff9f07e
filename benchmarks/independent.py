"""A quorum of independent servers against one server: the keys are asked all at once, so what does it cost?"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from asynclock import Locker
from asynclock.testing import Server

from .cycle import Cycle, spend
from .floor import Floor
from .run import Run


async def independent(run: Run) -> None:
    """Acquire and release by 1 task, on 1, 3 and 5 independent servers; and the floor, in turn with it"""
    rounds = run.times(15, 2)
    cycles = run.times(1_000, 5)
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server(run.kind)) for _ in range(5)]
        floors = [await Floor.open(server.port) for server in servers]
        lockers = {
            count: Locker([server.url for server in servers[:count]], restart_quarantine=False) for count in (1, 3, 5)
        }
        try:
            ways: dict[str, Cycle] = {}
            for count, locker in lockers.items():
                ways[f"{count} servers" if count > 1 else "1 server"] = _lock(locker)
                ways[f"{count} servers: the floor" if count > 1 else "1 server: the floor"] = _bare(floors[:count])
            spent: dict[str, list[float]] = {what: [] for what in ways}
            for cycle in ways.values():
                await spend(1, cycles // 4 + 1, "job", cycle)
            for done in range(rounds):
                for what, cycle in ways.items():
                    run.step(what, done, rounds)
                    spent[what].append(await spend(1, cycles, "job", cycle))
        finally:
            for locker in lockers.values():
                await locker.aclose()
            for floor in floors:
                floor.close()
    for what, values in spent.items():
        run.record(what, "µs", values)
        base = "1 server: the floor" if what.endswith("floor") else "1 server"
        if what != base:
            ratios = [value / one for value, one in zip(values, spent[base], strict=True)]
            run.record(f"{what}: ratio to 1", "x", ratios)


def _lock(locker: Locker) -> Cycle:
    async def cycle(name: str) -> None:
        async with locker.with_context(name):
            pass

    return cycle


def _bare(floors: Sequence[Floor]) -> Cycle:
    """``SET`` to all, and on when a majority has answered; then ``DEL`` to all."""
    majority = len(floors) // 2 + 1

    async def cycle(name: str) -> None:
        enough = asyncio.get_running_loop().create_future()
        answers = 0

        def answered(_: object) -> None:
            nonlocal answers
            answers += 1
            if answers == majority:
                enough.set_result(None)

        for floor in floors:
            floor.set(name).add_done_callback(answered)
        await enough
        for answer in [floor.delete(name) for floor in floors]:
            await answer

    return cycle
