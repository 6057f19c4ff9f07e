"""Simulated processes: each does for its rooms what ``Locker`` and ``Node`` do for them in earnest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asynclock.core.clock import ServerClock
from asynclock.core.lease import Lease, Tokens
from asynclock.core.room import NEVER, Room
from asynclock.core.rules import Ask, LossReason

from .servers import COMMANDS, Link, Request, Trouble

if TYPE_CHECKING:
    from .world import World

TIME = ("TIME", b"", b"", ("", 0))


class Task:
    """One call of acquire, and what became of it."""

    __slots__ = ("client", "how", "lease", "name", "number", "problem", "room", "state")

    def __init__(self, client: Client, number: int, name: str, how: str) -> None:
        self.client = client
        self.number = number
        self.name = name
        self.how = how  # "join", "try_join" or "force"
        self.room: Room[Task] | None = None
        self.lease: Lease | None = None
        self.state = "waiting"  # held, released, lost, refused, failed, left
        self.problem: Any = None  # the error, or the reason of the loss

    def __repr__(self) -> str:
        return f"{self.client.name}.{self.number}"


class _Time:
    """The reply of TIME."""

    def __init__(self, clock: ServerClock, sent: float) -> None:
        self.clock = clock
        self.sent = sent
        self.left = 1

    def reply(self, reply: Any, now: float) -> None:
        self.left = 0
        if isinstance(reply, float):
            self.clock.observe(self.sent, reply)


class _Owed:
    """The reply of a release that was owed."""

    def __init__(self, key: bytes, token: bytes) -> None:
        self.key = key
        self.token = token
        self.left = 1

    def reply(self, reply: Any, now: float) -> None:
        self.left = 0


class Client:
    """One process: its rooms, their port, and one connection to each server. Does what ``Locker`` and ``Node`` do."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.rooms: dict[str, Room[Task]] = {}
        self.rested: dict[str, Room[Task]] = {}
        self.tasks: list[Task] = []
        self.tokens = Tokens(world.random.randbytes(3))
        self.pxat = world.random.random() < 0.5
        self.alive = True
        self.frozen = 0.0  # until when the process does not run
        self.links: list[Link | None] = [Link(self, server) for server in world.servers]
        self.clocks = [ServerClock() for _ in world.servers]
        self.gone = [False for _ in world.servers]
        self.problems: list[Trouble | None] = [None for _ in world.servers]  # why a server was not connected
        self.owed: list[dict[tuple[bytes, bytes], None]] = [{} for _ in world.servers]
        for clock, server in zip(self.clocks, world.servers, strict=True):
            clock.observe(world.now - world.delay(), world.now + server.offset)

    # What its tasks do

    def acquire(self, name: str, how: str = "join") -> Task:
        task = Task(self, self.world.number(), name, how)
        self.tasks.append(task)
        self.world.log(f"{task!r} {how} {name!r}")
        room = self.rooms.get(name)
        if room is None:
            room = self.rested.pop(name, None)
            if room is not None:
                self.rooms[name] = room
        if room is None:
            keys = tuple(b"%d:%b" % (index, name.encode()) for index in range(self.world.rules.keys))
            room = self.rooms[name] = Room(name, self.world.rules, self, keys)
        task.room = room
        getattr(room, how)(task, self.world.now)
        return task

    def end(self, task: Task) -> None:
        """The task stops waiting (a cancellation, a time-out), or gives back what it holds."""
        if task.state not in ("waiting", "held") or not self.alive:
            return
        assert task.room is not None
        self.world.log(f"{task!r} ends ({task.state})")
        lease = task.lease
        task.state = "left" if lease is None else "released"
        if lease is None:
            task.room.leave(task, self.world.now)
        else:
            task.room.release(lease, self.world.now)

    def close(self) -> None:
        """As ``Locker.aclose``: the keys follow when the tasks are through."""
        for room in list(self.rooms.values()):
            lease = room.holder
            for task in room.close(self.world.now):
                task.state = "failed"
            if lease is not None:
                self.world.at(self.world.now + self.world.delay(), self._give_back, room, lease)

    def _give_back(self, room: Room[Task], lease: Lease) -> None:
        if lease.owed:
            room.give_back(lease, self.world.now)

    def die(self) -> None:
        """Killed, with all that it holds; its keys die by their time to live."""
        self.alive = False
        self.frozen = NEVER
        for task in self.tasks:
            task.state = "dead"
        for link in self.links:
            if link is not None:
                link.drop()
        self.links = [None for _ in self.links]

    # The port of its rooms

    def token(self, forced: bool) -> bytes:
        return self.tokens.next(forced=forced)

    def ask(self, room: Room[Task], lease: Lease, index: int, ask: Ask, now: float) -> bool:
        home = self.world.home(index)
        link = self.links[home]
        if link is None:
            if ask is Ask.RELEASE:
                self.owed[home][room.keys[index], lease.token] = None
            return False
        clock = self.clocks[home]
        validity = self.world.rules.validity
        expiry = ("PX", round(validity * 1000))
        if self.pxat:
            if clock.due(now) and not any(isinstance(request, _Time) for request in link.waiting):
                link.send(_Time(clock, now), [TIME])
            if clock.usable(now):
                expiry = ("PXAT", round((clock.at_most(now) + validity) * 1000) + 1)
        key = room.keys[index]
        link.send(Request(room, lease, index, ask, now), [(name, key, lease.token, expiry) for name in COMMANDS[ask]])
        return True

    def barred(self, room: Room[Task], index: int) -> Exception | None:
        problem = self.problems[self.world.home(index)]
        return problem if problem is not None and problem.lasting else None

    def silent(self, room: Room[Task], index: int, now: float) -> bool:
        link = self.links[self.world.home(index)]
        return link is None or (bool(link.waiting) and now - link.heard > self.world.rules.try_next_after)

    def wake(self, room: Room[Task], when: float) -> None:
        room.timer = None
        if when < NEVER:
            room.timer = handle = object()
            self.world.at(max(when, self.world.now) + self.world.random.random() * 1e-4, self._wake, room, handle)

    def _wake(self, room: Room[Task], handle: object) -> None:
        if self.frozen > self.world.now:
            if self.alive:
                self.world.at(self.frozen, self._wake, room, handle)
        elif room.timer is handle:
            room.timer = None
            room.woken(self.world.now)

    def chance(self) -> float:
        return self.world.random.random()

    def doubt_clock(self, room: Room[Task], index: int) -> None:
        self.clocks[self.world.home(index)].forget()

    def granted(self, task: Task, lease: Lease) -> None:
        assert task.state == "waiting", f"{task!r} was granted the lock, but it is {task.state}"
        task.lease, task.state, lease.owner = lease, "held", task
        self.world.log(f"{task!r} holds {task.name!r} until {lease.deadline:.4f}")
        self.world.progress = self.world.now
        if self.world.hold is not None:
            self.world.at(self.world.now + self.world.hold(), self.end, task)

    def refused(self, task: Task) -> None:
        self._through(task, "refused", None)

    def failed(self, task: Task, error: Exception | None) -> None:
        self._through(task, "failed", error)

    def _through(self, task: Task, state: str, problem: Any) -> None:
        assert task.state == "waiting", f"{task!r} is {state}, but it was {task.state}"
        task.state, task.problem = state, problem
        self.world.through.append(task)
        self.world.log(f"{task!r} {state} {problem or ''}")

    def lost(self, lease: Lease, reason: LossReason, index: int | None) -> None:
        task = lease.owner
        self.world.log(f"{task!r} lost {task.name!r}: {reason}, key {index}")
        if task.state == "held":
            task.state, task.problem = "lost", reason
        self.world.losses.append((self, lease, reason, index))

    def settled(self, lease: Lease) -> None: ...

    def idle(self, room: Room[Task]) -> None:
        if self.rooms.get(room.name) is room:
            del self.rooms[room.name]
            if room.contended and self.world.random.random() < 0.5:  # it is kept for a while, in earnest
                self.rested[room.name] = room

    # Its connections

    def uses(self, link: Link) -> bool:
        return self.links[link.server.name] is link

    def pushed(self, link: Link, key: bytes | None) -> None:
        for room in list(self.rooms.values()):
            for index in self._at(link.server.name):
                if key is None:
                    room.pushed(index, self.world.now, LossReason.FLUSHED)
                elif key == room.keys[index]:
                    room.pushed(index, self.world.now)

    def disconnected(self, link: Link) -> None:
        if not self.uses(link):
            return
        if self.frozen > self.world.now:
            self.world.at(self.frozen, self.disconnected, link)
            return
        home = link.server.name
        self.world.log(f"{self.name} is disconnected from server {home}")
        self.links[home] = None
        self.gone[home], self.problems[home] = False, None
        while link.waiting:
            request = link.waiting.popleft()
            if isinstance(request, _Owed):
                self.owed[home][request.key, request.token] = None
            elif isinstance(request, Request):
                if request.ask is Ask.RELEASE:
                    self.owed[home][request.key, request.lease.token] = None
                request.room.failed(request.lease, request.index, request.ask, None, self.world.now)
        self.world.at(self.world.now + self.world.delay(), self._reconnect, home)

    def _reconnect(self, home: int) -> None:
        """``TIME`` is asked while the connection is set up."""
        sent = self.world.now
        server = self.world.servers[home]
        on_the_way = self.world.delay()
        if not self.alive:
            return
        if not server.up or server.troubled > sent:
            if not self.gone[home]:
                self.gone[home] = True
                for room, index in self._everything(home):
                    room.gone(index, sent)
            self.problems[home] = server.trouble if server.up else Trouble()
            if server.up and server.trouble.lasting:
                for room in list(self.rooms.values()):
                    room.shut_out(sent)
            self.world.at(sent + 0.01 + self.world.random.random() * 0.5, self._reconnect, home)
        elif max(server.stalled, self.frozen) > sent:
            self.world.at(max(server.stalled, self.frozen), self._reconnect, home)
        else:
            self.world.at(sent + on_the_way, self._connected, home, sent, sent + server.offset + on_the_way / 2)

    def _connected(self, home: int, sent: float, time: float) -> None:
        server = self.world.servers[home]
        if not self.alive:
            return
        if max(server.down, server.troubled, server.stalled, self.frozen) > self.world.now:
            self.world.at(self.world.now + 0.01, self._reconnect, home)
            return
        self.world.log(f"{self.name} is connected to server {home} again")
        self.clocks[home].observe(sent, time)
        self.links[home] = link = Link(self, server)
        for key, token in self.owed[home]:
            link.send(_Owed(key, token), [("DELIFEQ", key, token, ("", 0))])
        self.owed[home] = {}
        self.problems[home] = None
        for room, index in self._everything(home):
            room.reconnected(index, self.world.now)

    def _at(self, home: int) -> list[int]:
        return [index for index in range(self.world.rules.keys) if self.world.home(index) == home]

    def _everything(self, home: int) -> list[tuple[Room[Task], int]]:
        return [(room, index) for room in self.rooms.values() for index in self._at(home)]
