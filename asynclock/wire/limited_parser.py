"""redis-py's parser with reply limits, for what a server sends before asynclock takes over the socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from redis.asyncio.connection import DefaultParser

from .reply_limits import ReplyLimits


class LimitedParser(DefaultParser):  # type: ignore[misc,valid-type]  # to mypy a variable: redis-py chooses it at import
    """The ``parser_class`` of redis-py connections."""

    _reader: Any
    _stream: Any

    def on_connect(self, connection: Any) -> None:
        super().on_connect(connection)
        self._reader = _LimitedReader(self._reader)

    def detach(self) -> None:
        """Drop the references to the reader and the stream, once the socket is taken over. They form a cycle with the
        transport, which would stay alive until the next garbage collection."""
        self._reader = self._stream = None


class _LimitedReader:
    """The part of ``hiredis.Reader`` that redis-py uses while it connects."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._limits = ReplyLimits(reader)
        self._pieces: Iterator[bytes] = iter(())
        self._more = reader.gets()  # what it returns when it needs more bytes
        self.has_data = reader.has_data

    def feed(self, data: bytes) -> None:
        self._pieces = self._limits.pieces(data)

    def gets(self, *args: Any) -> Any:
        """:raises ViolationError: the reply exceeds a limit"""
        while (reply := self._reader.gets(*args)) is self._more:
            piece = next(self._pieces, None)
            if piece is None:
                return reply
            self._reader.feed(piece)
            self._limits.more(len(piece))
        self._limits.size = 0
        return reply
