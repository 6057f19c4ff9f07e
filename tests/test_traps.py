"""asyncio's own traps: a few hundred of the random programs (``python -m tests.traps`` runs thousands), and the
ones that they have found."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from asynclock import Locker, LockLostError
from asynclock.testing import Server
from tests.helpers import key
from tests.traps.__main__ import told
from tests.traps.programs import make
from tests.traps.runner import run_all


@pytest.mark.asyncio
async def test_random_programs(own_server: Server) -> None:
    report = await run_all(own_server, map(make, range(500)))
    assert report.programs == 500
    assert len(report.seen) > 4  # of all the things that may come out of a block
    assert not report.failed and not report.left, told("", report)


async def nested_with_a_task(locker: Locker, server: Server) -> None:
    async with locker.with_context("inner") as scope:
        scope.create_task(asyncio.sleep(0.1))
        asyncio.get_running_loop().call_later(0.01, server.execute, "DEL", key("outer"))


async def task_group(locker: Locker, server: Server) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(0.1))
        asyncio.get_running_loop().call_later(0.01, server.execute, "DEL", key("outer"))


async def gathered(locker: Locker, server: Server) -> None:
    server.execute("DEL", key("outer"))
    await asyncio.gather(*kept)


kept: list[asyncio.Future[None]] = []


@pytest.mark.asyncio
@pytest.mark.xfail(
    strict=True,
    reason="a cancellation that was swallowed is repeated when nothing refers to it any more; but something does, "
    "until the next collection of garbage or for ever: a cycle through the tracebacks of the exits of scopes and "
    "of asyncio.TaskGroup, or the tasks of a gather that somebody keeps",
)
@pytest.mark.parametrize("inside", [nested_with_a_task, task_group, gathered])
async def test_a_body_that_swallows_a_cancellation_is_cancelled_again(
    locker: Locker, server: Server, inside: Callable[[Locker, Server], Awaitable[None]]
) -> None:
    kept[:] = [asyncio.ensure_future(asyncio.sleep(5)) for _ in range(2)]
    went_on = False
    try:
        with pytest.raises(LockLostError):
            async with locker.with_context("outer"):
                with contextlib.suppress(asyncio.CancelledError):
                    await inside(locker, server)
                await asyncio.sleep(1.0)
                went_on = True
    finally:
        for each in kept:
            each.cancel()
        await asyncio.wait(kept)
        kept.clear()
    assert not went_on
