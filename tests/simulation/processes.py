"""Simulated processes: each does for its rooms what ``LockManager`` and ``Node`` do in a real one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from asynclock.core.clock import ServerClock
from asynclock.core.lease import Lease
from asynclock.core.operations import Operation
from asynclock.core.pace import Pace
from asynclock.core.port import Requests
from asynclock.core.reasons import LossReason
from asynclock.core.room import Room
from asynclock.core.rules import NEVER
from asynclock.core.tally import Tally
from asynclock.core.tokens import Tokens
from asynclock.wire.noloop import CHECK_EVERY, EvictionReport

from . import stays
from .fencing import Count, Fence, ask_some_time
from .links import Link
from .permits import Semaphore, Ticket, Times, room_name, slot_of
from .requests import NO_EXPIRY, Ignored, OwedRelease, ReadAgain, Request, Silence, TimeRequest
from .servers import Expiry, Trouble

if TYPE_CHECKING:
    from .several import Group
    from .world import World

VOTES = (Operation.TAKE, Operation.TAKE_TTL, Operation.FORCE)  # operations that request a new vote


class Task:
    """One call of acquire, and its outcome."""

    __slots__ = (
        "client",
        "fence",
        "granted",
        "group",
        "how",
        "lease",
        "name",
        "number",
        "problem",
        "room",
        "semaphore",
        "since",
        "state",
        "stay",
        "turn",
    )

    def __init__(self, client: Client, number: int, name: str, how: str) -> None:
        self.client = client
        self.number = number
        self.name = name
        self.how = how  # "join", "try_join" or "force"
        self.since = client.world.now
        self.room: Room[Task] | None = None
        self.lease: Lease | None = None
        self.state = "waiting"  # held, released, lost, refused, failed, left
        self.problem: Any = None  # the error, or the loss reason
        self.granted = NEVER  # when it got the lock
        self.turn = 0  # how many locks were granted until then, with this one
        self.fence: Fence | None = None  # once it wants a fencing token
        self.semaphore: Semaphore | None = None  # if it wants a permit of a semaphore
        self.stay: stays.Stay | None = None  # if the lock is to stay for a least time
        self.group: Group | None = None  # whose part it is

    def __repr__(self) -> str:
        return f"{self.client.name}.{self.number}"


class Client(Requests):
    """One process: its rooms, their port, and one connection to each server."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.rooms: dict[str, Room[Task]] = {}
        self.semaphores: dict[str, Semaphore] = {}
        self.tasks: list[Task] = []
        self.groups: list[Group] = []
        self.tally = Tally()
        self.tokens = Tokens(world.random.randbytes(3), name.encode(), lambda: world.now)
        self.pxat = world.random.random() < 0.5
        self.alive = True
        self.past = False  # has it been replaced? (it may still be closing)
        self.frozen = 0.0  # until when the process does not run
        self.stopped = 0.0  # the longest time, in seconds, for which it did not run
        self.leaving: dict[Lease, Task] = {}  # tasks that wait for the reply to a release
        self.links: list[Link | None] = [None for _ in world.servers]
        self.homes = [world.home(index) for index in range(world.rules.keys)]  # which server has a key
        self.looks: set[Lease] = set()  # leases whose first check is scheduled
        self.clocks = [ServerClock(world.rules.validity) for _ in world.servers]
        self.paces = [Pace(world.burst) for _ in world.servers]
        self.paused_at = -NEVER  # when a check was last put off because pushes were needless
        self.known: list[int | None] = [None for _ in world.servers]  # each server's process at the last connection
        self.gone = [False for _ in world.servers]
        self.problems: list[Trouble | None] = [None for _ in world.servers]  # why a server was not connected
        self.until = [0.0 for _ in world.servers]  # end of the quarantine of each server that was seen to restart
        # What is still to be released on each server: (key, token) -> ``Lease.keep_until``
        self.may_be_ours: list[dict[tuple[bytes, bytes], float]] = [{} for _ in world.servers]
        for home, server in enumerate(world.servers):
            if server.up and max(server.stalled, server.troubled) <= world.now:
                self._connect(home, world.now - world.delay(), server.time())
            else:
                world.cut = True
                world.at(world.now + world.delay(), self._reconnect, home)

    # What its tasks do

    def acquire(self, name: str, how: str = "join", known: Callable[[Task], None] | None = None) -> Task:
        """:param known: called with the task before it may be answered"""
        task = Task(self, self.world.number(), name, how)
        if known is not None:
            known(task)
        self.tasks.append(task)
        self.world.acted = self
        self.world.log("%r %s %r", task, how, name)
        if self.world.permits:
            if name not in self.semaphores:
                self.semaphores[name] = Semaphore(self, name, self.world.permits)
            task.semaphore = self.semaphores[name]
            for slot in range(self.world.permits):
                self._sweep(room_name(name, slot))
            task.semaphore.acquire(task)
            return task
        self._sweep(name)
        task.room = self.room(name)
        getattr(task.room, how)(task, self.world.now)
        return task

    def _sweep(self, name: str) -> None:
        """Empty rooms may be dropped at any time."""
        room = self.rooms.get(name)
        if room is not None and room.empty and self.world.random.random() < 0.5:
            del self.rooms[name]

    def room(self, name: str) -> Room[Task]:
        room = self.rooms.get(name)
        if room is None:
            keys = tuple(b"%d:%b" % (index, name.encode()) for index in range(self.world.rules.keys))
            room = self.rooms[name] = Room(name, self.world.rules, self, keys)
        return room

    def end(self, task: Task) -> None:
        """The task stops waiting (cancelled or timed out), or releases what it holds."""
        if task.group is not None:
            task.group.end()
        else:
            self.end_part(task)

    def end_part(self, task: Task) -> None:
        if task.state not in ("waiting", "held") or not self.alive:
            return
        self.world.acted = self
        self.world.log("%r ends (%s)", task, task.state)
        lease = task.lease
        task.state = "left" if lease is None else "released"
        if task.semaphore is not None:
            task.semaphore.end(task)
            return
        assert task.room is not None
        if lease is None:
            task.room.leave(task, self.world.now)
        else:
            stays.leave(self.world, task)
            task.room.release(lease, self.world.now)

    def close(self) -> None:
        """As ``Locker.aclose``: the keys are released when the tasks are done."""
        for semaphore in self.semaphores.values():
            semaphore.close()
        for group in self.groups:
            group.closed = True
        for room in list(self.rooms.values()):
            lease = room.holder
            if lease is not None:
                stays.leave(self.world, lease.scope_ref)
            for task in room.close(self.world.now):
                task.state = "failed"
                if task.group is not None:
                    task.group.told()
            if lease is not None:
                self.world.at(self.world.now + self.world.delay(), self._release, room, lease)

    def _release(self, room: Room[Task], lease: Lease) -> None:
        room.release(lease, self.world.now)

    def die(self) -> None:
        """SIGKILL: its keys stay until they expire."""
        self.alive = False
        self.frozen = NEVER
        for task in (*self.tasks, *self.groups):
            task.state = "dead"
        for link in self.links:
            if link is not None:
                link.drop()
        self.links = [None for _ in self.links]

    # The port of its rooms

    @property
    def requests(self) -> Requests:
        return self

    def request(self, lease: Lease, index: int, operation: Operation, now: float) -> bool:
        room: Room[Task] = lease.room
        home = self.homes[index]
        link = self.links[home]
        key, token = room.keys[index], lease.token
        if link is None:
            if operation.ends:
                self.may_be_ours[home][key, token] = lease.keep_until
            return False
        if operation in VOTES and link.quarantined:
            return False
        expiry = self._expiry(link, now) if operation.writes else NO_EXPIRY
        if operation is Operation.KEEP:
            expiry = stays.expiry(lease.keep_until, now)
            self.world.keeps.append(lease)
        request = Request(room, lease, index, operation, now, link)
        link.send(request, request.commands(expiry))
        return True

    def _expiry(self, link: Link, now: float) -> Expiry:
        """As ``asynclock.wire.expiry.ExpiryClock``."""
        validity = self.world.rules.validity
        if self.pxat:
            clock = self.clocks[link.server.name]
            if clock.due(now):
                self._ask_time(link, now)
            if clock.usable(now):
                return Expiry("PXAT", round((clock.at_most(now) + validity) * 1000) + 1, clock.measured)
        return Expiry("PX", round(validity * 1000))

    def lasting_error(self, room: Room[Task], index: int) -> Exception | None:
        problem = self.problems[self.homes[index]]
        return problem if problem is not None and problem.lasting else None

    def silent(self, room: Room[Task], index: int, now: float) -> bool:
        link = self.links[self.homes[index]]
        return link is None or (bool(link.waiting) and now - link.heard > self.world.rules.try_next_after)

    def wake(self, room: Room[Task], when: float) -> None:
        room.due = when
        room.timer = handle = object()
        self.world.at(max(when, self.world.now) + self.world.random.random() * 1e-4, self._wake, room, handle)

    def _wake(self, room: Room[Task], handle: object) -> None:
        if self.frozen > self.world.now:
            if self.alive:
                self.world.at(self.frozen, self._wake, room, handle)
        elif room.timer is handle:
            room.due, room.timer = NEVER, None
            if room.wake <= self.world.now:
                self.world.acted = self
                room.woken(self.world.now)
            elif room.wake < NEVER:
                self.wake(room, room.wake)

    def first_check_soon(self, lease: Lease) -> None:
        self.looks.add(lease)
        self.world.at(self.world.now + self.world.random.random() * 2e-3, self._look, lease)

    def _look(self, lease: Lease) -> None:
        if self.frozen > self.world.now:
            if self.alive:
                self.world.at(self.frozen, self._look, lease)
            return
        self.looks.discard(lease)
        if not lease.done:
            self.world.acted = self
            lease.room.first_check(lease, self.world.now)

    def chance(self) -> float:
        return self.world.random.random()

    def pause(self, room: Room[Task], index: int, now: float) -> float:
        pause = self.paces[self.homes[index]].pause(now)
        if pause:
            self.paused_at = now
        return pause

    def needless(self, room: Room[Task], index: int, now: float) -> None:
        self.paces[self.homes[index]].needless(now)

    def in_order(self, room: Room[Task], index: int) -> bool:
        return not self.world.apart

    def doubt_clock(self, room: Room[Task], index: int) -> None:
        home = self.homes[index]
        self.clocks[home].forget()
        if self.pxat and (link := self.links[home]) is not None:
            self._ask_time(link, self.world.now)

    def granted(self, task: Task | Ticket, lease: Lease) -> None:
        if isinstance(task, Ticket):
            lease.scope_ref = task
            task.ended("held", None, lease)
            return
        assert task.state == "waiting", f"{task!r} was granted the lock, but it is {task.state}"
        task.lease, task.state, lease.scope_ref = lease, "held", task
        world = self.world
        if world.recording:
            world.log("%r HOLDS %r until %.3f, as %s", task, task.name, world.ms(lease.deadline), lease.token.decode())
        world.granted += 1
        world.progress = world.now
        task.granted, task.turn = world.now, world.granted
        world.grants.append(task)
        if task.group is not None:
            task.group.told()
            return
        world.served = world.now
        if world.fencing:
            ask_some_time(self, task)
        if world.at_least:
            stays.begin(world, task)
        if world.hold is not None:
            world.at(world.now + world.hold(), self._held_enough, task)

    def _held_enough(self, task: Task) -> None:
        if self.frozen > self.world.now:
            self.world.at(self.frozen, self._held_enough, task)
        elif task.state == "held":
            # As the exit of a scope: wait for the reply, unless the lease was handed to another task.
            lease = task.lease
            assert lease is not None
            self.end(task)
            if lease.done:
                self.leaving[lease] = task
            else:
                self.world.through(task)

    def refused(self, task: Task | Ticket) -> None:
        self._through(task, "refused", None)

    def failed(self, task: Task | Ticket, error: Exception | None) -> None:
        self._through(task, "failed", error)

    def _through(self, task: Task | Ticket, state: str, problem: Any) -> None:
        if isinstance(task, Ticket):
            task.ended(state, problem, None)
        elif task.semaphore is None or not task.semaphore.goes_on(task, state):
            self.give_up(task, state, problem)

    def give_up(self, task: Task, state: str, problem: Any) -> None:
        """The task does not get what it wanted."""
        assert task.state == "waiting", f"{task!r} is {state}, but it was {task.state}"
        task.state, task.problem = state, problem
        self.world.failed.append(task)
        if task.group is not None:
            task.group.told()
        elif self.world.hold is not None:
            self.world.at(self.world.now + 0.01, self.world.through, task)
        self.world.log("%r %s %s", task, state, problem or "")

    def lost(self, lease: Lease, reason: LossReason, index: int | None) -> None:
        task = lease.scope_ref
        self.world.log("%r LOST %r: %s, key %s", task, task.name, reason, index)
        if task.state == "held":
            task.state, task.problem = "lost", reason
            if isinstance(task, Task):
                if task.semaphore is not None:
                    task.semaphore.lost(task)
                if task.group is not None:
                    task.group.part_lost()
                elif self.world.hold is not None:
                    self.world.at(self.world.now, self.world.through, task)
        self.world.losses.append((self, lease, reason, index))

    def release_answered(self, lease: Lease) -> None:
        task = self.leaving.pop(lease, None)
        if task is None:
            return
        if task.group is not None:
            task.group.release_answered()
        else:
            self.world.at(self.world.now, self.world.through, task)

    # Its connections

    def uses(self, link: Link) -> bool:
        return self.links[link.server.name] is link

    def invalidated(self, link: Link, key: bytes | None) -> None:
        self.world.log(
            "%s gets a push from server %d: %s", self.name, link.server.name, key.decode() if key else "a flush"
        )
        for room in list(self.rooms.values()):
            for index in self._at(link.server.name):
                if key is None:
                    room.invalidated(index, self.world.now, LossReason.FLUSHED)
                elif key == room.keys[index]:
                    room.invalidated(index, self.world.now)
        if key is None:
            self._all_changed()
        elif (of_slot := slot_of(key)) is not None and of_slot[0] in self.semaphores:
            self.semaphores[of_slot[0]].changed(of_slot[1])

    def _all_changed(self) -> None:
        for semaphore in self.semaphores.values():
            semaphore.all_changed()

    def disconnected(self, link: Link) -> None:
        if not self.uses(link):
            return
        if self.frozen > self.world.now:
            self.world.at(self.frozen, self.disconnected, link)
            return
        home = link.server.name
        self.world.acted = self
        self.world.log("%s is disconnected from server %d", self.name, home)
        self.links[home] = None
        self.gone[home], self.problems[home] = False, None
        while link.waiting:
            request = link.waiting.popleft()
            if isinstance(request, OwedRelease):
                self.may_be_ours[home][request.key, request.token] = request.keep_until
            elif isinstance(request, Count | Times | ReadAgain):
                request.dropped()
            elif isinstance(request, Request):
                if request.request.ends:
                    self.may_be_ours[home][request.key, request.lease.token] = request.lease.keep_until
                request.dropped()
        if link.confirmations is not None:
            link.confirmations.drop()
        self.world.at(self.world.now + self.world.delay(), self._reconnect, home)

    def _reconnect(self, home: int) -> None:
        server, now = self.world.servers[home], self.world.now
        if not self.alive:
            return
        self.world.acted = self
        if self.frozen > now:
            self.world.at(self.frozen, self._reconnect, home)
        elif not server.up or server.troubled > now:
            if not self.gone[home]:
                self.gone[home] = True
                self.world.log("%s cannot connect to server %d: it is gone", self.name, home)
                for room, index in self._everything(home):
                    room.gone(index, now)
                self._all_changed()
            self.problems[home] = server.trouble if server.up else Trouble()
            if server.up and server.trouble.lasting:
                for room in list(self.rooms.values()):
                    room.lasting_failure(now)
                self._all_changed()
            self.world.at(now + 0.01 + self.world.random.random() * 0.5, self._reconnect, home)
        elif server.stalled > now:
            self.world.at(server.stalled, self._reconnect, home)
        else:
            self.world.at(now + self.world.delay(), self._greeted, home, now)

    def _greeted(self, home: int, sent: float) -> None:
        """``TIME`` is part of the setup of a connection."""
        self.world.at(self.world.now + self.world.delay(), self._connected, home, sent, self.world.servers[home].time())

    def _connected(self, home: int, sent: float, time: float) -> None:
        server, now = self.world.servers[home], self.world.now
        if not self.alive:
            return
        if max(server.down, server.troubled, server.stalled, self.frozen) > now:
            self.world.at(now + 0.01, self._reconnect, home)
            return
        self.world.acted = self
        self.world.log("%s is connected to server %d again", self.name, home)
        link = self._connect(home, sent, time)
        self._send_owed(link)
        self.problems[home] = None
        self._check_again(home)

    def _connect(self, home: int, sent: float, time: float) -> Link:
        server = self.world.servers[home]
        self.clocks[home].observe(sent, time, self.world.now)
        self.links[home] = link = Link(self, server)
        link.refused = partial(self._refused, home)
        known, self.known[home] = self.known[home], server.process
        if server.quarantined:
            if server.lies and known in (None, server.process) and not (self.until[home] > self.world.now):
                # At the first connection, the uptime is all there is to detect a restart.
                self.world.forgotten -= {entry for entry in self.world.forgotten if entry in server.forgot}
            else:
                until = server.started + self.world.rules.validity
                if known != server.process:
                    self.until[home] = until = max(until, self.world.now + self.world.rules.validity * server.lies)
                link.quarantined = True
                self.world.at(until, self._end_quarantine, link)
        self.world.at(self.world.now + CHECK_EVERY, self._ask_of_silence, link)
        return link

    def _ask_of_silence(self, link: Link) -> None:
        """As ``asynclock.wire.noloop.EvictionWatch``."""
        if not self.uses(link) or not link.noloop:
            return
        if self.frozen > self.world.now:
            self.world.at(self.frozen, self._ask_of_silence, link)
            return
        if any(not room.empty for room in self.rooms.values()):
            asked = Silence(partial(self._silence_told, link))
            link.send(asked, asked.commands)
        self.world.at(self.world.now + CHECK_EVERY, self._ask_of_silence, link)

    def _silence_told(self, link: Link, report: EvictionReport) -> None:
        if not report.noloop_is_safe and self.uses(link):
            link.send(Ignored(), (("TRACKING", b"", b"", NO_EXPIRY),))
            self.world.acted = self
            for room, index in self._everything(link.server.name):
                room.invalidated(index, self.world.now)
            self._all_changed()

    def _ask_time(self, link: Link, now: float) -> None:
        if not any(isinstance(asker, TimeRequest) for asker in link.waiting):
            clock = self.clocks[link.server.name]
            link.send(TimeRequest(clock, now, partial(self._clock_was_set, link)), TimeRequest.commands)

    def _clock_was_set(self, link: Link) -> None:
        if self.uses(link):
            self.world.acted = self
            for room in {room: None for room, _ in self._everything(link.server.name)}:
                room.clock_was_set(self.world.now)
            self._all_changed()

    def _refused(self, home: int, key: bytes, token: bytes, keep_until: float) -> None:
        """A release was refused: retry it, as ``asynclock.wire.owed.OwedReleases`` does."""
        self.may_be_ours[home][key, token] = keep_until
        self.world.at(self.world.now + 0.02 + self.world.random.random() * 0.5, self._try_owed, home)

    def _try_owed(self, home: int) -> None:
        link = self.links[home]
        if self.frozen > self.world.now:
            if self.alive:
                self.world.at(self.frozen, self._try_owed, home)
        elif link is not None:
            self._send_owed(link)

    def _send_owed(self, link: Link) -> None:
        home, now = link.server.name, self.world.now
        owed, self.may_be_ours[home] = self.may_be_ours[home], {}
        for (key, token), keep_until in owed.items():
            release = OwedRelease(key, token, keep_until, now, link.refused, partial(self.invalidated, link))
            link.send(release, release.commands)

    def _end_quarantine(self, link: Link) -> None:
        if self.uses(link):
            if self.frozen > self.world.now:
                self.world.at(self.frozen, self._end_quarantine, link)
            else:
                link.quarantined = False
                self._check_again(link.server.name)

    def _check_again(self, home: int) -> None:
        self.world.acted = self
        for room, index in self._everything(home):
            room.reconnected(index, self.world.now)
        self._all_changed()

    def _at(self, home: int) -> list[int]:
        return [index for index, where in enumerate(self.homes) if where == home]

    def _everything(self, home: int) -> list[tuple[Room[Task], int]]:
        return [(room, index) for room in self.rooms.values() for index in self._at(home)]
