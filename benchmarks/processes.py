"""Several processes contend for one name: how fast and how fairly the lock passes among them."""

from __future__ import annotations

import inspect

from asynclock import Locker
from asynclock.testing import Server

from .contention import Contention
from .figures import at_least, at_most, percentile
from .run import Run
from .turns import Turns

HANDOVERS = 100_000  # hand-overs without a hang
EXTRA = 30  # additional rounds to reach them, at most

SHARES = (at_least(15, "min"), at_most(35, "max"))  # with hand-off
LONGEST = (at_most(50, "max"),)

HANDOFFS: int = inspect.signature(Locker).parameters["local_handoffs"].default


async def processes(run: Run) -> None:
    """One name, several processes with 1 task each"""
    rounds, seconds, handed = run.times(5, 1), run.seconds(1.0, 0.2), 0
    with Server(run.kind) as server:
        for count in (2, 4):
            turns = Turns(run, server, run.seconds(0.3, 0.005))
            spent: list[float] = []
            all_times: list[float] = []
            medians: list[float] = []
            p99s: list[float] = []
            async with Contention.of(server, run.loop, count, 1, HANDOFFS) as contention:
                done = 0
                # The last configuration goes on until there were enough hand-overs.
                while done < rounds or (count == 4 and handed < HANDOVERS and done < run.times(EXTRA, 1)):
                    run.step(f"{count} processes", done, rounds)
                    floor = await turns.floor(1)
                    went = await contention.contend(seconds)
                    times = sorted(went.handovers())
                    if not times:
                        raise RuntimeError(f"{len(went.log)} acquisitions, and never by another process than before")
                    handed += len(times)
                    all_times += times
                    spent.append(went.per_acquisition())
                    medians.append(percentile(times, 50) / floor)
                    p99s.append(percentile(times, 99) / percentile(times, 50))
                    done += 1
            what = f"{count} processes"
            run.record(f"{what}: an acquisition", "µs", spent)
            run.record(f"{what}: release to acquired in another", "µs", all_times)
            run.record(f"{what}: its median, of a floor cycle at 1 task", "x", medians, at_most(1.0))
            run.record(f"{what}: its p99, of its median", "x", p99s, at_most(5.0))
        run.record("hand-overs between processes, no hang", "", [handed], at_least(HANDOVERS))


async def fairness(run: Run) -> None:
    """One name, 4 processes with 16 tasks each"""
    rounds, seconds = run.times(3, 1), run.seconds(2.0, 0.3)
    with Server(run.kind) as server:
        for handoffs, what in ((HANDOFFS, "hand-off on"), (0, "hand-off off")):
            spent: list[float] = []
            shares: list[float] = []
            longest: list[float] = []
            ratios: list[float] = []
            async with Contention.of(server, run.loop, 4, 16, handoffs) as contention:
                for done in range(rounds):
                    run.step(what, done, rounds)
                    went = await contention.contend(seconds)
                    waits = went.waits()
                    spent.append(went.per_acquisition())
                    shares += went.shares(4)
                    longest.append(max(waits))
                    ratios.append(max(waits) / (sum(waits) / len(waits)))
            run.record(f"{what}: an acquisition", "µs", spent)
            on = handoffs > 0
            run.record(f"{what}: share of each process", "%", shares, *(SHARES if on else ()))
            run.record(f"{what}: longest wait", "ms", longest)
            run.record(f"{what}: longest wait, of the mean", "x", ratios, *(LONGEST if on else ()))
