"""The cost of a cycle of acquire and release."""

from __future__ import annotations

from asynclock.testing import Server

from .contestants import PEERS
from .figures import OURS, at_least, at_most
from .run import Run
from .turns import FLOOR, Turns

# Number of tasks -> the limit for the ratio to the floor, and how many times faster than the best alternative.
RATIO = {
    "uvloop": {1: 1.10, 10: 1.25, 64: 1.6, 512: 2.0},
    "asyncio": {1: 1.10, 10: 1.35, 64: 1.9, 512: 2.3},
}
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
                value = await turns.ours(tasks)
                if done % PEERS_EVERY == 0 and (tasks <= QUICK or not run.quick):
                    at_peers.append(value)
                    await turns.peers(PEERS, tasks)
            spent = turns.spent
            for who, values in spent.items():
                run.record(what, "µs", values, by=who)
            ratios = [ours / floor for ours, floor in zip(spent[OURS], spent[FLOOR], strict=True)]
            run.record(f"{what}: ratio to the floor", "x", ratios, at_most(RATIO[run.loop][tasks]))
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
