"""The cost of a cycle of acquire and release."""

from __future__ import annotations

import asynclock
from asynclock.testing import Server

from .contestants import PEERS, WAYS
from .figures import OURS, SWIFT, at_least, at_most
from .run import Run
from .turns import FLOOR, Turns

# Number of tasks -> the limit for the ratio to the floor of the compiled build on uvloop: of the time, of the CPU time,
# and of the time with wait_release=False. And how many times faster than the best alternative.
RATIO = {1: 1.05, 10: 1.25, 64: 1.65, 512: 2.3}
CPU_RATIO = {64: 2.2, 512: 2.6}
SWIFT_RATIO = {1: 0.6, 10: 0.9, 64: 1.4, 512: 2.1}
FASTER = {1: 1.7, 10: 5.0, 64: 9.0, 512: 14.0}
OF_THE_FLOOR = 6.0  # per cent of the floor's cycle at 1 task, for a lock that is handed from task to task

PEERS_EVERY = 3  # rounds: the alternatives are so much slower that few measurements will do
QUICK = 10  # tasks with --quick: other libraries take too long to open connections for more


def so_many(tasks: int) -> str:
    return "1 task" if tasks == 1 else f"{tasks} tasks"


async def cycle(run: Run) -> None:
    """Acquire and release, each task its own name"""
    rounds = run.times(9, 1)
    with Server(run.kind) as server:
        for tasks in FASTER:
            what = so_many(tasks)
            turns = Turns(run, server, run.seconds(0.2, 0.005))
            at_peers: list[float] = []  # ours, in the rounds in which the alternatives are measured, too
            for done in range(rounds):
                run.step(what, done, rounds)
                await turns.floor(tasks)
                value, *_ = [await turns.ours(tasks, way) for way in WAYS]
                if done % PEERS_EVERY == 0 and (tasks <= QUICK or not run.quick):
                    at_peers.append(value)
                    await turns.peers(PEERS, tasks)
            spent = turns.spent
            for who, values in spent.items():
                run.record(what, "µs", values, by=who)
                run.record(f"{what}: CPU", "µs", turns.cpu[who], by=who)
            measured = asynclock.compiled and run.loop == "uvloop"
            for way in WAYS:
                limits: dict[str, float | None] = {"ratio": None, "CPU ratio": None}
                if measured and way.name == OURS:
                    limits = {"ratio": RATIO[tasks], "CPU ratio": CPU_RATIO.get(tasks)}
                elif measured and way.name == f"{OURS}, {SWIFT}":
                    limits["ratio"] = SWIFT_RATIO[tasks]
                for ratio, taken in (("ratio", turns.spent), ("CPU ratio", turns.cpu)):
                    limit = limits[ratio]
                    ratios = [ours / floor for ours, floor in zip(taken[way.name], taken[FLOOR], strict=True)]
                    must = () if limit is None else (at_most(limit),)
                    run.record(f"{what}: {ratio} to the floor", "x", ratios, *must, by=way.name)
            if best := turns.best(PEERS):
                faster = [peer / ours for peer, ours in zip(spent[best], at_peers, strict=True)]
                run.record(f"{what}: faster than {best}, the best of the others", "x", faster, at_least(FASTER[tasks]))


async def one_name(run: Run) -> None:
    """Acquire and release, all tasks of a process the same name"""
    rounds = run.times(9, 1)
    with Server(run.kind) as server:
        for tasks in (10, 64):
            what = so_many(tasks)
            turns = Turns(run, server, run.seconds(0.4, 0.05), shared=True)
            for done in range(rounds):
                run.step(what, done, rounds)
                await turns.floor(1)
                await turns.ours(tasks)
                if done % PEERS_EVERY == 0 and (tasks <= QUICK or not run.quick):
                    await turns.peers(PEERS, tasks)
            spent = turns.spent
            for who, values in spent.items():
                if who != FLOOR:
                    run.record(what, "µs", values, by=who)
            shares = [ours / floor * 100 for ours, floor in zip(spent[OURS], spent[FLOOR], strict=True)]
            run.record(f"{what}: of the floor's cycle at 1 task", "%", shares, at_most(OF_THE_FLOOR))
