"""A Go service that acquires its lock again right after it has released it.

``python -m tests.support.greedy PORT PREFIX MAJORITY SECONDS`` prints ``ready``, begins at a line on stdin, and finally
prints how often it had the lock.

It sends the same commands as ``go.py``, but is a separate process that blocks in the kernel, because a Go service is
faster than an event loop: a client that is notified of the release mostly finds the lock taken again.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from typing import Any

import hiredis

from asynclock.testing.resp import encode_command
from tests.support.go import RELEASE

VALIDITY = 5.0  # seconds


class Greedy:
    def __init__(self, port: int, prefix: str, majority: int) -> None:
        self._majority = majority
        self._keys = [f"{prefix}:{index}:job" for index in range(2 * majority - 1)]
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader(notEnoughData=...)
        self._changed = False
        self._call(("HELLO", 3))
        self._call(("CLIENT", "TRACKING", "ON", "OPTOUT", "NOLOOP"))
        (self._release_by,) = self._call(("SCRIPT", "LOAD", RELEASE))

    def turn(self) -> None:
        """Wait for the lock, acquire it, release it."""
        while True:
            self._changed = False
            value = os.urandom(12).hex()
            expiry = round((time.time() + VALIDITY) * 1000)
            refused = 0
            for key in self._keys:
                ok, _ = self._call(("SET", key, value, "NX", "PXAT", expiry), ("GET", key))
                refused += ok is None
                if refused == self._majority:
                    break
            self._call(*(("EVALSHA", self._release_by, 1, key, value) for key in self._keys))
            if refused < self._majority:
                return
            if not self._changed and select.select([self._socket], [], [], VALIDITY / 2)[0]:
                self._read()

    def _call(self, *commands: tuple[str | bytes | int, ...]) -> list[Any]:
        self._socket.sendall(b"".join(encode_command(*command) for command in commands))
        replies: list[Any] = []
        while len(replies) < len(commands):
            reply = self._reader.gets()
            if reply is ...:
                self._read()
            elif isinstance(reply, hiredis.PushNotification):
                self._changed = True
            else:
                replies.append(reply)
        return replies

    def _read(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionResetError
        self._reader.feed(data)


def main(port: int, prefix: str, majority: int, seconds: float) -> None:
    greedy = Greedy(port, prefix, majority)
    print("ready", flush=True)
    sys.stdin.readline()
    end, turns = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        greedy.turn()
        turns += 1
    print(turns, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
