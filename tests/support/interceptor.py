"""A proxy that reads the commands and replies between a client and a real server, and changes some of them.

``asynclock.testing.Proxy`` delays, cuts and breaks connections, and does not read what they carry. This one does. Tests
that need another proxy of this kind derive it from this one, as ``tap.Tap`` does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Self

from asynclock.testing.resp import PUSH, FrameSplitter

Answer = Callable[[bytes], bytes | None]
_PING = b"*1\r\n$4\r\nPING\r\n"


class Interceptor:
    """Forwards everything until it is told otherwise.

    ``answer`` gets each command and returns the reply that the client gets in place of the server's, in the same
    position in the order of replies. If it returns ``None``, the client gets the server's own reply.
    """

    passes_on = True  #: does the server get the commands that ``answer`` answers?

    def __init__(self, port: int) -> None:
        self.answer: Answer | None = None
        self.connections = 0  # accepted so far
        self.target_port = port  # of the server, for the next connection; 0: close it as soon as it is there
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        self._links: set[_Link] = set()
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

    # For subclasses

    def rewrite(self, command: bytes) -> bytes:
        """What the server gets in place of this command."""
        return command

    def instead(self, command: bytes) -> bytes | None:
        """What the client gets in place of the server's reply to this command."""
        return None if self.answer is None else self.answer(command)

    def heard(self, command: bytes | None, reply: bytes) -> None:
        """The server sent this reply to that command, or (``None``) a push."""

    # For tests

    def say(self, data: bytes) -> None:
        """Send this to every client that is connected."""
        for client in self._listening():
            client.write(data)

    async def pour(self, chunk: bytes, times: int, pause: float = 0.0) -> int:
        """Send ``chunk`` this many times to the clients that are connected now, no faster than they read it. Returns
        how many bytes were sent before the last of them closed its connection."""
        clients = self._listening()
        for poured in range(times):
            clients = [client for client in clients if not client.is_closing()]
            if not clients:
                return poured * len(chunk)
            for client in clients:
                client.write(chunk)
                with contextlib.suppress(OSError):  # the client has closed the connection
                    await client.drain()
            await asyncio.sleep(pause)
        return times * len(chunk)

    def mute(self) -> None:
        """From now on, the connections that exist forward commands but no replies. ``say`` and ``pour`` still work."""
        for link in self._links:
            link.muted = True

    def hang(self, name: bytes) -> None:
        """From now on, the connections on which a command of this name was sent forward nothing in either direction."""
        for link in self._links:
            if name in link.sent:
                link.muted = link.hangs = True

    def hold(self) -> None:
        """Keep replies and pushes back until ``go_on``."""
        self._goes_on.clear()

    def go_on(self) -> None:
        self._goes_on.set()

    # The connections

    def _listening(self) -> list[asyncio.StreamWriter]:
        return [link.client for link in self._links if not link.client.is_closing()]

    def _accept(self, commands: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.connections += 1
        if not self.target_port:
            client.transport.abort()
            return
        task = asyncio.create_task(self._serve(commands, _Link(client), self.target_port))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, commands: asyncio.StreamReader, link: _Link, port: int) -> None:
        server: asyncio.StreamWriter | None = None
        ways: list[asyncio.Task[None]] = []
        self._links.add(link)
        try:
            with contextlib.suppress(OSError):  # no server is there: close the client's connection too
                replies, server = await asyncio.open_connection("127.0.0.1", port)
            if server is None:
                return
            ways = [
                asyncio.create_task(self._up(commands, server, link)),
                asyncio.create_task(self._down(replies, link)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._links.discard(link)
            for end in (link.client, server):
                if end is not None:
                    end.transport.abort()
            for way in ways:
                way.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):  # a reset is an end too
                    await way

    async def _up(self, commands: asyncio.StreamReader, server: asyncio.StreamWriter, link: _Link) -> None:
        async for _, command in _frames(commands):
            link.sent.add(command.split(b"\r\n", 3)[2].upper())
            if link.hangs:
                continue
            instead = self.instead(command)
            link.unanswered.append((command, instead))
            # A command that the server must not get is replaced by one that has one reply too.
            forwarded = self.rewrite(command) if instead is None or self.passes_on else _PING
            if not server.is_closing():  # uvloop raises then
                server.write(forwarded)

    async def _down(self, replies: asyncio.StreamReader, link: _Link) -> None:
        async for kind, reply in _frames(replies):
            no_reply = kind == PUSH or not link.unanswered
            command, instead = (None, None) if no_reply else link.unanswered.popleft()
            self.heard(command, reply)
            await self._goes_on.wait()
            if not link.muted and not link.client.is_closing():
                link.client.write(reply if instead is None else instead)


class TwoServers(Interceptor):
    """Every second connection goes to the other server, as behind a load balancer."""

    def __init__(self, port: int, other: int) -> None:
        super().__init__(port)
        self._other = other

    def _accept(self, commands: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        super()._accept(commands, client)
        self.target_port, self._other = self._other, self.target_port


class _Link:
    """One client's connection."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.sent: set[bytes] = set()  # names of commands
        self.unanswered: deque[tuple[bytes, bytes | None]] = deque()  # commands, and replies in place of the server's
        self.muted = False  # forwards no replies
        self.hangs = False  # forwards no commands


async def _frames(stream: asyncio.StreamReader) -> AsyncIterator[tuple[int, bytes]]:
    splitter, frame = FrameSplitter(), b""
    while data := await stream.read(65536):
        for part in splitter.feed(data):
            frame += part.data
            if part.last:
                yield part.kind, frame
                frame = b""


def to(word: bytes, answer: bytes) -> Answer:
    """An ``answer`` for commands that begin with this word; the server replies to the others."""
    start = b"\r\n%b\r\n" % word
    return lambda command: answer if command[command.index(b"\r\n", command.index(b"$")) :].startswith(start) else None
