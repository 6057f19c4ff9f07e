"""What stands between client and server where ``asynclock.testing.Proxy`` does not do: it looks at the
commands, treats one connection unlike another, or speaks TLS."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Self

from asynclock.testing.resp import FrameSplitter

_HANGS = b"(hangs)"


class Front:
    """Passes everything on, command by command. With ``tls``, clients speak TLS to it."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.target_port = port
        self._said: list[set[bytes]] = []  # words, for each connection
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"{'rediss' if self._tls else 'redis'}://127.0.0.1:{self.port}/0"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.sleep(0.01)  # closed transports, and TLS handshakes that failed

    def hang(self, word: bytes) -> None:
        """The connections on which this word was sent stay, and nothing passes on them any more."""
        for said in self._said:
            if word in said:
                said.add(_HANGS)

    def instead(self, command: bytes) -> bytes | None:
        """What to answer to a command that is not to be passed on."""
        return None

    def _accept(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(client, back))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        said: set[bytes] = set()
        self._said.append(said)

        async def up(forth: asyncio.StreamWriter) -> None:
            splitter, frame = FrameSplitter(), b""
            while data := await client.read(65536):
                for part in splitter.feed(data):
                    frame += part.data
                    if not part.last:
                        continue
                    command, frame = frame, b""
                    said.update(command.upper().split(b"\r\n"))
                    answer = self.instead(command)
                    if answer is not None:
                        back.write(answer)
                    elif _HANGS not in said:
                        forth.write(command)

        async def down(server: asyncio.StreamReader) -> None:
            while data := await server.read(65536):
                if _HANGS not in said:
                    back.write(data)

        forth: asyncio.StreamWriter | None = None
        ways: list[asyncio.Task[None]] = []
        try:
            server, forth = await asyncio.open_connection("127.0.0.1", self.target_port)
            ways = [asyncio.create_task(up(forth)), asyncio.create_task(down(server))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):  # a reset is an end too
                    await way
            self._said = [other for other in self._said if other is not said]
            for end in (back, forth):
                if end is not None:
                    end.transport.abort()


class NoHello(Front):
    """It knows no ``HELLO``: as an old server, or a proxy that has its own list of commands."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.refusal = b"-ERR unknown command 'HELLO', with args beginning with: '3' \r\n"
        self.refused = 0
        self.knows_hello = False

    def hang(self, word: bytes) -> None:
        """The connections on which this word was sent stay, and nothing passes on them any more."""
        for said in self._said:
            if word in said:
                said.add(_HANGS)

    def instead(self, command: bytes) -> bytes | None:
        # Only ever the first of a connection, and awaited: no reply can be overtaken.
        if b"HELLO" not in command.upper() or self.knows_hello:
            return None
        self.refused += 1
        return self.refusal


class TwoServers(Front):
    """Every other connection goes to the other server, as behind a balancer."""

    def __init__(self, port: int, other: int) -> None:
        super().__init__(port)
        self._other = other

    def _accept(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        super()._accept(client, back)
        asyncio.get_running_loop().call_soon(self._turn)  # the task has read its port by then

    def _turn(self) -> None:
        self.target_port, self._other = self._other, self.target_port
