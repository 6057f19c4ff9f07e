"""The cost of several keys instead of one, on one server and on several: requests for all keys leave at once."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from asynclock import Locker
from asynclock.testing import Server

from .figures import at_most
from .floor import Floor, enough
from .run import Run
from .turns import Cycle, spend

ONE = "majority 1 on 1 server"
TWO = "majority 2 on 1 server"
TARGETS = {TWO: 1.15, "3 servers": 1.3, "5 servers": 1.4}  # on uvloop


async def quorum(run: Run) -> None:
    """Acquire and release by 1 task: one key, three on one server, and 3 and 5 independent servers"""
    rounds = run.times(11, 2)
    cycles = run.times(800, 5)
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server(run.kind)) for _ in range(5)]
        floors = [await Floor.open(server.port) for server in servers]
        urls = [server.url for server in servers]
        lockers = {
            ONE: Locker(urls[0]),
            TWO: Locker(urls[0], key_majority=2),
            "3 servers": Locker(urls[:3], restart_quarantine=False),
            "5 servers": Locker(urls, restart_quarantine=False),
        }
        bare = {ONE: floors[:1], TWO: floors[:1] * 3, "3 servers": floors[:3], "5 servers": floors}
        try:
            ways: dict[tuple[str, bool], Cycle] = {}
            for what, locker in lockers.items():
                ways[what, True] = _lock(locker)
                ways[what, False] = _bare(bare[what])
            spent: dict[tuple[str, bool], list[float]] = {way: [] for way in ways}
            for cycle in ways.values():
                await spend(1, cycles // 4 + 1, "job", cycle)
            for done in range(rounds):
                for way, cycle in ways.items():
                    run.step(way[0], done, rounds)
                    spent[way].append((await spend(1, cycles, "job", cycle)).wall)
        finally:
            for locker in lockers.values():
                await locker.aclose()
            for floor in floors:
                floor.close()
    for (what, ours), values in spent.items():
        by = {} if ours else {"by": "a bare protocol"}
        run.record(what, "µs", values, **by)
        if what != ONE:
            ratios = [value / one for value, one in zip(values, spent[ONE, ours], strict=True)]
            targets = [at_most(TARGETS[what])] if ours and run.loop == "uvloop" else []
            run.record(f"{what}: ratio to {ONE}", "x", ratios, *targets, **by)


def _lock(locker: Locker) -> Cycle:
    async def cycle(name: str) -> None:
        async with locker.with_context(name):
            pass

    return cycle


def _bare(floors: Sequence[Floor]) -> Cycle:
    """``SET`` to all, wait until a majority has answered, then ``DEL`` to all. A server that is listed three times has
    three keys."""
    majority = len(floors) // 2 + 1

    async def cycle(name: str) -> None:
        names = [f"{name} {number}" for number in range(len(floors))]
        await enough([floor.set(key) for floor, key in zip(floors, names, strict=True)], majority)
        for answer in [floor.delete(key) for floor, key in zip(floors, names, strict=True)]:
            await answer

    return cycle
