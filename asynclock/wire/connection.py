"""One connection: an ``asyncio.Protocol`` over a socket that is already connected and speaks RESP.

Everything that is sent in one turn of the event loop leaves in one ``write``. (If the last turn sent a single command
and no reply is pending, the first command of this turn leaves at once, and the rest at its end.) Replies arrive in the
order of the commands; pushes arrive at any time.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import hiredis

from ..core.native import mypyc_attr
from ..messages import about
from .reply_limits import ReplyLimits
from .violations import ViolationError

log = logging.getLogger("asynclock")

PING: Final = b"*1\r\n$4\r\nPING\r\n"
HELLO: Final = b"*1\r\n$5\r\nHELLO\r\n"
_MORE: Final = object()  # what the reader returns when it needs more bytes
_PUSH: Final = hiredis.PushNotification
MAX_UNSENT: Final = 1 << 20  # bytes that may wait here while the kernel's buffer is full

OnPush = Callable[[list[Any], float], None]  # the push, and when it was read


@mypyc_attr(allow_interpreted_subclasses=True)
class Expects:
    """Waits for the replies to what was sent. One of its two methods is called, once (but see ``reply``)."""

    # Not a Protocol: compiled code would look its methods up by their names, for every reply.
    __slots__ = ()

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        """All replies are there.

        :param reply: the last one
        :param earlier: those before it
        :param now: when the last bytes were read
        :raises ViolationError: malformed reply, which changed nothing here; ``dropped`` follows
        """
        raise NotImplementedError

    def dropped(self) -> None:
        """The connection is lost before all replies have arrived."""
        raise NotImplementedError


class Call(Expects):
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
            self.future.exception()  # mark it retrieved: the caller may have stopped waiting


class _Nobody(Expects):
    """Takes the place of an ``Expects`` that has got its replies."""

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None: ...

    def dropped(self) -> None: ...


_NOBODY: Final = _Nobody()


class _Pong(Expects):
    """Waits for the reply to a ping. Any reply will do."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOPERM"):
            self._connection._ping = HELLO  # needs no permission; each refused PING would fill the server's ACL LOG

    def dropped(self) -> None: ...


class Connection:
    """One connection to a server. It has the methods of an ``asyncio.Protocol``, and does not inherit from it: a class
    with an interpreted base cannot be compiled.

    State: ``waiting`` has one entry for each reply that is still to come, in order: the ``Expects`` that gets it, or
    None if the reply only goes to ``_earlier``, until the last one of the same request. ``_out`` is what leaves at the
    end of this turn of the event loop. All three are empty once the connection is lost.

    Two flags tell its user to hold back. ``on_drained`` is called when one of them is cleared:

    - ``full``: send nothing. The server does not read, and more than ``MAX_UNSENT`` bytes wait here.
    - ``slow``: request no new locks. Replies are late. ``Watchdog`` sets and clears it.
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
        """:param at_once: False: commands always leave at the end of the turn, never at once"""
        self._writer = writer  # a writer that is garbage-collected closes its transport
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
        self._alone = False  # did the last turn send a single command?
        self._ping = PING  # what ``ping`` sends
        self.problem: Exception | None = None  #: why this side dropped it
        self.waiting: deque[Expects | None] = deque()
        self._earlier: list[Any] = []
        self.heard = clock()  #: when the last reply arrived, or since when a reply is awaited, if that is later
        self.closed = loop.create_future()
        self._transport: asyncio.WriteTransport = writer.transport
        self._transport.set_protocol(cast(asyncio.Protocol, self))

    def missing(self, now: float) -> float:
        """Seconds for which a reply, or the rest of one, has been awaited; 0: none is."""
        return now - self.heard if self.waiting or self._limits.size > 0 else 0.0

    def ping(self, now: float) -> None:
        """Send PING, unless a reply is awaited already."""
        if not self.waiting:
            self.send(self._ping, _Pong(self), 1, now)

    def send(self, data: bytes, expects: Expects, replies: int, now: float) -> None:
        """Send in this turn of the event loop. ``expects`` gets ``replies`` replies in one call, or ``dropped``."""
        waiting = self.waiting
        if not waiting:
            self.heard = now
            # To wait for more commands that do not come costs a turn of the loop: a good part of a round trip.
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
        """Send one command. The future returns its reply, also if it is an error reply.

        :raises ConnectionResetError: (the future) the connection is lost
        """
        call = Call(self._loop)
        if self.closed.done():
            call.dropped()  # ``connection_lost`` is over, and would not do it
        else:
            self.send(data, call, 1, self.clock())
        return call.future

    def answered(self) -> asyncio.Future[Any]:
        """A future that is done when everything that was sent until now is answered. As ``call``."""
        return self.call(self._ping)

    def _flush(self) -> None:
        self._flushing = False
        if self._out and not self._paused and not self._transport.is_closing():
            out = self._out
            self._alone = self._at_once and len(out) == 1
            data = b"".join(out)
            out.clear()
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Parse what the server sends. On malformed input, drop the connection and fail everyone who waits on it."""
        limits = self._limits
        if limits.cut or 42 in data or 62 in data or 126 in data:  # *>~; ints are found ten times faster than b"*"
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
                    self.heard = now  # the rest of this reply is awaited from now on
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
            if expects is not None:  # else there were pushes only
                self.heard = now
        except Exception as error:
            if not isinstance(error, hiredis.ProtocolError | ViolationError):
                # For example a map whose key is unhashable in Python, or a bug here.
                log.warning(
                    "asynclock: a reply could not be parsed; the connection is dropped",
                    exc_info=True,
                    extra=about("malformed_reply"),
                )
            if expects is not None:
                waiting.appendleft(expects)
            self.abort(error)

    def _unsolicited(self, reply: Any, now: float) -> None:
        """No request waits for this reply. (On a RESP2 connection that has subscribed it is a message.)"""
        raise hiredis.ProtocolError("a reply without a request")

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
        """When the oldest unanswered request was sent; infinity: there is none."""
        for expects in self.waiting:
            sent: float | None = getattr(expects, "sent", None)
            if sent is not None:
                return sent
        return math.inf

    def slow_down(self) -> None:
        """Replies are late: request no new locks until ``catch_up``."""
        self.slow = True

    def catch_up(self) -> None:
        """Replies arrive in time again."""
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
        """Drop the connection now, without flushing."""
        self.problem = self.problem or problem
        self._transport.abort()

    def close(self) -> None:
        """Flush, then close."""
        self._flush()
        self._transport.close()
