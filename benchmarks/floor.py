"""The floor: the minimum that two commands cost in asyncio. A cycle of acquire and release is compared with it.

A bare protocol and ``hiredis.Reader``; all commands of one turn of the event loop leave in one write. No deadlines, no
key tracking, no comparison of owners.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import hiredis

_MORE = object()


class Floor(asyncio.Protocol):
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._out: list[bytes] = []
        self._transport: asyncio.WriteTransport

    @classmethod
    async def open(cls, port: int) -> Floor:
        _, floor = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return floor

    def close(self) -> None:
        self._transport.close()

    async def cycle(self, name: str) -> None:
        if await self.set(name) != b"OK":
            raise RuntimeError(f"{name!r} is held by somebody else")
        if await self.delete(name) != 1:
            raise RuntimeError(f"{name!r} was lost")

    def set(self, name: str) -> asyncio.Future[Any]:
        key = f"floor:0:{name}".encode()
        return self._call(
            b"*6\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$5\r\ntoken\r\n$2\r\nNX\r\n$2\r\nPX\r\n$4\r\n5000\r\n" % (len(key), key)
        )

    def delete(self, name: str) -> asyncio.Future[Any]:
        key = f"floor:0:{name}".encode()
        return self._call(b"*2\r\n$3\r\nDEL\r\n$%d\r\n%b\r\n" % (len(key), key))

    def call(self, *command: bytes) -> asyncio.Future[Any]:
        """Any command. The reply of a refused one is an error as a value, as hiredis has it."""
        return self._call(
            b"*%d\r\n%b" % (len(command), b"".join(b"$%d\r\n%b\r\n" % (len(each), each) for each in command))
        )

    def _call(self, data: bytes) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        self._waiting.append(future)
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)
        return future

    def _flush(self) -> None:
        data = b"".join(self._out)
        self._out.clear()
        self._transport.write(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not _MORE:
            self._waiting.popleft().set_result(reply)

    def connection_lost(self, error: Exception | None) -> None:
        for future in self._waiting:
            future.set_exception(error or ConnectionResetError("the server has closed the connection"))


async def enough(answers: Sequence[asyncio.Future[Any]], count: int) -> None:
    """Wait until ``count`` of them are there."""
    if len(answers) == count:
        for answer in answers:
            await answer
        return
    there = asyncio.get_running_loop().create_future()
    missing = count

    def answered(_: object) -> None:
        nonlocal missing
        missing -= 1
        if missing == 0:
            there.set_result(None)

    for answer in answers:
        answer.add_done_callback(answered)
    await there
