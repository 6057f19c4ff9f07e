"""Where there is no RESP3: a second connection, on which the server tells what happened to tracked keys.

A RESP2 connection carries nothing but replies, so the main connection has its invalidations
redirected (``CLIENT TRACKING ON REDIRECT``) to one that subscribes to ``__redis__:invalidate``.

The two live and die together. Without the second, keys change in silence, and what was told while
it was down is lost: just what a lost main connection means. So the loss of the second drops the
first, and there is one way back for both, the node's reconnect, which looks at every key again.
The server itself says nothing of it to a RESP2 connection (it answers commands, and tracks in vain).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from .capabilities import INFO, Redirect, refused, run_id
from .commands import is_error, packed
from .connection import PING, Connection, OnPush
from .connector import Connector
from .credentials import Credentials
from .watchdog import Watchdog

_CHANNEL = b"__redis__:invalidate"
_SUBSCRIBE = packed(b"SUBSCRIBE", _CHANNEL)
_UNSUBSCRIBE = packed(b"UNSUBSCRIBE", _CHANNEL)


class Invalidations(Connection):
    """The second connection to a server. Once subscribed, ``waiting`` is empty for good: messages
    and the answers to PING come as they like, in ``_unasked``.

    Nothing is ever asked here that would show a dead peer but the watchdog's pings.
    """

    _watchdog: Watchdog | None = None
    _pinged: float | None = None  # when, and nothing was heard since
    _redact: Callable[[Any], str]  # of the door
    _on_return: deque[Callable[[], None]]  # one for each SUBSCRIBE after new credentials that is not answered yet

    @classmethod
    async def open(cls, connector: Connector, main: Connection, on_push: OnPush, silence: float) -> Invalidations:
        """Connect through the same door as ``main``, subscribe, and bind the two together.

        :param silence: seconds for which a ping may go unanswered
        :raises ServerError: unreachable, or refused
        :raises ConnectionResetError: dropped meanwhile
        """
        writer = await connector.open_another()
        loop, clock = asyncio.get_running_loop(), main.clock

        def pushed(push: list[Any], now: float) -> None:
            if not main.closed.done():  # else every key is looked at anyway, and cannot be before
                on_push(push, now)

        def lost(connection: Connection, error: Exception | None) -> None:
            if not main.closed.done():
                main.abort(ConnectionError(f"its second connection, for invalidations, was lost: {error or 'closed'}"))

        self = cls(writer, loop, clock, on_push=pushed, on_lost=lost)
        self._on_return = deque()
        self._redact = connector.redact
        main.closed.add_done_callback(lambda _: self.abort())
        try:
            await self._subscribe(connector, silence)
        except BaseException:
            self.abort()
            raise
        return self

    async def _subscribe(self, connector: Connector, silence: float) -> None:
        asked = {"INFO": self.call(INFO), "CLIENT ID": self.call(packed(b"CLIENT", b"ID"))}
        if connector.client_name is not None:
            self.call(packed(b"CLIENT", b"SETNAME", connector.client_name.encode()))  # a courtesy, may be refused
        asked["SUBSCRIBE"] = self.call(_SUBSCRIBE)
        told = {command: await reply for command, reply in asked.items()}
        for command in ("CLIENT ID", "SUBSCRIBE"):
            if is_error(told[command]):
                raise refused(connector, command, told[command])
        self.redirect = Redirect(int(told["CLIENT ID"]), run_id(told["INFO"]))
        self._watchdog = Watchdog(self, f"{connector.label}, for invalidations", silence)

    def reauthenticate(self, credentials: Credentials, on_return: Callable[[], None]) -> None:
        """Log in anew. A subscriber may not say AUTH, so it is none for a moment; ``on_return`` is
        called after it, since what was to be told meanwhile is lost."""
        self._on_return.append(on_return)
        self._transport.write(_UNSUBSCRIBE + packed(b"AUTH", *credentials) + _SUBSCRIBE)

    def _unasked(self, reply: Any, now: float) -> None:
        self._pinged = None
        if isinstance(reply, list) and len(reply) == 3 and reply[0] == b"message":
            self._on_push([b"invalidate", reply[2]], now)
        elif is_error(reply) and self._on_return:  # else it is what PING was answered, and as good as any answer
            self._on_return.clear()
            self.abort(ConnectionError(f"new credentials were refused: {self._redact(reply)}"))
        elif isinstance(reply, list) and reply[:1] == [b"subscribe"] and self._on_return:
            self._on_return.popleft()()

    def missing(self, now: float) -> float:
        return 0.0 if self._pinged is None else now - self._pinged

    def ping(self, now: float) -> None:
        if self._pinged is None:
            self._pinged = now
            self._transport.write(PING)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watchdog is not None:
            self._watchdog.stop()
        super().connection_lost(exc)
