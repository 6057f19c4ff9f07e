"""A persistent connection, for commands that a new connection could not send, or not often enough."""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Self

from asynclock.testing import Server
from asynclock.testing.resp import Reply, encode_command, read_reply

LIMIT = 5.0  # seconds for an answer


class Admin:
    """Blocks, and raises the same errors as ``Server.execute``."""

    def __init__(self, server: Server) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), LIMIT)
        self._stream = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.close()
        self._socket.close()

    def __call__(self, *command: str | bytes | int) -> Reply:
        self._socket.sendall(encode_command(*command))
        return read_reply(self._stream)
