"""The cost of a cycle of acquire and release of a permit, beside that of a lock."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import asynclock
from asynclock.testing import Server

from .contestants import VALIDITY, Contestant, Enter
from .figures import OURS, at_most
from .run import Run
from .turns import Turns

TASKS = 64
PERMITS = 100  # so that some are always free
OF_A_LOCK = 1.5  # the limit for the ratio of the times


@contextlib.asynccontextmanager
async def _semaphore(url: str, tasks: int) -> AsyncIterator[Enter]:
    async with asynclock.Locker(url, key_validity=VALIDITY) as locker:
        semaphore = locker.semaphore("job", PERMITS)
        yield lambda name: semaphore.with_context()


SEMAPHORE = Contestant(f"{OURS}, a semaphore", "asynclock", _semaphore)


async def permits(run: Run) -> None:
    """Acquire and release a permit of a semaphore that has free ones, beside a lock of one's own"""
    rounds = run.times(9, 1)
    with Server(run.kind) as server:
        for tasks in (1, TASKS):
            what = "1 task" if tasks == 1 else f"{tasks} tasks"
            turns = Turns(run, server, run.seconds(0.2, 0.005))
            for done in range(rounds):
                run.step(what, done, rounds)
                await turns.ours(tasks)
                await turns.ours(tasks, SEMAPHORE)
            for who, values in turns.spent.items():
                run.record(what, "µs", values, by=who)
            for taken, kind in ((turns.spent, "ratio"), (turns.cpu, "CPU ratio")):
                ratios = [permit / lock for permit, lock in zip(taken[SEMAPHORE.name], taken[OURS], strict=True)]
                run.record(f"{what}: {kind} to a lock", "x", ratios, at_most(OF_A_LOCK))
