"""An interceptor that records every command, and can make the server look like an older one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import hiredis

from asynclock.testing import Server
from asynclock.testing.resp import encode_command

from .interceptor import Interceptor

Rewrite = Callable[[list[bytes]], list[bytes]]


class Sent(NamedTuple):
    at: float  # time.monotonic()
    words: list[bytes]


class Tap(Interceptor):
    """``async with Tap(server) as tap: Locker(tap.url)``

    ``rewrite`` gets each command and returns the one that the server gets in its place. The server refuses what it does
    not know in its own words, so the tap has no errors of its own.
    """

    def __init__(self, server: Server, rewrite: Rewrite = lambda words: words) -> None:
        super().__init__(server.port)
        self.sent: list[Sent] = []  # as the client sent it
        self._rewrite = rewrite

    def commands(self, name: str) -> list[Sent]:
        return [sent for sent in self.sent if sent.words[0].upper() == name.encode()]

    def rewrite(self, command: bytes) -> bytes:
        reader = hiredis.Reader()
        reader.feed(command)
        words = reader.gets()
        self.sent.append(Sent(time.monotonic(), words))
        return encode_command(*self._rewrite(words))


def without_pxat(words: list[bytes]) -> list[bytes]:
    """As before Redis 6.2: ``SET ... PXAT`` is a syntax error."""
    return [b"NO-" + word if word == b"PXAT" else word for word in words]


def without_compare(words: list[bytes]) -> list[bytes]:
    """As before Valkey 9 and Redis 8.4: no ``DELIFEQ`` and ``DELEX``, and ``SET ... IFEQ`` is a syntax error."""
    return [b"NO-" + word if word in (b"DELIFEQ", b"DELEX", b"IFEQ") else word for word in words]
