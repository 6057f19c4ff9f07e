"""Many processes want some of a few names at once: nobody deadlocks, or waits for long, and nothing is held twice."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from collections import defaultdict

import pytest

from asynclock.testing import Cluster, Server
from tests.support.helpers import worker

pytestmark = [pytest.mark.one_loop, pytest.mark.slow, pytest.mark.serverless]  # once, and not on every server

NAMES = 5
PROCESSES = 8
# Seconds. Who waits gets its turn for one name after the other, and for each of them others may be faster some times.
# The longest wait is about a second (with four tasks in each process three), on two cores with other work beside it.
# The bound leaves room for more of that. A push that was lost would cost far more: as long as the key is valid.
LONGEST = 10.0
VALIDITY = 30.0
LIMIT = 400.0  # seconds for all of it


async def crowd(url: str, times: int, capsys: pytest.CaptureFixture[str], tasks: int = 1) -> None:
    """``times`` acquisitions in all, each of a random subset of the names, by ``tasks`` tasks in each process."""
    each_time = str(times // PROCESSES // tasks)
    async with contextlib.AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(
                worker(url, str(VALIDITY), "several", "job", str(tasks), each_time, str(NAMES), str(number))
            )
            for number in range(PROCESSES)
        ]
        for each in workers:
            assert (await each.event(60))["event"] == "ready"
        for each in workers:
            each.tell()
        through = await asyncio.gather(*(each.event(LIMIT) for each in workers))
    holds = [hold for event in through for hold in event["held"]]
    assert len(holds) == times
    waits: dict[int, list[float]] = defaultdict(list)
    held: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for numbers, since, begin, end in holds:
        waits[len(numbers)].append(begin - since)
        for number in numbers:
            held[number].append((begin, end))
    for number in range(NAMES):
        held[number].sort()
        for (_, end), (begin, _) in zip(held[number], held[number][1:], strict=False):
            assert end <= begin, f"name {number} had two holders at once"
    took = max(end for *_, end in holds) - min(since for _, since, *_ in holds)
    with capsys.disabled():
        print(f"\n  {times:,} acquisitions in {took:.1f} s. Seconds that one waited, by the number of its names:")
        for count in sorted(waits):
            every = sorted(waits[count])
            print(
                f"    {count}: median {statistics.median(every):.4f}, 99 % {every[len(every) * 99 // 100]:.3f}, "
                f"longest {every[-1]:.3f}"
            )
    assert max(max(each) for each in waits.values()) < LONGEST


@pytest.mark.asyncio
async def test_on_one_server(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    await crowd(server.url, 20_000, capsys)


@pytest.mark.asyncio
async def test_many_tasks_in_each(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    await crowd(server.url, 3_200, capsys, tasks=4)


@pytest.mark.asyncio
async def test_on_three_servers(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server(kind)) for _ in range(3)]
        await crowd(",".join(server.url for server in servers), 1_000, capsys)


@pytest.mark.asyncio
async def test_on_a_cluster(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    await crowd(cluster.url, 1_000, capsys)
