"""Fencing tokens of a simulated process: as ``_engine.fence``, and as ``Count`` in ``wire.requests``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from asynclock.core.fencing import NOT_OURS, Fencing

from .requests import Command
from .servers import Expiry, Trouble

if TYPE_CHECKING:
    from .processes import Client, Task

PAUSE = 0.02  # seconds before a counter is asked again whose server has failed


class Count:
    """A request to the counter of a key."""

    __slots__ = ("_fence", "floor", "index", "left")

    def __init__(self, fence: Fence, index: int, floor: int) -> None:
        self._fence = fence
        self.index = index
        self.floor = floor
        self.left = 1

    @property
    def commands(self) -> tuple[Command, ...]:
        fence = self._fence
        return (("COUNT", fence.room.keys[self.index], fence.lease.token, Expiry("", self.floor)),)

    def reply(self, reply: Any, now: float) -> None:
        self.left = 0
        self._fence.answered(self.index, self.floor, reply)

    def dropped(self) -> None:
        self._fence.answered(self.index, self.floor, Trouble())


class Fence:
    """The token of one task, which asks for it until it has it or holds the lock no more."""

    def __init__(self, client: Client, task: Task) -> None:
        assert task.room is not None and task.lease is not None
        self.client = client
        self.task = task
        self.room = task.room
        self.lease = task.lease
        self.rules = Fencing(self.room.rules.keys, self.room.rules.majority)
        self.over = False
        self._pausing = False

    def _held(self) -> bool:
        return self.task.state == "held" and not self.lease.done

    def ask(self) -> None:
        client, world = self.client, self.client.world
        self._pausing = False
        if client.frozen > world.now:
            if client.alive:
                world.at(client.frozen, self.ask)
            return
        if self.over or not self._held():
            return
        world.acted = client
        floor = self.rules.floor
        for index in self.rules.due():
            link = client.links[client.homes[index]]
            if link is None:
                self.rules.failed(index, floor, None)
            else:
                count = Count(self, index, floor)
                link.send(count, count.commands)
        self._ask_again_later()

    def answered(self, index: int, floor: int, reply: Any) -> None:
        world = self.client.world
        if self.over:
            return
        anew = False
        if isinstance(reply, Trouble):
            self.rules.failed(index, floor, reply if reply.lasting else None)
        else:
            anew = self.rules.answered(index, floor, reply)
            if reply == NOT_OURS and self._held():
                self.room.invalidated(index, world.now)
        number = self.rules.number
        if number is not None or self.rules.error is not None:
            self.over = True
            if number is not None and self._held() and world.now < self.lease.deadline:
                world.log("%r HAS TOKEN %d", self.task, number)
                world.tokens.append((self.task, number))
        elif anew:
            self.ask()
        else:
            self._ask_again_later()

    def _ask_again_later(self) -> None:
        if not self._pausing and self.rules.any_due and self._held():
            self._pausing = True
            self.client.world.at(self.client.world.now + PAUSE, self.ask)


def ask_some_time(client: Client, task: Task) -> None:
    """The task has just got the lock. It may want a token: at once, or at any time while it holds the lock."""
    world = client.world
    if world.chance.random() < 0.8:
        later = world.chance.choice((0.0, 0.0, 0.001, 0.005, 0.05, world.chance.random() * world.rules.validity))
        world.at(world.now + later, partial(_ask, client, task))


def _ask(client: Client, task: Task) -> None:
    if task.state == "held":
        task.fence = Fence(client, task)
        task.fence.ask()
