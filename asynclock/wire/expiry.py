"""The expiry argument of the commands that set or extend a key."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from ..core.clock import ServerClock
from .commands import is_error, packed, px, pxat, seconds_of
from .connection import Connection, Expects
from .violations import unexpected

_TIME: Final = packed(b"TIME")


def stay(until: float, now: float) -> bytes:
    """The argument for a key that expires at ``until``, and never earlier: ``PX``, which does not depend on what is
    known of the server's clock. It expires later by the time that the command travels, which breaks nothing."""
    return px(max(1, math.ceil((until - now) * 1000)))


class ExpiryClock:
    """Makes the expiry arguments for one connection: ``PXAT`` in the server's time, or ``PX``.

    Invariant: a key lives for at least one validity from the time at which the holder's deadline starts. ``PXAT`` is
    the latest reading of the server's clock at that time (``ServerClock.at_most``), rounded up, plus the validity.
    ``PX`` counts the validity from when the server runs the command, which is later. ``PX`` is used if the server does
    not know ``PXAT``, or while the offset of its clock is not known well enough.

    That latest reading is wrong once the server's clock is set. So TIME is sent before the commands that use it, ten
    times a second at most. If the clock was set, ``on_set`` has every key written anew.

    State: ``_argument`` is cached for the millisecond ``_millisecond`` (-1: nothing is cached), and dropped when
    ``_server_clock`` changes. ``_asked``: a TIME is pending.
    """

    __slots__ = (
        "_argument",
        "_asked",
        "_connection",
        "_millisecond",
        "_px",
        "_pxat",
        "_server_clock",
        "_validity",
        "on_set",
    )

    def __init__(self, connection: Connection, server_clock: ServerClock, validity: float, *, pxat: bool) -> None:
        """:param pxat: does the server know SET ... PXAT?"""
        self._connection = connection
        self._server_clock = server_clock
        self._validity = validity
        self._px = px(round(validity * 1000))
        self._pxat = pxat
        self._asked = False
        self._millisecond = -1
        self._argument = b""
        self.on_set: Callable[[], None] | None = None  #: called when the server's clock was set

    def argument(self, now: float) -> bytes:
        """The argument for a key that expires one validity after ``now``, or up to a millisecond later."""
        millisecond = int(now * 1000)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            self._argument = self._px
            if self._pxat:
                server_clock = self._server_clock
                if not self._asked and server_clock.due(now):
                    self.ask()
                if server_clock.usable(now):
                    then = server_clock.at_most((millisecond + 1) / 1000) + self._validity
                    self._argument = pxat(math.ceil(then * 1000))
        return self._argument

    def ask(self) -> None:
        """Ask the server for its time."""
        connection = self._connection
        if not connection.closed.done():
            self._asked = True
            now = connection.clock()
            connection.send(_TIME, _Time(self, now), 1, now)

    def answered(self, sent: float, reply: Any, now: float) -> None:
        """:raises ViolationError: the reply is not a time"""
        self._asked = False
        self._millisecond = -1
        if not is_error(reply):
            try:
                seconds = seconds_of(reply)
            except ValueError:
                raise unexpected("the answer to TIME", reply) from None
            if self._server_clock.observe(sent, seconds, now) and self.on_set is not None:
                self.on_set()

    def doubt(self) -> None:
        """The server's clock may have been set: use ``PX`` until it is read again."""
        self._server_clock.forget()
        self._millisecond = -1
        if self._pxat and not self._asked:
            self.ask()


class _Time(Expects):
    """Waits for the reply to TIME."""

    __slots__ = ("_expiry", "_sent")

    def __init__(self, expiry: ExpiryClock, sent: float) -> None:
        self._expiry = expiry
        self._sent = sent

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        self._expiry.answered(self._sent, reply, now)

    def dropped(self) -> None: ...
