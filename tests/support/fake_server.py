"""A listener that is no Redis: it replies as it is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable


@contextlib.asynccontextmanager
async def says(answer: Callable[[bytes], bytes | None]) -> AsyncIterator[str]:
    """The URL of a listener that replies with ``answer`` to whatever it receives, and hangs up on ``None``."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                reply = answer(data)
                if reply is None:
                    break
                writer.write(reply)
        except OSError:
            pass  # the client has closed the connection
        finally:
            writer.close()
            with contextlib.suppress(OSError):  # the same; asyncio complains of an exception that nobody has seen
                await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await asyncio.sleep(0.01)


# The reply to ``HELLO 3``, as of a Redis 7.4.
HELLO = (
    b"%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.4.0\r\n$5\r\nproto\r\n:3\r\n$2\r\nid\r\n:4\r\n"
    b"$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n"
)
