"""A process that passes one lock to another and back, and notes when each step was done: ``passer.py URL LOOP HOW``,
with ``START END`` on stdin for each round. HOW: ``asynclock``, or ``floor``, which does the same with a bare protocol.

From START to END (``time.monotonic()``) it acquires and releases. The answer is a line with the number of notes, and
two doubles for each: which step, and when.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from array import array
from collections.abc import Awaitable, Callable
from typing import Any, cast
from urllib.parse import urlsplit

import hiredis

from asynclock import Locker
from asynclock.wire.connector import Connector

from .crew import loop_name
from .run import loop_factory

NAME = "job"
RELEASING, WRITTEN, READ, ACQUIRED = range(4)
LATE = 0.05  # seconds without a push after which the bare protocol asks again

notes = array("d")


def note(step: int) -> None:
    notes.extend((step, time.monotonic()))


Turn = Callable[[], Awaitable[None]]


# asynclock, with its transport and its protocol watched


class Transport:
    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._transport.write(data)
        note(WRITTEN)

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        self._transport.set_protocol(Received(protocol))


class Received(asyncio.Protocol):
    def __init__(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]
        self.connection_lost = protocol.connection_lost  # type: ignore[method-assign]
        self.eof_received = protocol.eof_received  # type: ignore[method-assign]

    def data_received(self, data: bytes) -> None:
        note(READ)
        self._protocol.data_received(data)


class Writer:
    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer  # one that is garbage-collected closes its transport
        self.transport = Transport(writer.transport)


def watch_connections() -> None:
    open_one = Connector.open

    async def open_watched(self: Connector) -> Any:
        return Writer(await open_one(self))

    Connector.open = open_watched  # type: ignore[method-assign]


async def with_asynclock(url: str, rounds: Callable[[Turn], Awaitable[None]]) -> None:
    watch_connections()
    async with Locker(url, local_handoffs=0) as locker:

        async def turn() -> None:
            scope = await locker.acquire(NAME)
            note(ACQUIRED)
            note(RELEASING)
            await scope.release()

        await (await locker.acquire(f"{NAME} of {id(locker)}")).release()
        await rounds(turn)


# The floor


class Bare(asyncio.Protocol):
    """Sets the key if it is free, and reads it, so that the server tracks it; else waits for the push, and tries again.
    Nothing is extended, no owner is compared."""

    SETUP = b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n*4\r\n$6\r\nCLIENT\r\n$8\r\nTRACKING\r\n$2\r\nON\r\n$6\r\nNOLOOP\r\n"
    READ = b"*2\r\n$3\r\nGET\r\n$5\r\nfloor\r\n"
    TAKE = b"*6\r\n$3\r\nSET\r\n$5\r\nfloor\r\n$5\r\ntoken\r\n$2\r\nNX\r\n$2\r\nPX\r\n$4\r\n5000\r\n" + READ
    FREE = b"*2\r\n$3\r\nDEL\r\n$5\r\nfloor\r\n" + READ

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._changed = asyncio.Event()
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        note(READ)
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, hiredis.PushNotification):
                self._changed.set()
            else:
                self._answers.put_nowait(reply)

    async def ask(self, data: bytes) -> Any:
        """Send two commands. Returns the reply to the first."""
        self._changed.clear()
        self._transport.write(data)
        note(WRITTEN)
        first = await self._answers.get()
        await self._answers.get()
        return first

    async def changed(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LATE):
                await self._changed.wait()

    async def turn(self) -> None:
        while await self.ask(self.TAKE) != b"OK":
            await self.changed()
        note(ACQUIRED)
        note(RELEASING)
        await self.ask(self.FREE)
        await self.changed()  # let the other have it

    def close(self) -> None:
        self._transport.close()


async def with_floor(url: str, rounds: Callable[[Turn], Awaitable[None]]) -> None:
    port = urlsplit(url).port
    assert port is not None
    _, bare = await asyncio.get_running_loop().create_connection(Bare, "127.0.0.1", port)
    await bare.ask(bare.SETUP)
    await rounds(bare.turn)
    bare.close()


async def rounds(turn: Turn) -> None:
    loop = asyncio.get_running_loop()
    print("ready", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        start, end = map(float, line.split())
        del notes[:]
        await asyncio.sleep(start - time.monotonic())
        while time.monotonic() < end:
            await turn()
        sys.stdout.buffer.write(b"%d\n" % (len(notes) // 2) + notes.tobytes())
        sys.stdout.buffer.flush()


HOW = {"asynclock": with_asynclock, "floor": with_floor}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    with asyncio.Runner(loop_factory=loop_factory(loop_name(sys.argv[2]))) as runner:
        runner.run(HOW[sys.argv[3]](sys.argv[1], rounds))
