"""Simulated servers: keys that expire, key tracking, and connections that keep the order of what they carry."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from asynclock.core.lease import Lease
from asynclock.core.room import Room
from asynclock.core.rules import Ask

if TYPE_CHECKING:
    from .world import Client, World

COMMANDS = {
    Ask.TAKE: ("SET NX", "GET"),
    Ask.TAKE_TTL: ("SET NX", "PTTL", "GET"),
    Ask.FORCE: ("SET", "GET"),
    Ask.EXTEND: ("SET IFEQ", "GET"),
    Ask.READ: ("PTTL", "GET"),
    Ask.RELEASE: ("DELIFEQ",),
}


class Trouble(Exception):
    """An error reply. ``lasting``: another try will not do better."""

    def __init__(self, lasting: bool = False) -> None:
        super().__init__("NOPERM" if lasting else "LOADING")
        self.lasting = lasting


class Server:
    """One server. Every command is atomic; what a lease asks is one to three of them."""

    def __init__(self, world: World, name: int, offset: float) -> None:
        self.world = world
        self.name = name
        self.offset = offset  # its clock less the world's, in seconds
        self.data: dict[bytes, tuple[bytes, int | None]] = {}
        self.tracked: dict[bytes, dict[Link, None]] = {}
        self.links: dict[Link, None] = {}
        self.down = 0.0  # until when there is no server
        self.stalled = 0.0  # until when it does nothing at all
        self.troubled = 0.0  # until when every command is answered with ``trouble``
        self.trouble = Trouble()

    @property
    def up(self) -> bool:
        return self.world.now >= self.down

    def milliseconds(self) -> int:
        return math.floor((self.world.now + self.offset) * 1000)

    def peek(self, key: bytes) -> tuple[bytes, int | None] | None:
        """What is in the key, without touching it."""
        entry = self.data.get(key)
        return entry if entry is None or entry[1] is None or self.milliseconds() <= entry[1] else None

    def ends(self, expiry: int) -> float:
        """When, in the world's time, a key is gone that expires at ``expiry`` on this server's clock."""
        return (expiry + 1) / 1000 - self.offset

    def look(self, key: bytes) -> bytes | None:
        """Expiry is lazy: whoever looks finds out. Everybody is told then, NOLOOP or not."""
        entry = self.data.get(key)
        if entry is None:
            return None
        if entry[1] is not None and self.milliseconds() > entry[1]:
            del self.data[key]
            self.tell(key, None)
            return None
        return entry[0]

    def put(self, key: bytes, value: bytes, expiry: int | None, by: Link | None) -> None:
        self.data[key] = (value, expiry)
        if expiry is not None and self.world.random.random() < 0.5:  # or nobody gets round to deleting it
            self.world.at(self.ends(expiry) + self.world.random.random() * 0.2, self.look, key)
        self.tell(key, by)

    def tell(self, key: bytes, by: Link | None) -> None:
        """Tell who has read the key, but with NOLOOP not who changed it; none of them is told again."""
        for link in self.tracked.pop(key, {}):
            if link is not by or not self.world.noloop:
                link.push(key)

    def execute(self, command: str, key: bytes, token: bytes, expiry: tuple[str, int], link: Link) -> Any:
        if self.world.now < self.troubled:
            if command == "DELIFEQ":
                self.world.stranded.add(token)
            return self.trouble
        found = self.look(key)
        if command == "GET":
            if self.world.rules.tracking:
                self.tracked.setdefault(key, {})[link] = None
            return found
        if command == "PTTL":
            return -2 if found is None else -1 if self.data[key][1] is None else self.data[key][1] - self.milliseconds()
        if command == "TIME":
            return self.world.now + self.offset
        if command == "DELIFEQ":
            if found != token:
                return 0
            del self.data[key]
            self.tell(key, link)
            return 1
        if (command == "SET NX" and found is not None) or (command == "SET IFEQ" and found != token):
            return None
        if found is not None and found != token:
            self.world.touch(self, key, found)
        how, when = expiry
        self.put(key, token, when if how == "PXAT" else self.milliseconds() + when, link)
        return b"OK"

    # What outsiders and accidents do

    def meddle(self, key: bytes, change: str) -> None:
        """Another program deletes the key, overwrites it, or shortens its life."""
        found = self.look(key)
        if change == "write":
            self.world.touch(self, key, found)
            self.put(key, b"somebody", self.milliseconds() + 300, None)
        elif found is not None:
            self.world.touch(self, key, found)
            if change == "shorten":
                self.put(key, found, min(self.data[key][1] or 1 << 62, self.milliseconds() + 200), None)
            else:
                del self.data[key]
                self.tell(key, None)

    def flush(self) -> None:
        self.forget()
        self.tracked.clear()
        for link in self.links:
            link.push(None)

    def forget(self) -> None:
        for key, (value, _) in self.data.items():
            self.world.touch(self, key, value)
        self.data.clear()

    def crash(self, seconds: float, amnesia: bool) -> None:
        for link in list(self.links):
            link.drop()
        self.down = self.world.now + seconds
        if amnesia:
            self.forget()


class Request:
    """One ask under way, as ``asynclock.wire.node.Request``."""

    __slots__ = ("ask", "index", "key", "lease", "left", "replies", "room", "sent")

    def __init__(self, room: Room[Any], lease: Lease, index: int, ask: Ask, sent: float) -> None:
        self.room = room
        self.lease = lease
        self.index = index
        self.ask = ask
        self.sent = sent
        self.key = room.keys[index]
        self.left = len(COMMANDS[ask])
        self.replies: list[Any] = []

    def reply(self, reply: Any, now: float) -> None:
        self.replies.append(reply)
        self.left -= 1
        if self.left:
            return
        for answer in self.replies:
            if isinstance(answer, Trouble):
                self.room.failed(self.lease, self.index, self.ask, answer, now)
                return
        first, last = self.replies[0], self.replies[-1]
        ok = self.ask is Ask.READ or first in (b"OK", 1)
        ttl = first if self.ask is Ask.READ else self.replies[1] if self.ask is Ask.TAKE_TTL else None
        self.room.answered(self.lease, self.index, self.ask, self.sent, ok, last, ttl, now)


class Link:
    """One connection. What is sent first arrives first, in either direction; when, is for the world to choose."""

    def __init__(self, client: Client, server: Server) -> None:
        self.client = client
        self.server = server
        self.world = server.world
        self.broken = False  # at the server's end; the client finds out later
        self.out: deque[tuple[Any, tuple[Any, ...]]] = deque()  # commands that the server has not read
        self.back: deque[tuple[Any, Any]] = deque()  # replies and pushes that the client has not read
        self.waiting: deque[Any] = deque()  # the client's: who expects the next replies
        self.heard = self.world.now
        self._out_due = self._back_due = 0.0
        server.links[self] = None

    def send(self, request: Any, commands: list[tuple[Any, ...]]) -> None:
        world = self.world
        if not self.waiting:
            self.heard = world.now
            world.at(world.now + world.silence, self._watch)
        self.waiting.append(request)
        if self.broken:
            return
        for command in commands:
            # Mostly what one ask needs arrives in one packet; other clients' commands may still come between.
            late = (
                world.delay() if not self.out or command is commands[0] else world.random.choice((0.0, 0.0, 0.0, 1e-4))
            )
            self._out_due = max(self._out_due, world.now + late)
            self.out.append((request, command))
            world.at(self._out_due, self._serve)

    def push(self, key: bytes | None) -> None:
        self._send_back(None, key)

    def _send_back(self, request: Any, reply: Any) -> None:
        if not self.broken:
            self.back.append((request, reply))
            self._back_due = max(self._back_due, self.world.now + self.world.delay())
            self.world.at(self._back_due, self._hear)

    def _serve(self) -> None:
        if not self._later(self.server.stalled, self._serve) and self.out and not self.broken:
            request, command = self.out.popleft()
            pushed = len(self.back)
            reply = self.server.execute(*command, self)
            own = [self.back.pop() for _ in range(len(self.back) - pushed)]  # pushes follow the reply that caused them
            self._send_back(request, reply)
            self.back.extend(reversed(own))

    def _hear(self) -> None:
        if not self._later(self.client.frozen, self._hear) and self.back and self.client.uses(self):
            request, reply = self.back.popleft()
            self.heard = self.world.now
            if request is None:
                self.client.pushed(self, reply)
            else:
                request.reply(reply, self.world.now)
                if not request.left:
                    self.waiting.popleft()

    def _later(self, until: float, what: Callable[[], None]) -> bool:
        if until > self.world.now:
            self.world.at(until, what)
            return True
        return False

    def _watch(self) -> None:
        """Answers that are missing for too long mean that the connection is dead."""
        world = self.world
        if not self.waiting or not self.client.uses(self) or self._later(self.client.frozen, self._watch):
            return
        if world.now >= self.heard + world.silence:
            self.drop()
            self.client.disconnected(self)
        else:
            world.at(self.heard + world.silence, self._watch)

    def drop(self) -> None:
        """Cut it. The server still reads some of what is on its way, and tells nobody."""
        if self.broken:
            return
        for _ in range(self.world.random.randint(0, len(self.out))):
            self.server.execute(*self.out.popleft()[1], self)
        self.broken = self.world.cut = True
        self.out.clear()
        self.back.clear()
        del self.server.links[self]
        for links in self.server.tracked.values():
            links.pop(self, None)
        self.world.at(self.world.now + self.world.delay(), self.client.disconnected, self)
