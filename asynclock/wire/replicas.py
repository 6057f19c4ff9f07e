"""Waiting for replicas (``min_replicas``): a vote counts once that many of them have its write.

``WAIT`` blocks its connection on the server. So it has one of its own, and the main connection,
with every other lock's commands on it, never waits for a replica.

``WAIT`` answers for what *its own* connection wrote last, not for the writes of others (since
Redis 7, and on Valkey; even a PING before it did on 6.2). So a write goes before it on the same
connection: a marker, in a key that no lock can have, deleted at once. The server replicates in
order: whoever has the marker has every write that was answered before the marker was sent.

One marker and ``WAIT`` are under way at most. What is answered on the main connection until they
leave, at the end of the loop turn, is covered by them, and what comes later by the next ones: so
there are as many as fit in a row, however many locks there are.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

from redis.crc import key_slot

from ..core.operations import Operation
from ..errors import ServerError
from ..options import Options
from .commands import OK, Commands, bulk, is_error, packed, unbulk
from .connection import Connection
from .connector import Connector
from .credentials import Credentials
from .requests import Ignored, Reauthentication, Request
from .violations import unexpected

MARKER_LIFE = b"10000"  # ms: only for a marker whose connection broke before it was deleted
MIN_MARGIN = 0.01  # seconds by which a WAIT may be late, at least, before its connection counts as hung
NUDGE_AFTER = 0.002  # seconds after its time, when the server has certainly counted to the end
TOLD = 2.0  # seconds for which a failure explains others; attempts come in shorter intervals (MAX_BACKOFF)
GUESSES = 8  # slots of a cluster to try, when those of the locks themselves will not do

_ELSEWHERE = ("MOVED ", "ASK ", "TRYAGAIN", "CLUSTERDOWN")
_LOST = "the connection was lost while replicas were waited for (min_replicas)"


class Replicas:
    """The second connection of a node. It lives and dies with the first: so there is one way back
    for both, the node's reconnect, and they cannot end up at two servers.

    State: ``_covered`` are the requests that the WAIT under way answers for, ``_queued`` those that
    the next one will, each with the time until which it may take. Every request that ``confirm``
    gets leaves them by ``confirmed`` or ``unconfirmed``, once. While ``_hung``, or once ``_dropped``,
    both are empty.
    """

    def __init__(
        self,
        main: Connection,
        writer: asyncio.StreamWriter,
        *,
        connector: Connector,
        commands: Commands,
        cluster: bool,
        options: Options,
        clock: Callable[[], float],
        nudge: Callable[[], None],
        silence: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._main = main
        self._label, self._redact = connector.label, connector.redact
        self._commands = commands
        self._cluster = cluster
        self._wanted = options.min_replicas
        self._patience = options.try_next_after
        self._clock = clock
        self._nudge = nudge
        self._silence = silence
        self._token = b"asynclock:w:" + os.urandom(16).hex().encode()
        self._prefix = f"{options.key_prefix}:wait:".encode()
        self._marker: bytes | None = None  # the key that did last time, packed
        self._marked = False  # has the marker been written, this time?
        self._refusal: Any = None  # ... or the error that it met
        self._covered: list[tuple[float, Request]] = []
        self._queued: list[tuple[float, Request]] = []
        self._busy = False  # a WAIT is under way
        self._leaving = False  # ... and has not left yet: what is answered now is covered
        self._hung = False  # ... and overdue
        self._dropped = False
        self._timer: asyncio.TimerHandle | None = None
        self._trouble: tuple[float, ServerError] | None = None
        self._side = Connection(
            writer, self._loop, clock, on_push=lambda push, now: None, on_lost=self._lost, at_once=False
        )

    @classmethod
    async def open(
        cls,
        connector: Connector,
        main: Connection,
        commands: Commands,
        options: Options,
        clock: Callable[[], float],
        *,
        cluster: bool,
        nudge: Callable[[], None],
        silence: float,
    ) -> Replicas:
        """Connect through the same door as ``main``, and bind the two together.

        :param nudge: have the server do something on the main connection
        :param silence: seconds for which an overdue WAIT may go unanswered before both are dropped
        :raises ServerError: unreachable, or refused
        :raises ConnectionResetError: dropped meanwhile
        """
        writer = await connector.open_another()
        self = cls(
            main,
            writer,
            connector=connector,
            commands=commands,
            cluster=cluster,
            options=options,
            clock=clock,
            nudge=nudge,
            silence=silence,
        )
        try:
            if connector.client_name is not None:
                self._side.send(packed(b"CLIENT", b"SETNAME", connector.client_name.encode()), Ignored(), 1, clock())
            if not cluster:  # whose nodes have addresses of their own
                await self._find_each_other()
        except BaseException:
            self.drop()
            raise
        main.closed.add_done_callback(lambda _: self.drop())
        return self

    async def _find_each_other(self) -> None:
        """Behind one address there may be two servers, in a failover. A WAIT on the one says nothing
        about what the other was told: what is written here must be found there."""
        self._marker = marker = bulk(self._prefix + b"{%b}" % self._token)
        reply = await self._side.call(self._write(marker))
        if is_error(reply):
            raise ServerError(
                self._label, f"refused SET on key {unbulk(marker).decode()!r} (min_replicas): {self._redact(reply)}"
            )
        found = await self._main.call(packed(b"GET", unbulk(marker)))
        self._side.send(self._delete(marker), Ignored(), 1, self._clock())
        if found != self._token:
            raise ServerError(
                self._label, "two connections have led to two servers; is a failover under way? (min_replicas)"
            )

    @property
    def trouble(self) -> ServerError | None:
        """Why votes have not been counted of late, if that is so."""
        if self._trouble is not None and self._clock() < self._trouble[0]:
            return self._trouble[1].copy()
        return None

    def reauthenticate(self, credentials: Credentials) -> None:
        self._side.send(
            packed(b"AUTH", *credentials), Reauthentication(self._side.abort, self._redact), 1, self._clock()
        )

    def confirm(self, request: Request) -> None:
        """Tell the request whether enough replicas have what it wrote, within ``try_next_after`` and a little."""
        if self._dropped:
            self._fail(request, _LOST)
        elif self._hung:
            self._fail(request, self._overdue_text())
        else:
            (self._covered if self._leaving else self._queued).append((self._clock() + self._patience, request))
            if not self._busy:
                self._begin()

    # One marker, one WAIT

    def _begin(self) -> None:
        self._covered, self._queued = self._queued, []
        self._busy = self._leaving = True
        self._marked, self._refusal = False, None
        now = self._clock()
        # As long as the oldest may take; but not a WAIT for every one that is a little older than the next.
        milliseconds = math.ceil(max(self._covered[0][0] - now, self._patience / 4, 0.001) * 1000)
        for marker in self._markers():
            self._side.send(self._write(marker), _Marker(self, marker), 1, now)
            self._side.send(self._delete(marker), Ignored(), 1, now)
        self._side.send(packed(b"WAIT", b"%d" % self._wanted, b"%d" % milliseconds), _Count(self), 1, now)
        self._loop.call_soon(self._left)  # right after the wire has written that
        self._timer = self._loop.call_later(milliseconds / 1000 + NUDGE_AFTER, self._overdue)

    def _left(self) -> None:
        self._leaving = False

    def marked(self, marker: bytes, reply: Any) -> None:
        """The answer to the write of a marker."""
        if reply == OK:
            self._marked = True
            self._marker = marker
        elif self._refusal is None or not str(reply).startswith(_ELSEWHERE):
            self._refusal = reply

    def counted(self, reply: Any) -> None:
        """The answer to WAIT."""
        if type(reply) is not int and not is_error(reply):
            raise unexpected("the answer to WAIT", reply)
        assert self._timer is not None
        self._timer.cancel()
        self._busy = self._leaving = self._hung = False
        covered, self._covered = self._covered, []
        confirmed: list[tuple[float, Request]] = []
        why = ""
        if is_error(reply):
            why = f"WAIT was refused: {self._redact(reply)}"
            failed = covered
        elif not self._marked and not str(self._refusal).startswith(_ELSEWHERE):
            why = f"SET was refused: {self._redact(self._refusal)}"
            failed = covered
        elif self._marked and reply >= self._wanted:
            self._trouble = None
            confirmed, failed = covered, []
        else:
            if not self._marked:
                # The slot of the marker has moved, or is moving: another one, while there is time.
                self._marker = None
                why = f"SET was refused: {self._redact(self._refusal)}"
            # What was answered after that marker is on no more replicas than what was before.
            covered += self._queued
            now = self._clock() + 0.001
            failed = [(until, request) for until, request in covered if until <= now]
            self._queued = [(until, request) for until, request in covered if until > now]
        if self._queued:
            self._begin()
        for _, request in confirmed:
            request.confirmed()
        for _, request in failed:
            key = request.node.key_text(request.room, request.index)
            self._fail(
                request,
                f"not known to be on {self._wanted} replicas: key {key!r} (min_replicas); {why}"
                if why
                else f"{reply} of {self._wanted} replicas have key {key!r} within {self._patience * 1000:g} ms "
                "(min_replicas); is replication up?",
            )

    def _fail(self, request: Request, problem: str) -> None:
        error = ServerError(self._label, problem)
        self._trouble = (self._clock() + TOLD, error)
        request.unconfirmed(error)

    def _fail_all(self, problem: str) -> None:
        requests = [request for _, request in (*self._covered, *self._queued)]
        self._covered, self._queued = [], []
        for request in requests:
            self._fail(request, problem)

    # When it does not answer

    def _overdue(self) -> None:
        """An idle server looks at the time every 100 ms only, but whenever it has been asked something."""
        self._nudge()
        self._timer = self._loop.call_later(max(self._patience / 2, MIN_MARGIN), self._hang)

    def _hang(self) -> None:
        self._hung = True
        self._leaving = False
        self._timer = self._loop.call_later(self._silence, self._give_up)
        self._fail_all(self._overdue_text())

    def _overdue_text(self) -> str:
        return (
            f"WAIT for {self._wanted} replicas was not answered within {self._patience * 1000:g} ms and a little "
            "(min_replicas); does the server hang?"
        )

    def _give_up(self) -> None:
        self._main.abort(TimeoutError(f"no answer to WAIT for {self._silence:g} s"))

    def _lost(self, connection: Connection, error: Exception | None) -> None:
        if not self._dropped:
            self._main.abort(ConnectionError(f"its second connection, for WAIT, was lost: {error or 'closed'}"))

    def drop(self) -> None:
        """The main connection is lost, or the node closes: whatever waits here is told so."""
        self._dropped = True
        if self._timer is not None:
            self._timer.cancel()
        self._side.abort()
        self._fail_all(_LOST)

    async def aclose(self) -> None:
        self.drop()
        await self._side.closed

    # Markers

    def _write(self, marker: bytes) -> bytes:
        return packed(b"SET", unbulk(marker), self._token, b"PX", MARKER_LIFE)

    def _delete(self, marker: bytes) -> bytes:
        return self._commands.packers[Operation.RELEASE](marker, self._token, b"")

    def _markers(self) -> list[bytes]:
        """Keys to try: the one that did last time. In a cluster, that ends when its slot moves; then
        one in a slot of a lock that was just answered here, and in case that one moves, any others."""
        if self._marker is not None:
            return [self._marker]
        tags = dict.fromkeys(tag for _, request in self._covered[-GUESSES:] if (tag := _tag_of(unbulk(request.key))))
        guesses = [os.urandom(4).hex().encode() for _ in range(GUESSES)]
        return [bulk(self._prefix + b"{%b}" % tag) for tag in (*tags, *guesses)]


class _Marker:
    """The reply to the write of a marker."""

    __slots__ = ("_marker", "_replicas")

    def __init__(self, replicas: Replicas, marker: bytes) -> None:
        self._replicas = replicas
        self._marker = marker

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        self._replicas.marked(self._marker, reply)

    def dropped(self) -> None: ...


class _Count:
    """The reply to WAIT."""

    __slots__ = ("_replicas",)

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        self._replicas.counted(reply)

    def dropped(self) -> None: ...


def _tag_of(key: bytes) -> bytes | None:
    """What to put in braces to be in the slot of ``key``, if it is as simple as that."""
    _, brace, rest = key.partition(b"{")
    tag, closing, _ = rest.partition(b"}")
    tag = tag if brace and closing and tag else key
    return tag if b"}" not in tag and key_slot(b"{%b}" % tag) == key_slot(key) else None
