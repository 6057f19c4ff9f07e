"""TLS in front of a server without it."""

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

from .ports import HeldPort

_CHUNK = 65536
_SHUTDOWN_LIMIT = 1.0  # seconds for the client to answer the TLS close_notify
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, for 0 seconds


class TLSFront:
    """Listens with TLS on a port of 127.0.0.1, and forwards in plain text to ``target_port`` of 127.0.0.1.

    :param target_port: the server's port, which stays as it is
    :param context: the server's side of TLS: its certificate, and whether clients need one
        (``context.verify_mode = ssl.CERT_REQUIRED``)

    The end of a connection is passed on: FIN as FIN, RST as RST. If the server is unavailable, the client gets RST. The
    faults of a :class:`Proxy` in front of this affect the encrypted bytes, those of one behind it the plain ones.

    It runs in a thread of its own, so it serves any event loop, and code without one.
    """

    def __init__(self, target_port: int, context: ssl.SSLContext) -> None:
        self._target_port = target_port
        self._context = context
        self._port: HeldPort | None = None
        self._stop: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        self._port = HeldPort()
        listener = socket.create_server(("127.0.0.1", self._port.number), backlog=128)
        listener.setblocking(False)
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(listener, started), daemon=True, name="TLSFront")
        self._thread.start()
        started.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all connections and free the port. Does nothing the second time."""
        if self._stop is not None and self._port is not None:
            self._stop()
            self._stop = None
            self._thread.join()
            self._port.close()

    @property
    def port(self) -> int:
        """The port to connect to. :raises RuntimeError: read before ``with``"""
        if self._port is None:
            raise RuntimeError("the TLS front has no port before `with`")
        return self._port.number

    @property
    def url(self) -> str:
        """``rediss://localhost:PORT/0``: a name, so that a certificate can be for it. Raises as :attr:`port`."""
        return f"rediss://localhost:{self.port}/0"

    def _run(self, listener: socket.socket, started: threading.Event) -> None:
        with (
            listener,
            contextlib.suppress(asyncio.CancelledError),
            asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner,  # ends all tasks
        ):
            runner.run(self._accept(listener, started))

    async def _accept(self, listener: socket.socket, started: threading.Event) -> None:
        loop = asyncio.get_running_loop()
        # Failures of one connection, such as a failed handshake, show on the client's side. Do not log them here.
        loop.set_exception_handler(lambda loop, context: None)
        me = asyncio.current_task()
        assert me is not None
        self._stop = partial(loop.call_soon_threadsafe, me.cancel)
        started.set()
        tasks = set()
        while True:
            client, _ = await loop.sock_accept(listener)
            task = asyncio.create_task(self._serve(client))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            # ``client=client``: the next round of the loop rebinds the name. mypy infers no lambda with a default
            task.add_done_callback(lambda task, client=client: client.close())  # type: ignore[misc]

    async def _serve(self, client: socket.socket) -> None:
        writers: list[asyncio.StreamWriter] = []
        try:
            reader = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(reader)
            loop = asyncio.get_running_loop()
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, client, ssl=self._context, ssl_shutdown_timeout=_SHUTDOWN_LIMIT
            )
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            writers.append(writer)
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            writers.append(server_writer)
            flows = [
                asyncio.create_task(_pass_on(reader, server_writer)),
                asyncio.create_task(_pass_on(server_reader, writer)),
            ]
            try:
                # TLS has no half-closed connections: if one direction ends, both do.
                done, _ = await asyncio.wait(flows, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for flow in flows:
                    flow.cancel()
                await asyncio.gather(*flows, return_exceptions=True)
            for flow in done:
                flow.result()
            for each in writers:
                each.close()
            for each in writers:
                await each.wait_closed()
        except OSError:  # one side was reset: reset the other
            for each in writers:
                with contextlib.suppress(OSError):  # that side is closed already
                    each.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        finally:
            for each in writers:
                each.transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
