"""Requests that are under way on a connection, and what becomes of their replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..core.lease import Lease
from ..core.operations import EXTEND, READ, RELEASE, TAKE, TAKE_TTL, Operation
from ..core.room import Room
from ..errors import ServerError
from ..options import Options
from .commands import OK, Commands, is_error
from .owed import OwedReleases
from .violations import unexpected

MAX_HOPS = 5  # a cluster that redirects one request more often does not itself know which node has the key

REDIRECTIONS = ("MOVED ", "ASK ", "CLUSTERDOWN")
NO_SCRIPT = "NOSCRIPT"
NO_MEMORY = "OOM"

_DONE = (OK, 1)  # the reply to a command that has done what it was to do
_OTHERS = b""  # stands for a value that is not ours, whatever it is
_WRITTEN = (OK, None, 1, 0, _OTHERS)  # all replies that there are to a command that writes
NO_KEY, NO_END = -2, -1  # of PTTL


class Confirms(Protocol):
    def confirm(self, request: Request) -> None:
        """Call its ``confirmed`` or ``unconfirmed``, once."""


class Sender(Protocol):
    """What a request needs of the node that has sent it."""

    label: str
    options: Options

    @property
    def now(self) -> Callable[[], float]: ...

    @property
    def owed(self) -> OwedReleases: ...

    @property
    def commands(self) -> Commands:
        """With which it was packed."""

    @property
    def replicas(self) -> Confirms | None:
        """With ``min_replicas``: confirms what was written, before that counts."""

    def redact(self, said: Any) -> str:
        """What the server said, fit to be shown."""

    def key_text(self, room: Room[Any], index: int) -> str:
        """The key's name, for errors."""

    def error_of(self, command: str, room: Room[Any], index: int, reply: Any, now: float) -> ServerError | None:
        """The error to raise for an error reply; None: no error, the key just holds something that is not a string."""

    def redirected(self, request: Request | OwedRelease, error: str) -> bool:
        """The key is, or is becoming, another node's. True: the request was sent there."""

    def scripts_are_gone(self, request: Request | OwedRelease) -> None:
        """Somebody has flushed them. Send it move_to, with the script itself."""

    def extend_without_memory(self, request: Request) -> bool:
        """The server had no memory for an extension. True: it was sent move_to, in a way that needs none."""

    def read_again(self, request: Request) -> None:
        """Send a GET of its key, whose reply goes to ``found``; or call ``unconfirmed``."""

    def freed(self, key: bytes, now: float) -> None:
        """That key was released late. Wake up those who wait for it here: with NOLOOP there is no push."""

    def demoted(self) -> None:
        """The server has become a read-only replica."""


class Request:
    """One operation of a lease that is under way. Its outcome goes to the room, however it ends."""

    __slots__ = ("asking", "hops", "index", "lease", "node", "operation", "room", "sent", "ttl")

    def __init__(
        self, node: Sender, room: Room[Any], lease: Lease, index: int, operation: Operation, sent: float
    ) -> None:
        self.node = node
        self.room = room
        self.lease = lease
        self.index = index
        self.operation = operation
        self.sent = sent
        self.asking = False  # was it redirected to a node that is about to get the key's slot?
        self.hops = 0
        self.ttl: int | None  # the reply, while it waits for replicas

    @property
    def key(self) -> bytes:
        return self.room.keys[self.index]

    @property
    def token(self) -> bytes:
        return self.lease.token

    def move_to(self, node: Sender, sent: float, asking: bool) -> None:
        """It is sent once more, by another node."""
        self.node = node
        self.asking = asking
        self.sent = sent
        self.hops += 1

    def fail(self, error: ServerError, now: float, node: Sender) -> None:
        """It cannot be sent on. A release is, as soon as that node is connected."""
        if self.operation is RELEASE:
            node.owed.refused(self.key, self.token)
        self.room.failed(self.lease, self.index, self.operation, error, now)

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        if self.asking:
            earlier = earlier[1::2]  # the others are replies to ASKING
        # How most of them end, without a search for errors.
        operation, lease = self.operation, self.lease
        if operation is RELEASE:
            if reply == 1:
                self.room.released(lease, self.index, True, now)
                return
        elif self.node.options.min_replicas:
            pass
        elif operation is TAKE:
            if reply == OK:
                self.room.answered(lease, self.index, operation, self.sent, True, lease.token, None, now)
                return
        elif operation is TAKE_TTL:
            if earlier[0] == OK and type(reply) is int and reply != NO_KEY:
                self.room.answered(lease, self.index, operation, self.sent, True, lease.token, reply, now)
                return
        elif reply == lease.token and operation is not READ and earlier[0] in _DONE:
            self.room.answered(lease, self.index, operation, self.sent, True, reply, None, now)
            return
        self._conclude([*earlier, reply], now)

    def dropped(self) -> None:
        if self.operation is RELEASE:
            self.node.owed.owe(self.key, self.token)
        self.room.failed(self.lease, self.index, self.operation, None, self.node.now())

    def _conclude(self, replies: list[Any], now: float) -> None:
        operation, node = self.operation, self.node
        for position, reply in enumerate(replies):
            if is_error(reply):
                text = str(reply)
                if operation is TAKE_TTL and position and replies[0] == OK and text.startswith(REDIRECTIONS):
                    # The key was set, and then its slot has moved. Sent move_to, it would find its own value there.
                    replies[position] = NO_END
                    continue
                # Of a lease that is over only the release is sent on: anything else might get there after it.
                wanted = operation is RELEASE or not self.lease.done
                if wanted and self.hops < MAX_HOPS:
                    if text.startswith(REDIRECTIONS) and node.redirected(self, text):
                        return
                    if text.startswith(NO_SCRIPT):
                        node.scripts_are_gone(self)
                        return
                    if text.startswith(NO_MEMORY) and operation is EXTEND and node.extend_without_memory(self):
                        return
                error = node.error_of(node.commands.names[operation][position], self.room, self.index, reply, now)
                if error is not None:
                    if text.startswith("READONLY"):
                        node.demoted()
                    if operation is RELEASE:
                        node.owed.refused(self.key, self.token)
                    self.room.failed(self.lease, self.index, operation, error, now)
                    return
                replies[position] = _OTHERS
        ok, found, ttl = self._meaning(replies)
        if operation is RELEASE:
            self.room.released(self.lease, self.index, ok, now)
            return
        written = operation.writes and ok and found == self.lease.token
        replicas = node.replicas
        if replicas is not None and written and not self.lease.done:
            self.ttl = ttl
            replicas.confirm(self)
            return
        self.room.answered(self.lease, self.index, operation, self.sent, ok, found, ttl, now)

    def _meaning(self, replies: list[Any]) -> tuple[bool, bytes | None, int | None]:
        """For ``Room.answered``: has it done what it was to do, what is in the key, its time to live.

        :raises ViolationError: no server answers like that
        """
        first, last = replies[0], replies[-1]
        operation = self.operation
        if operation is READ:
            return True, _value(last), _time_to_live(first)
        if first not in _WRITTEN:
            raise unexpected(f"the answer to {self.node.commands.names[operation][0]}", first)
        ok = first in _DONE
        if operation is RELEASE:
            return ok, None, None
        if operation.reads:
            return ok, _value(last), None
        ttl = None if operation is TAKE else _time_to_live(last)
        found = self.lease.token if ok else _OTHERS
        return ok, None if ttl == NO_KEY else found, ttl

    def confirmed(self) -> None:
        """Enough replicas have what it has written."""
        if self.lease.stale >> self.index & 1 and not self.lease.done:
            # The key has changed meanwhile: what was read before does not count.
            self.node.read_again(self)
        else:
            self.found(self.lease.token)

    def found(self, value: bytes | None) -> None:
        """The key holds ``value``, and enough replicas have what was written to it."""
        ok = value == self.lease.token
        self.room.answered(
            self.lease, self.index, self.operation, self.sent, ok, value, self.ttl if ok else None, self.node.now()
        )

    def unconfirmed(self, error: ServerError) -> None:
        """Too few replicas have it, or that is not known."""
        self.room.failed(self.lease, self.index, self.operation, error, self.node.now())


def _value(reply: Any) -> bytes | None:
    """The reply to GET."""
    if reply is not None and type(reply) is not bytes:
        raise unexpected("the answer to GET", reply)
    return reply


def _time_to_live(reply: Any) -> int:
    """The reply to PTTL, in milliseconds."""
    if type(reply) is not int:
        raise unexpected("the answer to PTTL", reply)
    return reply


class ReadAgain:
    """Waits for the reply to the GET of ``Sender.read_again``."""

    __slots__ = ("_request",)

    def __init__(self, request: Request) -> None:
        self._request = request

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        request = self._request
        if is_error(reply):
            node = request.node
            error = node.error_of("GET", request.room, request.index, reply, now)
            if error is not None:
                request.unconfirmed(error)
                return
            reply = _OTHERS
        request.found(_value(reply))

    def dropped(self) -> None:
        self._request.unconfirmed(ServerError(self._request.node.label, "the connection was lost"))


class Ignored:
    """For a reply that does not matter."""

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None: ...

    def dropped(self) -> None: ...


class OwedRelease:
    """A release that was owed and is under way now. No caller waits for it."""

    __slots__ = ("hops", "key", "node", "token", "until")

    operation = RELEASE

    def __init__(self, node: Sender, key: bytes, token: bytes, until: float) -> None:
        self.node = node
        self.key = key
        self.token = token
        self.until = until  # when the key has expired
        self.hops = 0

    def move_to(self, node: Sender, sent: float, asking: bool) -> None:
        self.node = node
        self.hops += 1

    def fail(self, error: ServerError, now: float, node: Sender) -> None:
        node.owed.refused(self.key, self.token, self.until)

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        node = self.node
        if not is_error(reply) or "WRONGTYPE" in str(reply):
            node.owed.accepted()
            if reply == 1:
                node.freed(self.key, now)
            return
        text = str(reply)
        if self.hops < MAX_HOPS:
            if text.startswith(REDIRECTIONS) and node.redirected(self, text):
                node.owed.moved_to(self.node.owed)
                return
            if text.startswith(NO_SCRIPT):
                node.scripts_are_gone(self)
                return
        if text.startswith("READONLY"):
            node.demoted()
        node.owed.refused(self.key, self.token, self.until)

    def dropped(self) -> None:
        self.node.owed.owe(self.key, self.token, self.until)


class Reauthentication:
    """Waits for the reply to AUTH on a connection that is logged in. If the new credentials are refused, the old login
    stays valid, but perhaps not for long. ``refused`` drops the connection: the reconnect finds out what is wrong."""

    __slots__ = ("_redact", "_refused")

    def __init__(self, refused: Callable[[Exception], None], redact: Callable[[Any], str]) -> None:
        self._refused = refused
        self._redact = redact

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        if is_error(reply):
            self._refused(ConnectionError(f"new credentials were refused: {self._redact(reply)}"))

    def dropped(self) -> None: ...
