"""One connection: an ``asyncio.Protocol`` over a socket that is already connected and speaks RESP.

Everything that is sent in one turn of the event loop leaves in one ``write``. (While a turn has only one command to
send, that command leaves at once, and what follows in the same turn leaves at its end.) Replies come in the order of
the commands; pushes come at any time.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import hiredis

from .reply_limits import ReplyLimits
from .violations import ViolationError

log = logging.getLogger("asynclock")

PING = b"*1\r\n$4\r\nPING\r\n"
HELLO = b"*1\r\n$5\r\nHELLO\r\n"
_MORE = object()  # what the reader returns when it needs more bytes
_PUSH = hiredis.PushNotification
MAX_UNSENT = 1 << 20  # bytes that may wait here while the kernel accepts no more

OnPush = Callable[[list[Any], float], None]  # with the time when it was read


class Expects(Protocol):
    """Waits for the replies to what was sent. One of its two methods is called, once (but see ``reply``)."""

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        """The last reply, those before it, and when the bytes were read that completed it.

        :raises ViolationError: that cannot be the reply, and nothing was done with it; ``dropped`` follows
        """

    def dropped(self) -> None:
        """The connection is lost, and some or all of the replies will not come."""


class Call:
    """One command whose reply is awaited."""

    __slots__ = ("future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[Any] = loop.create_future()

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        if not self.future.done():
            self.future.set_result(reply)

    def dropped(self) -> None:
        if not self.future.done():
            self.future.set_exception(ConnectionResetError("connection closed"))
            self.future.exception()  # the caller may have stopped waiting


class _Nobody:
    """Stands in the place of those who have got their reply."""

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None: ...

    def dropped(self) -> None: ...


_NOBODY = _Nobody()


class _Pong:
    """Waits for the reply to a ping. Any reply will do."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOPERM"):
            self._connection._ping = HELLO  # needs no permission; the server keeps a log of refused commands

    def dropped(self) -> None: ...


class Connection(asyncio.Protocol):
    """One connection to a server.

    State: ``waiting`` are those who wait for replies, in their order. None stands for a reply that is kept in
    ``_earlier`` until the last one of the same request. ``_out`` is what leaves at the end of this turn of the event
    loop. All three are empty once the connection is lost.

    Two flags tell its user to hold back. Both end with a call of ``on_drained``:

    - ``full``: send nothing. The other side does not read, and more than ``MAX_UNSENT`` bytes wait here.
    - ``slow``: begin nothing new. Replies are late. It is set and ended by whoever checks that (``Watchdog``).
    """

    def __init__(
        self,
        writer: asyncio.StreamWriter,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        *,
        on_push: OnPush,
        on_lost: Callable[[Connection, Exception | None], None],
        on_drained: Callable[[], None] | None = None,
        at_once: bool = True,
    ) -> None:
        """:param at_once: False: what is sent always leaves at the end of the turn, never at once"""
        self._writer = writer  # kept: a writer that is collected closes its transport
        self._loop = loop
        self.clock = clock
        self._on_push = on_push
        self._on_lost = on_lost
        self._on_drained = on_drained
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._limits = ReplyLimits(self._reader)
        self._out: list[bytes] = []
        self._paused = False
        self._unsent = 0  # bytes in ``_out``, while paused
        self.full = False
        self.slow = False
        self._flushing = False
        self._at_once = at_once
        self._alone = False  # was the last thing that left the only one of its loop turn?
        self._ping = PING  # what ``ping`` sends
        self.problem: Exception | None = None  #: why it was dropped from this side
        self.waiting: deque[Expects | None] = deque()
        self._earlier: list[Any] = []
        self.heard = clock()  #: when the last reply came, or when the wait for one began that had none before it
        self.closed = loop.create_future()
        self._transport: asyncio.WriteTransport = writer.transport
        self._transport.set_protocol(self)

    def missing(self, now: float) -> float:
        """Seconds for which a reply, or the rest of one, has been missing; 0: none is."""
        return now - self.heard if self.waiting or self._limits.size > 0 else 0.0

    def ping(self, now: float) -> None:
        """Send something that must be answered, unless the server owes a reply already."""
        if not self.waiting:
            self.send(self._ping, _Pong(self), 1, now)

    def send(self, data: bytes, expects: Expects, replies: int, now: float) -> None:
        """Send in this turn of the loop. ``expects`` gets that many replies, all in one call, or ``dropped``."""
        waiting = self.waiting
        if not waiting:
            self.heard = now
            # Waiting for other commands that do not come costs a turn, a good part of a round trip.
            at_once = self._alone and not (self._flushing or self._paused or self._transport.is_closing())
        else:
            at_once = False
        while replies > 1:
            replies -= 1
            waiting.append(None)
        waiting.append(expects)
        if at_once:
            self._transport.write(data)
            return
        self._out.append(data)
        if self._paused:
            self._unsent += len(data)
            if self._unsent > MAX_UNSENT:
                self.full = True
        elif not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def call(self, data: bytes) -> asyncio.Future[Any]:
        """Send one command and await its reply. An error reply is returned, not raised.

        :raises ConnectionResetError: (the future) the connection is lost
        """
        call = Call(self._loop)
        if self.closed.done():
            call.dropped()  # nothing will ever come
        else:
            self.send(data, call, 1, self.clock())
        return call.future

    def _flush(self) -> None:
        self._flushing = False
        if self._out and not self._paused and not self._transport.is_closing():
            out = self._out
            self._alone = self._at_once and len(out) == 1
            data = b"".join(out)
            out.clear()
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        """All that a server says comes in here. On malformed input, drop the connection and fail everyone who waits."""
        limits = self._limits
        if limits.cut or 42 in data or 62 in data or 126 in data:  # *>~, ten times faster than b"*"
            try:
                for piece in limits.pieces(data):
                    self._read(piece)
                    if self.problem is not None:
                        return
            except ViolationError as error:
                self.abort(error)
        else:
            self._read(data)

    def _read(self, data: bytes) -> None:
        now = self.clock()
        waiting, earlier = self.waiting, self._earlier
        gets = self._reader.gets
        expects: Expects | None = None
        try:
            self._reader.feed(data)
            reply = gets()
            if reply is _MORE:
                if not waiting and not self._limits.size:
                    self.heard = now  # the wait for the rest begins
                self._limits.more(len(data))
                return
            self._limits.size = 0
            while reply is not _MORE:
                if type(reply) is _PUSH:
                    self._on_push(reply, now)
                elif not waiting:
                    self._unsolicited(reply, now)
                elif (expects := waiting.popleft()) is None:
                    earlier.append(reply)
                    expects = _NOBODY
                elif earlier:
                    before = tuple(earlier)
                    earlier.clear()
                    expects.reply(reply, before, now)
                    expects = _NOBODY
                else:
                    expects.reply(reply, (), now)
                    expects = _NOBODY
                reply = gets()
            if expects is not None:  # else there were pushes, and no replies
                self.heard = now
        except Exception as error:
            if not isinstance(error, hiredis.ProtocolError | ViolationError):
                # A map with a key that no dict can have, for example; or a bug here.
                log.warning("asynclock: a reply could not be parsed; the connection is dropped", exc_info=True)
            if expects is not None:
                waiting.appendleft(expects)
            self.abort(error)

    def _unsolicited(self, reply: Any, now: float) -> None:
        raise hiredis.ProtocolError("a reply that nobody asked for")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._unsent = 0
        self._flush()
        if self.full:
            self.full = False
            if self._on_drained is not None:
                self._on_drained()

    def oldest_sent(self) -> float:
        """When the oldest request was sent that is not answered; infinity: all are."""
        for expects in self.waiting:
            sent: float | None = getattr(expects, "sent", None)
            if sent is not None:
                return sent
        return math.inf

    def slow_down(self) -> None:
        """Replies are late: begin nothing new until ``catch_up``."""
        self.slow = True

    def catch_up(self) -> None:
        """Replies are in time again."""
        self.slow = False
        if self._on_drained is not None:
            self._on_drained()

    def eof_received(self) -> bool:
        return False  # close

    def connection_lost(self, exc: Exception | None) -> None:
        self._out.clear()
        self._earlier.clear()
        waiting, self.waiting = self.waiting, deque()
        if not self.closed.done():
            self.closed.set_result(None)
        self._on_lost(self, self.problem or exc)
        for expects in waiting:
            if expects is not None:
                expects.dropped()

    def abort(self, problem: Exception | None = None) -> None:
        """Drop the connection now. What was not sent yet is lost."""
        self.problem = self.problem or problem
        self._transport.abort()

    def close(self) -> None:
        """Send what is still to be sent, then close."""
        self._flush()
        self._transport.close()
