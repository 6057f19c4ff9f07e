"""A connection through the proxy: two sockets, and the bytes that flow between them, each direction by itself.

It uses sockets and the event loop's readiness callbacks, no tasks and no transports. So a reset has happened when the
call returns, delayed bytes stay in the kernel as on a real network, and there is nothing to wait for at the end.
"""

import asyncio
import contextlib
import errno
import socket
import struct
from collections import deque
from collections.abc import Callable

from .faults import CommandCounter, Faults, ReplyFilter

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, for 0 seconds
_READ_SIZE = 65536


class Link:
    """A client's connection, and the one to the server that belongs to it. ``on_close`` is called once."""

    def __init__(
        self, faults: Faults, client: socket.socket, server_port: int, on_close: Callable[["Link"], None]
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.faults = faults
        self.connected = False
        self.forgotten = False  # nothing passes any more
        self._connecting = False
        self._server_port = server_port
        self._on_close: Callable[[Link], None] | None = on_close
        self._server = server = socket.socket()
        self._sockets = (client, server)
        for end in self._sockets:
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._flows = (
            _Flow(self, client, server, CommandCounter(faults)),
            _Flow(self, server, client, ReplyFilter(faults), to_client=True),
        )

    @property
    def frozen(self) -> bool:
        return self.forgotten or self.faults.frozen

    def update(self) -> None:
        """Apply the faults as they are now: connect, pass bytes on, or hold them back."""
        if not self._connecting and not self.frozen:
            self._connect()
        for flow in self._flows:
            flow.update()

    def deliver(self) -> None:
        """Pass on what is delayed, at once."""
        for flow in self._flows:
            flow.deliver()

    def close(self, *, reset: bool) -> None:
        """Close both sides, with RST or with FIN. Idempotent."""
        if self._on_close is None:
            return
        self._on_close(self)
        self._on_close = None
        self.connected = False
        for flow in self._flows:
            flow.stop()
        for end in self._sockets:
            self.loop.remove_reader(end)
            self.loop.remove_writer(end)
            if reset:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            else:
                # With bytes unread, the kernel would send RST in place of FIN.
                with contextlib.suppress(OSError):
                    while end.recv(_READ_SIZE):
                        pass
            end.close()

    def flow_ended(self) -> None:
        if all(flow.ended for flow in self._flows):
            self.close(reset=False)

    def _connect(self) -> None:
        self._connecting = True
        if self._server.connect_ex(("127.0.0.1", self._server_port)) in (0, errno.EINPROGRESS):
            self.loop.add_writer(self._server, self._on_connected)
        else:
            self.close(reset=True)

    def _on_connected(self) -> None:
        self.loop.remove_writer(self._server)
        if self._server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.close(reset=True)
        else:
            self.connected = True
            self.update()


class _Flow:
    """One direction of a link: what was read waits in a queue until it is due, and is then written."""

    def __init__(
        self,
        link: Link,
        source: socket.socket,
        target: socket.socket,
        passed_on: Callable[[bytes], bytes],
        *,
        to_client: bool = False,
    ) -> None:
        self.ended = False  # the source's end has been passed on
        self._link = link
        self._loop = link.loop
        self._faults = link.faults
        self._source = source
        self._target = target
        self._passed_on = passed_on
        self._to_client = to_client
        self._carried = 0.0  # when a slow network (``rate``) has carried everything that was read so far
        # When each piece is due, and its bytes; no bytes: the source has ended.
        self._queue: deque[tuple[float, bytes]] = deque()
        self._reading = False
        self._read_all = False
        self._blocked = False  # the kernel takes no more bytes for the target now
        self._next_write: asyncio.Handle | None = None

    def update(self) -> None:
        """Start or stop reading, and write what is due."""
        read = self._link.connected and not (self._link.frozen or self._blocked or self._read_all)
        if read and not self._reading:
            self._loop.add_reader(self._source, self._read)
        elif self._reading and not read:
            self._loop.remove_reader(self._source)
        self._reading = read
        self._write()

    def deliver(self) -> None:
        """Pass on what is delayed, at once."""
        self._carried = 0.0
        self._queue = deque((0.0, data) for _, data in self._queue)
        if self._next_write is not None:
            self._next_write.cancel()
            self._next_write = None
        self._write()

    def stop(self) -> None:
        """The link closes. It closes the sockets itself."""
        self._reading = False
        if self._next_write is not None:
            self._next_write.cancel()

    def _read(self) -> None:
        try:
            data = self._source.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self._link.close(reset=True)
            return
        self._read_all = not data
        passed_on = self._passed_on(data)
        if passed_on or self._read_all:
            due = self._loop.time() + self._faults.delay
            if self._faults.rate:
                # It queues behind what is in transit already.
                due = self._carried = max(due, self._carried) + len(passed_on) / self._faults.rate
            if self._queue:
                due = max(due, self._queue[-1][0])  # the delay may have become less
            self._queue.append((due, passed_on))
        self.update()

    def _write(self) -> None:
        while self._queue and self._link.connected:
            if self._link.frozen or self._blocked or self._next_write is not None:
                return
            due, data = self._queue[0]
            if due > self._loop.time():
                self._next_write = self._loop.call_at(due, self._write_next)
            elif data:
                self._send(due, data)
            else:
                self._queue.clear()
                self._end()

    def _send(self, due: float, data: bytes) -> None:
        split = self._faults.split if self._to_client else 0
        piece = data[:split] if split else data
        try:
            sent = self._target.send(piece)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._link.close(reset=True)
            return
        if not self._to_client:
            self._faults.sent_to_server += sent
        if sent == len(data):
            self._queue.popleft()
        else:
            self._queue[0] = (due, data[sent:])
        if sent < len(piece):
            self._blocked = True
            self._loop.add_writer(self._target, self._unblock)
            self.update()
        elif split:
            # One turn of the loop later, so that a client on this loop reads each piece by itself.
            self._next_write = self._loop.call_soon(self._skip_turn)

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._target.shutdown(socket.SHUT_WR)
        self.ended = True
        self._link.flow_ended()

    def _unblock(self) -> None:
        self._loop.remove_writer(self._target)
        self._blocked = False
        self.update()

    def _skip_turn(self) -> None:
        self._next_write = self._loop.call_soon(self._write_next)

    def _write_next(self) -> None:
        self._next_write = None
        self._write()
