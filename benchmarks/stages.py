"""The way of a lock from one process to another, stage by stage, beside the least that each stage can take."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import itertools
import time
from array import array
from collections.abc import AsyncIterator

from asynclock.testing import Server

from .others import PATIENCE, module
from .passer import ACQUIRED, READ, RELEASING, WRITTEN
from .run import Run

HEAD_START = 0.1  # seconds within which both processes have read when to begin
FLOOR = "the floor"
STAGES = (
    "release() to its write",
    "to the push read in the other",
    "to its request written",
    "to the answer read",
    "to acquire() returned",
)
PROCESSES = 2

Notes = tuple[list[int], list[float]]  # which steps, and when, in the order of time


async def stages(run: Run) -> None:
    """One name, 2 processes: from a release to an acquisition in the other, stage by stage"""
    rounds, seconds = run.times(5, 1), run.seconds(1.0, 0.2)
    with Server(run.kind) as server:
        for how, by in (("asynclock", "asynclock"), ("floor", FLOOR)):
            found: list[list[float]] = [[] for _ in STAGES]
            in_all: list[float] = []
            async with _passing(server, run.loop, how) as processes:
                for done in range(rounds):
                    run.step(how, done, rounds)
                    for hand_over in _hand_overs([await each for each in _notes(processes, seconds)]):
                        in_all.append(sum(hand_over))
                        for values, took in zip(found, hand_over, strict=True):
                            values.append(took)
            if not in_all:
                raise RuntimeError("the lock never passed from one process to the other")
            for stage, values in zip(STAGES, found, strict=True):
                run.record(stage, "µs", values, by=by)
            run.record("all stages", "µs", in_all, by=by)


@contextlib.asynccontextmanager
async def _passing(server: Server, loop: str, how: str) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    started: list[asyncio.subprocess.Process] = []
    try:
        for _ in range(PROCESSES):
            started.append(
                await asyncio.create_subprocess_exec(
                    *module("benchmarks.passer", server.url, loop, how),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                )
            )
        for process in started:
            assert process.stdout is not None
            if await asyncio.wait_for(process.stdout.readline(), PATIENCE) != b"ready\n":
                raise RuntimeError("a process that passes the lock did not start")
        yield started
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


def _notes(processes: list[asyncio.subprocess.Process], seconds: float) -> list[asyncio.Future[Notes]]:
    """One round."""
    start = time.monotonic() + HEAD_START
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{start} {start + seconds}\n".encode())
    return [asyncio.ensure_future(_read(process, HEAD_START + seconds + PATIENCE)) for process in processes]


async def _read(process: asyncio.subprocess.Process, limit: float) -> Notes:
    assert process.stdout is not None
    async with asyncio.timeout(limit):
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError("a process that passes the lock ended")
        doubles = array("d")
        doubles.frombytes(await process.stdout.readexactly(int(line) * 2 * doubles.itemsize))
    return [int(step) for step in doubles[0::2]], list(doubles[1::2])


def _hand_overs(processes: list[Notes]) -> list[list[float]]:
    """µs for each stage of each acquisition after a release in the other process. Left out are those that did not take
    the usual way: with a second request, or a request that was sent before the push."""
    turns = sorted(
        (when, step, number, place)
        for number, (steps, times) in enumerate(processes)
        for place, (step, when) in enumerate(zip(steps, times, strict=True))
        if step in (RELEASING, ACQUIRED)
    )
    found = []
    for (released, step, giver, _), (acquired, then, taker, place) in itertools.pairwise(turns):
        if (step, then) != (RELEASING, ACQUIRED) or giver == taker:
            continue
        steps, times = processes[giver]
        write = bisect.bisect_left(times, released)
        while write < len(steps) and steps[write] != WRITTEN:
            write += 1
        before, seen = [], place
        for wanted in (READ, WRITTEN, READ):  # backwards: the answer, the request, the push
            seen -= 1
            while seen >= 0 and processes[taker][0][seen] != wanted:
                seen -= 1
            if seen >= 0:
                before.append(processes[taker][1][seen])
        if write == len(steps) or len(before) < 3:
            continue
        at = [released, times[write], *reversed(before), acquired]
        took = [(later - earlier) * 1e6 for earlier, later in itertools.pairwise(at)]
        if min(took) >= 0:
            found.append(took)
    return found
