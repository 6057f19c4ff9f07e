"""Helpers: a client that changes keys, a second process with locks, and a body that records its cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Self

from asynclock import LockLostError, LockScope
from asynclock.testing import Server
from asynclock.testing.resp import Reply, encode_command, read_reply

from .figures import OURS

ROOT = Path(__file__).parents[1]
PATIENCE = 20.0  # seconds after which a benchmark fails


def key(name: str) -> str:
    return f"asynclock:0:{name}"


class Outsider:
    """A client without locks, on a blocking socket that is already connected."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._stream = connection.makefile("rb")

    @classmethod
    @contextlib.contextmanager
    def of(cls, server: Server) -> Iterator[Self]:
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            outsider = cls(connection)
            with outsider._stream:
                yield outsider

    def send(self, *command: str | bytes | int) -> float:
        """Returns the time before it was sent. Read the reply later, with ``reply``."""
        data = encode_command(*command)
        since = time.monotonic()
        self._connection.sendall(data)
        return since

    def reply(self) -> Reply:
        return read_reply(self._stream)

    def execute(self, *command: str | bytes | int) -> Reply:
        self.send(*command)
        return self.reply()

    def expiry(self, name: str) -> float:
        """When the key of this lock expires on the server, as ``time.monotonic``, to a millisecond."""
        since = time.monotonic()
        ttl = self.execute("PTTL", key(name))
        assert isinstance(ttl, int)
        if ttl < 0:
            raise RuntimeError(f"nobody holds {name!r}")
        return since + ttl / 1000

    def info(self, field: str) -> str:
        text = self.execute("INFO", "all")
        assert isinstance(text, bytes)
        for line in text.decode().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return value
        raise RuntimeError(f"the server's INFO has no {field}")


def python(code: str) -> list[str]:
    """The command line that runs ``code`` in a new interpreter with this asynclock, from any directory."""
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]


def module(name: str, *arguments: str) -> list[str]:
    """The command line that runs a module of this package in a new process."""
    return [*python(f"import runpy; runpy.run_module({name!r}, run_name='__main__')"), *arguments]


class Crew:
    """``crew.py``: a second process with locks. Its times are ``time.monotonic()``, the same in every process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, server: Server, loop: str, validity: float = 5.0, by: str = OURS) -> AsyncIterator[Self]:
        process = await asyncio.create_subprocess_exec(
            *module("benchmarks.crew", server.url, loop, str(validity), by),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        crew = cls(process)
        try:
            await crew.hear()
            yield crew
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()

    async def tell(self, word: str, name: str = "") -> float:
        """Run one command there. Returns when it began (the answer comes some milliseconds after its end)."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word} {name}\n".encode())
        return await self.hear()

    async def hear(self) -> float:
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), PATIENCE)
        if not line:
            raise RuntimeError("the second process ended")
        return float(json.loads(line))

    async def kill(self) -> None:
        self._process.kill()
        await self._process.wait()


class Body:
    """The body of a scope, in a task that only waits for its cancellation."""

    def __init__(self, scope: LockScope) -> None:
        self._task = asyncio.create_task(self._hold(scope))

    @classmethod
    async def of(cls, scope: LockScope) -> Self:
        body = cls(scope)
        await asyncio.sleep(0.002)  # until it is inside, and the event loop is idle
        return body

    async def _hold(self, scope: LockScope) -> float:
        stopped = 0.0
        try:
            async with scope:
                try:
                    await asyncio.sleep(PATIENCE * 2)
                except asyncio.CancelledError:
                    stopped = time.monotonic()
                    raise
        except LockLostError:
            return stopped
        raise RuntimeError("the lock was not lost")

    async def stopped(self) -> float:
        """The time at which the cancellation reached the body."""
        return await asyncio.wait_for(self._task, PATIENCE)
