"""redis-py's own parser, for what a server says before its socket is ours; with a look at the headers first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from redis.asyncio.connection import DefaultParser

from .reply_limits import ReplyLimits


class LimitedParser(DefaultParser):  # type: ignore[misc,valid-type]  # to mypy a variable: redis-py chooses it at import
    """As ``parser_class`` of a connection."""

    _reader: Any
    _stream: Any

    def on_connect(self, connection: Any) -> None:
        super().on_connect(connection)
        self._reader = _LimitedReader(self._reader)

    def detach(self) -> None:
        """The socket is somebody else's now. Parser and reader refer to each other, and to the transport: all
        that would stay until the garbage collector comes by."""
        self._reader = self._stream = None


class _LimitedReader:
    """As much of ``hiredis.Reader`` as redis-py uses while it connects."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._headers = ReplyLimits(reader)
        self._pieces: Iterator[bytes] = iter(())
        self._more = reader.gets()  # what it answers when it wants more bytes
        self.has_data = reader.has_data

    def feed(self, data: bytes) -> None:
        self._pieces = self._headers.pieces(data)

    def gets(self, *args: Any) -> Any:
        """:raises ViolationError: too much is announced, or it is too long"""
        while (reply := self._reader.gets(*args)) is self._more:
            piece = next(self._pieces, None)
            if piece is None:
                return reply
            self._reader.feed(piece)
            self._headers.more(len(piece))
        self._headers.size = 0
        return reply
