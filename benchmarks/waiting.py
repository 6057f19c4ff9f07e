"""How soon a waiter gets a lock after another process has released it, or was killed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

from asynclock import Locker, LockScope
from asynclock.testing import Server

from .contestants import ASYNCLOCK, PEERS, Contestant, why_not
from .figures import at_most
from .others import PATIENCE, Crew, Outsider
from .run import Run, not_ours
from .turns import PATIENCE as PEERS_PATIENCE

ASKED = 0.005  # seconds until a new waiter waits
CALM = 0.02  # seconds for which a holder keeps the lock after that, at most, if nobody polls
AT_ONCE = 5  # holders that are killed one after the other, while the next ones start
APART = 0.045  # seconds between two kills, so that they do not disturb each other's figures


async def waiting(run: Run) -> None:
    """A waiter gets the lock that another process has released"""
    with Server(run.kind) as server:
        run.record("release to acquired", "ms", await _released(run, server, ASYNCLOCK, run.times(300, 10)))
        for peer in PEERS:
            try:
                async with asyncio.timeout(PEERS_PATIENCE):
                    with not_ours():
                        values = await _released(run, server, peer, run.times(20, 1))
            except Exception as error:  # another library may fail in any way: record it, and go on
                run.leave_out(peer.name, why_not(peer, error))
            else:
                run.record("release to acquired", "ms", values, by=peer.name)


async def _released(run: Run, server: Server, contestant: Contestant, times: int) -> list[float]:
    chance = random.Random(5)
    values = []
    async with (
        contestant.open(server.url, 1) as enter,
        Crew.of(server, run.loop, by=contestant.name) as crew,
    ):

        async def acquired() -> float:
            async with enter("job"):
                return time.monotonic()

        for done in range(times):
            run.step(contestant.name, done, times)
            await crew.tell("acquire", "job")
            waiter = asyncio.create_task(acquired())
            # The release is at a random time between two polls.
            await asyncio.sleep(ASKED + chance.random() * max(contestant.poll, CALM))
            since = await crew.tell("release")
            values.append((await asyncio.wait_for(waiter, PATIENCE) - since) * 1000)
    return values


async def killed(run: Run) -> None:
    """A waiter gets the lock of another process that was killed (SIGKILL)"""
    times = run.times(50, AT_ONCE)
    values: list[float] = []
    with Server(run.kind) as server, Outsider.of(server) as outsider:
        async with Locker(server.url, key_validity=0.5) as locker:

            async def acquired(name: str) -> tuple[float, LockScope]:
                scope = await locker.acquire(name)
                return time.monotonic(), scope

            for done in range(0, times, AT_ONCE):
                run.step("killed", done, times)
                async with contextlib.AsyncExitStack() as stack:
                    starting = (
                        stack.enter_async_context(Crew.of(server, run.loop, validity=0.5)) for _ in range(AT_ONCE)
                    )
                    crews = {f"job {number}": crew for number, crew in enumerate(await asyncio.gather(*starting))}
                    for name, crew in crews.items():
                        await crew.tell("acquire", name)
                        await asyncio.sleep(APART)
                    waiters = {name: asyncio.create_task(acquired(name)) for name in crews}
                    await asyncio.sleep(ASKED)
                    expiries = {}
                    for name, crew in crews.items():
                        await crew.kill()
                        expiries[name] = outsider.expiry(name)
                    for name, waiter in waiters.items():
                        at, scope = await asyncio.wait_for(waiter, PATIENCE)
                        values.append((at - expiries[name]) * 1000)
                        await scope.release()
    run.record("after its key's expiry", "ms", values, at_most(3), at_most(15, "max"))
