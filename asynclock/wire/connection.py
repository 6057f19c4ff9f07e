"""The wire: an ``asyncio.Protocol`` over a socket that is already connected and speaks RESP.

Everything sent in one loop turn leaves in one ``write``. (Where there is only one thing to send at a time it leaves at
once, and what follows in the same turn leaves at its end.) Replies come in the order of the commands; pushes come
whenever the server likes.
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
_MORE = object()  # what the reader answers when it wants more bytes
_PUSH = hiredis.PushNotification
MAX_UNSENT = 1 << 20  # bytes that may wait here while the kernel takes no more

OnPush = Callable[[list[Any], float], None]  # with the time when it was read


class Expects(Protocol):
    """Something that waits for the replies to what was sent."""

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        """The last reply, those before it, and when the bytes were read that it came with.

        :raises ViolationError: that is no answer, and nothing was done with it; ``dropped`` follows
        """

    def dropped(self) -> None:
        """The connection is gone, and the replies, or some of them, will not come."""


class Call:
    """One command of the connection's own, whose reply is awaited."""

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
    """Stands for those who have been told."""

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None: ...

    def dropped(self) -> None: ...


_NOBODY = _Nobody()


class _Pong:
    """The answer to a ping, whatever it is."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOPERM"):
            self._connection._question = HELLO  # which no permission takes away: refusals are noted on the server

    def dropped(self) -> None: ...


class Connection(asyncio.Protocol):
    """One connection. State: ``waiting`` (who is told of the next replies; None: nobody yet, it goes
    into ``_earlier`` until the last one of the same request) and ``_out`` (what leaves at the end of
    this loop turn); all are empty once the connection is lost."""

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
        """:param at_once: ``False``: what is sent leaves at the end of the loop turn, always"""
        self._writer = writer  # kept: a forgotten one closes the transport
        self._loop = loop
        self.clock = clock
        self._on_push = on_push
        self._on_lost = on_lost
        self._on_drained = on_drained
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._headers = ReplyLimits(self._reader)
        self._out: list[bytes] = []
        self._paused = False
        self._unsent = 0  # bytes in ``_out``, while paused
        self.full = False  #: nothing should be sent until ``on_drained``: the other side does not read
        self.slow = False  #: nothing new should be begun until ``on_drained``: its answers are late
        self.slow_since = 0.0  #: when that was noticed last; 0: never
        self._flushing = False
        self._at_once = at_once
        self._alone = False  # was the last thing that left the only one of its loop turn?
        self._question = PING
        self.problem: Exception | None = None  # why it was dropped from this side
        self.waiting: deque[Expects | None] = deque()
        self._earlier: list[Any] = []
        self.heard = clock()  # when an answer came last, or was first waited for
        self.closed = loop.create_future()
        self._transport: asyncio.WriteTransport = writer.transport
        self._transport.set_protocol(self)

    def missing(self, now: float) -> float:
        """Seconds for which an answer, or the rest of something, has been waited for; 0: nothing is."""
        return now - self.heard if self.waiting or self._headers.size > 0 else 0.0

    def ping(self, now: float) -> None:
        """Nothing has been heard for a while: ask something, unless that is waited for."""
        if not self.waiting:
            self.send(self._question, _Pong(self), 1, now)

    def send(self, data: bytes, expects: Expects, replies: int, now: float) -> None:
        """Send in this loop turn. ``expects`` gets that many replies, all at once, or ``dropped``."""
        waiting = self.waiting
        if not waiting:
            self.heard = now
            # Waiting for company that does not come costs a loop turn, a fair share of a round trip.
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
        """Send one command and await its reply. An error reply is returned, not raised."""
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
        """The one door for all that a server says. Whatever comes in of which nothing can be made, the
        connection is dropped, and whoever it was for is told so like all the others who wait."""
        headers = self._headers
        if headers.cut or 42 in data or 62 in data or 126 in data:  # *>~, an order of magnitude faster than b"*"
            try:
                for piece in headers.pieces(data):
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
                if not waiting and not self._headers.size:
                    self.heard = now  # it is waited for the rest
                self._headers.more(len(data))
                return
            self._headers.size = 0
            while reply is not _MORE:
                if type(reply) is _PUSH:
                    self._on_push(reply, now)
                elif not waiting:
                    self._unasked(reply, now)
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
            if expects is not None:  # else it was pushes that came, and no answers
                self.heard = now
        except Exception as error:
            if not isinstance(error, hiredis.ProtocolError | ViolationError):
                # A map with a key that no dict can have, for example; or a fault here.
                log.warning("asynclock: nothing can be made of what a server says", exc_info=True)
            if expects is not None:
                waiting.appendleft(expects)
            self.abort(error)

    def _unasked(self, reply: Any, now: float) -> None:
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

    def asked_at(self) -> float:
        """When was asked what is to be answered next? Without an end in the future: nothing is."""
        for expects in self.waiting:
            sent: float | None = getattr(expects, "sent", None)
            if sent is not None:
                return sent
        return math.inf

    def slow_down(self, now: float) -> None:
        """What is asked is answered, but late: begin nothing new until ``catch_up``."""
        self.slow = True
        self.slow_since = now

    def catch_up(self) -> None:
        """The answers to what was asked until then are there."""
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
        """Drop the connection now; what was not sent is lost."""
        self.problem = self.problem or problem
        self._transport.abort()

    def close(self) -> None:
        """Send what there is, then close."""
        self._flush()
        self._transport.close()
