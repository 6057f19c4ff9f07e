"""A server that turns hostile on command, and what it costs the process that it is turned against."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

from asynclock.testing.resp import PUSH, FrameSplitter

Answer = Callable[[bytes], bytes | None]
_PING = b"*1\r\n$4\r\nPING\r\n"


class Turncoat:
    """Stands before a real server, and passes everything on until it is told otherwise.

    ``answer`` gets each command, and returns what is said in place of the server's reply to it, in
    its place in the order of replies; ``None``: the reply itself. ``say`` says what nobody asked
    for. ``mute`` has the connections that there are say nothing any more but that.
    """

    passes_on = True  #: does the server get what it is not to answer?

    def __init__(self, port: int) -> None:
        self.answer: Answer | None = None
        self.connections = 0  # so far
        self._port = port
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._muted: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.sleep(0)  # closed transports

    def heard(self, command: bytes | None, reply: bytes) -> None:
        """The server's reply to that command, or a push."""

    def mute(self) -> None:
        self._muted.update(self._clients)

    def hold(self) -> None:
        """Keep replies and pushes back, until ``go_on``."""
        self._goes_on.clear()

    def go_on(self) -> None:
        self._goes_on.set()

    def say(self, data: bytes) -> None:
        """To everyone who is connected."""
        for client in self._listening():
            client.write(data)

    async def pour(self, chunk: bytes, times: int, pause: float = 0.0) -> int:
        """Say ``chunk`` so often to those who are connected now, no faster than they read it. Returns
        how many bytes went out before the last of them hung up."""
        clients = self._listening()
        for poured in range(times):
            clients = [client for client in clients if not client.is_closing()]
            if not clients:
                return poured * len(chunk)
            for client in clients:
                client.write(chunk)
                with contextlib.suppress(OSError):  # hung up
                    await client.drain()
            await asyncio.sleep(pause)
        return times * len(chunk)

    def _listening(self) -> list[asyncio.StreamWriter]:
        return [client for client in self._clients if not client.is_closing()]

    def _accept(self, commands: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._serve(commands, client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, commands: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        asked: deque[tuple[bytes, bytes | None]] = deque()  # without a reply so far, and what to say instead of it
        server: asyncio.StreamWriter | None = None
        ways: list[asyncio.Task[None]] = []
        self._clients.add(client)
        try:
            with contextlib.suppress(OSError):  # the server is not there: so is this one
                replies, server = await asyncio.open_connection("127.0.0.1", self._port)
            if server is None:
                return
            up, down = self._up(commands, server, asked), self._down(replies, client, asked)
            ways = [asyncio.create_task(up), asyncio.create_task(down)]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._clients.discard(client)
            self._muted.discard(client)
            for end in (client, server):
                if end is not None:
                    end.transport.abort()
            for way in ways:
                way.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):  # a reset is an end too
                    await way

    async def _up(
        self, commands: asyncio.StreamReader, server: asyncio.StreamWriter, asked: deque[tuple[bytes, bytes | None]]
    ) -> None:
        async for _, command in _frames(commands):
            instead = None if self.answer is None else self.answer(command)
            asked.append((command, instead))
            if not server.is_closing():  # uvloop raises then
                server.write(command if instead is None or self.passes_on else _PING)

    async def _down(
        self, replies: asyncio.StreamReader, client: asyncio.StreamWriter, asked: deque[tuple[bytes, bytes | None]]
    ) -> None:
        async for kind, reply in _frames(replies):
            command, instead = (None, None) if kind == PUSH or not asked else asked.popleft()
            self.heard(command, reply)
            await self._goes_on.wait()
            if client not in self._muted and not client.is_closing():
                client.write(reply if instead is None else instead)


async def _frames(stream: asyncio.StreamReader) -> AsyncIterator[tuple[int, bytes]]:
    splitter, frame = FrameSplitter(), b""
    while data := await stream.read(65536):
        for part in splitter.feed(data):
            frame += part.data
            if part.last:
                yield part.kind, frame
                frame = b""


def to(word: bytes, answer: bytes) -> Answer:
    """Answer so to this command, and honestly to the others."""
    start = b"\r\n%b\r\n" % word
    return lambda command: answer if command[command.index(b"\r\n", command.index(b"$")) :].startswith(start) else None


class Watch:
    """What a block costs: ``blocked``, the longest time in seconds for which the event loop did not
    get round to other things, and ``grown``, by how many bytes the memory in use grew at the most."""

    blocked = 0.0
    grown = 0

    async def __aenter__(self) -> Self:
        gc.collect()
        self._before = resident()
        self._task = asyncio.create_task(self._look())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0.01)  # if the loop was blocked just now, that is seen
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _look(self) -> None:
        pause = 0.002
        while True:
            since = time.monotonic()
            await asyncio.sleep(pause)
            self.blocked = max(self.blocked, time.monotonic() - since - pause)
            self.grown = max(self.grown, resident() - self._before)


def resident() -> int:
    """Bytes of memory that this process has in use."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def complaints() -> Any:
    """What the event loop complains about meanwhile: a list of errors, for the test itself to look at."""
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    heard: list[object] = []
    loop.set_exception_handler(lambda _, context: heard.append(context.get("exception") or context["message"]))
    try:
        yield heard
    finally:
        loop.set_exception_handler(before)
