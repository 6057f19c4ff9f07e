"""A stand-in for a Go service that locks with ``rueidislock`` or ``valkeylock``.

It sends what those send, over its own socket. Nothing in here uses asynclock's engine.

- key ``i`` of a name is ``{prefix}:{i}:{name}``, with ``i`` from 0 to ``2 * majority - 2``
- acquire: ``SET key value NX PXAT`` (or ``PX``) and ``GET``, one key after the other; the value is random bytes
- extend, release: a script that moves the expiry or deletes, if the value is still the same
- take over: ``SET key value PXAT``
- wait: for an invalidation of one of the keys, or for half of the validity
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from types import TracebackType
from typing import Any, Self

import hiredis

from asynclock.testing.resp import encode_command

EXTEND = 'if redis.call("GET",KEYS[1])==ARGV[1] then return redis.call("PEXPIREAT",KEYS[1],ARGV[2]) else return 0 end'
RELEASE = 'if redis.call("GET",KEYS[1])==ARGV[1] then return redis.call("DEL",KEYS[1]) else return 0 end'


class Go:
    """One process of the Go service: ``async with Go(server.port, "rueidislock", majority=2) as go``."""

    def __init__(
        self, port: int, prefix: str = "rueidislock", *, majority: int = 1, validity: float = 5.0, setpx: bool = False
    ) -> None:
        self.invalidated: list[bytes] = []  # keys, in the order of the server's invalidations
        self.waiting = 0  # calls of acquire that wait for an invalidation
        self._port = port
        self._prefix = prefix
        self._majority = majority
        self._validity = validity
        self._setpx = setpx
        self._changed: dict[bytes, asyncio.Event] = {}

    async def __aenter__(self) -> Self:
        self._stream, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._replies: deque[asyncio.Future[Any]] = deque()
        self._reading = asyncio.create_task(self._read())
        await self.call("HELLO", 3)
        await self.call("CLIENT", "TRACKING", "ON", "OPTOUT")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.close()
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def call(self, *command: str | bytes | int) -> Any:
        """The reply to one command. An error reply is raised."""
        future = asyncio.get_running_loop().create_future()
        self._replies.append(future)
        self._writer.write(encode_command(*command))
        reply = await future
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    async def _read(self) -> None:
        reader = hiredis.Reader(notEnoughData=...)
        while data := await self._stream.read(65536):
            reader.feed(data)
            while (reply := reader.gets()) is not ...:
                if not isinstance(reply, hiredis.PushNotification):
                    future = self._replies.popleft()
                    if not future.done():
                        future.set_result(reply)
                    continue
                assert reply[0] == b"invalidate", reply
                for key in reply[1] or ():
                    self.invalidated.append(key)
                    if key in self._changed:
                        self._changed[key].set()

    def keys(self, name: str) -> list[bytes]:
        return [f"{self._prefix}:{index}:{name}".encode() for index in range(2 * self._majority - 1)]

    def deadline(self) -> int:
        """Now plus the validity, in Unix milliseconds."""
        return round((time.time() + self._validity) * 1000)

    async def take(self, key: bytes, value: bytes) -> bool:
        """Take one key if it is free. Either way, the server tracks it from then on."""
        expiry = ("PX", round(self._validity * 1000)) if self._setpx else ("PXAT", self.deadline())
        ok, _ = await asyncio.gather(self.call("SET", key, value, "NX", *expiry), self.call("GET", key))
        return ok is not None

    async def try_acquire(self, name: str) -> GoLock | None:
        lock = GoLock(self, self.keys(name))
        refused = 0
        for key in lock.keys:
            refused += not await self.take(key, lock.value)
            if refused >= self._majority:
                await lock.release()
                return None
        return lock

    async def acquire(self, name: str) -> GoLock:
        """Wait until the lock is acquired."""
        changed = asyncio.Event()
        self._changed |= dict.fromkeys(self.keys(name), changed)
        while True:
            changed.clear()
            if (lock := await self.try_acquire(name)) is not None:
                return lock
            self.waiting += 1
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._validity / 2):
                        await changed.wait()
            finally:
                self.waiting -= 1

    async def force(self, name: str) -> GoLock:
        """Take the lock over from any holder."""
        lock = GoLock(self, self.keys(name))
        await asyncio.gather(*(self.call("SET", key, lock.value, "PXAT", self.deadline()) for key in lock.keys))
        return lock


class GoLock:
    """One acquisition of the Go service. Nothing extends it but ``extend``."""

    def __init__(self, go: Go, keys: list[bytes]) -> None:
        self.keys = keys
        self.value = os.urandom(24)
        self._go = go

    async def extend(self) -> list[int]:
        """The script's reply for each key: 1, or 0 if the key does not hold this lock's value."""
        deadline = self._go.deadline()
        return await asyncio.gather(*(self._go.call("EVAL", EXTEND, 1, key, self.value, deadline) for key in self.keys))

    async def release(self) -> list[int]:
        """The script's reply for each key: 1, or 0 if the key did not hold this lock's value."""
        return await asyncio.gather(*(self._go.call("EVAL", RELEASE, 1, key, self.value) for key in self.keys))

    async def found(self) -> list[bool]:
        """For each key, whether it holds this lock's value."""
        return [await self._go.call("GET", key) == self.value for key in self.keys]
