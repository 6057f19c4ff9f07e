"""Simulated connections: they keep the order of messages, delay them, and break."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .replicas import Confirmations
from .requests import Asker, Command
from .servers import Server

if TYPE_CHECKING:
    from .processes import Client


class Link:
    """One connection. It keeps the order of messages in both directions; the world chooses the delays."""

    def __init__(self, client: Client, server: Server) -> None:
        self.client = client
        self.server = server
        self.refused: Callable[[bytes, bytes, float], None]  # set by the client: called when a release is refused
        self.world = server.world
        self.since = self.world.now
        self.broken = False  # at the server's end; the client finds out later
        self.noloop = self.world.noloop and not server.evicts
        self.informed = self.world.now  # when the client last asked whether the tracking table is full
        self.quarantined = False  # does the client request no votes on this server yet?
        self.out: deque[tuple[Asker, Command]] = deque()  # commands that the server has not read
        self.back: deque[tuple[Asker | None, Any]] = deque()  # replies and pushes that the client has not read
        self.told: deque[bytes | None] = deque()  # pushes on a second connection that the client has not read
        self.waiting: deque[Asker] = deque()  # the client's requests without a reply, in order
        self.heard = self.world.now
        self.confirmations = None if server.replica is None else Confirmations(self, server.replica)
        self._serving: list[bytes | None] | None = None  # pushes that the current command has caused
        self._out_due = self._back_due = self._told_due = 0.0
        server.links[self] = None

    def send(self, asker: Asker, commands: Sequence[Command]) -> None:
        world = self.world
        if not self.waiting:
            self.heard = world.now
            world.at(world.now + world.silence, self._watch)
        self.waiting.append(asker)
        if self.broken:
            return
        # The commands of a request mostly arrive in one packet, and run without a break. Otherwise other clients'
        # commands may run in between.
        split = len(commands) > 1 and world.random.random() < 0.25
        self._out_due = max(self._out_due, world.now + world.delay())
        if split:
            for command in commands:
                self.out.append((asker, command))
                world.at(self._out_due, self._serve, 1)
                self._out_due += world.random.choice((0.0, 1e-4))
        else:
            for command in commands:
                self.out.append((asker, command))
            world.at(self._out_due, self._serve, len(commands))

    def push(self, key: bytes | None) -> None:
        if self.world.apart:
            self.told.append(key)
            self._told_due = max(self._told_due, self.world.now + self.world.delay())
            self.world.at(self._told_due, self._be_told)
        elif self._serving is not None:
            self._serving.append(key)
        elif not self.broken:
            self.back.append((None, key))
            self._send_back(1)

    def _send_back(self, count: int) -> None:
        self._back_due = max(self._back_due, self.world.now + self.world.delay())
        self.world.at(self._back_due, self._hear, count)

    def _serve(self, count: int) -> None:
        if self.broken or self.later(self.server.stalled, self._serve, count):
            return
        before = len(self.back)
        for _ in range(count):
            asker, command = self.out.popleft()
            told: list[bytes | None] = []
            self._serving = told
            self.back.append((asker, self.server.execute(*command, self)))
            for key in told:  # pushes follow the reply to the command that caused them
                self.back.append((None, key))
        self._serving = None
        self._send_back(len(self.back) - before)

    def _hear(self, count: int) -> None:
        client = self.client
        if client.links[self.server.name] is not self or self.later(client.frozen, self._hear, count):
            return
        world = self.world
        for _ in range(count):
            if not self.back:
                return  # cut meanwhile
            asker, reply = self.back.popleft()
            self.heard = world.now
            world.acted = client
            if asker is None:
                client.invalidated(self, reply)
            else:
                asker.reply(reply, world.now)
                if not asker.left:
                    self.waiting.popleft()

    def _be_told(self) -> None:
        client = self.client
        if client.links[self.server.name] is not self or self.later(client.frozen, self._be_told):
            return
        if self.told:  # else it was cut meanwhile
            self.world.acted = client
            client.invalidated(self, self.told.popleft())

    def later(self, until: float, what: Callable[..., None], *arguments: Any) -> bool:
        if until > self.world.now:
            self.world.at(until, what, *arguments)
            return True
        return False

    def _watch(self) -> None:
        """If a reply is missing for too long, the connection is dead."""
        world = self.world
        if not self.waiting or not self.client.uses(self) or self.later(self.client.frozen, self._watch):
            return
        if world.now >= self.heard + world.silence:
            self.drop()
            self.client.disconnected(self)
        else:
            world.at(self.heard + world.silence, self._watch)

    def drop(self) -> None:
        """Cut it. The server may still run commands that are on their way; their replies are lost."""
        if self.broken:
            return
        self._serving = []
        for _ in range(self.world.random.randint(0, len(self.out))):
            self.server.execute(*self.out.popleft()[1], self)
        self.broken = self.world.cut = True
        self.out.clear()
        self.back.clear()
        self.told.clear()
        del self.server.links[self]
        for links in self.server.tracked.values():
            links.pop(self, None)
        self.world.at(self.world.now + self.world.delay(), self.client.disconnected, self)
