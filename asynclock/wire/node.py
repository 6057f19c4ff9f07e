"""One server: keeps a session with it, sends what leases request, and reports what becomes of the server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from ..core.fencing import NOT_OURS
from ..core.lease import Lease
from ..core.operations import KEEP, Operation
from ..core.pace import Pace
from ..core.port import Requests
from ..core.reasons import LossReason
from ..core.room import Room
from ..core.rules import NEVER
from ..errors import ConfigurationError, GoneError, ServerError
from ..messages import about
from ..options import Options
from .awaiting import Passing
from .background import Loop
from .backoff import Backoff
from .commands import Capabilities, Commands, error_of, key_text, packed, split, unbulk
from .connection import Connection
from .connector import Connector
from .credentials import Credentials, Rotation
from .expiry import stay
from .grace import Grace
from .owed import Owed, OwedReleases
from .quarantine import Quarantine
from .replicas import Replicas
from .requests import (
    NO_MEMORY,
    Count,
    KeyRead,
    OwedRelease,
    Peek,
    ReadAgain,
    Redirectable,
    Request,
    Times,
    TimesRead,
)
from .sending import Sending
from .session import Session, unforeseen
from .violations import unexpected

log = logging.getLogger("asynclock")
log.addHandler(logging.NullHandler())  # silent unless the application sets logging up

_ASKING = packed(b"ASKING")
FIRST_PAUSE = 0.01  # seconds between attempts to reconnect; then twice as long, up to
MAX_PAUSE = 0.1  # ... or more, where the validity allows it, but never more than ``Connector.max_pause``
LASTED = 1.0  # seconds: after the loss of a session that lived longer, the reconnect starts without a pause


class Listener(Protocol):
    """Is notified of what happens to a server."""

    def invalidated(self, key: bytes, now: float) -> None:
        """The server has pushed an invalidation: this key has changed, or may have."""

    def suspect(self, node: Node, cause: LossReason | None) -> None:
        """Any key may have changed. ``cause`` is the loss reason for keys that turn out to be missing."""

    def clock_was_set(self, node: Node) -> None:
        """The server's clock was set: keys expire at another time than thought."""

    def reconnected(self, node: Node) -> None:
        """Connected, or giving votes again. No key is tracked yet; pushes may have been missed."""

    def gone(self, node: Node) -> None:
        """Disconnected, a new connection was refused, and the grace period is over."""

    def lasting_failure(self) -> None:
        """Disconnected, and the server refuses this client in a way that retrying cannot help (``Node.trouble``)."""

    def connected(self, node: Node, after: float) -> None:
        """A connection was made, ``after`` seconds after the last one was lost (NEVER: it is the first). Called before
        ``reconnected``."""

    def disconnected(self, node: Node, why: str) -> None:
        """The connection is lost. ``reconnected``, ``gone`` or ``lasting_failure`` may follow."""

    def in_use(self) -> bool:
        """Does any task hold a lock, or wait for one?"""

    def redirected(self, request: Redirectable, error: str) -> bool:
        """A cluster's node has answered MOVED or ASK. True: the request was sent to the node that was named."""


class Node(Requests):
    """One server of a locker, from ``start`` to ``aclose``: it connects, serves requests, loses the connection, and
    reconnects.

    Invariant: ``session`` is set while the server is connected and may be used, and None otherwise. While it is None,
    and the node is started and not closed, ``connecting`` is under way. It ends with a new session, with ``aclose``, or
    with a ``ConfigurationError`` at the first attempt.
    """

    def __init__(
        self,
        connector: Connector,
        options: Options,
        listener: Listener,
        clock: Callable[[], float],
        *,
        quarantine: bool = False,
    ) -> None:
        """:param quarantine: does a server that was just started give no votes for a while?"""
        self.connector = connector
        connector.introduce_as(options.owner_or_default())
        self.label = connector.label  #: behind Sentinels it changes with the server
        self.options = options
        self.clock = clock
        self._listener = listener
        self._by_replicas = options.min_replicas > 0
        self.no_cluster = (
            False  #: set by ``connect``: it must not be part of a cluster, since the other servers are not
        )

        # The life of the node: start, connect, lose, reconnect, close.
        self.session: Session | None = None
        self.connecting = Loop(f"asynclock connecting to {self.label}", self._try_to_connect, self._not_connected)
        self.first: asyncio.Future[ServerError | ConfigurationError | None]  #: what ``start`` has returned
        self.closed = False
        self._problem: ServerError | None = None  # why it is not connected, once that is known
        self._lost_at = NEVER  # when the last connection was lost, until there is another
        self._lost_session: Session | None = None  # the last one that was lost: its connections may still be closing

        # What outlives a session, each the owner of its own state.
        # (Pauses are short enough to reach a lock that was due for its extension before it expires.)
        longest = max(MAX_PAUSE, (options.key_validity - options.extend_interval) / 4)
        self._backoff = Backoff(FIRST_PAUSE, min(connector.max_pause, longest))
        self._grace = Grace(options.disconnect_grace, clock)
        self._rotation = Rotation()
        self._quarantine = Quarantine(clock, options.key_validity, enabled=quarantine)
        self.pace = Pace()  #: how useful the server's recent pushes were
        self.owed = OwedReleases(clock, options.key_validity, self._send_owed)

    def __repr__(self) -> str:
        return f"<Node {self.label} {'closed' if self.closed else 'up' if self.session else 'down'}>"

    @property
    def connection(self) -> Connection | None:
        """The connection that may be used; None: there is none now."""
        return None if self.session is None else self.session.connection

    @property
    def capabilities(self) -> Capabilities:
        """What the connected server can do."""
        return Capabilities() if self.session is None else self.session.capabilities

    @property
    def trouble(self) -> ServerError | None:
        """Why this server gives no votes now; None: it does."""
        if self.session is None:
            problem = self._problem or ServerError(self.label, "disconnected; reconnecting")
            return problem.copy()
        return self._quarantine.trouble(self.label) or self.session.trouble

    # Connect

    def start(self) -> asyncio.Future[ServerError | ConfigurationError | None]:
        """Connect, and retry until it succeeds or the node is closed. The future has the outcome of the first attempt;
        a ConfigurationError ends the retries."""
        self.first = asyncio.get_running_loop().create_future()
        self._grace.lost()
        self._rotation.start(self.connector.on_credentials, self._reauthenticate)
        self.connecting.start()
        return self.first

    async def _try_to_connect(self) -> float | None:
        """One attempt. Returns the seconds until the next one; None: connected, or refused for good."""
        if self.session is not None:
            return None
        try:
            session = await self._open_session()
        except ConfigurationError as error:
            if not self.first.done():
                self.first.set_result(error)
                return None
            # Not at the first attempt: what has changed since may change back, so retry.
            self._not_connected(ServerError(self.label, str(error)))
        except ServerError as error:
            self._not_connected(error)
        else:
            if self.closed:
                session.connection.abort()
            else:
                self._connected(session)
            return None
        return None if self.closed else self._backoff.next()

    async def _open_session(self) -> Session:
        self._rotation.connecting()
        try:
            session = await Passing(
                Session.open(
                    self.connector,
                    self.options,
                    self.clock,
                    self.pace,
                    uptime=self._quarantine.enabled,
                    on_push=self._pushed,
                    on_lost=self._lost,
                    on_drained=self._drained,
                )
            )
        finally:
            self.label = self.connector.label
        if self.no_cluster and session.capabilities.mode == "cluster":
            session.connection.abort()
            raise ServerError(
                self.label,
                "is part of a cluster, and the other servers are not; give a cluster's nodes, or independent servers",
                lasting=True,
            )
        return session

    def _connected(self, session: Session) -> None:
        after = NEVER if self._lost_at == NEVER else self.clock() - self._lost_at
        self._lost_at = NEVER
        log.info(
            "asynclock: connected to %s", self.label, extra=about("connected", server=self.label, again=after != NEVER)
        )
        self.session = session
        self._problem = None
        self._lost_session = None
        self._grace.stop()
        try:
            run_id, started = session.capabilities.run_id, session.capabilities.started
            self._quarantine.connected(self.label, run_id, started, self._quarantine_over)
            session.watch(self._listener.in_use, self._may_have_hidden, self._clock_was_set)
            credentials = self._rotation.take()
            if credentials is not None:
                self._reauthenticate(credentials)
            self.owed.send_all()
            if not self.first.done():
                self.first.set_result(None)
            self._listener.connected(self, after)
            self._listener.reconnected(self)
        except BaseException:
            session.connection.abort()  # not every room was notified: the next session's ``reconnected`` does it
            raise

    def _not_connected(self, error: Exception) -> None:
        """An attempt has failed. Notify whoever waits for the first attempt, waits for a lock, or holds one."""
        if not isinstance(error, ServerError):
            error = unforeseen(self.connector, error)
        known = self._problem is not None and str(self._problem) == str(error)
        self._problem = error
        if not self.first.done():
            self.first.set_result(error)
        elif not known:
            log.warning(
                "asynclock: not connected, still trying: %s",
                error,
                extra=about("not_connected", server=error.server, error=error.problem),
            )
        if isinstance(error, GoneError):
            self._grace.refused(self._gone)
        if error.lasting:
            self._listener.lasting_failure()

    def _gone(self) -> None:
        self._listener.gone(self)

    # Serve

    def request(self, lease: Lease, index: int, operation: Operation, now: float) -> bool:
        """As ``core.port.Requests``."""
        session: Sending | None = self.session
        if session is not None:
            connection = session.connection
            pack, acquires, writes, replies = session.commands.facts[operation]
            if not (connection.full or (acquires and connection.slow)):
                # In quarantine it gives no new votes: it may have forgotten an old one.
                if acquires and self._quarantine.until:
                    return False
                connection.send(
                    pack(
                        lease.room.keys[index],
                        lease.token,
                        session.expiry.argument(now)
                        if writes
                        else (stay(lease.keep_until, now) if operation is KEEP else b""),
                    ),
                    Request(self, lease, index, operation, now, self._by_replicas),
                    replies,
                    now,
                )
                return True
        if operation.ends:
            self.owed.owe(Owed(lease.room.keys[index], lease.token, lease.keep_until))
        return False

    def peek(self, room: Room[Any], index: int, answered: KeyRead) -> None:
        """Read a key to see who holds the lock. If the node is not connected, ``answered`` gets an error, at once."""
        session = self.session
        if session is None or self.closed or session.connection.full:
            answered(self.label, None, None, self.trouble or ServerError(self.label, "disconnected; reconnecting"))
        else:
            self._send(session, Peek(self, room, index, answered), self.clock())

    def count(
        self,
        lease: Lease,
        index: int,
        counter: bytes,
        floor: int,
        answered: Callable[[int, ServerError | None], None],
    ) -> None:
        """Ask the counter of a key, as ``Count``. If the node is not connected, the answer is an error, at once."""
        session = self.session
        if session is None or self.closed or session.connection.full:
            answered(NOT_OURS, self.trouble or ServerError(self.label, "disconnected; reconnecting"))
        else:
            self._send(session, Count(self, lease, index, counter, floor, answered), self.clock())

    def times(
        self, room: Room[Any], index: int, keys: list[bytes], marker: bytes, marks: bytes, answered: TimesRead
    ) -> None:
        """Ask how long these keys still live, as ``Times``. If the node is not connected, ``answered`` gets an error,
        at once."""
        session = self.session
        if session is None or self.closed or session.connection.full:
            answered([], None, self.trouble or ServerError(self.label, "disconnected; reconnecting"))
        else:
            self._send(session, Times(self, room, index, keys, marker, marks, answered), self.clock())

    def release(self, owed: Owed) -> None:
        """Release a key for a node that has left the cluster."""
        self.owed.owe(owed)
        if self.session is not None:
            self.owed.send_all()

    def resend(self, request: Redirectable, asking: bool) -> None:
        """Send a request that this or another node has sent before.

        :param asking: the key's slot is still being moved to this node (ASK)
        """
        now = self.clock()
        session = self.session
        if session is None:
            request.fail(ServerError(self.label, "the key has moved there, and it is not connected yet"), now, self)
        else:
            request.move_to(self, now, asking)
            self._send(session, request, now, asking)

    def _send_owed(self, owed: Owed, until: float) -> bool:
        session = self.session
        if session is None or session.connection.full:
            return False
        now = self.clock()
        self._send(session, OwedRelease(self, owed, until, now), now)
        return True

    def _send(self, session: Session, request: Redirectable, now: float, asking: bool = False) -> None:
        if isinstance(request, Count):
            data, replies = request.packed(), 1
        elif isinstance(request, Times):
            data, replies = request.packed()
        else:
            operation, expiry = request.operation, b""
            if operation.writes:
                expiry = session.expiry.argument(now)
            elif operation is KEEP and not isinstance(request, Peek):
                expiry = stay(request.keep_until, now)
            data = session.commands.packers[operation](request.key, request.token, expiry)
            replies = operation.replies
        if asking:
            data = b"".join([_ASKING + command for command in split(data)])
            replies *= 2
        session.connection.send(data, request, replies, now)

    def silent(self, now: float, seconds: float) -> bool:
        """Has a reply been awaited for more than ``seconds``? Also True if not connected."""
        session = self.session
        if session is None:
            return True
        connection = session.connection
        return bool(connection.waiting) and now - connection.heard > seconds

    def doubt_clock(self) -> None:
        """Set no absolute expiry until the server's clock is read again."""
        if self.session is not None:
            self.session.expiry.doubt()

    @property
    def in_order(self) -> bool:
        """Do pushes and replies share one connection, so that their order is the order of events?"""
        return self.session is not None and self.session.in_order

    # For requests, when their replies arrive (``requests.Sender``)

    @property
    def commands(self) -> Commands:
        assert self.session is not None  # its replies are being read
        return self.session.commands

    @property
    def replicas(self) -> Replicas | None:
        return None if self.session is None else self.session.replicas

    def redact(self, said: Any) -> str:
        return self.connector.redact(said)

    def error_of(self, command: str, room: Room[Any], index: int, reply: Any, now: float) -> ServerError | None:
        session, temporary = self.session, True
        if session is not None and str(reply).startswith(NO_MEMORY):
            temporary = session.memory.is_temporary(now)
        return error_of(self.label, command, key_text(room.keys[index]), reply, self.redact(reply), temporary=temporary)

    def redirected(self, request: Redirectable, error: str) -> bool:
        return self._listener.redirected(request, error)

    def scripts_are_gone(self, request: Request | OwedRelease) -> None:
        if self.session is not None:
            # Until the next session: somebody may run SCRIPT FLUSH often.
            self.session.change(evalsha=False)
        self.resend(request, isinstance(request, Request) and request.asking)

    def extend_without_memory(self, request: Request | OwedRelease) -> bool:
        if self.session is None or not self.session.avoid_set():
            return False
        self.resend(request, isinstance(request, Request) and request.asking)
        return True

    def read_again(self, request: Request) -> None:
        if self.session is None:
            request.unconfirmed(ServerError(self.label, "the connection was lost"))
        else:
            get, replies = packed(b"GET", unbulk(request.key)), 1
            if request.asking:
                get, replies = _ASKING + get, 2
            self.session.connection.send(get, ReadAgain(request), replies, self.clock())

    def freed(self, key: bytes, now: float) -> None:
        self._listener.invalidated(unbulk(key), now)

    def demoted(self, why: str = "the server has become a read-only replica") -> None:
        """The server is no longer the primary. Drop the connection: the connector finds the new primary."""
        if self.session is not None:
            self.session.connection.abort(ConnectionError(why))

    # What the session reports

    def _pushed(self, push: list[Any], now: float) -> None:
        """:raises ViolationError: it is an invalidation, but not of keys"""
        if len(push) > 1 and push[0] == b"invalidate":
            keys = push[1]
            if keys is None:
                if self.session is not None:  # else every key is checked once it is set
                    self.session.flushes.flushed(now, self._flushed)
                return
            if type(keys) is not list:
                raise unexpected("the list of keys in an invalidation", keys)
            for key in keys:
                if type(key) is not bytes:
                    raise unexpected("a key in an invalidation", key)
                self._listener.invalidated(key, now)

    def _flushed(self) -> None:
        self._listener.suspect(self, LossReason.FLUSHED)

    def _clock_was_set(self) -> None:
        self._listener.clock_was_set(self)

    def _may_have_hidden(self) -> None:
        self._listener.suspect(self, None)

    def _drained(self) -> None:
        """The connection is no longer ``full`` or ``slow``: send what had to wait."""
        if self.session is not None:
            self.owed.send_all()
            self._listener.reconnected(self)

    def _quarantine_over(self) -> None:
        if self.session is not None:
            self._listener.reconnected(self)

    def _reauthenticate(self, credentials: Credentials) -> bool:
        """Log in with new credentials. False: not connected."""
        session = self.session
        if session is None:
            return False

        def missed() -> None:
            if self.session is session:
                self._listener.reconnected(self)

        session.reauthenticate(credentials, missed)
        return True

    # Lose, and reconnect

    def _lost(self, connection: Connection, error: Exception | None) -> None:
        session = self.session
        if session is None or connection is not session.connection:
            return  # it was being set up: ``Session.open`` raises
        self.session = None
        session.stop()
        if self.closed:
            return
        self._lost_session = session
        self._grace.lost()
        # A session that did not last counts as an attempt that failed.
        if self.clock() - session.since > LASTED:
            self._backoff.reset()
            pause = 0.0
        else:
            pause = self._backoff.next()
        self._problem = None
        if connection.problem is not None:  # dropped from this side
            self._problem = ServerError(self.label, f"the connection was lost ({connection.problem}); reconnecting")
        self._lost_at = self.clock()
        why = str(connection.problem or error or "closed by the server")
        log.info(
            "asynclock: lost the connection to %s (%s), reconnecting",
            self.label,
            error or "closed by the server",
            extra=about("disconnected", server=self.label, error=why),
        )
        self.connecting.start(pause)
        self._listener.disconnected(self, why)

    # Close

    def drop(self) -> bool:
        """As ``topology.base.Topology.drop``."""
        self._close()
        self._lost_session = None
        connection = self.connection
        if connection is not None:
            connection.close()
            abort = asyncio.get_running_loop().call_later(self.options.try_next_after, connection.abort)
            connection.closed.add_done_callback(lambda _: abort.cancel())
        return self.connecting.drop()

    async def aclose(self) -> None:
        """Wait for the answers to what was sent, and close. Takes at most twice ``try_next_after`` if the server hangs,
        and ``owed.MAX_WAIT`` in addition if it refuses releases."""
        if self.session is not None:
            await Passing(self.session.wait_answered(self.options.try_next_after))
        if self.session is not None:
            await self.owed.wait_empty()
        self._close()
        await Passing(self.connecting.aclose())
        session = self.session or self._lost_session
        if session is not None:
            await Passing(session.aclose(self.options.try_next_after))
        self._lost_session = None
        await Passing(self.connector.aclose())

    def _close(self) -> None:
        self.closed = True
        self._rotation.stop()
        self.owed.close()
        self._quarantine.stop()
        self._grace.stop()
        if self.session is not None:
            self.session.stop()
