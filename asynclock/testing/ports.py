"""A TCP port of 127.0.0.1 that stays reserved even while nothing listens on it."""

import socket
import sys

BUS_OFFSET = 10000
"""A cluster node also listens on a port that is higher by this much."""

_HIGHEST = 65535 - BUS_OFFSET  # above that, a node has no room for its bus port


class HeldPort:
    """A port that is bound, but not listened on, until ``close()``.

    On Linux, a server that sets ``SO_REUSEADDR`` (as Redis and Valkey do) can listen on it meanwhile, and the kernel
    does not use it for anything else: neither for a ``bind`` to port 0 nor for an outgoing connection. So a server that
    was killed gets its port back, and a client that keeps reconnecting does not end up connected to itself. On other
    systems a free port is found, but not reserved.

    :param alone: if ``number`` is given: nobody else may hold it, not even without listening on it
    :raises OSError: ``number`` is given, and in use
    """

    def __init__(self, number: int = 0, *, alone: bool = False) -> None:
        while True:
            self._socket = socket.socket()
            try:
                if not alone:
                    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self._socket.bind(("127.0.0.1", number))
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self.number: int = self._socket.getsockname()[1]
            except BaseException:
                self._socket.close()
                raise
            if number or self.number <= _HIGHEST:
                break
            self._socket.close()
        if sys.platform != "linux":
            self._socket.close()

    def close(self) -> None:
        self._socket.close()


def hold_ports() -> tuple[HeldPort, HeldPort]:
    """A node's port, and that of its cluster bus. (Not every version can choose another port for the bus.)"""
    while True:
        port = HeldPort()
        try:
            return port, HeldPort(port.number + BUS_OFFSET, alone=True)
        except OSError:
            port.close()
