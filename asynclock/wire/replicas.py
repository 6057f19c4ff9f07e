"""Waits for replicas (``min_replicas``): a vote counts once that many replicas have its write.

``WAIT`` blocks its connection on the server. So it has a connection of its own, and the main connection, which carries
the commands of all locks, never waits for a replica.

``WAIT`` only covers the last write of *its own* connection (since Redis 7, and on Valkey; on 6.2 even a PING in between
made it forget that write). So a write is sent before it on the same connection: a marker (``markers.py``). Replication
keeps the order: a replica that has the marker has every write that was answered before the marker was sent.

At most one marker and its ``WAIT`` are pending. They cover the writes that were answered on the main connection until
they left, at the end of a turn of the event loop; the next ones cover later writes. So the number of WAITs depends on
how long they take, not on the number of locks.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any

from ..errors import ServerError
from ..options import Options
from .background import Timer
from .commands import Capabilities, is_error, key_text, packed, unbulk
from .connection import Connection, Expects
from .connector import Connector
from .credentials import Credentials
from .markers import Markers
from .requests import Count, Ignored, Reauthentication, Request
from .violations import unexpected

MIN_MARGIN = 0.01  # seconds by which a WAIT may be late before its connection counts as hung, at least
NUDGE_AFTER = 0.002  # seconds after a WAIT's own timeout until the server is nudged: by then it has certainly expired
REMEMBER = 2.0  # seconds for which ``trouble`` reports a failure; attempts are more frequent (MAX_BACKOFF)

_LOST = "the connection was lost while waiting for replicas (min_replicas)"


class _Wait(Enum):
    """The state of the current WAIT."""

    NONE = auto()  # there is none: no request waits
    LEAVING = auto()  # it is sent at the end of this turn of the event loop, and covers all writes answered until then
    UNDER_WAY = auto()
    OVERDUE = auto()  # its reply is late; nothing is confirmed until it arrives
    DROPPED = auto()  # the connection is lost or closed; final


class Replicas:
    """The connection for WAIT. When it or the main connection is lost, the other is dropped, so that after a reconnect
    both lead to the same server.

    State: ``_covered`` are the requests that the current WAIT covers, ``_queued`` those for the next one, each with its
    deadline; ``_wait`` is the state of the current one. Every request that ``confirm`` gets leaves the lists exactly
    once, by ``confirmed`` or ``unconfirmed``. Both are empty while ``_wait`` is NONE, OVERDUE or DROPPED.
    """

    def __init__(
        self,
        connector: Connector,
        main: Connection,
        writer: asyncio.StreamWriter,
        capabilities: Capabilities,
        options: Options,
        nudge: Callable[[], None],
        silence: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = main.clock
        self._main = main
        self._side = Connection(
            writer, self._loop, main.clock, on_push=lambda push, now: None, on_lost=self._lost, at_once=False
        )
        self._label, self._redact = connector.label, connector.redact
        self._wanted = options.min_replicas
        self._patience = options.try_next_after
        self._nudge = nudge
        self._silence = silence
        self._markers = Markers(options.key_prefix, capabilities)
        self._covered: list[tuple[float, Request | Count]] = []
        self._queued: list[tuple[float, Request | Count]] = []
        self._wait = _Wait.NONE
        self._timer = Timer()  # for a WAIT that is not answered in time
        self._trouble: tuple[float, ServerError] | None = None  # the last failure, and until when to report it

    @classmethod
    async def open(
        cls,
        connector: Connector,
        main: Connection,
        capabilities: Capabilities,
        options: Options,
        nudge: Callable[[], None],
        silence: float,
    ) -> Replicas:
        """Connect to the same server as ``main``. From then on, the loss of one drops the other.

        :param nudge: sends the server any command on the main connection
        :param silence: seconds without a reply to an overdue WAIT after which both are dropped
        :raises ServerError: unreachable, or refused
        :raises ConnectionResetError: the connection was lost meanwhile
        """
        writer = await connector.open_another()
        self = cls(connector, main, writer, capabilities, options, nudge, silence)
        try:
            for command in connector.introduction.values():
                self._side.send(command, Ignored(), 1, self._clock())
            if capabilities.mode != "cluster":  # there, every node has an address of its own
                await self._check_same_server()
        except BaseException:
            self.drop()
            raise
        main.closed.add_done_callback(lambda _: self.drop())
        return self

    async def _check_same_server(self) -> None:
        """During a failover there may be two servers behind one address. A WAIT on one says nothing about writes to the
        other. So a key that is written here must be readable on the main connection."""
        marker = self._markers.only_one()
        reply = await self._side.call(self._markers.set(marker))
        if is_error(reply):
            raise ServerError(
                self._label, f"refused SET on key {unbulk(marker).decode()!r} (min_replicas): {self._redact(reply)}"
            )
        found = await self._main.call(packed(b"GET", unbulk(marker)))
        self._side.send(self._markers.delete(marker), Ignored(), 1, self._clock())
        if found != self._markers.token:
            raise ServerError(
                self._label, "two connections reached two servers; is a failover under way? (min_replicas)"
            )

    @property
    def trouble(self) -> ServerError | None:
        """Why votes have not counted in the last ``REMEMBER`` seconds; None: they have."""
        if self._trouble is not None and self._clock() < self._trouble[0]:
            return self._trouble[1].copy()
        return None

    def reauthenticate(self, credentials: Credentials) -> None:
        self._side.send(
            packed(b"AUTH", *credentials), Reauthentication(self._side.abort, self._redact), 1, self._clock()
        )

    def confirm(self, request: Request | Count) -> None:
        """Call the request's ``confirmed`` or ``unconfirmed``, within little more than ``try_next_after``."""
        if self._wait is _Wait.DROPPED:
            self._fail(request, _LOST)
        elif self._wait is _Wait.OVERDUE:
            self._fail(request, self._overdue_text())
        else:
            covered = self._wait is _Wait.LEAVING
            (self._covered if covered else self._queued).append((self._clock() + self._patience, request))
            if self._wait is _Wait.NONE:
                self._begin()

    # One marker, one WAIT

    def _begin(self) -> None:
        self._covered, self._queued = self._queued, []
        self._wait = _Wait.LEAVING
        now = self._clock()
        # Until the oldest request's deadline, but not so short that each request has a WAIT of its own.
        milliseconds = math.ceil(max(self._covered[0][0] - now, self._patience / 4, 0.001) * 1000)
        self._markers.write(self._side, [request.key for _, request in self._covered], now)
        self._side.send(packed(b"WAIT", b"%d" % self._wanted, b"%d" % milliseconds), _Count(self), 1, now)
        self._loop.call_soon(self._left)  # right after the connection has written that
        self._timer.start(milliseconds / 1000 + NUDGE_AFTER, self._late)

    def _left(self) -> None:
        if self._wait is _Wait.LEAVING:
            self._wait = _Wait.UNDER_WAY

    def counted(self, reply: Any) -> None:
        """The reply to WAIT."""
        if type(reply) is not int and not is_error(reply):
            raise unexpected("the answer to WAIT", reply)
        self._timer.stop()
        self._wait = _Wait.NONE
        covered, self._covered = self._covered, []
        confirmed: list[tuple[float, Request | Count]] = []
        markers = self._markers
        why = ""
        if is_error(reply):
            why = f"WAIT was refused: {self._redact(reply)}"
            failed = covered
        elif markers.written and reply >= self._wanted:
            self._trouble = None
            confirmed, failed = covered, []
        elif markers.written or markers.elsewhere:
            # Retry for the requests whose deadline has not passed.
            if not markers.written:
                why = f"SET was refused: {self._redact(markers.refusal)}"
                markers.forget()
            # Later writes are on no more replicas than those that were covered.
            covered += self._queued
            now = self._clock() + 0.001
            failed = [(until, request) for until, request in covered if until <= now]
            self._queued = [(until, request) for until, request in covered if until > now]
        else:
            why = f"SET was refused: {self._redact(markers.refusal)}"
            failed = covered
        if self._queued:
            self._begin()
        for _, request in confirmed:
            request.confirmed()
        for _, request in failed:
            key = key_text(request.lease.room.keys[request.index])
            self._fail(
                request,
                f"key {key!r} may not be on {self._wanted} replicas (min_replicas): {why}"
                if why
                else f"{reply} of {self._wanted} replicas have key {key!r} within {self._patience * 1000:g} ms "
                "(min_replicas); is replication up?",
            )

    def _fail(self, request: Request | Count, problem: str) -> None:
        error = ServerError(self._label, problem)
        self._trouble = (self._clock() + REMEMBER, error)
        request.unconfirmed(error)

    def _fail_all(self, problem: str) -> None:
        requests = [request for _, request in (*self._covered, *self._queued)]
        self._covered, self._queued = [], []
        for request in requests:
            self._fail(request, problem)

    # If the reply to WAIT is late

    def _late(self) -> None:
        """An idle server checks the timeout of WAIT only every 100 ms, but also at each command: send it one."""
        self._nudge()
        self._timer.start(max(self._patience / 2, MIN_MARGIN), self._overdue)

    def _overdue(self) -> None:
        self._wait = _Wait.OVERDUE
        self._timer.start(self._silence, self._give_up)
        self._fail_all(self._overdue_text())

    def _overdue_text(self) -> str:
        return (
            f"WAIT for {self._wanted} replicas was not answered within {self._patience * 1000:g} ms "
            "(min_replicas); does the server hang?"
        )

    def _give_up(self) -> None:
        self._main.abort(TimeoutError(f"no answer to WAIT for {self._silence:g} s"))

    def _lost(self, connection: Connection, error: Exception | None) -> None:
        if self._wait is not _Wait.DROPPED:
            self._main.abort(ConnectionError(f"the second connection, for WAIT, was lost: {error or 'closed'}"))

    def drop(self) -> None:
        """The main connection is lost, or the node closes. Fail all requests."""
        self._wait = _Wait.DROPPED
        self._timer.stop()
        self._side.abort()
        self._fail_all(_LOST)

    async def aclose(self) -> None:
        self.drop()
        await self._side.closed


class _Count(Expects):
    """Waits for the reply to WAIT."""

    __slots__ = ("_replicas",)

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        self._replicas.counted(reply)

    def dropped(self) -> None: ...
