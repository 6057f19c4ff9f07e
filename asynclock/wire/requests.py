"""Requests in flight on a connection: each interprets its replies and reports the outcome to its room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeAlias

from ..core.fencing import MAX_NUMBER, NOT_OURS
from ..core.lease import Lease
from ..core.operation import NO_END, NO_KEY
from ..core.operations import EXTEND, KEEP, READ, RELEASE, TAKE, TAKE_TTL, Operation
from ..core.room import Room
from ..errors import ServerError
from ..options import Options
from .commands import COUNTED_UP, OK, Commands, cause_in_script, count, is_error, times
from .connection import Expects
from .owed import Owed, OwedReleases
from .violations import unexpected

MAX_HOPS: Final = 5  # redirections of one request; more of them mean that the nodes do not agree about the slot

REDIRECTIONS: Final = ("MOVED ", "ASK ", "CLUSTERDOWN")
NO_SCRIPT: Final = "NOSCRIPT"
NO_MEMORY: Final = "OOM"

_DONE: Final = (OK, 1)  # replies that mean success
_OTHERS: Final = b""  # stands for any value that is not ours
_WRITTEN: Final = (OK, None, 1, 0, _OTHERS)  # all valid replies to a command that writes


class Confirms(Protocol):
    def confirm(self, request: Request | Count) -> None:
        """Call its ``confirmed`` or ``unconfirmed``, once."""


class Sender(Protocol):
    """The node that has sent a request, as the request sees it."""

    label: str
    options: Options

    @property
    def clock(self) -> Callable[[], float]: ...

    @property
    def owed(self) -> OwedReleases: ...

    @property
    def commands(self) -> Commands:
        """Those that have packed the request."""

    @property
    def replicas(self) -> Confirms | None:
        """Set with ``min_replicas``: a write counts after its confirmation only."""

    def redact(self, said: Any) -> str:
        """A reply or error of the server, without secrets and shortened."""

    def error_of(self, command: str, room: Room[Any], index: int, reply: Any, now: float) -> ServerError | None:
        """As ``commands.error_of``."""

    def redirected(self, request: Redirectable, error: str) -> bool:
        """As ``wire.node.Listener.redirected``."""

    def scripts_are_gone(self, request: Request | OwedRelease) -> None:
        """The server's scripts were flushed (NOSCRIPT): send the request again, with the script itself."""

    def extend_without_memory(self, request: Request | OwedRelease) -> bool:
        """The server has answered OOM to EXTEND or KEEP. True: it was sent again, by a command that needs no memory."""

    def read_again(self, request: Request) -> None:
        """Send a GET of the request's key. Its reply goes to ``found``, a failure to ``unconfirmed``."""

    def freed(self, key: bytes, now: float) -> None:
        """That key was released late, or is to expire at another time than it was until now. Wake up this process's
        waiters: with NOLOOP there is no push."""

    def demoted(self) -> None:
        """The server has become a read-only replica."""


class Request(Expects):
    """One operation of a lease that is in flight. The room always gets its outcome, exactly once."""

    __slots__ = ("asking", "by_replicas", "hops", "index", "lease", "node", "operation", "sent", "ttl")

    def __init__(
        self,
        node: Sender,
        lease: Lease,
        index: int,
        operation: Operation,
        sent: float,
        by_replicas: bool,
    ) -> None:
        """:param by_replicas: with ``min_replicas``: a write counts after they have confirmed it, and not before"""
        self.node = node
        self.by_replicas = by_replicas
        self.lease = lease
        self.index = index
        self.operation = operation
        self.sent = sent
        self.asking = False  # redirected by ASK: each command has an ASKING before it
        self.hops = 0
        self.ttl: int | None  # the reply to PTTL, while the request waits for replicas

    @property
    def key(self) -> bytes:
        return self.lease.room.keys[self.index]

    @property
    def token(self) -> bytes:
        return self.lease.token

    @property
    def keep_until(self) -> float:
        return self.lease.keep_until

    @property
    def owed(self) -> Owed:
        return Owed(self.key, self.token, self.keep_until)

    def move_to(self, node: Sender, sent: float, asking: bool) -> None:
        """``node`` sends it once more, at ``sent``."""
        self.node = node
        self.asking = asking
        self.sent = sent
        self.hops += 1

    def fail(self, error: ServerError, now: float, node: Sender) -> None:
        """The node that it was redirected to is not connected. (A release is sent as soon as it is.)"""
        if self.operation.ends:
            node.owed.refused(self.owed)
        self.lease.room.failed(self.lease, self.index, self.operation, error, now)

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        if self.asking:
            earlier = earlier[1::2]  # every other reply is that to ASKING
        # Fast path: most replies mean success, and need no search for errors.
        operation, lease = self.operation, self.lease
        if operation is RELEASE:
            if reply == 1:
                lease.room.released(lease, self.index, True, now)
                return
        elif self.by_replicas:
            pass
        elif operation is TAKE:
            if reply == OK:
                lease.room.answered(lease, self.index, operation, self.sent, True, lease.token, None, now)
                return
        elif operation is TAKE_TTL:
            if earlier[0] == OK and type(reply) is int and reply != NO_KEY:
                lease.room.answered(lease, self.index, operation, self.sent, True, lease.token, reply, now)
                return
        elif operation is KEEP:
            pass  # it has one reply, and what comes next looks at an earlier one
        elif reply == lease.token and operation is not READ and earlier[0] in _DONE:
            lease.room.answered(lease, self.index, operation, self.sent, True, reply, None, now)
            return
        self._conclude([*earlier, reply], now)

    def dropped(self) -> None:
        if self.operation.ends:
            self.node.owed.owe(self.owed)
        self.lease.room.failed(self.lease, self.index, self.operation, None, self.node.clock())

    def _conclude(self, replies: list[Any], now: float) -> None:
        operation, node = self.operation, self.node
        for position, reply in enumerate(replies):
            if is_error(reply):
                text = str(reply)
                if operation is TAKE_TTL and position and replies[0] == OK and text.startswith(REDIRECTIONS):
                    # The key was set, and then its slot moved. If resent, the request would find its own value there.
                    replies[position] = NO_END
                    continue
                # If the lease has ended, resend nothing but its release: anything else might arrive after that.
                wanted = operation.ends or not self.lease.done
                if wanted and self.hops < MAX_HOPS:
                    if text.startswith(REDIRECTIONS) and node.redirected(self, text):
                        return
                    if text.startswith(NO_SCRIPT):
                        node.scripts_are_gone(self)
                        return
                    moves = operation is EXTEND or operation is KEEP
                    if text.startswith(NO_MEMORY) and moves and node.extend_without_memory(self):
                        return
                error = node.error_of(node.commands.names[operation][position], self.lease.room, self.index, reply, now)
                if error is not None:
                    if text.startswith("READONLY"):
                        node.demoted()
                    if operation.ends:
                        node.owed.refused(self.owed)
                    self.lease.room.failed(self.lease, self.index, operation, error, now)
                    return
                replies[position] = _OTHERS
        ok, found, ttl = self._meaning(replies)
        if operation.ends:
            self.lease.room.released(self.lease, self.index, ok, now)
            return
        written = operation.writes and ok and found == self.lease.token
        replicas = node.replicas
        if replicas is not None and written and not self.lease.done:
            self.ttl = ttl
            replicas.confirm(self)
            return
        self.lease.room.answered(self.lease, self.index, operation, self.sent, ok, found, ttl, now)

    def _meaning(self, replies: list[Any]) -> tuple[bool, bytes | None, int | None]:
        """For ``Room.answered``: whether the operation succeeded, the value of the key, and its PTTL.

        :raises ViolationError: malformed replies
        """
        first, last = replies[0], replies[-1]
        operation = self.operation
        if operation is READ:
            return True, _value(last), _time_to_live(first)
        if first not in _WRITTEN:
            raise unexpected(f"the answer to {self.node.commands.names[operation][0]}", first)
        ok = first in _DONE
        if operation.ends:
            return ok, None, None
        if operation.reads:
            return ok, _value(last), None
        ttl = None if operation is TAKE else _time_to_live(last)
        found = self.lease.token if ok else _OTHERS
        return ok, None if ttl == NO_KEY else found, ttl

    def confirmed(self) -> None:
        """Enough replicas have the write."""
        if self.lease.stale >> self.index & 1 and not self.lease.done:
            # The key has changed meanwhile, so the value that was read is outdated.
            self.node.read_again(self)
        else:
            self.found(self.lease.token)

    def found(self, value: bytes | None) -> None:
        """Enough replicas have the write, and the key now has ``value``."""
        ok = value == self.lease.token
        self.lease.room.answered(
            self.lease, self.index, self.operation, self.sent, ok, value, self.ttl if ok else None, self.node.clock()
        )

    def unconfirmed(self, error: ServerError) -> None:
        """Too few replicas have the write, or it is unknown how many."""
        self.lease.room.failed(self.lease, self.index, self.operation, error, self.node.clock())


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


class ReadAgain(Expects):
    """Waits for the reply to the GET of ``Sender.read_again``."""

    __slots__ = ("_request",)

    def __init__(self, request: Request) -> None:
        self._request = request

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        request = self._request
        if is_error(reply):
            node = request.node
            error = node.error_of("GET", request.lease.room, request.index, reply, now)
            if error is not None:
                request.unconfirmed(error)
                return
            reply = _OTHERS
        request.found(_value(reply))

    def dropped(self) -> None:
        self._request.unconfirmed(ServerError(self._request.node.label, "the connection was lost"))


KeyRead: TypeAlias = Callable[[str, bytes | None, int | None, ServerError | None], None]
"""Called once, with the server, the value of the key, and its PTTL in milliseconds; or with the server and an error."""


class Peek(Expects):
    """Reads a key to see who holds the lock. It belongs to no lease."""

    __slots__ = ("_answered", "_asking", "_index", "_room", "hops", "node")

    operation = READ
    token = b""

    def __init__(
        self,
        node: Sender,
        room: Room[Any],
        index: int,
        answered: KeyRead,
    ) -> None:
        self.node = node
        self.hops = 0
        self._room = room
        self._index = index
        self._asking = False
        self._answered = answered

    @property
    def key(self) -> bytes:
        return self._room.keys[self._index]

    def move_to(self, node: Sender, sent: float, asking: bool) -> None:
        self.node = node
        self._asking = asking
        self.hops += 1

    def fail(self, error: ServerError, now: float, node: Sender) -> None:
        self._answered(node.label, None, None, error)

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        node, replies = self.node, [*(earlier[1::2] if self._asking else earlier), reply]
        for command, said in zip(("PTTL", "GET"), replies, strict=True):
            if is_error(said):
                if self.hops < MAX_HOPS and str(said).startswith(REDIRECTIONS) and node.redirected(self, str(said)):
                    return
                error = node.error_of(command, self._room, self._index, said, now)
                if error is not None:
                    self._answered(node.label, None, None, error)
                    return
                replies[1] = _OTHERS  # it is no string, so somebody else's
        self._answered(node.label, _value(replies[1]), _time_to_live(replies[0]), None)

    def dropped(self) -> None:
        self._answered(self.node.label, None, None, ServerError(self.node.label, "the connection was lost"))


class Count(Expects):
    """Asks the counter of a key for a number, for the holder of a lease (``core.fencing``)."""

    __slots__ = ("_answered", "_counter", "_floor", "hops", "index", "lease", "node", "value")

    def __init__(
        self,
        node: Sender,
        lease: Lease,
        index: int,
        counter: bytes,
        floor: int,
        answered: Callable[[int, ServerError | None], None],
    ) -> None:
        """
        :param floor: raise the counter to this; 0: give out a new number
        :param answered: called once: the value of the counter, or NOT_OURS; or an error
        """
        self.node = node
        self.lease = lease
        self.index = index
        self.hops = 0
        self.value: int  # while it waits for replicas
        self._counter = counter
        self._floor = floor
        self._answered = answered

    @property
    def key(self) -> bytes:
        return self.lease.room.keys[self.index]

    def packed(self) -> bytes:
        return count(self.key, self.lease.token, self._counter, self._floor)

    def move_to(self, node: Sender, sent: float, asking: bool) -> None:
        self.node = node
        self.hops += 1

    def fail(self, error: ServerError, now: float, node: Sender) -> None:
        self._answered(NOT_OURS, error)

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        if is_error(reply):
            self._refused(cause_in_script(reply), now)
            return
        if type(reply) is not int or not (reply == NOT_OURS or max(1, self._floor) <= reply <= MAX_NUMBER):
            raise unexpected("the answer to EVAL", reply)
        replicas = self.node.replicas
        if replicas is not None and reply != NOT_OURS:
            self.value = reply
            replicas.confirm(self)
        else:
            self._answered(reply, None)

    def _refused(self, reply: Any, now: float) -> None:
        node, text = self.node, str(reply)
        if self.hops < MAX_HOPS and text.startswith(REDIRECTIONS) and node.redirected(self, text):
            return
        if text.startswith("READONLY"):
            node.demoted()
        error = node.error_of("EVAL", self.lease.room, self.index, reply, now)
        if error is None:  # the key is no string, so somebody else's
            self._answered(NOT_OURS, None)
            return
        if error.lasting:
            if text == COUNTED_UP:
                hint = f"delete the key {self._counter.decode()!r}; it then goes on at the server's clock"
            else:
                hint = f"fencing tokens need EVAL, GET, SET and TIME on keys like {node.options.key_prefix}:*"
            error = ServerError(error.server, f"{error.problem} ({hint})", lasting=True)
        self._answered(NOT_OURS, error)

    def dropped(self) -> None:
        self._answered(NOT_OURS, ServerError(self.node.label, "the connection was lost"))

    def confirmed(self) -> None:
        """Enough replicas have the write."""
        self._answered(self.value, None)

    def unconfirmed(self, error: ServerError) -> None:
        """Too few replicas have the write, or it is unknown how many."""
        self._answered(NOT_OURS, error)


TimesRead: TypeAlias = Callable[[list[int | None], bytes | None, ServerError | None], None]
"""Called once, with the PTTL of each key in milliseconds (None: it is not known), and the value of the marker; or with
an error."""


class Times(Expects):
    """Asks how long many keys of one server still live. They have one slot in a cluster, and belong to no lease."""

    __slots__ = ("_answered", "_asking", "_index", "_keys", "_marker", "_marks", "_room", "hops", "node")

    def __init__(
        self,
        node: Sender,
        room: Room[Any],
        index: int,
        keys: list[bytes],
        marker: bytes,
        marks: bytes,
        answered: TimesRead,
    ) -> None:
        """
        :param room, index: of one of them
        :param marker: a key to read; empty: none
        :param marks: what to write into it then, for a day; empty: nothing
        """
        self.node = node
        self.hops = 0
        self._room = room
        self._index = index
        self._keys = keys
        self._marker = marker
        self._marks = marks
        self._asking = False
        self._answered = answered

    @property
    def key(self) -> bytes:
        return self._room.keys[self._index]

    def packed(self) -> tuple[bytes, int]:
        """The commands, and how many replies they have."""
        return times(self._keys, self._marker, self._marks)

    def move_to(self, node: Sender, sent: float, asking: bool) -> None:
        self.node = node
        self._asking = asking
        self.hops += 1

    def fail(self, error: ServerError, now: float, node: Sender) -> None:
        self._answered([], None, error)

    def dropped(self) -> None:
        self._answered([], None, ServerError(self.node.label, "the connection was lost"))

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        node, replies = self.node, [*earlier, reply]
        if self._asking:
            replies = replies[1::2]
        count = len(self._keys)
        marker, lives = replies[:-count], replies[-count:]
        ttls: list[int | None] = []
        elsewhere: list[int] = []  # places of keys whose slot is just being moved, and that are not here any more
        for place, said in enumerate(lives):
            if not is_error(said):
                ttls.append(_time_to_live(said))
                continue
            ttls.append(None)
            text = str(said)
            if text.startswith("ASK "):
                elsewhere.append(place)
                continue
            if self.hops < MAX_HOPS and text.startswith(REDIRECTIONS) and node.redirected(self, text):
                return
            error = node.error_of("PTTL", self._room, self._index, said, now)
            if error is not None:
                self._answered([], None, error)
                return
        # Anything may be in the marker, and the server may refuse to let it be written.
        value = marker[0] if marker and type(marker[0]) is bytes else None
        if not elsewhere or self.hops >= MAX_HOPS:
            self._answered(ttls, value, None)
            return

        def answered(there: list[int | None], _: bytes | None, error: ServerError | None) -> None:
            for place, ttl in zip(elsewhere, there, strict=False):  # after an error, there are none
                ttls[place] = ttl
            self._answered(ttls, value, None)

        rest = Times(node, self._room, self._index, [self._keys[place] for place in elsewhere], b"", b"", answered)
        rest.hops = self.hops
        if not node.redirected(rest, str(lives[elsewhere[0]])):
            self._answered(ttls, value, None)


class Ignored(Expects):
    """Ignores a reply that does not matter."""

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None: ...

    def dropped(self) -> None: ...


class OwedRelease(Expects):
    """A release from ``OwedReleases`` that is in flight. No caller waits for it."""

    __slots__ = ("hops", "node", "operation", "owed", "until")

    def __init__(self, node: Sender, owed: Owed, until: float, now: float) -> None:
        self.node = node
        self.owed = owed
        self.operation = KEEP if now < owed.keep_until else RELEASE
        self.until = until  # when the key has expired, if this is not run
        self.hops = 0

    @property
    def key(self) -> bytes:
        return self.owed.key

    @property
    def token(self) -> bytes:
        return self.owed.token

    @property
    def keep_until(self) -> float:
        return self.owed.keep_until

    def move_to(self, node: Sender, sent: float, asking: bool) -> None:
        self.node = node
        self.hops += 1

    def fail(self, error: ServerError, now: float, node: Sender) -> None:
        node.owed.refused(self.owed, self.until)

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        node = self.node
        if not is_error(reply) or "WRONGTYPE" in str(reply):
            node.owed.accepted()
            if reply in _DONE:
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
            if text.startswith(NO_MEMORY) and self.operation is KEEP and node.extend_without_memory(self):
                return
        if text.startswith("READONLY"):
            node.demoted()
        node.owed.refused(self.owed, self.until)

    def dropped(self) -> None:
        self.node.owed.owe(self.owed, self.until)


Redirectable: TypeAlias = Request | OwedRelease | Peek | Count | Times  # what a cluster's node may send elsewhere


class Reauthentication(Expects):
    """Waits for the reply to AUTH on a connection that is logged in already. If the server refuses the new credentials,
    the old login may end at any time; so ``refused`` drops the connection, and the reconnect reports what is wrong."""

    __slots__ = ("_redact", "_refused")

    def __init__(self, refused: Callable[[Exception], None], redact: Callable[[Any], str]) -> None:
        self._refused = refused
        self._redact = redact

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        if is_error(reply):
            self._refused(ConnectionError(f"new credentials were refused: {self._redact(reply)}"))

    def dropped(self) -> None: ...
