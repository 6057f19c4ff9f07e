"""Keys, waiting, bodies of scopes, and worker processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from asynclock import LockLostError, LockScope
from asynclock.testing import Server

# Seconds. A loss that the server pushes reaches the holder within a millisecond or two; benchmarks/ measures how fast
# exactly. This bound only distinguishes it from a loss that is detected later: at the next extension (with the default
# options, no earlier than 1.25 s after the lock was acquired) or at the deadline. It leaves room for a machine that is
# busy with other tests.
AT_ONCE = 1.0

ROOT = Path(__file__).parents[2]


def eager_task(loop: asyncio.AbstractEventLoop, coro: Any, **arguments: Any) -> asyncio.Task[Any]:
    """Like ``asyncio.eager_task_factory`` (Python 3.12), which uvloop cannot call in Python 3.13."""
    return asyncio.Task(coro, loop=loop, **{**arguments, "eager_start": True})


def key(name: str, index: int = 0, prefix: str = "asynclock") -> str:
    return f"{prefix}:{index}:{name}"


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until the condition is true; fail after that many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not true within {seconds} s"
        await asyncio.sleep(0.001)


class Body:
    """A scope whose body runs in a separate task: when the body was stopped, and the loss that the block raised."""

    def __init__(self, scope: LockScope) -> None:
        self.scope = scope
        self.stopped: float | None = None
        self.error: BaseException | None = None
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            async with self.scope:
                try:
                    await asyncio.sleep(60)
                finally:
                    self.stopped = time.monotonic()
        except LockLostError as error:
            self.error = error

    async def lost_within(self, seconds: float, since: float) -> LockLostError:
        """Return the loss, and check that the body was cancelled within ``seconds`` of ``since``."""
        await asyncio.wait_for(self.task, seconds + 5)
        assert isinstance(self.error, LockLostError)
        assert self.stopped is not None
        assert self.stopped - since < seconds, f"cancelled after {(self.stopped - since) * 1000:.1f} ms"
        return self.error


async def body(scope: LockScope) -> Body:
    body = Body(scope)
    await asyncio.sleep(0)
    return body


@contextlib.asynccontextmanager
async def worker(server: Server | str, *arguments: str) -> AsyncIterator[Worker]:
    """``worker.py`` in a separate process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.support.worker"),
        server if isinstance(server, str) else server.url,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,  # bytes in a line
        cwd=ROOT,
    )
    try:
        yield Worker(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


class Worker:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def event(self, seconds: float = 20.0) -> dict[str, Any]:
        """The next event that the worker prints. Times are ``time.monotonic()``, the same in every process."""
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), seconds)
        assert line, "the worker ended"
        event: dict[str, Any] = json.loads(line)
        return event

    def tell(self, word: str = "go") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word.encode() + b"\n")


async def contend(urls: list[str], processes: int, times: int, seconds: float = 120.0) -> list[float]:
    """The seconds that each acquisition took while ``processes`` acquire and release one lock as fast as they can."""
    async with contextlib.AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(worker(",".join(urls), "5", "contend", "job", str(times)))
            for _ in range(processes)
        ]
        for contender in workers:
            assert (await contender.event())["event"] == "ready"
        for contender in workers:
            contender.tell()
        through = await asyncio.gather(*(contender.event(seconds) for contender in workers))
    return [wait for event in through for wait in event["waits"]]
