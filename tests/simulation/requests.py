"""Requests in flight on a simulated connection, as ``asynclock.wire.requests``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from asynclock.core.clock import ServerClock
from asynclock.core.lease import Lease
from asynclock.core.operation import NO_KEY
from asynclock.core.operations import Operation
from asynclock.core.room import Room

from .servers import Expiry, Trouble
from .stays import expiry

if TYPE_CHECKING:
    from .links import Link

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

    __slots__ = ("index", "key", "lease", "left", "link", "replies", "request", "room", "sent", "ttl")

    def __init__(
        self, room: Room[Any], lease: Lease, index: int, operation: Operation, sent: float, link: Link
    ) -> None:
        self.link = link
        self.ttl: int | None = None  # the reply to PTTL, while the request waits for replicas
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
                    self.link.refused(self.key, self.lease.token, self.lease.keep_until)
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
        written = operation.writes and ok and found == self.lease.token
        if self.link.confirmations is not None and written and not self.lease.done:
            self.ttl = ttl
            self.link.confirmations.confirm(self)
            return
        self.room.answered(self.lease, self.index, operation, self.sent, ok, found, ttl, now)

    def confirmed(self) -> None:
        """The replica has the write."""
        if self.lease.stale >> self.index & 1 and not self.lease.done:
            again = ReadAgain(self)
            self.link.send(again, again.commands)
        else:
            self.found(self.lease.token, self.link.world.now)

    def found(self, value: bytes | None, now: float) -> None:
        """The replica has the write, and the key now has ``value``."""
        ok = value == self.lease.token
        ttl = self.ttl if ok else None
        self.room.answered(self.lease, self.index, self.request, self.sent, ok, value, ttl, now)

    def unconfirmed(self) -> None:
        """The replica does not have the write, or it is unknown whether it does."""
        self.room.failed(self.lease, self.index, self.request, Trouble(), self.link.world.now)

    def dropped(self) -> None:
        """The connection is lost."""
        self.room.failed(self.lease, self.index, self.request, None, self.link.world.now)


class ReadAgain:
    """A GET of a key that has changed while the replica was waited for."""

    def __init__(self, write: Request) -> None:
        self.write = write
        self.commands: tuple[Command, ...] = (("GET", write.key, write.lease.token, NO_EXPIRY),)
        self.left = 1

    def reply(self, reply: Any, now: float) -> None:
        self.left = 0
        if isinstance(reply, Trouble):
            self.write.unconfirmed()
        else:
            self.write.found(reply, now)

    def dropped(self) -> None:
        self.write.unconfirmed()


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
