"""Without RESP3: a second connection, which gets the invalidations of the keys that the first one tracks.

A RESP2 connection carries replies and nothing else. So the main connection has its invalidations redirected
(``CLIENT TRACKING ON REDIRECT``) to one that subscribes to ``__redis__:invalidate``.

The two live and die together. While the second is down, keys change without notice: the same as when the main
connection is lost. So losing the second drops the main one, and both come back in the same way, by the node's
reconnect, which checks every key again. (The server does not tell the main connection of the loss. It goes on
answering commands, and tracks keys for nobody.)
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
    """The second connection to a server.

    Once it has subscribed, nothing is in ``waiting`` any more: messages and the replies to PING come in any order, to
    ``_unsolicited``. So how long a reply has been missing is counted from ``_pinged``, not from ``heard``. Only the
    watchdog's pings show that the server is still there.
    """

    redirect: Redirect  #: what ``CLIENT TRACKING`` needs
    _redact: Callable[[Any], str]
    _watchdog: Watchdog | None = None
    _pinged: float | None = None  # when it was pinged, if nothing was heard since
    _on_return: deque[Callable[[], None]]  # one for each SUBSCRIBE after new credentials that is not answered yet

    @classmethod
    async def open(cls, connector: Connector, main: Connection, on_push: OnPush, silence: float) -> Invalidations:
        """Connect to the same server as ``main``, subscribe, and bind the two connections together.

        :param silence: seconds for which a ping may go unanswered
        :raises ServerError: unreachable, or refused
        :raises ConnectionResetError: the connection was lost meanwhile
        """
        writer = await connector.open_another()
        loop, clock = asyncio.get_running_loop(), main.clock

        def pushed(push: list[Any], now: float) -> None:
            if not main.closed.done():  # else every key is checked anyway, after the reconnect
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
        sent = {"INFO": self.call(INFO), "CLIENT ID": self.call(packed(b"CLIENT", b"ID"))}
        if connector.client_name is not None:
            self.call(packed(b"CLIENT", b"SETNAME", connector.client_name.encode()))  # may be refused
        sent["SUBSCRIBE"] = self.call(_SUBSCRIBE)
        replies = {command: await reply for command, reply in sent.items()}
        for command in ("CLIENT ID", "SUBSCRIBE"):
            if is_error(replies[command]):
                raise refused(connector, command, replies[command])
        self.redirect = Redirect(int(replies["CLIENT ID"]), run_id(replies["INFO"]))
        self._watchdog = Watchdog(self, f"{connector.label}, for invalidations", silence)

    def reauthenticate(self, credentials: Credentials, on_return: Callable[[], None]) -> None:
        """Log in anew. A subscriber may not send AUTH, so it unsubscribes for a moment. What is published meanwhile is
        lost; ``on_return`` is called after it."""
        self._on_return.append(on_return)
        self._transport.write(_UNSUBSCRIBE + packed(b"AUTH", *credentials) + _SUBSCRIBE)

    def _unsolicited(self, reply: Any, now: float) -> None:
        self._pinged = None
        if isinstance(reply, list) and len(reply) == 3 and reply[0] == b"message":
            self._on_push([b"invalidate", reply[2]], now)
        elif is_error(reply) and self._on_return:  # else it is the reply to a PING, as good as any other
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
