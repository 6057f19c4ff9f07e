"""One server: keeps a connection to it, asks what leases ask, and tells what becomes of it."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable
from typing import Any, Protocol

from ..core.clock import ServerClock
from ..core.lease import Lease
from ..core.room import Room
from ..core.rules import EXTEND, FORCE, RELEASE, TAKE_TTL, Ask
from ..errors import ConfigurationError, ServerError, UncertainError
from ..options import Options
from .abilities import learn
from .commands import Abilities, Commands, is_error, packed, pxat, seconds_of, split, unbulk
from .credentials import Words
from .door import Door
from .invalidations import Invalidations
from .protocol import Wire
from .replicas import Replicas
from .requests import REPLIES, OwedRelease, ReadAgain, Reauthentication, Request, TimeRequest
from .violations import unexpected

log = logging.getLogger("asynclock")
log.addHandler(logging.NullHandler())  # silent unless the application sets logging up

_TIME = packed(b"TIME")
_ASKING = packed(b"ASKING")
FIRST_PAUSE = 0.01  # seconds between attempts to reconnect; then twice as long, up to the door's max_pause
SETTLED = 1.0  # seconds after which a connection that was made has lasted: the next attempt has no pause before it
MAX_LAG = 0.05  # seconds by which a clock that runs on through a suspend may move against one that does not
MIN_SILENCE = 0.5  # seconds without an answer before a connection counts as dead, at least
MAX_SILENCE = 2.0  # ... and at most


class Listener(Protocol):
    """Whoever is told what happens to a server."""

    def pushed(self, node: Node, key: bytes, now: float) -> None: ...
    def flushed(self, node: Node) -> None:
        """Every key may have changed."""

    def reconnected(self, node: Node) -> None:
        """Connected, or giving votes again. Nothing is tracked yet; what was pushed meanwhile is lost."""

    def gone(self, node: Node) -> None:
        """Disconnected, a new connection was refused, and the grace is over."""

    def shut_out(self, node: Node) -> None:
        """Disconnected, and the server will not have this client again (``node.problem``)."""

    def disconnected(self, node: Node) -> None:
        """The connection is lost; what becomes of it is told later."""

    def slept(self, node: Node) -> None:
        """The machine was suspended: the loop's timers are late by that."""

    def redirected(self, request: Request | OwedRelease, error: str) -> bool:
        """A cluster's node answered that the key is, or is becoming, another's. True: it was asked there."""


class Node:
    """One server. State: ``wire`` is the connection that is ready for use, or None while there is none.

    Invariant: while ``wire`` is None and the node is started and not closed, ``_reconnecting`` is
    under way, and ends only with a new wire or with ``aclose``.
    """

    def __init__(
        self, door: Door, options: Options, listener: Listener, clock: Callable[[], float], *, quarantine: bool = False
    ) -> None:
        self.now = clock
        self.label = door.label
        self.door = door
        self.quote = door.quote
        self.commands = Commands(Abilities(), options.key_validity)
        self.abilities = Abilities()
        self.wire: Wire | None = None
        self.replicas: Replicas | None = None  #: with min_replicas: who waits for them, as long as there is a wire
        self.first: asyncio.Future[ServerError | ConfigurationError | None]  #: what start returned
        self.alone = False  #: it must not be part of a cluster: the others are not
        self.quarantined_until = 0.0  #: no new votes before that: it may have forgotten some
        self._problem: ServerError | None = None  # why there is no connection, once that is known
        self._second: Invalidations | None = None  # without RESP3, the wire's companion
        self._rotated: Words | None = None  # credentials that came while a connection was being set up
        self._hear_no_more: Callable[[], None] = lambda: None
        self._options = options
        self._listener = listener
        self._quarantine = quarantine  # does a server that has just been started give no votes?
        self._quarantine_end: asyncio.TimerHandle | None = None
        self._clock = ServerClock(options.key_validity)
        self._clock_asked = False
        self._millisecond = -1  # the one in which ``_expiry_then`` was worked out; -1: anew
        self._expiry_then = b""
        self._owed: dict[tuple[bytes, bytes], float] = {}  # (key, token) -> until when it is worth releasing
        self._reconnecting: asyncio.Task[None] | None = None
        self._patrol: asyncio.TimerHandle | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._struck = self._late = False
        self._lag = 0.0
        self._up_since = float("-inf")
        self._down_since = 0.0
        self._pause = 0.0  # before the first attempt to reconnect
        self._flushes = 0  # in this turn of the event loop
        self._told_gone = False
        self.closed = False
        # How long answers may be missing before the connection counts as dead: early enough to
        # reconnect and extend before a lock that was due for its extension is over.
        silence = (options.key_validity - options.extend_interval) / 2
        self._silence = min(max(MIN_SILENCE, silence), MAX_SILENCE)

    def __repr__(self) -> str:
        return f"<Node {self.label} {'closed' if self.closed else 'up' if self.wire else 'down'}>"

    # Connecting

    def start(self) -> asyncio.Future[ServerError | ConfigurationError | None]:
        """Connect, and try again until it works or the node is closed. The future tells how the
        first try went; a ConfigurationError ends the trying."""
        loop = asyncio.get_running_loop()
        self.first = first = loop.create_future()
        self._down_since = self.now()
        self._hear_no_more = self.door.on_credentials(self._credentials)
        self._reconnecting = loop.create_task(self._reconnect(first), name=f"asynclock connecting to {self.label}")
        return first

    @property
    def trouble(self) -> ServerError | None:
        """Why this server gives no votes now, if that is so."""
        if self.wire is None:
            problem = self._problem or ServerError(self.label, "disconnected, and being reconnected")
            return problem.again()
        if self.wire.slow:
            return ServerError(
                self.label, f"is slow to answer: for more than {self._silence:g} s, and asked no more until then"
            )
        if self.wire.full:
            return ServerError(self.label, "does not read what is sent to it; does the server hang?")
        left = self.quarantined_until - self.now()
        if left > 0:
            return ServerError(
                self.label,
                f"was started a moment ago and may have forgotten votes: it gives no new ones for {left:.1f} s "
                "(restart_quarantine)",
            )
        return None if self.replicas is None else self.replicas.trouble

    async def _connect(self) -> Wire:
        loop = asyncio.get_running_loop()
        self._rotated = None  # from here on, the provider itself is asked
        try:
            writer = await self.door.open()
        finally:
            self.label = self.door.label  # behind Sentinels, perhaps another server's
        wire = Wire(writer, loop, self.now, on_push=self._pushed, on_lost=self._lost, on_drained=self._drained)
        second: Invalidations | None = None
        try:
            async with asyncio.timeout(self.door.timeout):
                if self.door.protocol == 2 and self._options.client_side_caching:
                    second = await Invalidations.open(self.door, wire, self._pushed, self._silence)
                self.abilities = await learn(
                    self.door,
                    wire.call,
                    self._options,
                    self._clock,
                    self.now,
                    redirect=None if second is None else second.redirect,
                    uptime=self._quarantine,
                )
                if self.alone and self.abilities.mode == "cluster":
                    raise ServerError(
                        self.label,
                        "is part of a cluster, and the other servers are not; give a cluster's nodes, or "
                        "independent servers",
                        lasting=True,
                    )
                self.commands = Commands(self.abilities, self._options.key_validity)
                if self._options.min_replicas:
                    self.replicas = await Replicas.open(
                        self.door,
                        wire,
                        self._plain_commands(),
                        self._options,
                        self.now,
                        cluster=self.abilities.mode == "cluster",
                        nudge=self._ask_time,
                        silence=self._silence,
                    )
        except BaseException as error:
            wire.abort()  # and the others with it
            if isinstance(error, TimeoutError):
                raise UncertainError(self.label, f"no answer within {self.door.timeout:g} s") from None
            if isinstance(error, ConnectionResetError):
                why = f": {wire.problem}" if wire.problem else ""
                raise ServerError(self.label, f"the connection was closed while it was set up{why}") from None
            if not isinstance(error, Exception) or isinstance(error, ServerError | ConfigurationError):
                raise
            # Whatever a server or proxy may say that nobody has thought of: trying must not end with it.
            raise ServerError(self.label, f"cannot be set up: {type(error).__name__}: {self.quote(error)}") from error
        if wire.closed.done():
            raise ServerError(self.label, "the connection was closed as soon as it was set up")
        self._clock_asked = False
        self._millisecond = -1
        self._second = second
        self._problem = None
        self._begin_quarantine()
        if self._rotated is not None:
            self._reauthenticate(wire, self._rotated)
        return wire

    def _begin_quarantine(self) -> None:
        """A server that has restarted may have forgotten keys that still count elsewhere. When the
        last of them is over, so is its quarantine (Redlock's delayed restart)."""
        if self._quarantine_end is not None:
            self._quarantine_end.cancel()
            self._quarantine_end = None
        self.quarantined_until = 0.0
        started = self.abilities.started
        if self._quarantine and started is not None:
            left = started + self._options.key_validity - self.now()
            if left > 0:
                log.info("asynclock: %s was just started, and gives no votes for %.1f s", self.label, left)
                self.quarantined_until = self.now() + left
                self._quarantine_end = asyncio.get_running_loop().call_later(left, self._end_quarantine)

    def _end_quarantine(self) -> None:
        self._quarantine_end = None
        self.quarantined_until = 0.0
        if self.wire is not None:
            self._listener.reconnected(self)

    def _credentials(self, words: Words) -> None:
        """The credentials have changed: log in anew, or, if a connection is being set up, after that."""
        self._rotated = words
        if self.wire is not None and not self.closed:
            self._reauthenticate(self.wire, words)

    def _reauthenticate(self, wire: Wire, words: Words) -> None:
        def missed() -> None:
            if self.wire is wire:
                self._listener.reconnected(self)

        self._rotated = None
        self.door.renewed(words)
        wire.send(packed(b"AUTH", *words), Reauthentication(wire.abort, self.quote), 1, self.now())
        if self._second is not None:
            self._second.reauthenticate(words, missed)
        if self.replicas is not None:
            self.replicas.reauthenticate(words)

    async def _reconnect(self, first: asyncio.Future[ServerError | ConfigurationError | None] | None = None) -> None:
        pause = self._pause
        while True:
            if pause:
                await asyncio.sleep(pause * (0.5 + random.random() / 2))
            pause = self._longer(pause)
            try:
                wire = await self._connect()
            except ConfigurationError as error:
                assert first is not None, "a setting that was accepted before"
                if not first.done():
                    first.set_result(error)
                return
            except ServerError as error:
                known = self._problem is not None and str(self._problem) == str(error)
                self._problem = error
                if first is not None and not first.done():
                    first.set_result(error)
                elif not known:
                    log.warning("asynclock: not connected, still trying: %s", error)
                if not isinstance(error, UncertainError):
                    self._missing()
                if error.lasting:
                    self._listener.shut_out(self)
            else:
                break
            if self.closed:
                return
        if self.closed:
            wire.abort()
            return
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        log.info("asynclock: connected to %s", self.label)
        self.wire = wire
        self._up_since = self.now()
        self._reconnecting = None
        self._watch()
        self._release_owed()
        if first is not None and not first.done():
            first.set_result(None)
        self._listener.reconnected(self)

    def _longer(self, pause: float) -> float:
        return min(max(FIRST_PAUSE, pause * 2), self.door.max_pause)

    def _drained(self) -> None:
        """The server reads again, before it counted as dead: what could not be asked meanwhile can be now."""
        if self.wire is not None:
            self._release_owed()
            self._listener.reconnected(self)

    def _release_owed(self) -> None:
        owed, self._owed = self._owed, {}
        now = self.now()
        for (key, token), until in owed.items():
            if until > now:
                self.release(key, token)

    def _missing(self) -> None:
        """A reconnect was refused: the server is gone, now or when the grace is over."""
        if self._told_gone or self._grace is not None:
            return
        left = self._down_since + self._options.disconnect_grace - self.now()
        if left <= 0:
            self._grace_over()
        else:
            self._grace = asyncio.get_running_loop().call_later(left, self._grace_over)

    def _grace_over(self) -> None:
        self._grace = None
        if self.wire is None and not self.closed:
            self._told_gone = True
            self._listener.gone(self)

    def _lost(self, wire: Wire, error: Exception | None) -> None:
        if wire is not self.wire:
            return  # it never was ready: whoever sets it up is told by its calls
        self.wire = None
        if self._patrol is not None:
            self._patrol.cancel()
            self._patrol = None
        if self.closed:
            return
        self._down_since = self.now()
        # One that did not last is as good as an attempt that failed.
        self._pause = 0.0 if self._down_since - self._up_since > SETTLED else self._longer(self._pause)
        self._told_gone = False
        self._problem = None
        if wire.problem is not None:  # dropped from this side
            self._problem = ServerError(self.label, f"the connection was lost, and is being made anew: {wire.problem}")
        log.info("asynclock: lost the connection to %s (%s), reconnecting", self.label, error or "closed by the server")
        self._reconnecting = asyncio.get_running_loop().create_task(
            self._reconnect(), name=f"asynclock reconnecting to {self.label}"
        )
        self._listener.disconnected(self)

    # Asking

    def ask(self, room: Room[Any], lease: Lease, index: int, ask: Ask, now: float) -> bool:
        """As ``core.room.Port.ask``."""
        wire = self.wire
        key = room.keys[index]
        if wire is None or wire.full or (wire.slow and ask <= FORCE):
            if ask is RELEASE:
                self.owe(key, lease.token)
            return False
        if self.quarantined_until and ask <= FORCE:  # asks for a new vote: an old one may be forgotten here
            return False
        expiry = self._expiry(now, ask) if ask <= EXTEND else b""
        data = self.commands.packers[ask](key, lease.token, expiry)
        wire.send(data, Request(self, room, lease, index, ask, now), REPLIES[ask], now)
        return True

    def _expiry(self, now: float, ask: Ask) -> bytes:
        """The argument for a key that expires one validity after ``now``, and up to a millisecond later."""
        millisecond = int(now * 1000)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            self._expiry_then = self.commands.px
            if self.abilities.pxat:
                clock = self._clock
                # Not for a waiter, who tries whenever the holder extends, and mostly in vain.
                if ask is not TAKE_TTL and clock.due(now) and not self._clock_asked:
                    self._ask_time()
                if clock.usable(now):
                    then = clock.at_most((millisecond + 1) / 1000) + self._options.key_validity
                    self._expiry_then = pxat(math.ceil(then * 1000))
        return self._expiry_then

    def _send_on(self, wire: Wire, request: Request | OwedRelease, now: float, asking: bool = False) -> None:
        ask = request.ask
        expiry = self._expiry(now, ask) if ask <= EXTEND else b""
        data = self.commands.packers[ask](request.key, request.token, expiry)
        replies = REPLIES[ask]
        if asking:
            data = b"".join([_ASKING + command for command in split(data)])
            replies *= 2
        wire.send(data, request, replies, now)

    def take_on(self, request: Request | OwedRelease, asking: bool) -> None:
        """A request that another node of the cluster has sent here, because the key is, or is becoming
        (``asking``), this one's."""
        now = self.now()
        wire = self.wire
        if wire is None:
            request.fail(ServerError(self.label, "not connected yet, and the key has moved there"), now, self)
        else:
            request.again(self, now, asking)
            self._send_on(wire, request, now, asking)

    def scripts_are_gone(self, request: Request | OwedRelease) -> None:
        """``SCRIPT FLUSH``. From now on the scripts are told each time, in case somebody does that often."""
        self.commands = self._plain_commands()
        self.take_on(request, isinstance(request, Request) and request.asking)

    def _plain_commands(self) -> Commands:
        return Commands(self.abilities._replace(evalsha=False), self._options.key_validity)

    def owe(self, key: bytes, token: bytes) -> None:
        """Release ``key`` as soon as the server is back, unless it has expired by then."""
        if self.closed:
            return
        now = self.now()
        owed = self._owed
        while owed and next(iter(owed.values())) <= now:  # oldest first: all live as long
            del owed[next(iter(owed))]
        owed[key, token] = now + self._options.key_validity

    def leave_owed(self) -> list[tuple[bytes, bytes]]:
        """The (key, token) pairs that are still to be released; they are the caller's from now on."""
        owed, self._owed = self._owed, {}
        return list(owed)

    def release(self, key: bytes, token: bytes) -> None:
        """Release a key on behalf of a node that is no more."""
        if self.wire is None:
            self.owe(key, token)
        else:
            self._send_on(self.wire, OwedRelease(self, key, token), self.now())

    def read_again(self, request: Request) -> None:
        if self.wire is None:
            request.unconfirmed(ServerError(self.label, "the connection was lost"))
        else:
            now = self.now()
            get = packed(b"GET", unbulk(request.key))
            if request.asking:
                self.wire.send(_ASKING + get, ReadAgain(request), 2, now)
            else:
                self.wire.send(get, ReadAgain(request), 1, now)

    def _ask_time(self) -> None:
        if self.wire is not None:
            now = self.now()
            self._clock_asked = True
            self.wire.send(_TIME, TimeRequest(self, now), 1, now)

    def doubt_clock(self) -> None:
        """Set no absolute expiry until the server's clock was read again."""
        self._clock.forget()
        self._millisecond = -1

    def demoted(self, why: str = "the server has become a read-only replica") -> None:
        """It is the primary no more: whoever is that now is behind the same door."""
        if self.wire is not None:
            self.wire.abort(ConnectionError(why))

    def redirected(self, request: Request | OwedRelease, error: str) -> bool:
        return self._listener.redirected(request, error)

    def observe_clock(self, sent: float, reply: Any) -> None:
        self._clock_asked = False
        self._millisecond = -1
        if not is_error(reply):
            try:
                seconds = seconds_of(reply)
            except ValueError:
                raise unexpected("the answer to TIME", reply) from None
            self._clock.observe(sent, seconds)

    def silent(self, now: float, seconds: float) -> bool:
        """Have answers been missing for so long?"""
        wire = self.wire
        return wire is None or (bool(wire.waiting) and now - wire.heard > seconds)

    def key_text(self, room: Room[Any], index: int) -> str:
        return f"{self._options.key_prefix}:{index}:{room.name}"

    # Hearing

    def _pushed(self, push: list[Any], now: float) -> None:
        """:raises ViolationError: it is an invalidation, but not of keys"""
        if len(push) > 1 and push[0] == b"invalidate":
            keys = push[1]
            if keys is None:
                # The first is told now: answers that came right after it say what is gone, not why. Each is a look at
                # every lock, so there is one more for all the others that come at once.
                self._flushes += 1
                if self._flushes == 1:
                    asyncio.get_running_loop().call_soon(self._tell_of_flushes)
                    self._listener.flushed(self)
                return
            if type(keys) is not list:
                raise unexpected("what an invalidation names", keys)
            for key in keys:
                if type(key) is not bytes:
                    raise unexpected("a key in an invalidation", key)
                self._listener.pushed(self, key, now)

    def _tell_of_flushes(self) -> None:
        flushes, self._flushes = self._flushes, 0
        if flushes > 1:
            self._listener.flushed(self)

    def _watch(self) -> None:
        """Look after the connection from time to time: answers that are missing for too long mean
        that it is dead, whatever the kernel believes."""
        self._struck = self._late = False
        self._lag = self.now() - time.monotonic()
        self._patrol = asyncio.get_running_loop().call_later(self._silence / 2, self._look)

    def _look(self) -> None:
        wire = self.wire
        if wire is None:
            return
        lag = self.now() - time.monotonic()
        if lag - self._lag > MAX_LAG:
            self._listener.slept(self)
        self._lag = lag
        now = self.now()
        dead = bool(wire.waiting or wire.unfinished) and now - wire.heard > self._silence
        late = not wire.slow and now - wire.asked_at() > self._silence
        # Not at the first look: the loop may have been blocked, and the answers unread.
        if dead and self._struck:
            wire.abort(TimeoutError(f"no answer for {self._silence:g} s"))
            return
        if late and self._late:
            # New votes would come too late, and what is kept for each would be without a bound.
            if not wire.slow_since:
                log.warning("asynclock: %s is slow to answer, and is asked for no new votes until it has", self.label)
            wire.slow_down(now)
        elif wire.slow and wire.asked_at() > wire.slow_since:
            wire.catch_up()
        self._struck, self._late = dead, late
        again = self._silence / (8 if dead or late or wire.slow else 2)
        self._patrol = asyncio.get_running_loop().call_later(again, self._look)

    # Closing

    async def aclose(self) -> None:
        """Send what there is, and close. Takes no longer than ``try_next_after`` for a server that hangs."""
        self.closed = True
        self._hear_no_more()
        self._owed.clear()
        for handle in (self._patrol, self._grace, self._quarantine_end):
            if handle is not None:
                handle.cancel()
        task, self._reconnecting = self._reconnecting, None
        if task is not None:
            while not task.done():  # on Python 3.11 one may get lost (cancellation.py)
                task.cancel()
                await asyncio.wait([task], timeout=0.01)
        wire = self.wire
        if wire is not None:
            wire.close()
            await asyncio.wait([wire.closed], timeout=self._options.try_next_after)
            if not wire.closed.done():
                wire.abort()
                await wire.closed
        if self.replicas is not None:
            await self.replicas.aclose()
        if self._second is not None:
            self._second.abort()
            await self._second.closed
        await self.door.aclose()
