"""One server: keeps a connection to it, asks what leases ask, and tells what becomes of it."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable
from typing import Any, Protocol

from ..core.clock import ServerClock
from ..core.lease import Lease
from ..core.operations import EXTEND, FORCE, RELEASE, TAKE_TTL, Operation
from ..core.pace import Pace
from ..core.room import Room
from ..core.rules import LossReason
from ..errors import ConfigurationError, GoneError, ServerError
from ..options import Options
from .background import Loop
from .capabilities import probe, tracking_on
from .commands import Capabilities, Commands, error_of, is_error, packed, pxat, seconds_of, split, unbulk
from .connection import Connection
from .connector import Connector
from .credentials import Credentials
from .invalidations import Invalidations
from .noloop import Report, Vigil
from .owed import OwedReleases
from .quarantine import Quarantine
from .replicas import Replicas
from .requests import NO_MEMORY, REPLIES, Ignored, OwedRelease, ReadAgain, Reauthentication, Request, TimeRequest
from .violations import unexpected
from .watchdog import Watchdog, silence_of

log = logging.getLogger("asynclock")
log.addHandler(logging.NullHandler())  # silent unless the application sets logging up

_TIME = packed(b"TIME")
_ASKING = packed(b"ASKING")
FIRST_PAUSE = 0.01  # seconds between attempts to reconnect; then twice as long
MIN_PAUSE = 0.1  # ... up to this at least, however short the validity; and up to the door's max_pause at most
SETTLED = 1.0  # seconds after which a connection that was made has lasted: the next attempt has no pause before it
OWED_PATIENCE = 1.0  # seconds for which closing waits for releases that are refused
FULL_FOR = 5.0  # seconds of want of memory after which acquiring is given up, rather than waited for
FULL_CHECK = 1.0  # seconds until a full server is asked in the usual way again
FULL_AGAIN = 3.0  # seconds without one after which it is another one


class Listener(Protocol):
    """Whoever is told what happens to a server."""

    def invalidated(self, node: Node, key: bytes, now: float) -> None: ...
    def suspect(self, node: Node, cause: LossReason | None) -> None:
        """Every key may have changed; what is missing is put down to that cause."""

    def reconnected(self, node: Node) -> None:
        """Connected, or giving votes again. Nothing is tracked yet; what was pushed meanwhile is lost."""

    def gone(self, node: Node) -> None:
        """Disconnected, a new connection was refused, and the grace is over."""

    def shut_out(self, node: Node) -> None:
        """Disconnected, and the server will not have this client again (``node.problem``)."""

    def disconnected(self, node: Node) -> None:
        """The connection is lost; what becomes of it is told later."""

    def in_use(self) -> bool:
        """Does anybody hold a lock, or wait for one?"""

    def redirected(self, request: Request | OwedRelease, error: str) -> bool:
        """A cluster's node answered that the key is, or is becoming, another's. True: it was asked there."""


class Node:
    """One server. State: ``connection`` is the connection that is ready for use, or None while there is none.

    Invariant: while ``connection`` is None and the node is started and not closed, ``connecting`` is
    under way, and ends only with a new wire, with ``aclose``, or at the first connection with what is refused for good.
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
        self.now = clock
        self.label = connector.label
        self.connector = connector
        self.redact = connector.redact
        self.commands = Commands(Capabilities(), options.key_validity)
        self.capabilities = Capabilities()
        self.connection: Connection | None = None
        self.replicas: Replicas | None = None  #: with min_replicas: who waits for them, as long as there is a wire
        self.first: asyncio.Future[ServerError | ConfigurationError | None]  #: what start returned
        self.alone = False  #: it must not be part of a cluster: the others are not
        self.connecting = Loop(f"asynclock connecting to {self.label}", self._try_to_connect, self._not_connected)
        self.pace = Pace()  #: what pushes have been worth of late
        self.owed = OwedReleases(clock, options.key_validity, self._send_owed)
        self._problem: ServerError | None = None  # why there is no connection, once that is known
        self._second: Invalidations | None = None  # without RESP3, the wire's companion
        self._rotated: Credentials | None = None  # credentials that came while a connection was being set up
        self._hear_no_more: Callable[[], None] = lambda: None
        self._options = options
        self._listener = listener
        self._quarantines = quarantine  # does a server that has just been started give no votes?
        self._quarantine = Quarantine(clock, options.key_validity, self._quarantine_over)
        self._clock = ServerClock(options.key_validity)
        self._clock_asked = False
        self._millisecond = -1  # the one in which ``_expiry_then`` was worked out; -1: anew
        self._expiry_then = b""
        self._room_again: asyncio.TimerHandle | None = None  # when it may have memory again
        self._full_since = self._full_at = float("-inf")  # want of memory: from the first refusal to the last
        self._watchdog: Watchdog | None = None  # ... and of what NOLOOP may hide, as long as there is a wire:
        self._vigil: Vigil | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._up_since = float("-inf")
        self._down_since = 0.0
        self._pause = 0.0  # before the first attempt to reconnect
        self._flushes: asyncio.TimerHandle | None = None  # when those that were not told at once are told
        self._told_gone = False
        self.closed = False
        self._silence = silence_of(options.key_validity, options.extend_interval)
        # Often enough that a lock that was due for its extension is reached before it is over.
        self._max_pause = min(connector.max_pause, max(MIN_PAUSE, (options.key_validity - options.extend_interval) / 4))

    def __repr__(self) -> str:
        return f"<Node {self.label} {'closed' if self.closed else 'up' if self.connection else 'down'}>"

    # Connecting

    def start(self) -> asyncio.Future[ServerError | ConfigurationError | None]:
        """Connect, and try again until it works or the node is closed. The future tells how the
        first try went; a ConfigurationError ends the trying."""
        self.first = asyncio.get_running_loop().create_future()
        self._down_since = self.now()
        self._hear_no_more = self.connector.on_credentials(self._credentials)
        self.connecting.start()
        return self.first

    @property
    def trouble(self) -> ServerError | None:
        """Why this server gives no votes now, if that is so."""
        if self.connection is None:
            problem = self._problem or ServerError(self.label, "disconnected, and being reconnected")
            return problem.copy()
        if self.connection.slow:
            return ServerError(
                self.label, f"is slow to answer: for more than {self._silence:g} s, and asked no more until then"
            )
        if self.connection.full:
            return ServerError(self.label, "does not read what is sent to it; does the server hang?")
        left = self._quarantine.until - self.now()
        if left > 0:
            return ServerError(
                self.label,
                f"was started a moment ago and may have forgotten votes: it gives no new ones for {left:.1f} s "
                "(restart_quarantine)",
            )
        return None if self.replicas is None else self.replicas.trouble

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        self._rotated = None  # from here on, the provider itself is asked
        try:
            writer = await self.connector.open()
        finally:
            self.label = self.connector.label  # behind Sentinels, perhaps another server's
        connection = Connection(
            writer, loop, self.now, on_push=self._pushed, on_lost=self._lost, on_drained=self._drained
        )
        second: Invalidations | None = None
        try:
            async with asyncio.timeout(self.connector.timeout):
                if self.connector.protocol == 2 and self._options.client_side_caching:
                    second = await Invalidations.open(self.connector, connection, self._pushed, self._silence)
                self.capabilities = await probe(
                    self.connector,
                    connection.call,
                    self._options,
                    self._clock,
                    self.now,
                    redirect=None if second is None else second.redirect,
                    uptime=self._quarantines,
                )
                if self.alone and self.capabilities.mode == "cluster":
                    raise ServerError(
                        self.label,
                        "is part of a cluster, and the other servers are not; give a cluster's nodes, or "
                        "independent servers",
                        lasting=True,
                    )
                self.commands = Commands(self.capabilities, self._options.key_validity)
                if self._options.min_replicas:
                    self.replicas = await Replicas.open(
                        self.connector,
                        connection,
                        self._plain_commands(),
                        self._options,
                        self.now,
                        cluster=self.capabilities.mode == "cluster",
                        nudge=self._ask_time,
                        silence=self._silence,
                    )
        except BaseException as error:
            connection.abort()  # and the others with it
            if isinstance(error, TimeoutError):
                raise ServerError(self.label, f"no answer within {self.connector.timeout:g} s") from None
            if isinstance(error, ConnectionResetError):
                if self.connector.hung_up():
                    return await self._connect()
                why = f": {connection.problem}" if connection.problem else ""
                gone = ServerError if connection.problem else GoneError  # who says what cannot be understood is there
                raise gone(self.label, f"the connection was closed while it was set up{why}") from None
            if not isinstance(error, Exception) or isinstance(error, ServerError | ConfigurationError):
                raise
            # Whatever a server or proxy may say that nobody has thought of: trying must not end with it.
            raise ServerError(self.label, f"cannot be set up: {type(error).__name__}: {self.redact(error)}") from error
        if connection.closed.done():
            gone = ServerError if connection.problem else GoneError
            raise gone(self.label, "the connection was closed as soon as it was set up")
        self._clock_asked = False
        self._millisecond = -1
        self._second = second
        self._problem = None
        self._quarantine.connected(self.label, self.capabilities.run_id, self.capabilities.started)
        if self._rotated is not None:
            self._reauthenticate(connection, self._rotated)
        return connection

    def _quarantine_over(self) -> None:
        if self.connection is not None:
            self._listener.reconnected(self)

    def _credentials(self, credentials: Credentials) -> None:
        """The credentials have changed: log in anew, or, if a connection is being set up, after that."""
        self._rotated = credentials
        if self.connection is not None and not self.closed:
            self._reauthenticate(self.connection, credentials)

    def _reauthenticate(self, connection: Connection, credentials: Credentials) -> None:
        def missed() -> None:
            if self.connection is connection:
                self._listener.reconnected(self)

        self._rotated = None
        self.connector.renewed(credentials)
        connection.send(packed(b"AUTH", *credentials), Reauthentication(connection.abort, self.redact), 1, self.now())
        if self._second is not None:
            self._second.reauthenticate(credentials, missed)
        if self.replicas is not None:
            self.replicas.reauthenticate(credentials)

    async def _try_to_connect(self) -> float | None:
        """One try. Returns the seconds until the next one; None: connected, or refused for good."""
        if self.connection is not None:
            return None
        try:
            connection = await self._connect()
        except ConfigurationError as error:
            # Later on it is a setting that was accepted before: whatever has changed may change again.
            if self._up_since < 0 and not self.first.done():
                self.first.set_result(error)
                return None
            self._not_connected(ServerError(self.label, str(error)))
        except ServerError as error:
            self._not_connected(error)
        else:
            if self.closed:
                connection.abort()
                return None
            self._connected(connection)
            return None
        if self.closed:
            return None
        self._pause = self._longer(self._pause)
        return self._jittered_pause()

    def _jittered_pause(self) -> float:
        return self._pause * (0.5 + random.random() / 2)

    def _not_connected(self, error: Exception) -> None:
        """Why that is so, for whoever asks: those who wait for the first connection, for a lock, or hold one."""
        if not isinstance(error, ServerError):
            # Whatever nobody has thought of: trying must not end with it.
            error = ServerError(self.label, f"cannot be set up: {type(error).__name__}: {self.redact(error)}")
        known = self._problem is not None and str(self._problem) == str(error)
        self._problem = error
        if not self.first.done():
            self.first.set_result(error)
        elif not known:
            log.warning("asynclock: not connected, still trying: %s", error)
        if isinstance(error, GoneError):
            self._missing()
        if error.lasting:
            self._listener.shut_out(self)

    def _connected(self, connection: Connection) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        log.info("asynclock: connected to %s", self.label)
        self.connection = connection
        self._up_since = self.now()
        self._watchdog = Watchdog(connection, self.label, self._silence)
        if self.capabilities.noloop:
            self._vigil = Vigil(
                connection,
                self.label,
                self.capabilities.report or Report(),
                self._listener.in_use,
                self._may_have_hidden,
            )
        try:
            self.owed.send_all()
            if not self.first.done():
                self.first.set_result(None)
            self._listener.reconnected(self)
        except BaseException:
            connection.abort()  # some were not told that it is back: the next connection tells them
            raise

    def _longer(self, pause: float) -> float:
        return min(max(FIRST_PAUSE, pause * 2), self._max_pause)

    def _drained(self) -> None:
        """The server reads again, before it counted as dead: what could not be asked meanwhile can be now."""
        if self.connection is not None:
            self.owed.send_all()
            self._listener.reconnected(self)

    def _may_have_hidden(self) -> None:
        """With NOLOOP, this server may have evicted keys or dropped them from its tracking table in silence."""
        connection = self.connection
        if connection is None:
            return
        if self._options.no_loop_tracking is None:
            log.info("asynclock: %s evicts keys, or tracks too many: without NOLOOP from now on", self.label)
            self._can(self.capabilities._replace(noloop=False))
            self._stop_vigil()
            redirect = None if self._second is None else self._second.redirect
            connection.send(tracking_on(redirect, noloop=False), Ignored(), 1, self.now())
        self._listener.suspect(self, None)

    def _stop_vigil(self) -> None:
        if self._vigil is not None:
            self._vigil.stop()
            self._vigil = None

    def _stop_watching(self) -> None:
        self._stop_vigil()
        if self._watchdog is not None:
            self._watchdog.stop()
            self._watchdog = None

    def _missing(self) -> None:
        """A reconnect has shown it: the server is gone, now or when the grace is over."""
        if self._told_gone or self._grace is not None:
            return
        left = self._down_since + self._options.disconnect_grace - self.now()
        if left <= 0:
            self._grace_over()
        else:
            self._grace = asyncio.get_running_loop().call_later(left, self._grace_over)

    def _grace_over(self) -> None:
        self._grace = None
        if self.connection is None and not self.closed:
            self._told_gone = True
            self._listener.gone(self)

    def _lost(self, connection: Connection, error: Exception | None) -> None:
        if connection is not self.connection:
            return  # it never was ready: whoever sets it up is told by its calls
        self.connection = None
        self._stop_watching()
        if self._room_again is not None:
            self._room_again.cancel()
            self._room_again = None
        if self.closed:
            return
        self._down_since = self.now()
        # One that did not last is as good as an attempt that failed.
        self._pause = 0.0 if self._down_since - self._up_since > SETTLED else self._longer(self._pause)
        self._told_gone = False
        self._problem = None
        if connection.problem is not None:  # dropped from this side
            self._problem = ServerError(
                self.label, f"the connection was lost, and is being made anew: {connection.problem}"
            )
        log.info("asynclock: lost the connection to %s (%s), reconnecting", self.label, error or "closed by the server")
        self.connecting.start(self._jittered_pause())
        self._listener.disconnected(self)

    # Asking

    def request(self, room: Room[Any], lease: Lease, index: int, operation: Operation, now: float) -> bool:
        """As ``core.room.Port.request``."""
        connection = self.connection
        key = room.keys[index]
        if connection is None or connection.full or (connection.slow and operation <= FORCE):
            if operation is RELEASE:
                self.owed.owe(key, lease.token)
            return False
        if self._quarantine.until and operation <= FORCE:  # asks for a new vote: an old one may be forgotten here
            return False
        expiry = self._expiry(now, operation) if operation <= EXTEND else b""
        data = self.commands.packers[operation](key, lease.token, expiry)
        connection.send(data, Request(self, room, lease, index, operation, now), REPLIES[operation], now)
        return True

    def _expiry(self, now: float, operation: Operation) -> bytes:
        """The argument for a key that expires one validity after ``now``, and up to a millisecond later."""
        millisecond = int(now * 1000)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            self._expiry_then = self.commands.px
            if self.capabilities.pxat:
                clock = self._clock
                # Not for a waiter, who tries whenever the holder extends, and mostly in vain.
                if operation is not TAKE_TTL and clock.due(now) and not self._clock_asked:
                    self._ask_time()
                if clock.usable(now):
                    then = clock.at_most((millisecond + 1) / 1000) + self._options.key_validity
                    self._expiry_then = pxat(math.ceil(then * 1000))
        return self._expiry_then

    def _send_on(
        self, connection: Connection, request: Request | OwedRelease, now: float, asking: bool = False
    ) -> None:
        operation = request.operation
        expiry = self._expiry(now, operation) if operation <= EXTEND else b""
        data = self.commands.packers[operation](request.key, request.token, expiry)
        replies = REPLIES[operation]
        if asking:
            data = b"".join([_ASKING + command for command in split(data)])
            replies *= 2
        connection.send(data, request, replies, now)

    def take_on(self, request: Request | OwedRelease, asking: bool) -> None:
        """A request that another node of the cluster has sent here, because the key is, or is becoming
        (``asking``), this one's."""
        now = self.now()
        connection = self.connection
        if connection is None:
            request.fail(ServerError(self.label, "not connected yet, and the key has moved there"), now, self)
        else:
            request.again(self, now, asking)
            self._send_on(connection, request, now, asking)

    def scripts_are_gone(self, request: Request | OwedRelease) -> None:
        """``SCRIPT FLUSH``. From now on the scripts are told each time, in case somebody does that often."""
        self._can(self.capabilities._replace(evalsha=False))
        self.take_on(request, isinstance(request, Request) and request.asking)

    def _can(self, capabilities: Capabilities) -> None:
        """That is what this server can do from now on."""
        self.capabilities = capabilities
        self.commands = Commands(self.capabilities, self._options.key_validity)

    def _plain_commands(self) -> Commands:
        return Commands(self.capabilities._replace(evalsha=False), self._options.key_validity)

    def is_full(self, request: Request) -> None:
        """``SET ... IFEQ`` wants memory for the value that it writes, ``PEXPIRE`` does not. For a while, since it
        would be refused again and again."""
        self._can(self.capabilities._replace(set_ifeq=False))
        if self._room_again is None:
            self._room_again = asyncio.get_running_loop().call_later(FULL_CHECK, self._maybe_room_again)
        self.take_on(request, request.asking)

    def _maybe_room_again(self) -> None:
        """The script costs more, and is not allowed to everybody."""
        self._room_again = None
        if self.connection is not None:
            self._can(self.capabilities._replace(set_ifeq=True))

    def error_of(self, command: str, room: Room[Any], index: int, reply: Any, now: float) -> ServerError | None:
        """What an error reply means; ``None``: nothing, the key just holds something that is not a string."""
        passes = True
        if str(reply).startswith(NO_MEMORY):
            # A server that cannot evict fast enough has room in a moment; one that is just full has not.
            if now > self._full_at + FULL_AGAIN:
                self._full_since = now
            self._full_at = now
            passes = now < self._full_since + FULL_FOR
        return error_of(self.label, command, self.key_text(room, index), reply, self.redact(reply), passes=passes)

    def freed(self, key: bytes, now: float) -> None:
        """That key was released late. With NOLOOP nobody here is told, and somebody may wait for it."""
        self._listener.invalidated(self, unbulk(key), now)

    def release(self, key: bytes, token: bytes) -> None:
        """Release a key on behalf of a node that is no more."""
        self.owed.owe(key, token)
        if self.connection is not None:
            self.owed.send_all()

    def _send_owed(self, key: bytes, token: bytes, until: float) -> bool:
        if self.connection is None or self.connection.full:
            return False
        self._send_on(self.connection, OwedRelease(self, key, token, until), self.now())
        return True

    def read_again(self, request: Request) -> None:
        if self.connection is None:
            request.unconfirmed(ServerError(self.label, "the connection was lost"))
        else:
            now = self.now()
            get = packed(b"GET", unbulk(request.key))
            if request.asking:
                self.connection.send(_ASKING + get, ReadAgain(request), 2, now)
            else:
                self.connection.send(get, ReadAgain(request), 1, now)

    def _ask_time(self) -> None:
        if self.connection is not None:
            now = self.now()
            self._clock_asked = True
            self.connection.send(_TIME, TimeRequest(self, now), 1, now)

    def doubt_clock(self) -> None:
        """Set no absolute expiry until the server's clock was read again."""
        self._clock.forget()
        self._millisecond = -1

    @property
    def extends_by_set(self) -> bool:
        return self.capabilities.set_ifeq

    def demoted(self, why: str = "the server has become a read-only replica") -> None:
        """It is the primary no more: whoever is that now is behind the same door."""
        if self.connection is not None:
            self.connection.abort(ConnectionError(why))

    def redirected(self, request: Request | OwedRelease, error: str) -> bool:
        return self._listener.redirected(request, error)

    def observe_clock(self, sent: float, reply: Any, now: float) -> None:
        self._clock_asked = False
        self._millisecond = -1
        if not is_error(reply):
            try:
                seconds = seconds_of(reply)
            except ValueError:
                raise unexpected("the answer to TIME", reply) from None
            self._clock.observe(sent, seconds, now)

    def silent(self, now: float, seconds: float) -> bool:
        """Have answers been missing for so long?"""
        connection = self.connection
        return connection is None or (bool(connection.waiting) and now - connection.heard > seconds)

    def key_text(self, room: Room[Any], index: int) -> str:
        return f"{self._options.key_prefix}:{index}:{room.name}"

    # Hearing

    def _pushed(self, push: list[Any], now: float) -> None:
        """:raises ViolationError: it is an invalidation, but not of keys"""
        if len(push) > 1 and push[0] == b"invalidate":
            keys = push[1]
            if keys is None:
                # Now: answers that come right after it say what is gone, not why.
                if self._flushes is None:
                    after = self.pace.flushed(now)
                    if after:
                        self._flushes = asyncio.get_running_loop().call_later(after, self._tell_of_flushes)
                    else:
                        self._listener.suspect(self, LossReason.FLUSHED)
                return
            if type(keys) is not list:
                raise unexpected("what an invalidation names", keys)
            for key in keys:
                if type(key) is not bytes:
                    raise unexpected("a key in an invalidation", key)
                self._listener.invalidated(self, key, now)

    def _tell_of_flushes(self) -> None:
        self._flushes = None
        if self.connection is not None:  # else every key is looked at anyway, once it is back
            self._listener.suspect(self, LossReason.FLUSHED)

    @property
    def in_order(self) -> bool:
        """Do pushes and answers come over one connection, in the order of what happened?"""
        return self.connector.protocol == 3 and self.replicas is None and self.capabilities.mode != "cluster"

    # Closing

    def _stop(self) -> None:
        self.closed = True
        self._hear_no_more()
        self.owed.close()
        self._quarantine.close()
        for handle in (self._grace, self._flushes, self._room_again):
            if handle is not None:
                handle.cancel()
        self._stop_watching()

    def drop(self) -> bool:
        """As ``topology.base.Topology.drop``."""
        self._stop()
        connection = self.connection
        if connection is not None:
            connection.close()
            abort = asyncio.get_running_loop().call_later(self._options.try_next_after, connection.abort)
            connection.closed.add_done_callback(lambda _: abort.cancel())
        return self.connecting.drop()

    async def aclose(self) -> None:
        """Send what there is, and close. Takes no longer than ``try_next_after`` for a server that hangs, and
        ``OWED_PATIENCE`` for one that refuses to release."""
        if self.connection is not None:
            await self.owed.wait_empty(OWED_PATIENCE)
        self._stop()
        await self.connecting.aclose()
        connection = self.connection
        if connection is not None:
            connection.close()
            await asyncio.wait([connection.closed], timeout=self._options.try_next_after)
            if not connection.closed.done():
                connection.abort()
                await connection.closed
        if self.replicas is not None:
            await self.replicas.aclose()
        if self._second is not None:
            self._second.abort()
            await self._second.closed
        await self.connector.aclose()
