"""Keeper: the rooms of one locker, and what flows between them, the servers, and the scopes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
import weakref
from collections.abc import Callable, Collection
from functools import partial
from threading import get_ident
from typing import Any, Protocol

from redis.asyncio.cluster import RedisCluster

from ..core.lease import Lease, Tokens
from ..core.room import Room
from ..core.rules import LossReason, Operation, Rules
from ..errors import AcquireTimeoutError, LockerClosedError, NotLockedError, ServerError
from ..options import Options, check_name
from ..topology import Servers, Topology, connect
from ..wire.commands import bulk
from ..wire.node import Node
from ..wire.requests import OwedRelease, Request
from .first_check import FirstCheck
from .pending_releases import PendingReleases
from .suspends import Suspends
from .timers import Timers

#: Seconds on a clock that runs on while the machine is suspended, and is never set.
clock: Callable[[], float]
if hasattr(time, "CLOCK_BOOTTIME"):
    clock = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
elif sys.platform == "win32":  # time.monotonic moves in steps of 16 ms there, before Python 3.13
    clock = time.perf_counter
elif sys.platform == "darwin":  # where time.monotonic stops in a suspend
    clock = partial(time.clock_gettime, time.CLOCK_MONOTONIC_RAW)
else:
    clock = time.monotonic

MIN_SWEEP = 2_000_000  # bytes that rooms may take, about, before those that are empty are given up
ROOM = 1000  # bytes, about, that one takes beside its keys
SWEEP_AGAIN = 60.0  # seconds until that is done again, if it left more than half of that
TURNS = 5  # of the event loop, between telling the holders that the locker closes and giving their keys back

_managers: weakref.WeakSet[LockManager] = weakref.WeakSet()
# Of lockers that were not connected before a fork, but perhaps their clients were. Those are kept: to have them
# collected may be to say goodbye on behalf of the parent.
_inherited: list[Servers] = []


def _fork() -> None:
    for manager in list(_managers):
        manager.fork()


if hasattr(os, "register_at_fork"):  # not on Windows, where no process is forked
    os.register_at_fork(after_in_child=_fork)


class HeldScope(Protocol):
    """Who holds a lease: a scope."""

    name: str
    _room: Room[Any]

    def _on_lost(self, reason: LossReason, detail: str) -> None: ...
    def _excuse(self, task: asyncio.Task[Any]) -> None: ...
    def _left(self, closing: asyncio.Task[Any] | None) -> asyncio.Future[None] | None: ...


class Waiter(Protocol):
    """Who waits in a room: an acquisition. Once ``lease`` or ``error`` is set it is to go on: ``done``."""

    room: Room[Waiter]
    future: asyncio.Future[None]
    lease: Lease | None
    error: Exception | None

    def done(self) -> None: ...


class LockManager:
    """What rooms ask goes to the servers, what servers tell goes to the rooms, what rooms decide
    goes to waiters and scopes. It is the rooms' port, the nodes' listener, and the scopes' keeper.

    State: ``rooms`` are those where somebody is, or was: they are made in ``room``, and given up in
    ``_sweep`` if they are empty, and in ``disconnect``, nowhere else. ``loop`` is set while the locker is in
    use: connected, or connecting (``opening``). ``topology``, ``rules`` and what follows from them are set once it
    is connected, and there are no rooms before. ``serving`` is the loop as long as locks may be acquired without
    further ado: connected, not ``closing``, not ``forked``; ``thread`` is the one that it runs in. In the child of a
    fork that came while it was in use nothing is ever sent again: ``forked``.
    """

    topology: Topology
    rules: Rules
    pending_releases: PendingReleases
    # What rooms need most (core.room.Port), without a detour.
    ask: Callable[[Room[Waiter], Lease, int, Operation, float], bool]
    wake: Callable[[Room[Waiter], float], None]
    first_check_soon: Callable[[Room[Waiter], Lease], None]
    release_answered: Callable[[Lease], None]
    token: Callable[[bool], bytes]

    def __init__(self, options: Options, servers: object) -> None:
        """:raises ConfigurationError: the servers are none"""
        self.options = options
        self._given = [*servers] if isinstance(servers, list) else servers
        self.servers = Servers.of(servers)
        self.cluster_client: RedisCluster | None = None  #: if the servers have said that they are a cluster
        self.lent = False  #: somebody has had the client: it may have connections
        self.connected = False
        self.opening: asyncio.Task[None] | None = None
        self.closing: asyncio.Task[None] | None = None
        self.rooms: dict[str, Room[Waiter]] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self.serving: asyncio.AbstractEventLoop | None = None
        self.thread = 0
        self.forked = False
        self.now = clock
        self._room_bytes = 0  # about
        self._sweep_at = MIN_SWEEP
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._prefixes: list[bytes] = []
        self.chance = random.random
        self._leaving: list[HeldScope] = []  # scopes whose blocks close waits for
        _managers.add(self)

    def __repr__(self) -> str:
        return f"<Keeper of {len(self.rooms)} rooms, {len(self.busy())} of them busy, on {self.where()}>"

    # Opening and closing

    def open(self) -> asyncio.Task[None]:
        """Connect in this loop, once for however many ask. The task raises as ``connect``; ``end`` cancels it."""
        if self.opening is None or self.opening.done():  # an eager task may have failed before it was known here
            self.loop = asyncio.get_running_loop()
            self.opening = self.loop.create_task(self._open(), name=f"asynclock connecting to {self.where()}")
            # Whoever asked may all be gone when it fails.
            self.opening.add_done_callback(lambda opening: opening.cancelled() or opening.exception())
        return self.opening

    async def _open(self) -> None:
        try:
            await self.connect()
            if self.closing is None:
                self.serving, self.thread = self.loop, get_ident()
        except BaseException:
            self.loop = None
            raise
        finally:
            self.opening = None

    def end(self, caller: asyncio.Task[Any] | None, hurry: asyncio.Future[None], why: str) -> asyncio.Task[None]:
        """Close, and leave nothing running. See ``close``."""
        self.serving = None
        name = f"asynclock closing the connections to {self.where()}"
        self.closing = asyncio.get_running_loop().create_task(self._end(caller, hurry, why), name=name)
        return self.closing

    async def _end(self, caller: asyncio.Task[Any] | None, hurry: asyncio.Future[None], why: str) -> None:
        try:
            if self.opening is not None:
                self.opening.cancel()
                await asyncio.wait([self.opening])
            await self.close(caller, hurry, why)
        finally:
            await self.disconnect()
            for client in self.servers.ours:
                await client.aclose()
            if self.cluster_client is not None:
                await self.cluster_client.aclose()

    def forget(self) -> bool:
        """Nobody can close the locker any more: close. May be called in any thread, at any time. Is there anything
        to be closed?"""
        if self.loop is None or self.forked:
            return False
        self._soon(self._forgotten)
        return True

    def _forgotten(self) -> None:
        loop = self.loop
        if loop is None:
            return  # it could not be connected
        self.serving = None
        why = f"the locker for {self.where()} was forgotten"
        more = self.lent or self.opening is not None
        if self.connected:
            for room, lease, _ in self._close_rooms(why):
                self.give_back(room, lease, self.now())
            more |= self.topology.drop()
            self._tidy()
        if more:  # else without a task: this loop may be about to be closed, and would complain of it
            hurry = loop.create_future()
            hurry.set_result(None)
            self.end(None, hurry, why)

    def _soon(self, call: Callable[[], None]) -> None:
        """Call it in the loop, from whatever thread. If that is closed, nothing runs in it any more."""
        loop = self.loop
        if loop is not None and not self.forked:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(call)

    def fork(self) -> None:
        """This is the child of a fork."""
        if self.loop is not None:
            self.forked = True
            self.serving = None
        elif self.lent:  # and its connections, if it has some, are the parent's
            _inherited.append(self.servers)
            self.servers = Servers.of(self._given)
            self.lent = False

    async def connect(self) -> None:
        """:raises ServerError, ConfigurationError: and nothing is left running"""
        servers = self.servers
        self.topology = await connect(servers.connectors, self.options, self, clock, servers.remap)
        self.rules = self.options.rules(self.topology.majority)
        loop = asyncio.get_running_loop()
        self._timers = Timers(loop, clock)
        self._first_check = FirstCheck(loop, clock)
        self.pending_releases = PendingReleases(loop, clock, self.options.try_next_after, self._silent)
        self.request = self.topology.request
        self.wake = self._timers.set
        self.first_check_soon = self._first_check.soon
        self.release_answered = self.pending_releases.release_answered
        self._suspends = Suspends(clock, self._slept)
        self._prefixes = [f"{self.options.key_prefix}:{index}:".encode() for index in range(self.rules.keys)]
        self.token = Tokens(os.urandom(16)).next  # not before: a fork that came until then must not share them
        self.connected = True

    # Rooms and waiters

    def time_out(self, waiter: Waiter, timeout: float) -> None:
        if not waiter.future.done():
            waiter.error = AcquireTimeoutError(waiter.room.name, timeout, self.why_not(waiter.room))
            # For those who treat an outage differently.
            waiter.error.__cause__ = self.unreachable(waiter.room) or self._last_error(waiter.room)
            waiter.lease = waiter.room.leave(waiter, self.now())
            waiter.done()

    def leave(self, waiter: Waiter) -> Lease | None:
        """Wait no longer, and leave nothing behind. Returns the lease whose release was sent, if any."""
        room, lease = waiter.room, waiter.lease
        if self.forked:
            return None
        if lease is None:
            lease = room.leave(waiter, self.now())
        else:
            self.give_back(room, lease, self.now())
        return lease if lease is not None and lease.done else None

    def room(self, name: str) -> Room[Waiter]:
        """Make the room of that name.

        :raises ConfigurationError: a lock cannot have that name
        """
        raw = check_name(name)
        self._room_bytes += ROOM + len(raw) * self.rules.keys
        if self._room_bytes > self._sweep_at:
            self._sweep()
        keys = tuple([bulk(prefix + raw) for prefix in self._prefixes])
        room = Room(name, self.rules, self, keys)
        room.places = self.topology.places(keys)
        self.rooms[name] = room
        return room

    def busy(self) -> list[str]:
        """The names that somebody holds or waits for."""
        return [name for name, room in self.rooms.items() if not room.empty]

    def _sweep(self) -> None:
        """Give the empty rooms up, so that names that nobody comes back to take no memory for ever. What
        is left may double before a new room has it done again, so it costs each the same however many there
        are. If there are many, they may all be left soon, and no new ones come: so it is done after a while too."""
        for room in [room for room in self.rooms.values() if room.empty]:
            del self.rooms[room.name]
            self._timers.forget(room)
        self._room_bytes = sum(ROOM + sum(map(len, room.keys)) for room in self.rooms.values())
        self._sweep_at = max(MIN_SWEEP, 2 * self._room_bytes)
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        if self._room_bytes > MIN_SWEEP / 2:
            assert self.loop is not None
            self._sweep_timer = self.loop.call_later(SWEEP_AGAIN, self._sweep)

    async def close(self, caller: asyncio.Task[Any] | None, hurry: asyncio.Future[None], why: str) -> None:
        """Take every lock from its scope, and send every waiter away. Give the keys back when the
        blocks have been left, or when their locks would have been over, or in a hurry."""
        leases = self._close_rooms(why)
        exits: dict[asyncio.Future[None], float] = {}
        for _, lease, scope in leases:
            if scope is not None and (left := scope._left(caller)) is not None:
                exits[left] = lease.deadline
                self._leaving.append(scope)
        while exits and not hurry.done():
            timeout = max(0.0, min(exits.values()) - self.now())
            await asyncio.wait([*exits, hurry], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            now = self.now()
            exits = {left: until for left, until in exits.items() if not left.done() and until > now}
        # Who holds a lock by hand has no block to be waited for; who waits for its loss is to hear of it first.
        for _ in range(TURNS if leases else 0):
            await asyncio.sleep(0)
        for room, lease, _ in leases:
            self.give_back(room, lease, self.now())
        until = self.now() + self.options.try_next_after
        for _, lease, _ in leases:
            await self.pending_releases.wait(lease, until)

    def _close_rooms(self, why: str) -> list[tuple[Room[Waiter], Lease, HeldScope | None]]:
        """Take every lock from its scope, and send every waiter away. Returns what is to be given back."""
        leases: list[tuple[Room[Waiter], Lease, HeldScope | None]] = []
        for room in list(self.rooms.values()):
            lease = room.holder
            scope: HeldScope | None = lease.scope_ref() if lease is not None and lease.scope_ref is not None else None
            for waiter in room.close(self.now()):
                waiter.error = LockerClosedError(why)
                waiter.done()
            if lease is not None:
                leases.append((room, lease, scope))
        return leases

    def excuse(self, task: asyncio.Task[Any] | None) -> None:
        """This task waits for ``close`` itself: do not wait for its blocks."""
        for scope in self._leaving:
            if task is not None:
                scope._excuse(task)

    async def disconnect(self) -> None:
        """Close every connection; nothing of this keeper runs on."""
        if self.connected:
            await self.topology.aclose()
        self._tidy()

    def _tidy(self) -> None:
        """Nothing will ever be asked or told again."""
        if self.connected:
            for room in self.rooms.values():
                self._timers.forget(room)
            self.rooms.clear()  # they know this keeper: all of them would wait for the garbage collector
            self._suspends.stop()
            self._first_check.close()
            self.pending_releases.close()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()

    # What scopes need

    def time_is_over(self, room: Room[Waiter]) -> None:
        if not self.forked:
            room.woken(self.now())

    def give_back(self, room: Room[Waiter], lease: Lease, now: float) -> None:
        if not self.forked:
            room.release(lease, now)

    def lost_unnoticed(self, lease: Lease) -> bool:
        return lease.lost_unnoticed(self.rules.majority)

    def dropped(self, room: Room[Waiter], lease: Lease) -> None:
        self._soon(lambda: self.give_back(room, lease, self.now()))

    # What rooms need (core.room.Port)

    def barred(self, room: Room[Waiter], index: int) -> ServerError | None:
        node = self.topology.home(room, index)
        trouble = node.trouble if node is not None else None
        return trouble if trouble is not None and trouble.lasting else None

    def _silent(self, now: float) -> bool:
        return any(node.silent(now, self.options.try_next_after) for node in self.topology.nodes)

    def silent(self, room: Room[Waiter], index: int, now: float) -> bool:
        node = self.topology.home(room, index)
        return node is None or node.silent(now, self.options.try_next_after)

    def pause(self, room: Room[Waiter], index: int, now: float) -> float:
        node = self.topology.home(room, index)
        return 0.0 if node is None else node.pace.pause(now)

    def needless(self, room: Room[Waiter], index: int, now: float) -> None:
        if (node := self.topology.home(room, index)) is not None:
            node.pace.needless(now)

    def in_order(self, room: Room[Waiter], index: int) -> bool:
        node = self.topology.home(room, index)
        return node is not None and node.in_order

    def doubt_clock(self, room: Room[Waiter], index: int) -> None:
        if (node := self.topology.home(room, index)) is not None:
            node.doubt_clock()

    def granted(self, waiter: Waiter, lease: Lease) -> None:
        # If the waiter's task was cancelled meanwhile, it is about to give the lease back.
        waiter.lease = lease
        lease.scope_ref = None
        if not waiter.future.done():
            waiter.future.set_result(None)

    def refused(self, waiter: Waiter) -> None:
        waiter.error = NotLockedError(waiter.room.name, self.why_not(waiter.room))
        waiter.done()

    def failed(self, waiter: Waiter, error: Exception | None) -> None:
        if isinstance(error, ServerError):
            waiter.error = error.copy()  # each waiter raises one of its own
        else:
            waiter.error = self.unreachable(waiter.room) or ServerError(
                self.where(),
                f"the connection was lost, or answers took longer than key_validity={self.options.key_validity:g} s; "
                "try again",
            )
        waiter.done()

    def lost(self, lease: Lease, reason: LossReason, index: int | None) -> None:
        scope: HeldScope | None = lease.scope_ref() if lease.scope_ref is not None else None
        if scope is None:
            return
        detail = ""
        room = scope._room
        if reason in (LossReason.EXPIRED, LossReason.DISCONNECTED):
            node = self.topology.home(room, index) if index is not None else None
            trouble = node.trouble if node is not None else self.unreachable(room)
            if reason is LossReason.DISCONNECTED:
                detail = str(trouble or lease.error or self.where())  # that error may be another server's
            else:
                detail = str(lease.error or trouble or self.where())
        elif reason is not LossReason.CLOSED:
            node = self.topology.home(room, index or 0)
            where = self.where() if index is None or node is None else node.label
            detail = f"key {self._prefixes[index or 0].decode()}{scope.name} on {where}"
        scope._on_lost(reason, detail)

    # What servers tell (wire.node.Listener)

    def invalidated(self, node: Node, key: bytes, now: float) -> None:
        for index, prefix in enumerate(self._prefixes):
            if key.startswith(prefix):
                room = self.rooms.get(key[len(prefix) :].decode(errors="replace"))
                if room is not None:
                    room.invalidated(index, now)

    def suspect(self, node: Node, cause: LossReason | None) -> None:
        now = self.now()
        for room, index in self._everything(node):
            room.invalidated(index, now, cause)

    def in_use(self) -> bool:
        return any(not room.empty for room in self.rooms.values())

    def reconnected(self, node: Node) -> None:
        now = self.now()
        for room, index in self._everything(node):
            room.reconnected(index, now)

    def gone(self, node: Node) -> None:
        now = self.now()
        for room, index in self._everything(node):
            room.gone(index, now)

    def shut_out(self, node: Node) -> None:
        now = self.now()
        for room in list(self.rooms.values()):
            room.shut_out(now)

    def _slept(self) -> None:
        now = self.now()
        rooms = list(self.rooms.values())
        for room in rooms:  # all, before one is woken: they share timers, which are late too
            self._timers.forget(room)
        for room in rooms:
            room.woken(now)

    def disconnected(self, node: Node) -> None:
        if self.connected:
            self.topology.disconnected(node)

    def redirected(self, request: Request | OwedRelease, error: str) -> bool:
        return self.topology.redirected(request, error)

    def all_rooms(self) -> Collection[Room[Any]]:
        return self.rooms.values()

    def moved(self, room: Room[Any], index: int) -> None:
        node = self.topology.home(room, index)
        if node is not None and node.connection is not None:  # else it is told when it is connected
            room.reconnected(index, self.now())

    def _everything(self, node: Node) -> list[tuple[Room[Waiter], int]]:
        if not self.connected:
            return []
        home = self.topology.home
        return [
            (room, index)
            for room in self.rooms.values()
            for index in range(self.rules.keys)
            if home(room, index) is node
        ]

    # What errors say

    def where(self) -> str:
        if self.connected:
            return ", ".join(node.label for node in self.topology.nodes)
        return ", ".join(connector.label for connector in self.servers.connectors)

    def unreachable(self, room: Room[Waiter]) -> ServerError | None:
        """What is wrong with the servers, if too few of those that have the keys give votes now."""
        troubles: list[ServerError] = []
        for index in range(self.rules.keys):
            node = self.topology.home(room, index)
            trouble = ServerError(self.where(), "no node serves the key's slot now") if node is None else node.trouble
            if trouble is not None:
                troubles.append(trouble)
        if len(troubles) <= self.rules.keys - self.rules.majority:
            return None
        texts = {str(trouble): trouble for trouble in troubles}
        if len(texts) == 1:
            return troubles[0]
        servers = ", ".join(dict.fromkeys(trouble.server for trouble in troubles))
        return ServerError(servers, "; ".join(texts), lasting=all(trouble.lasting for trouble in troubles))

    def _last_error(self, room: Room[Waiter]) -> Exception | None:
        """What a server said to the last attempt, if that failed because of servers rather than of others."""
        lease = room.last_failed
        return None if lease is None or lease.refused_by_others(self.rules) else lease.error

    def why_not(self, room: Room[Waiter]) -> str:
        unreachable = self.unreachable(room)
        if unreachable is not None:
            return str(unreachable)
        if room.forces:
            return "this process is taking it over by force"
        if room.holder is not None:
            return "this process holds it"
        if (error := self._last_error(room)) is not None:
            return str(error)
        if room.contended or room.attempt is None:
            return f"somebody else holds it on {self.where()}"
        return f"{self.where()} has not answered yet"
