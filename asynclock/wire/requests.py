"""What is under way on a connection, and who is told of its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..core.lease import Lease
from ..core.operations import EXTEND, READ, RELEASE, TAKE, TAKE_TTL, Operation
from ..core.room import Room
from ..errors import ServerError
from .commands import OK, Commands, is_error
from .owed import OwedReleases
from .violations import unexpected

MAX_HOPS = 5  # a cluster that sends a request on more often than that does not know itself whose a key is

REDIRECTIONS = ("MOVED ", "ASK ", "CLUSTERDOWN")
NO_SCRIPT = "NOSCRIPT"
NO_MEMORY = "OOM"

REPLIES = (1, 2, 2, 2, 2, 1)  # to each Ask, in their order
_DONE = (OK, 1)  # what a command answers that did what it was to do
_OTHERS = b""  # in the key: not ours, whatever it is
_WRITTEN = (OK, None, 1, 0, _OTHERS)  # all that a command may answer that writes
NO_KEY, NO_END = -2, -1  # of PTTL


class Confirms(Protocol):
    def confirm(self, request: Request) -> None:
        """Call its ``confirmed`` or ``unconfirmed``, once."""


class Asked(Protocol):
    """What requests need of their node."""

    label: str
    commands: Commands

    @property
    def replicas(self) -> Confirms | None:
        """Who confirms what was written, before it counts."""

    def read_again(self, request: Request) -> None:
        """Send a GET of its key, whose reply goes to ``found``; or call ``unconfirmed``."""

    @property
    def now(self) -> Callable[[], float]: ...
    def key_text(self, room: Room[Any], index: int) -> str: ...
    def redact(self, said: Any) -> str:
        """What its server said, as it may be shown."""

    @property
    def owed(self) -> OwedReleases: ...
    def demoted(self) -> None: ...
    def redirected(self, request: Request | OwedRelease, error: str) -> bool: ...
    def scripts_are_gone(self, request: Request | OwedRelease) -> None:
        """Send it again, with the script itself."""

    def freed(self, key: bytes, now: float) -> None:
        """That key was released late. With NOLOOP nobody here is told, and somebody may wait for it."""

    @property
    def extends_by_set(self) -> bool:
        """Does an extension write the value anew, which takes memory?"""

    def is_full(self, request: Request) -> None:
        """It refused to extend for want of memory: send it again, in a way that takes none."""

    def error_of(self, command: str, room: Room[Any], index: int, reply: Any, now: float) -> ServerError | None:
        """What an error reply means; ``None``: nothing, the key just holds something that is not a string."""

    def observe_clock(self, sent: float, reply: Any, now: float) -> None: ...


class Request:
    """One ask under way. Its answer goes to the room, on every way that it can end."""

    __slots__ = ("asking", "hops", "index", "lease", "node", "operation", "room", "sent", "ttl")

    def __init__(
        self, node: Asked, room: Room[Any], lease: Lease, index: int, operation: Operation, sent: float
    ) -> None:
        self.node = node
        self.room = room
        self.lease = lease
        self.index = index
        self.operation = operation
        self.sent = sent
        self.asking = False  # was it sent on to a node that is about to get the key's slot?
        self.hops = 0
        self.ttl: int | None  # what was answered, while replicas are waited for

    @property
    def key(self) -> bytes:
        return self.room.keys[self.index]

    @property
    def token(self) -> bytes:
        return self.lease.token

    def again(self, node: Asked, sent: float, asking: bool) -> None:
        """It is sent once more, from another node."""
        self.node = node
        self.asking = asking
        self.sent = sent
        self.hops += 1

    def fail(self, error: ServerError, now: float, node: Asked) -> None:
        """It cannot be sent on. What is to be released there is, as soon as that node is connected."""
        if self.operation is RELEASE:
            node.owed.refused(self.key, self.token)
        self.room.failed(self.lease, self.index, self.operation, error, now)

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        if self.asking:
            earlier = earlier[1::2]  # the others are to ASKING
        # As most of them end, without a look for errors.
        operation, lease = self.operation, self.lease
        if operation is RELEASE:
            if reply == 1:
                self.room.released(lease, self.index, True, now)
                return
        elif self.node.replicas is not None:
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
                    # The key is set, and its slot went on with it in between: taken anew, it would refuse its owner.
                    replies[position] = NO_END
                    continue
                # Of a lease that is done only the release is sent on: whatever else came there now
                # could come after it.
                wanted = operation is RELEASE or not self.lease.done
                if wanted and self.hops < MAX_HOPS:
                    if text.startswith(REDIRECTIONS) and node.redirected(self, text):
                        return
                    if text.startswith(NO_SCRIPT):
                        node.scripts_are_gone(self)
                        return
                    if text.startswith(NO_MEMORY) and operation is EXTEND and node.extends_by_set:
                        node.is_full(self)
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
        if node.replicas is not None and written and not self.lease.done:
            self.ttl = ttl
            node.replicas.confirm(self)
            return
        self.room.answered(self.lease, self.index, operation, self.sent, ok, found, ttl, now)

    def _meaning(self, replies: list[Any]) -> tuple[bool, bytes | None, int | None]:
        """As ``Room.answered`` wants it: did it do what it was to do, what is in the key, its time to live.

        :raises ViolationError: no server answers that
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
        """Enough replicas have what it wrote."""
        if self.lease.stale >> self.index & 1 and not self.lease.done:
            # The key has changed while that was waited for, and what was read before is no answer now.
            self.node.read_again(self)
        else:
            self.found(self.lease.token)

    def found(self, value: bytes | None) -> None:
        """That is in the key, and enough replicas have what was written to it."""
        ok = value == self.lease.token
        self.room.answered(
            self.lease, self.index, self.operation, self.sent, ok, value, self.ttl if ok else None, self.node.now()
        )

    def unconfirmed(self, error: ServerError) -> None:
        """They do not have it, or that is not known."""
        self.room.failed(self.lease, self.index, self.operation, error, self.node.now())


def _value(reply: Any) -> bytes | None:
    """What GET answers."""
    if reply is not None and type(reply) is not bytes:
        raise unexpected("the answer to GET", reply)
    return reply


def _time_to_live(reply: Any) -> int:
    """What PTTL answers, in milliseconds."""
    if type(reply) is not int:
        raise unexpected("the answer to PTTL", reply)
    return reply


class ReadAgain:
    """The reply of a GET for a request whose key has changed since it was answered."""

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
    """A reply that says nothing."""

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None: ...

    def dropped(self) -> None: ...


class OwedRelease:
    """The reply of a release that was owed, and that nobody waits for."""

    __slots__ = ("hops", "key", "node", "token", "until")

    operation = RELEASE

    def __init__(self, node: Asked, key: bytes, token: bytes, until: float) -> None:
        self.node = node
        self.key = key
        self.token = token
        self.until = until  # when the key has expired
        self.hops = 0

    def again(self, node: Asked, sent: float, asking: bool) -> None:
        self.node = node
        self.hops += 1

    def fail(self, error: ServerError, now: float, node: Asked) -> None:
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
                node.owed.passed_on(self.node.owed)
                return
            if text.startswith(NO_SCRIPT):
                node.scripts_are_gone(self)
                return
        if text.startswith("READONLY"):
            node.demoted()
        node.owed.refused(self.key, self.token, self.until)

    def dropped(self) -> None:
        self.node.owed.owe(self.key, self.token, self.until)


class TimeRequest:
    """The reply of TIME."""

    __slots__ = ("_node", "_sent")

    def __init__(self, node: Asked, sent: float) -> None:
        self._node = node
        self._sent = sent

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        self._node.observe_clock(self._sent, reply, now)

    def dropped(self) -> None: ...


class Reauthentication:
    """The reply of AUTH, on a connection that was logged in before. The old login stays when the new
    one is refused, but not for long, and the reconnect finds out what is wrong: ``refused``."""

    __slots__ = ("_redact", "_refused")

    def __init__(self, refused: Callable[[Exception], None], redact: Callable[[Any], str]) -> None:
        self._refused = refused
        self._redact = redact

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        if is_error(reply):
            self._refused(ConnectionError(f"new credentials were refused: {self._redact(reply)}"))

    def dropped(self) -> None: ...
