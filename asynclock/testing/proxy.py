"""A TCP proxy on loopback in front of a server, to break the wire between the two in the ways wires break."""

import asyncio
import contextlib
import socket
from types import TracebackType
from typing import Self

from .faults import Faults
from .links import Link
from .ports import HeldPort


class Proxy(Faults):
    """Passes bytes between its clients and 127.0.0.1:``target_port``, and harms them on demand.

    The faults are methods, done when they return, and the attributes of :class:`Faults`. A connection's end
    is passed on as it came: FIN as FIN, RST as RST. A server that is not there comes as RST too.
    """

    def __init__(self, target_port: int) -> None:
        super().__init__()
        self.target_port = target_port  # of connections to come
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
        """``refuse()`` and ``cut()``, and the port is given up. Idempotent."""
        self.refuse()
        self.cut()
        if self._port is not None:
            self._port.close()

    @property
    def port(self) -> int:
        if self._port is None:
            raise RuntimeError("the proxy has no port before `async with`")
        return self._port.number

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def connections(self) -> int:
        """Number of open ones. One is open until both its ends have closed, or either was reset."""
        return len(self._links)

    def reset(self) -> None:
        """Ends all connections with RST, on both sides."""
        for link in list(self._links):
            link.close(reset=True)

    def cut(self) -> None:
        """Ends all connections with FIN, on both sides. What is under way (``delay``) is lost."""
        for link in list(self._links):
            link.close(reset=False)

    def refuse(self) -> None:
        """From now on new connections are refused. Those there are stay."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def accept(self) -> None:
        """New connections are accepted again, on the same port."""
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
            self._listener.setblocking(False)
            asyncio.get_running_loop().add_reader(self._listener, self._accept_one, self._listener)

    def freeze(self) -> None:
        """Nothing is passed on, not even a connection's end. New connections are accepted, and silent."""
        self.frozen = True
        self._update_links()

    def thaw(self) -> None:
        """All goes on, beginning with what was held up."""
        self.frozen = False
        self._update_links()

    def forget(self) -> None:
        """The connections that there are pass nothing on any more, not even their ends, as if a NAT or a load balancer
        between them had forgotten them. New ones are well. Ends for them with ``reset()`` or ``cut()``."""
        for link in self._links:
            link.forgotten = True
        self._update_links()

    def deliver(self) -> None:
        """What is under way arrives now, whatever ``delay`` and ``rate`` were when it set out. Lowering those is for
        what comes after it."""
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
