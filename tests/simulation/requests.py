"""Requests in flight on a simulated connection, as ``asynclock.wire.requests``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from asynclock.core.clock import ServerClock
from asynclock.core.lease import Lease
from asynclock.core.operation import NO_KEY
from asynclock.core.operations import Operation
from asynclock.core.room import Room

from .servers import Expiry, Trouble
from .stays import expiry

Command = tuple[str, bytes, bytes, Expiry]
Refused = Callable[[bytes, bytes, float], None]  # called with key, token and ``keep_until`` of a refused release

COMMANDS = {
    Operation.TAKE: ("SET NX",),
    Operation.TAKE_TTL: ("SET NX", "PTTL"),
    Operation.FORCE: ("SET", "GET"),
    Operation.EXTEND: ("SET IFEQ", "GET"),
    Operation.READ: ("PTTL", "GET"),
    Operation.RELEASE: ("DELIFEQ",),
    Operation.KEEP: ("KEEP",),  # SET IFEQ, with an expiry of its own
}
NO_EXPIRY = Expiry("", 0)


class Asker(Protocol):
    """A request that still expects ``left`` replies."""

    left: int

    def reply(self, reply: Any, now: float) -> None: ...


class Request:
    """A room's request."""

    __slots__ = ("index", "key", "lease", "left", "refused", "replies", "request", "room", "sent")

    def __init__(
        self, room: Room[Any], lease: Lease, index: int, operation: Operation, sent: float, refused: Refused
    ) -> None:
        self.refused = refused
        self.room = room
        self.lease = lease
        self.index = index
        self.request = operation
        self.sent = sent
        self.key = room.keys[index]
        self.left = len(COMMANDS[operation])
        self.replies: list[Any] = []

    def commands(self, expiry: Expiry) -> list[Command]:
        key, token = self.key, self.lease.token
        return [(name, key, token, expiry) for name in COMMANDS[self.request]]

    def reply(self, reply: Any, now: float) -> None:
        self.replies.append(reply)
        self.left -= 1
        if self.left:
            return
        for answer in self.replies:
            if isinstance(answer, Trouble):
                if self.request.ends:
                    self.refused(self.key, self.lease.token, self.lease.keep_until)
                self.room.failed(self.lease, self.index, self.request, answer, now)
                return
        first, found = self.replies[0], self.replies[-1]
        operation = self.request
        ok = operation is Operation.READ or first in (b"OK", 1)
        if operation.ends:
            self.room.released(self.lease, self.index, ok, now)
            return
        ttl = first if operation is Operation.READ else found if operation is Operation.TAKE_TTL else None
        if operation <= Operation.TAKE_TTL:
            found = None if ttl == NO_KEY else self.lease.token if ok else b""
        self.room.answered(self.lease, self.index, operation, self.sent, ok, found, ttl, now)


class TimeRequest:
    """``TIME``."""

    commands: tuple[Command, ...] = (("TIME", b"", b"", NO_EXPIRY),)

    def __init__(self, clock: ServerClock, sent: float, on_set: Callable[[], None]) -> None:
        self.clock = clock
        self.on_set = on_set
        self.sent = sent
        self.left = 1

    def reply(self, reply: Any, now: float) -> None:
        self.left = 0
        if isinstance(reply, float) and self.clock.observe(self.sent, reply, now):
            self.on_set()


class Silence:
    """The question whether the server may have hidden changes (``EvictionWatch``)."""

    commands: tuple[Command, ...] = (("INFO", b"", b"", NO_EXPIRY),)

    def __init__(self, told: Callable[[Any], None]) -> None:
        self.told = told
        self.left = 1

    def reply(self, reply: Any, now: float) -> None:
        self.left = 0
        self.told(reply)


class Ignored:
    """A request whose reply does not matter."""

    def __init__(self) -> None:
        self.left = 1

    def reply(self, reply: Any, now: float) -> None:
        self.left = 0


class OwedRelease:
    """A release that is retried, since the server was not connected or had refused it."""

    def __init__(
        self,
        key: bytes,
        token: bytes,
        keep_until: float,
        now: float,
        refused: Refused,
        freed: Callable[[bytes], None],
    ) -> None:
        self.key = key
        self.token = token
        self.keep_until = keep_until
        self.sent = now
        self.refused = refused
        self.freed = freed
        self.left = 1

    @property
    def commands(self) -> tuple[Command, ...]:
        if self.sent < self.keep_until:
            return (("KEEP", self.key, self.token, expiry(self.keep_until, self.sent)),)
        return (("DELIFEQ", self.key, self.token, NO_EXPIRY),)

    def reply(self, reply: Any, now: float) -> None:
        self.left = 0
        if isinstance(reply, Trouble):
            self.refused(self.key, self.token, self.keep_until)
        elif reply in (1, b"OK"):
            self.freed(self.key)
