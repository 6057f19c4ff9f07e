"""A TCP proxy on loopback in front of a server, which breaks the connection in the ways that connections break."""

import asyncio
import contextlib
import socket
from types import TracebackType
from typing import Self

from .faults import Faults
from .links import Link
from .ports import HeldPort


class Proxy(Faults):
    """Forwards bytes between its clients and ``target_port`` of 127.0.0.1, and breaks this on demand. Use it with
    ``async with``; it belongs to that event loop.

    :param target_port: the server's port

    Faults are methods, which take effect before they return, and attributes such as ``delay``. The end of a connection
    is passed on unchanged: FIN as FIN, RST as RST. If the server is unavailable, clients get RST as well.
    """

    def __init__(self, target_port: int) -> None:
        super().__init__()
        self.target_port = target_port
        """The server's port. A change affects new connections."""
        self._port: HeldPort | None = None
        self._listener: socket.socket | None = None
        self._links: set[Link] = set()

    async def __aenter__(self) -> Self:
        self._port = HeldPort()
        self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Refuse new connections, cut those that are open, and free the port. Does nothing the second time."""
        self.refuse()
        self.cut()
        if self._port is not None:
            self._port.close()

    @property
    def port(self) -> int:
        """The port to connect to. :raises RuntimeError: read before ``async with``"""
        if self._port is None:
            raise RuntimeError("the proxy has no port before `async with`")
        return self._port.number

    @property
    def url(self) -> str:
        """``redis://127.0.0.1:PORT/0``. Raises as :attr:`port`."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def connections(self) -> int:
        """Number of open connections. One is open until both its ends have closed, or either was reset."""
        return len(self._links)

    def reset(self) -> None:
        """End all connections with RST, on both sides."""
        for link in list(self._links):
            link.close(reset=True)

    def cut(self) -> None:
        """End all connections with FIN, on both sides. Bytes still in transit (``delay``) are lost."""
        for link in list(self._links):
            link.close(reset=False)

    def refuse(self) -> None:
        """Refuse new connections from now on. Open ones stay."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def accept(self) -> None:
        """Accept new connections again, on the same port."""
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
            self._listener.setblocking(False)
            asyncio.get_running_loop().add_reader(self._listener, self._accept_one, self._listener)

    def freeze(self) -> None:
        """Pass nothing on, not even the end of a connection. New connections are accepted, but get no answer."""
        self.frozen = True
        self._update_links()

    def thaw(self) -> None:
        """Undo :meth:`freeze`: everything that was held back is passed on, in order."""
        self.frozen = False
        self._update_links()

    def forget(self) -> None:
        """Pass nothing on over the connections that are open now, not even their ends, as if a NAT or a load balancer
        had forgotten them. New connections work. Lasts until :meth:`reset` or :meth:`cut`."""
        for link in self._links:
            link.forgotten = True
        self._update_links()

    def deliver(self) -> None:
        """Deliver what is in transit now, whatever ``delay`` and ``rate`` were when it was sent. Lowering these only
        affects what is sent later."""
        for link in list(self._links):
            link.deliver()

    def _update_links(self) -> None:
        for link in list(self._links):
            link.update()

    def _accept_one(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            client, _ = listener.accept()
            link = Link(self, client, self.target_port, self._links.discard)
            self._links.add(link)
            link.update()
