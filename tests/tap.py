"""A tap on the wire to a server: it sees every command, and can make the server look like an older one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

import hiredis

from asynclock.testing import Server
from asynclock.testing.resp import encode_command

Rewrite = Callable[[list[bytes]], list[bytes]]


class Seen(NamedTuple):
    at: float  # time.monotonic()
    words: list[bytes]


class Tap:
    """``async with Tap(server) as tap: Locker(tap.url)``

    ``rewrite`` gets each command, and returns what the server is sent in its place. What a server does
    not know it refuses in its own words; so there is no need to answer for it.
    """

    def __init__(self, server: Server, rewrite: Rewrite = lambda words: words) -> None:
        self.sent: list[Seen] = []  # as the client sent it
        self._server = server
        self._rewrite = rewrite
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        await self._listener.wait_closed()

    def commands(self, name: str) -> list[Seen]:
        return [seen for seen in self.sent if seen.words[0].upper() == name.encode()]

    def _accept(self, stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(stream, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # the end of the tap
            writers = [writer]
            try:
                back, forth = await asyncio.open_connection("127.0.0.1", self._server.port)
                writers.append(forth)
                ways = [asyncio.create_task(self._forth(stream, forth)), asyncio.create_task(self._back(back, writer))]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
            except OSError:
                pass  # the server is not there: so is the connection
            finally:
                for end in writers:
                    end.transport.abort()

    async def _forth(self, stream: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        reader = hiredis.Reader(notEnoughData=...)
        while data := await stream.read(65536):
            reader.feed(data)
            while (words := reader.gets()) is not ...:
                self.sent.append(Seen(time.monotonic(), words))
                server.write(encode_command(*self._rewrite(words)))

    async def _back(self, stream: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while data := await stream.read(65536):
            client.write(data)


def without_pxat(words: list[bytes]) -> list[bytes]:
    """As before Redis 6.2: ``SET ... PXAT`` is a syntax error."""
    return [b"NO-" + word if word == b"PXAT" else word for word in words]


def without_compare(words: list[bytes]) -> list[bytes]:
    """As before Valkey 9 and Redis 8.4: no ``DELIFEQ`` and ``DELEX``, and ``SET ... IFEQ`` is a syntax error."""
    return [b"NO-" + word if word in (b"DELIFEQ", b"DELEX", b"IFEQ") else word for word in words]
