"""Locker: from names to waiting rooms, leases and scopes."""

from __future__ import annotations

import asyncio
import os
import random
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Never

import redis.asyncio as redis

from .core.lease import Lease, Tokens
from .core.room import NEVER, Room
from .core.rules import Ask, LossReason
from .errors import (
    AcquireTimeoutError,
    ConfigurationError,
    LockerClosedError,
    NotLockedError,
    ServerError,
)
from .options import Seconds, check_name, check_options, check_timeout
from .scope import LockScope, ScopeContext
from .topology import Fixed
from .wire.commands import bulk
from .wire.door import Door, client_of
from .wire.node import Node

if hasattr(time, "CLOCK_BOOTTIME"):

    def clock() -> float:
        """Seconds on a clock that runs on while the machine is suspended, and is never set."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:  # pragma: no cover - macOS: its monotonic clock stops in a suspend, as do its servers
    clock = time.monotonic

_lockers: weakref.WeakSet[Locker] = weakref.WeakSet()


def _forked() -> None:
    for locker in _lockers:
        locker._forked = True


os.register_at_fork(after_in_child=_forked)


class Waiter:
    """One call of acquire, waiting for ``future``; then ``lease`` or ``error`` is set.

    The future carries neither, since a task that is cancelled in that very moment never reads it.
    """

    __slots__ = ("error", "future", "lease", "room")

    def __init__(self, room: Room[Waiter], future: asyncio.Future[None]) -> None:
        self.room = room
        self.future = future
        self.lease: Lease | None = None
        self.error: Exception | None = None

    def done(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Locker:
    """Distributed locks on one Redis or Valkey server.

    :param servers: a URL (``redis://``, ``rediss://``, ``unix://``), a list of one, or a
        ``redis.asyncio.Redis`` client, whose connection settings are used (its pool is not)
    :param key_prefix: keys are ``{key_prefix}:{i}:{name}``; lockers that share locks share it
    :param key_validity: seconds for which a key lives after it was acquired or extended
    :param extend_interval: seconds between extensions of a held lock; default ``key_validity / 2``
    :param try_next_after: seconds after which a silent server is not waited for where that can be helped
    :param key_majority: a lock holds ``key_majority`` of ``2 * key_majority - 1`` keys; default 1 on
        one server; lockers that share locks share it
    :param no_loop_tracking: ``CLIENT TRACKING ... NOLOOP``; default: where the server is 7.0.5 or later
    :param fallback_setpx: ``PX`` instead of ``PXAT``; default: where the server is before 6.2
    :param client_side_caching: ``False``: no tracking; a loss is found at the next extension, and
        waiters ask again at least every ``extend_interval``
    :param disconnect_grace: seconds for which a held lock survives a server that refuses connections
    :param local_handoffs: how often in a row a released lock may pass to a task of this process that
        waits for it, before it goes back to the server for others; 0: never
    :param min_replicas: 0; others need a later version
    :param restart_quarantine: for independent servers, which need a later version
    :raises ConfigurationError: naming the option, its value and the rule

    ``async with Locker(...)`` connects and closes; without it, the first acquisition connects, and
    :meth:`aclose` closes. A locker belongs to one event loop and one process. It is not thread-safe.
    """

    def __init__(
        self,
        servers: str | redis.Redis | Sequence[str],
        *,
        key_prefix: str = "asynclock",
        key_validity: Seconds = 5.0,
        extend_interval: Seconds | None = None,
        try_next_after: Seconds = 0.02,
        key_majority: int | None = None,
        no_loop_tracking: bool | None = None,
        fallback_setpx: bool | None = None,
        client_side_caching: bool = True,
        disconnect_grace: Seconds = 0.0,
        local_handoffs: int = 100,
        min_replicas: int = 0,
        restart_quarantine: bool | None = None,
        **unknown: Never,
    ) -> None:
        self._options = check_options(
            key_prefix=key_prefix,
            key_validity=key_validity,
            extend_interval=extend_interval,
            try_next_after=try_next_after,
            key_majority=key_majority,
            no_loop_tracking=no_loop_tracking,
            fallback_setpx=fallback_setpx,
            client_side_caching=client_side_caching,
            disconnect_grace=disconnect_grace,
            local_handoffs=local_handoffs,
            min_replicas=min_replicas,
            restart_quarantine=restart_quarantine,
            unknown=unknown,
        )
        listed = [*servers] if isinstance(servers, list | tuple) else [servers]
        if len(listed) % 2 == 0:
            raise ConfigurationError(f"servers: {len(listed)} of them; a majority needs an odd number")
        if len(listed) > 1:
            raise ConfigurationError(
                f"servers: {len(listed)} of them; this version takes one (a quorum of independent servers is to come)"
            )
        self._client, self._own_client = client_of(listed[0])
        self.now: Callable[[], float] = clock
        self._topology = Fixed([Node(Door(self._client), self._options, self, clock)], self._options.key_majority)
        self._rules = self._options.rules(self._topology.majority)
        self._prefixes = [f"{key_prefix}:{index}:".encode() for index in range(self._rules.keys)]
        self._tokens = Tokens(os.urandom(16))

        # State. Rooms are made in _room and forgotten in idle, nowhere else.
        self._rooms: dict[str, Room[Waiter]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None  # set once, by the first use
        self._opening: asyncio.Task[None] | None = None
        self._open = False
        self._closing: asyncio.Task[None] | None = None  # set by aclose, done when it is through
        self._hurry: asyncio.Future[None]
        self._forked = False
        self._settling: deque[tuple[float, asyncio.Future[None], Lease]] = (
            deque()
        )  # ordered: the wait is always as long
        self._settling_timer: asyncio.TimerHandle | None = None
        _lockers.add(self)

    def __repr__(self) -> str:
        state = "closed" if self._closing else "open" if self._open else "new"
        return f"<Locker {self._where()} {state}>"

    @property
    def client(self) -> redis.Redis:
        """The redis-py client behind it, for other commands to the same server."""
        return self._client

    # Acquiring

    async def acquire(self, name: str, *, timeout: Seconds | None = None) -> LockScope:
        """Wait for the lock and hold it.

        :param timeout: seconds to wait at most; ``None``: as long as it takes; 0: one attempt
        :raises AcquireTimeoutError: the lock was not to be had in that time
        :raises ServerError: the server cannot be reached to begin with, or refuses
        :raises LockerClosedError: the locker is closed, or closes meanwhile
        :raises ConfigurationError: the name is empty or not a string, or the locker is used in
            another event loop or process than it was made for
        """
        seconds = check_timeout(timeout)
        if not seconds:
            if seconds is None:
                return await self._acquire(name, Room.join)
            try:
                return await self._acquire(name, Room.try_join)
            except NotLockedError as error:
                raise AcquireTimeoutError(name, 0.0, error.why) from None
        return await self._acquire(name, Room.join, seconds)

    async def try_acquire(self, name: str) -> LockScope:
        """Hold the lock if it is free. :raises NotLockedError: it is not; else as :meth:`acquire`"""
        return await self._acquire(name, Room.try_join)

    async def force_acquire(self, name: str) -> LockScope:
        """Take the lock over: whoever holds it loses it. Raises as :meth:`acquire`."""
        return await self._acquire(name, Room.force)

    def with_context(self, name: str, *, timeout: Seconds | None = None) -> ScopeContext:
        """``async with locker.with_context(name) as scope:`` - :meth:`acquire`, hold, release."""
        return ScopeContext(lambda: self.acquire(name, timeout=timeout))

    def try_with_context(self, name: str) -> ScopeContext:
        """``async with`` around :meth:`try_acquire`."""
        return ScopeContext(lambda: self.try_acquire(name))

    def force_with_context(self, name: str) -> ScopeContext:
        """``async with`` around :meth:`force_acquire`."""
        return ScopeContext(lambda: self.force_acquire(name))

    async def _acquire(
        self, name: str, enter: Callable[[Room[Waiter], Waiter, float], None], timeout: float | None = None
    ) -> LockScope:
        check_name(name)
        until = NEVER if timeout is None else self.now() + timeout
        if not self._open or self._closing is not None or self._forked or asyncio.get_running_loop() is not self._loop:
            try:
                async with asyncio.timeout(timeout):
                    await self._ready()
            except TimeoutError:
                assert timeout is not None
                raise AcquireTimeoutError(name, timeout, f"{self._where()} did not answer") from None
        loop = self._loop
        assert loop is not None
        while True:
            room = self._rooms.get(name) or self._room(name)
            waiter = Waiter(room, loop.create_future())
            now = self.now()
            timer = None
            if timeout is not None:
                timer = loop.call_later(max(0.0, until - now), self._timed_out, waiter, timeout)
            enter(room, waiter, now)
            try:
                await waiter.future
            except BaseException as error:
                # Cancelled, before, while or after the lock was granted: give back what there is.
                # Or the coroutine is being closed (GeneratorExit), and nothing can be awaited.
                lease = self._leave(waiter)
                if lease is not None and isinstance(error, asyncio.CancelledError):
                    await self.wait_settled(lease)
                raise
            finally:
                if timer is not None:
                    timer.cancel()
            if waiter.error is not None:
                if waiter.lease is not None and (cancelled := await self.wait_settled(waiter.lease)) is not None:
                    raise cancelled
                raise waiter.error
            lease = waiter.lease
            assert lease is not None
            if not lease.done and self.now() >= lease.deadline:
                room.woken(self.now())  # the loop was blocked for so long
            if not lease.done:
                scope = LockScope(self, room, lease)
                lease.owner = weakref.ref(scope)
                return scope
            # Lost between being granted and getting here: it never was this caller's. Again.
            if self._closing is not None:
                raise self._closed_error()

    def _timed_out(self, waiter: Waiter, timeout: float) -> None:
        if not waiter.future.done():
            waiter.error = AcquireTimeoutError(waiter.room.name, timeout, self._why_not(waiter.room))
            waiter.error.__cause__ = self._unreachable()  # for those who treat an outage differently
            waiter.lease = waiter.room.leave(waiter, self.now())
            waiter.done()

    def _leave(self, waiter: Waiter) -> Lease | None:
        """Wait no longer, and leave nothing behind. Returns the lease whose release was sent, if any."""
        room, lease = waiter.room, waiter.lease
        if self._forked:
            return None
        if lease is None:
            lease = room.leave(waiter, self.now())
        elif lease is room.holder:
            room.release(lease, self.now())
        return lease if lease is not None and lease.done else None

    def _room(self, name: str) -> Room[Waiter]:
        raw = name.encode()
        room: Room[Waiter] = Room(name, self._rules, self, tuple(bulk(prefix + raw) for prefix in self._prefixes))
        self._rooms[name] = room
        return room

    # Opening and closing

    async def __aenter__(self) -> Locker:
        try:
            await self._ready()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _ready(self) -> None:
        """Connect, once for however many ask."""
        loop = asyncio.get_running_loop()
        if self._forked:
            raise ConfigurationError(f"{self!r} was made before a fork; make a new Locker in the child process")
        if self._closing is not None:
            raise self._closed_error()
        if self._loop is not None and self._loop is not loop:
            raise ConfigurationError(f"{self!r} belongs to another event loop; make a Locker for each")
        if self._open:
            return
        if self._opening is None:
            self._loop = loop
            self._opening = loop.create_task(self._connect(), name=f"asynclock connecting to {self._where()}")
        opening = self._opening
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            if opening.cancelled():  # by aclose, not from outside
                raise self._closed_error() from None
            raise

    async def _connect(self) -> None:
        try:
            await asyncio.gather(*(node.open() for node in self._topology.nodes))
            self._open = True
        except BaseException:
            self._loop = None
            raise
        finally:
            self._opening = None

    async def aclose(self) -> None:
        """Close: every scope is lost with reason ``closed``, every waiter raises
        :class:`LockerClosedError`, keys are given back, connections are closed.

        Waits for the blocks of the scopes to be left, as long as their locks would have lasted, so
        that nobody else gets a lock while its work is still being stopped; not for the block that
        it is called in. Cancelled, it hurries, and still closes. Does nothing on a closed locker.
        """
        if self._forked:
            return
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise ConfigurationError(f"{self!r} belongs to another event loop; close it there")
        if self._closing is None:
            self._hurry = loop.create_future()
            self._closing = loop.create_task(self._close(asyncio.current_task()), name=f"asynclock closing {self!r}")
        cancelled = None
        while not self._closing.done():
            try:
                await asyncio.wait([self._closing])
            except asyncio.CancelledError as error:
                cancelled = error
                if not self._hurry.done():
                    self._hurry.set_result(None)
        if cancelled is not None:
            raise cancelled
        self._closing.result()

    async def _close(self, caller: asyncio.Task[Any] | None) -> None:
        try:
            if self._opening is not None:
                self._opening.cancel()
                await asyncio.wait([self._opening])
            await self._close_rooms(caller)
        finally:
            for node in self._topology.nodes:
                await node.aclose()
            if self._own_client:
                await self._client.aclose()
            self._open = False
            if self._settling_timer is not None:
                self._settling_timer.cancel()

    async def _close_rooms(self, caller: asyncio.Task[Any] | None) -> None:
        leases: list[tuple[Room[Waiter], Lease]] = []
        exits: dict[asyncio.Future[None], float] = {}
        for room in list(self._rooms.values()):
            lease = room.holder
            scope = lease.owner() if lease is not None and lease.owner is not None else None
            for waiter in room.close(self.now()):
                waiter.error = self._closed_error()
                waiter.done()
            if lease is not None:
                leases.append((room, lease))
                if scope is not None and (left := scope._left(caller)) is not None:
                    exits[left] = lease.deadline
        while exits and not self._hurry.done():
            timeout = max(0.0, min(exits.values()) - self.now())
            await asyncio.wait([*exits, self._hurry], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            now = self.now()
            exits = {left: until for left, until in exits.items() if not left.done() and until > now}
        for room, lease in leases:
            self.give_back(room, lease)
        for _, lease in leases:
            await self.wait_settled(lease)

    def _closed_error(self) -> LockerClosedError:
        return LockerClosedError(f"{self!r}: make a new Locker")

    # What scopes need (scope.Keeper)

    def time_is_over(self, room: Room[Waiter]) -> None:
        if not self._forked:
            room.woken(self.now())

    def give_back(self, room: Room[Waiter], lease: Lease) -> None:
        if self._forked:
            return
        if lease is room.holder:
            room.release(lease, self.now())
        elif lease.owed:
            room.give_back(lease, self.now())

    def lost_unnoticed(self, lease: Lease) -> bool:
        return lease.lost_unnoticed(self._rules.majority)

    def dropped(self, room: Room[Waiter], lease: Lease) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed() and not self._forked:
            loop.call_soon_threadsafe(self.give_back, room, lease)

    async def wait_settled(self, lease: Lease) -> asyncio.CancelledError | None:
        cancelled = None
        until = self.now() + self._options.try_next_after
        loop = asyncio.get_running_loop()
        while lease.unreleased:
            future = lease.settled = loop.create_future()
            self._settling.append((until, future, lease))
            if self._settling_timer is None:
                self._settling_timer = loop.call_later(self._options.try_next_after, self._settle)
            try:
                await future
                break
            except asyncio.CancelledError as error:
                # The release is on its way; what is left of the wait is short and bounded.
                cancelled = error
        lease.settled = None
        return cancelled

    def _settle(self) -> None:
        """Let those go on who have waited long enough for a server that says nothing."""
        self._settling_timer = None
        now = self.now()
        settling = self._settling
        patience = self._options.try_next_after
        silent = any(node.silent(now, patience) for node in self._topology.nodes)
        while settling:
            until, future, lease = settling[0]
            if lease.unreleased and not future.done() and not (silent and until <= now):
                break
            settling.popleft()
            if not future.done():
                future.set_result(None)
        if settling:
            again = max(settling[0][0] - now, patience / 4)
            assert self._loop is not None
            self._settling_timer = self._loop.call_later(again, self._settle)

    # What rooms need (core.room.Port)

    def token(self, forced: bool) -> bytes:
        return self._tokens.next(forced=forced)

    def ask(self, room: Room[Waiter], lease: Lease, index: int, ask: Ask, now: float) -> bool:
        return self._topology.route[index].ask(room, lease, index, ask, now)

    def wake(self, room: Room[Waiter], when: float) -> None:
        timer = room.timer
        if timer is not None:
            timer.cancel()
        if when == NEVER:
            room.timer = None
        else:
            assert self._loop is not None
            room.timer = self._loop.call_later(max(0.0, when - self.now()), self._wake, room)

    def _wake(self, room: Room[Waiter]) -> None:
        room.woken(self.now())

    def chance(self) -> float:
        return random.random()

    def doubt_clock(self, room: Room[Waiter], index: int) -> None:
        self._topology.route[index].doubt_clock()

    def granted(self, waiter: Waiter, lease: Lease) -> None:
        # If the waiter's task was cancelled meanwhile, it is about to give the lease back.
        waiter.lease = lease
        lease.owner = None
        waiter.done()

    def refused(self, waiter: Waiter) -> None:
        waiter.error = NotLockedError(waiter.room.name, self._why_not(waiter.room))
        waiter.done()

    def failed(self, waiter: Waiter, error: Exception | None) -> None:
        if isinstance(error, ServerError):
            waiter.error = error.again()  # each waiter raises one of its own
        else:
            waiter.error = self._unreachable() or ServerError(self._where(), "the connection was lost, try again")
        waiter.done()

    def lost(self, lease: Lease, reason: LossReason, index: int | None) -> None:
        scope: LockScope | None = lease.owner() if lease.owner is not None else None
        if scope is None:
            return
        detail = ""
        if reason in (LossReason.EXPIRED, LossReason.DISCONNECTED):
            detail = str(lease.error or self._unreachable() or self._where())
        elif reason is not LossReason.CLOSED:
            where = self._where() if index is None else self._topology.route[index].label
            detail = f"key {self._prefixes[index or 0].decode()}{scope.name} on {where}"
        scope._on_lost(reason, detail)

    def settled(self, lease: Lease) -> None:
        future = lease.settled
        if future is not None and not future.done():
            future.set_result(None)

    def idle(self, room: Room[Waiter]) -> None:
        if self._rooms.get(room.name) is room:
            del self._rooms[room.name]

    # What servers tell (wire.node.Listener)

    def pushed(self, node: Node, key: bytes) -> None:
        for index in self._topology.indexes(node):
            prefix = self._prefixes[index]
            if key.startswith(prefix):
                room = self._rooms.get(key[len(prefix) :].decode(errors="replace"))
                if room is not None:
                    room.pushed(index, self.now())

    def flushed(self, node: Node) -> None:
        now = self.now()
        for room, index in self._everything(node):
            room.pushed(index, now, LossReason.FLUSHED)

    def reconnected(self, node: Node) -> None:
        now = self.now()
        for room, index in self._everything(node):
            room.reconnected(index, now)

    def gone(self, node: Node) -> None:
        now = self.now()
        for room, index in self._everything(node):
            room.gone(index, now)

    def slept(self, node: Node) -> None:
        now = self.now()
        for room in list(self._rooms.values()):
            room.woken(now)

    def _everything(self, node: Node) -> list[tuple[Room[Waiter], int]]:
        return [(room, index) for room in self._rooms.values() for index in self._topology.indexes(node)]

    # What errors say

    def _where(self) -> str:
        return ", ".join(node.label for node in self._topology.nodes)

    def _unreachable(self) -> ServerError | None:
        """What is wrong with a server that there is no connection to, if there is one."""
        for node in self._topology.nodes:
            if node.wire is None:
                problem = node.problem or ServerError(node.label, "disconnected, and being reconnected")
                return problem.again()
        return None

    def _why_not(self, room: Room[Waiter]) -> str:
        unreachable = self._unreachable()
        if unreachable is not None:
            return str(unreachable)
        if room.holder is not None:
            return "this process holds it"
        if room.contended or room.attempt is None:
            return f"somebody else holds it on {self._where()}"
        return f"{self._where()} has not answered yet"
