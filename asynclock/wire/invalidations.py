"""RESP2 only: a second connection, which receives the invalidations of the keys that the main connection tracks.

A RESP2 connection carries replies only. So the main connection redirects its invalidations (``CLIENT TRACKING ON
REDIRECT``) to a connection that subscribes to ``__redis__:invalidate``.

When one of the two is lost, the other is dropped. Without the second connection, keys change unnoticed, as they do
while the main one is down; so both are reconnected together, and every key is checked after that. (The server does not
notify the main connection of the loss: it goes on answering commands, and discards the invalidations.)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from .awaiting import Passing
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

    Once it has subscribed, ``waiting`` stays empty: messages and replies to PING arrive in any order, and go to
    ``_unsolicited``. So ``missing`` counts from ``_pinged`` instead of ``heard``. Only the watchdog's pings show that
    the server is still alive.
    """

    redirect: Redirect  #: for ``CLIENT TRACKING`` on the main connection
    _redact: Callable[[Any], str]
    _watchdog: Watchdog | None = None
    _pinged: float | None = None  # when it was pinged, if nothing has arrived since
    _on_return: deque[Callable[[], None]]  # one for each pending SUBSCRIBE of ``reauthenticate``

    @classmethod
    async def open(cls, connector: Connector, main: Connection, on_push: OnPush, silence: float) -> Invalidations:
        """Connect to the same server as ``main`` and subscribe. From then on, the loss of one drops the other.

        :param silence: seconds after which a ping without a reply means that the connection is dead
        :raises ServerError: unreachable, or refused
        :raises ConnectionResetError: the connection was lost meanwhile
        """
        writer = await Passing(connector.open_another())
        loop, clock = asyncio.get_running_loop(), main.clock

        def pushed(push: list[Any], now: float) -> None:
            if not main.closed.done():  # else every key will be checked after the reconnect
                on_push(push, now)

        def lost(connection: Connection, error: Exception | None) -> None:
            if not main.closed.done():
                main.abort(ConnectionError(f"the second connection, for invalidations, was lost: {error or 'closed'}"))

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
        for introduces in connector.introduction.values():
            self.call(introduces)
        sent["SUBSCRIBE"] = self.call(_SUBSCRIBE)
        replies = {command: await Passing(reply) for command, reply in sent.items()}
        for command in ("CLIENT ID", "SUBSCRIBE"):
            if is_error(replies[command]):
                raise refused(connector, command, replies[command])
        self.redirect = Redirect(int(replies["CLIENT ID"]), run_id(replies["INFO"]))
        self._watchdog = Watchdog(self, f"{connector.label}, for invalidations", silence)

    def reauthenticate(self, credentials: Credentials, on_return: Callable[[], None]) -> None:
        """Send AUTH with new credentials. A subscriber may not send AUTH, so it unsubscribes for a moment and misses
        invalidations; ``on_return`` is called once it has subscribed again."""
        self._on_return.append(on_return)
        self._transport.write(_UNSUBSCRIBE + packed(b"AUTH", *credentials) + _SUBSCRIBE)

    def _unsolicited(self, reply: Any, now: float) -> None:
        self._pinged = None
        if isinstance(reply, list) and len(reply) == 3 and reply[0] == b"message":
            self._on_push([b"invalidate", reply[2]], now)
        elif is_error(reply) and self._on_return:  # else it is the reply to a PING, for which an error will do
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
