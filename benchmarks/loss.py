"""How soon a body is cancelled after its lock was lost."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable

from asynclock import Locker, LockScope
from asynclock.testing import Server

from .figures import at_most
from .others import Body, Crew, Outsider, key
from .run import Run

COMMANDS: dict[str, tuple[str | int, ...]] = {
    "DEL": ("DEL", key("job")),
    "SET": ("SET", key("job"), "somebody"),
    "PEXPIREAT in the past": ("PEXPIREAT", key("job"), 1),
    "FLUSHALL": ("FLUSHALL",),
}

TARGETS = {"DEL": (at_most(1), at_most(10, "max"))}

Act = Callable[[], Awaitable[float]]


async def loss(run: Run) -> None:
    """A lock is lost: from just before the command is sent until the body is cancelled"""
    with Server(run.kind) as server, Outsider.of(server) as outsider:
        async with Locker(server.url) as locker, Locker(server.url) as other:

            async def rounds(what: str, times: int, harm: Act, repair: Act) -> None:
                values = []
                for done in range(times):
                    run.step(what, done, times)
                    body = await Body.of(await locker.acquire("job"))
                    since = await harm()
                    values.append((await body.stopped() - since) * 1000)
                    await repair()
                run.record(what, "ms", values, *TARGETS.get(what, ()))

            for what, command in COMMANDS.items():
                harm, repair = by_command(outsider, command)
                await rounds(what, run.times(200, 10), harm, repair)
            harm, repair = by_force(other)
            await rounds("force_acquire, another locker", run.times(200, 10), harm, repair)
            async with Crew.of(server, run.loop) as crew:
                harm, repair = lambda: crew.tell("force", "job"), lambda: crew.tell("release")
                await rounds("force_acquire, another process", run.times(30, 3), harm, repair)


def by_command(outsider: Outsider, command: tuple[str | int, ...]) -> tuple[Act, Act]:
    async def harm() -> float:
        return outsider.send(*command)

    async def repair() -> float:
        outsider.reply()
        outsider.execute("DEL", key("job"))  # SET has left the key
        return 0.0

    return harm, repair


def by_force(other: Locker) -> tuple[Act, Act]:
    taken: list[LockScope] = []

    async def harm() -> float:
        since = time.monotonic()
        taken.append(await other.force_acquire("job"))
        return since

    async def repair() -> float:
        await taken.pop().release()
        return 0.0

    return harm, repair


async def outage(run: Run) -> None:
    """The only server is killed, or hangs: when the body is cancelled"""
    times = run.times(10, 2)
    values = []
    for done in range(times):
        run.step("SIGKILL", done, times)
        with Server(run.kind) as server:
            async with Locker(server.url) as locker:
                body = await Body.of(await locker.acquire("job"))
                pid = server.pid
                since = time.monotonic()
                os.kill(pid, signal.SIGKILL)
                values.append((await body.stopped() - since) * 1000)
    run.record("SIGKILL: cancelled after", "ms", values)

    times = run.times(5, 1)
    values = []
    for done in range(times):
        run.step("SIGSTOP", done, times)
        with Server(run.kind) as server, Outsider.of(server) as outsider:
            async with Locker(server.url, key_validity=1.0) as locker:
                body = await Body.of(await locker.acquire("job"))
                await asyncio.sleep(0.2 * done)  # at any point between two extensions
                expiry = outsider.expiry("job")
                os.kill(server.pid, signal.SIGSTOP)
                values.append((expiry - await body.stopped()) * 1000)
                server.resume()
    run.record("SIGSTOP: before the expiry by", "ms", values)
