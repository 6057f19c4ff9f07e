"""LockManager: connects the rooms of one locker with its servers, waiters and scopes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from functools import partial
from types import MappingProxyType
from typing import Any

import redis.asyncio as redis
from redis.asyncio.cluster import RedisCluster

from ..core.holders import Holder
from ..core.keys import Layout, Plain, Slots, layouts
from ..core.lease import Lease
from ..core.port import Requests
from ..core.reasons import LossReason
from ..core.room import Room
from ..core.rules import Rules
from ..core.tokens import Tokens
from ..errors import ServerError
from ..options import Options, check_name
from ..statistics import Statistics
from ..topology import Topology, connect
from ..wire.commands import bulk
from ..wire.node import Node
from ..wire.requests import Redirectable
from . import diagnosis, forks
from .clients import Clients
from .clock import clock
from .closing import Closing
from .first_check import FirstCheck
from .late_extensions import LateExtensions
from .lifecycle import Lifecycle, closed_error
from .long_waits import LongWaits
from .observations import Observations
from .other_layout import OtherLayout
from .pending_releases import PendingReleases
from .reading import Reading, names
from .reports import Hold, Reports
from .rooms import Rooms, room_name, slot_and_name
from .scope_link import ScopeLink
from .semaphores import Semaphores
from .suspends import Suspends
from .timers import Timers
from .waiter import Waiter


class LockManager:
    """Passes on what rooms ask of servers, what servers tell rooms, and what rooms decide to waiters and scopes.

    So it is the port of the rooms (``core.port.Port``), and it is what nodes and the topology call back
    (``wire.node.Listener``, ``topology.base.TopologyListener``).

    Its state is what follows from the kind of the servers: topology, rules, and what is made from them. All of that is
    set in ``connect``, for good; ``life.connected`` says that it is there. Before, there are no rooms. Everything
    else has an owner of its own: ``life``, ``rooms``, ``clients``. Nothing here knows the Locker: so that is garbage
    as soon as no program, scope or waiting task has it.
    """

    topology: Topology
    rules: Rules
    requests: Requests
    tokens: Tokens
    pending_releases: PendingReleases
    # What rooms call most, without a call in between:
    wake: Callable[[Room[Waiter], float], None]
    first_check_soon: Callable[[Lease], None]
    release_answered: Callable[[Lease], None]
    _timers: Timers
    _first_check: FirstCheck
    _suspends: Suspends
    _long_waits: LongWaits

    def __init__(self, options: Options, servers: object) -> None:
        """:raises ConfigurationError: these are no servers
        :raises ServerError: a client cannot be made just now
        """
        self.options = options
        self.clients = Clients(servers)
        self.life = Lifecycle()
        self.rooms = Rooms()
        self.semaphores = Semaphores()
        self.reports = Reports(self.life, clock)
        self.tally = self.reports.tally
        self.observations = Observations()
        self.clock = clock
        self.chance = random.random
        self._readings: dict[str, Reading] = {}  # under way, by name: shared by all who want to know meanwhile
        # Until it is connected, no key is a lock's or a slot's: pushes come before that, too.
        self._layout: Layout = Plain(b"", 0)
        self.slots = Slots(self._layout, b"", 0)
        self._other_layout: OtherLayout | None = None  # None: there is none here
        self._closing: Closing | None = None
        forks.register(self)

    def __repr__(self) -> str:
        return f"<LockManager of {len(self.rooms)} rooms, {len(self.busy())} of them busy, on {self.where()}>"

    def where(self) -> str:
        """The servers, without credentials."""
        if self.life.connected:
            return diagnosis.where(self.topology)
        return ", ".join(connector.label for connector in self.clients.servers.connectors)

    def label(self) -> str:
        """The locker, in messages for programmers."""
        return f"<Locker {self.where()} {self.life}>"

    def busy(self) -> list[str]:
        """The names of the locks that somebody in this process holds or waits for."""
        return self.rooms.busy()

    def client(self) -> redis.Redis | RedisCluster:
        """A redis-py client for other commands."""
        return self.clients.lend(self.topology if self.life.connected else None)

    # Opening and closing

    async def ready(self) -> None:
        """Connect, if that is still to be done; once for all callers.

        :raises ServerError, ConfigurationError, LockerClosedError:
        """
        self.life.check(self.label())
        if self.life.connected:
            return
        opening = self.life.open(self.connect, f"asynclock connecting to {self.where()}")
        try:
            await asyncio.shield(opening)
        except ServerError as error:
            raise error.copy() from error.__cause__  # each caller raises one of its own
        except asyncio.CancelledError:
            if opening.cancelled() and self.life.closed:  # by aclose: nobody has cancelled this task
                raise closed_error(self.label()) from None
            raise
        self.check_open()

    def check_open(self) -> None:
        """:raises LockerClosedError: it is closed, or being closed"""
        if self.life.closed:
            raise closed_error(self.label())

    async def connect(self) -> None:
        """:raises ServerError, ConfigurationError: and nothing is left running"""
        servers, options = self.clients.servers, self.options
        self.topology = await connect(servers.connectors, options, self, clock, servers.remap)
        self.rules = options.rules(self.topology.majority)
        loop = asyncio.get_running_loop()
        self._timers = Timers(loop, clock)
        self._first_check = FirstCheck(loop, clock)
        self.pending_releases = PendingReleases(
            loop, clock, options.try_next_after, self._silent, self._unattended_answered
        )
        self.requests = self.topology.requests
        self.wake = self._timers.set
        self.first_check_soon = self._first_check.soon
        self.release_answered = self.pending_releases.release_answered
        self._suspends = Suspends(clock, self._woken)
        self.reports.open(LateExtensions(self.rooms, self.rules, clock))
        self._long_waits = LongWaits(self.rooms, self.semaphores, clock, options.warn_after, self.where, self.read)
        self._layout, *others = layouts(options.key_prefix, self.rules.keys, spread=options.spread_keys)
        self.slots = Slots(self._layout, options.key_prefix.encode(), self.rules.keys)
        if self.topology.slotted and others:
            self._other_layout = OtherLayout(
                others[0], self.rooms, self._room, self._begin_to_read, clock, self.chance, spread=options.spread_keys
            )
        # Not before: a fork that came until then must not share them.
        self.tokens = Tokens(os.urandom(16), options.owner_or_default().encode(), time.time)
        self.rooms.open(self._room, self._timers.forget)
        self.observations.open(self.topology, self.rules, clock, options.try_next_after, self.reports)

    async def aclose(self) -> None:
        """As ``Locker.aclose``."""
        life = self.life
        if life.forked:
            return
        life.check_loop(self.label(), "close it there")
        caller = asyncio.current_task()
        if not life.closed:
            name = f"asynclock closing the connections to {self.where()}"
            life.close(partial(self._close, caller), name, cancelled=self._close_at_once)
        elif self._closing is not None:
            self._closing.excuse(caller)
        await life.wait_closed()

    async def _close(self, caller: asyncio.Task[Any] | None, hurry: asyncio.Future[None]) -> None:
        """Give up every lock, and leave nothing running."""
        try:
            if self.life.connected:
                closing = self._closing = self._start_closing()
                await closing.give_back_when_left(caller, hurry, self.pending_releases)
        finally:
            try:
                await self.disconnect()
            finally:
                await self.clients.aclose()

    def _start_closing(self) -> Closing:
        self.semaphores.stop(closed_error(self.label()))
        return Closing(
            self.rooms, self.label(), self.clock, lambda room, lease: self.give_back(room, lease, self.clock())
        )

    def _close_at_once(self) -> bool:
        """Give up every lock and every connection, as far as possible without waiting. True: ``_close`` has work
        left."""
        if not self.life.connected:
            return False
        (self._closing or self._start_closing()).give_back()
        work_left = self.topology.drop()
        self._stop()
        return work_left

    async def disconnect(self) -> None:
        """Close every connection; nothing of this runs on."""
        if self.life.connected:
            await self.topology.aclose()
            self._stop()

    def _stop(self) -> None:
        """Send no more requests, and notify nobody any more."""
        self.observations.close(closed_error(self.label()))
        self._long_waits.close()
        if self._other_layout is not None:
            self._other_layout.close()
        self.reports.close()
        self.semaphores.stop(closed_error(self.label()))
        self.semaphores.close()
        self.rooms.close()
        self._suspends.stop()
        self._first_check.close()
        self.pending_releases.close()

    def forget(self) -> bool:
        """Nobody can close the locker any more, so close it. May be called in any thread, at any time.
        False: there is nothing to close."""
        if not self.life.needs_closing:
            return False
        self.life.call_soon(self._forgotten)
        return True

    def _forgotten(self) -> None:
        if not self.life.needs_closing:
            return  # it could not be connected
        if self._close_at_once() or self.clients.lent or self.life.opening is not None:
            name = f"asynclock closing the connections to {self.where()}"
            self.life.close(partial(self._close, None), name, hurry=True, cancelled=self._close_at_once)
        else:
            self.life.end()  # without a task: this loop may be about to be closed, and would complain of one

    def fork(self) -> None:
        """This process is the child of a fork."""
        if not self.life.fork():
            self.clients.fork()

    # Who holds a lock, and figures

    def read(self, room: Room[Waiter]) -> Reading:
        """Read who holds the lock; if that is under way already, share it: many tasks may give up at the same time."""
        reading = self._readings.get(room.name)
        if reading is None:
            reading = self._readings[room.name] = self._begin_to_read(room)
            reading.when_complete(lambda: self._readings.pop(room.name, None))
        return reading

    def _begin_to_read(self, room: Room[Waiter]) -> Reading:
        return Reading(self.topology, room, self.options.try_next_after)

    async def holder(self, name: str) -> Holder | None:
        """As ``Locker.holder``."""
        check_name(name)
        await self.ready()
        look = None if self._other_layout is None else self._other_layout.look(name)
        with self._closed_first():
            holder = await self._begin_to_read(self.rooms[name]).wait()
            if holder is None and look is not None:
                await look.wait_for_patience()  # or a program that asks nothing else would not hear of another layout
            return holder

    async def names(self) -> list[str]:
        """As ``Locker.names``."""
        await self.ready()
        not_ours = (lambda key: None) if self._other_layout is None else self._other_layout.met
        with self._closed_first():
            return await names(self.topology, self.options.key_prefix.encode(), self._layout, not_ours)

    @contextlib.contextmanager
    def _closed_first(self) -> Iterator[None]:
        """If the locker closes meanwhile, raise that, and not that its connections are lost."""
        try:
            yield
        except ServerError:
            self.check_open()
            raise

    async def watch(self, name: str) -> AsyncGenerator[Holder | None]:
        """As ``Locker.watch``."""
        check_name(name)
        await self.ready()
        if self._other_layout is not None:
            self._other_layout.look(name)
        async with contextlib.aclosing(self.observations.watch(self.rooms[name])) as holders:
            async for holder in holders:
                yield holder

    def statistics(self) -> Statistics:
        """As ``Locker.statistics``."""
        tally = self.tally
        rooms = list(self.rooms.values())  # a copy, and getattr: any thread may ask, in the middle of a grant
        holders = [room.holder for room in rooms]
        held = sum(lease is not None and getattr(lease, "scope_ref", None) is not None for lease in holders)
        waiting = sum(len(room.queue) + len(room.forces) for room in rooms) + self.semaphores.more_waiting()
        return Statistics(
            held=0 if self.life.forked else held,
            waiting=0 if self.life.forked else max(0, waiting),
            acquired=self.reports.acquisitions,
            released=self.reports.acquisitions - tally.lost_while_held - held,
            handed_off=tally.handed_off,
            lost=MappingProxyType(dict(tally.lost)),
            timed_out=tally.timed_out,
            refused=tally.refused,
            failed=tally.failed,
            reconnects=tally.reconnects,
            extensions=tally.extensions,
            latest_extension=tally.latest_extension,
            longest_wait=self.reports.longest_wait,
        )

    # For waiters

    def time_out(self, waiter: Waiter, timeout: float) -> None:
        """``timeout`` seconds are over."""
        if not waiter.future.done():
            error = diagnosis.timed_out(self.topology, waiter.room, timeout)  # before it leaves, which changes the room
            waiter.fail(error, waiter.room.leave(waiter, self.clock()))

    def leave(self, waiter: Waiter) -> Lease | None:
        """Wait no longer, and leave nothing behind. Returns the lease whose release was sent, if any."""
        room, lease = waiter.room, waiter.lease
        if self.life.forked:
            return None
        if lease is None:
            lease = room.leave(waiter, self.clock())
        else:
            room.release(lease, self.clock())
        return lease if lease is not None and lease.done else None

    def _room(self, name: str, layout: Layout | None = None) -> Room[Waiter]:
        of_slot = slot_and_name(name)
        if of_slot is None:
            keys = tuple(map(bulk, (layout or self._layout).keys(check_name(name))))
        else:
            slot, name = of_slot
            keys = tuple(map(bulk, self.slots.keys(name.encode(), slot)))
        return Room(name, self.rules, self, keys, self.topology.places(keys))

    # For scopes

    def give_back(self, room: Room[Waiter], lease: Lease, now: float) -> None:
        """Give the lease back: to the next who waits here, or to the servers."""
        if not self.life.forked:
            room.release(lease, now)

    def give_back_soon(self, room: Room[Waiter], lease: Lease) -> None:
        """The same, from whatever thread."""
        self.life.call_soon(lambda: self.give_back(room, lease, self.clock()))

    def dropped(self, room: Room[Waiter], lease: Lease, hold: Hold | None) -> None:
        """The scope was forgotten. From whatever thread."""

        def give_back() -> None:
            lease.scope_ref = None
            if hold is not None:
                self.reports.released(room.name, hold)
            self.give_back(room, lease, self.clock())

        self.life.call_soon(give_back)

    def time_is_over(self, room: Room[Waiter]) -> None:
        """The deadline of its lease has passed, before the timer could say so."""
        if not self.life.forked:
            room.woken(self.clock())

    def _unattended_answered(self, lease: Lease, hold: Hold | None) -> None:
        """The release of ``lease`` is answered, and nothing has waited for it: tell of a loss."""
        reason = lease.loss_found_by_release()
        if reason is not None:
            self.reports.lost(lease, hold, reason, diagnosis.NOTICED_LATE, held=False)

    # For rooms (core.port.Port)

    def lasting_error(self, room: Room[Waiter], index: int) -> ServerError | None:
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

    granted = staticmethod(Waiter.granted)  # without a call in between

    def refused(self, waiter: Waiter) -> None:
        waiter.fail(diagnosis.not_locked(self.topology, waiter.room))

    def failed(self, waiter: Waiter, error: Exception | None) -> None:
        if isinstance(error, ServerError):
            waiter.fail(error.copy())  # each waiter raises one of its own
        else:
            waiter.fail(diagnosis.failed(self.topology, waiter.room, self.options.key_validity))

    def lost(self, lease: Lease, reason: LossReason, index: int | None) -> None:
        link: ScopeLink | None = lease.scope_ref
        if link is not None:
            link.lost(reason, diagnosis.loss(self.topology, lease, reason, index))

    # For nodes (wire.node.Listener) and the topology (topology.base.TopologyListener)

    def invalidated(self, key: bytes, now: float) -> None:
        parsed = self._layout.parsed(key)
        if parsed is not None:
            index, name = parsed[0], parsed[1].decode(errors="replace")
            room = self.rooms.get(name)
            if room is not None:
                room.invalidated(index, now)
            if self.observations:
                self.observations.invalidated(name, index)
        elif (of_slot := self.slots.parsed(key)) is not None:
            index, slot, name = of_slot[0], of_slot[1], of_slot[2].decode(errors="replace")
            room = self.rooms.get(room_name(name, slot))
            if room is not None:
                room.invalidated(index, now)
            self.semaphores.changed(name, slot)

    def suspect(self, node: Node, cause: LossReason | None) -> None:
        now = self.clock()
        for room, index in self._keys_on(node):
            room.invalidated(index, now, cause)
        self._look_again()

    def clock_was_set(self, node: Node) -> None:
        now = self.clock()
        for room in {room: None for room, _ in self._keys_on(node)}:  # once, though it may have several keys there
            room.clock_was_set(now)
        self.semaphores.all_changed()

    def in_use(self) -> bool:
        return any(not room.empty for room in self.rooms.values())

    def reconnected(self, node: Node) -> None:
        now = self.clock()
        for room, index in self._keys_on(node):
            room.reconnected(index, now)
        self._look_again()

    def gone(self, node: Node) -> None:
        now = self.clock()
        for room, index in self._keys_on(node):
            room.gone(index, now)
        self._look_again()

    def lasting_failure(self) -> None:
        now = self.clock()
        for room in list(self.rooms.values()):
            room.lasting_failure(now)
        self.semaphores.all_changed()

    def connected(self, node: Node, after: float) -> None:
        self.reports.connected(node.label, after)

    def disconnected(self, node: Node, why: str) -> None:
        self.reports.disconnected(node.label, why)
        if self.life.connected:
            self.topology.disconnected()

    def redirected(self, request: Redirectable, error: str) -> bool:
        return self.topology.redirected(request, error)

    def all_rooms(self) -> Collection[Room[Any]]:
        return self.rooms.values()

    def moved(self, room: Room[Any], index: int) -> None:
        node = self.topology.home(room, index)
        if node is not None and node.connection is not None:  # else the room is notified when it is connected
            room.reconnected(index, self.clock())
        self._look_again()

    def _look_again(self) -> None:
        """What was read without a lease may be outdated."""
        self.observations.look_again()
        self.semaphores.all_changed()

    def _keys_on(self, node: Node) -> list[tuple[Room[Waiter], int]]:
        """The rooms that have a key on that server, and which one that is."""
        if not self.life.connected:
            return []
        home = self.topology.home
        return [
            (room, index)
            for room in self.rooms.values()
            for index in range(self.rules.keys)
            if home(room, index) is node
        ]

    def _woken(self) -> None:
        """The machine was suspended: all timers are late."""
        now = self.clock()
        rooms = list(self.rooms.values())
        for room in rooms:  # all of them first: they share timers
            self._timers.forget(room)
        for room in rooms:
            room.woken(now)
        self.semaphores.all_changed()
