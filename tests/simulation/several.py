"""Several names for one scope, in a simulated process: as ``acquire_several`` and ``SeveralScope``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from asynclock.core.several import Several, Step, agreed_order

from .fencing import ask_some_time

if TYPE_CHECKING:
    from .processes import Client, Task

NAMES = "abcd"
PAUSE, MAX_PAUSE = 0.02, 1.0  # seconds, as FORCE_PAUSE and MAX_FORCE_PAUSE
TURN = 1e-4  # seconds until a task runs whose future is done, at most
EXIT = 0.02  # seconds that the work under a lost lock takes to stop, at most


class Group:
    """One call of acquire with several names, and its outcome.

    Each name that it has, or wants, is a ``Task`` of the process: ``parts``, in the agreed order. ``None``: it does not
    want it at the moment.
    """

    def __init__(self, client: Client, names: str, how: str) -> None:
        self.client = client
        self.world = client.world
        self.how = how  # "join", "try_join" or "force"
        self.number = self.world.number()
        self.order = agreed_order(list(names))
        self.state = "waiting"  # held, released, lost, refused, failed, left, dead
        self.parts: list[Task | None] = [None for _ in self.order]
        self.step = Step([], [], False)  # the last one
        self.closed = False  # by its process
        self.was_held = False
        self._several = Several()
        self._pause = PAUSE
        self._busy = True  # does it run, or is it about to?
        self._unreleased = 0  # releases that are not answered, once it has left
        self.world.log("%r %s %s", self, how, " ".join(self.order))
        self._go()

    def __repr__(self) -> str:
        return f"{self.client.name}.{self.number}+"

    # What its parts are told

    def told(self) -> None:
        """A part was granted, refused or failed."""
        if self.state == "waiting" and not self._busy and not self._asked():
            self._busy = True
            self.world.at(self.world.now + self.world.chance.random() * TURN, self._woken)

    def part_lost(self) -> None:
        if self.state == "held":
            self.state = "lost"
            self.world.log("%r is LOST", self)
            self.world.at(self.world.now + self.world.chance.random() * EXIT, self._leave)

    def release_answered(self) -> None:
        self._unreleased -= 1
        if not self._unreleased:
            self._through(0.0)

    def _asked(self) -> bool:
        """Is an answer missing?"""
        parts = (self.parts[place] for place in self.step.request)
        return any(part is not None and part.state == "waiting" for part in parts)

    # As acquire_several

    def _woken(self) -> None:
        """Every part has been answered."""
        if self._later(self._woken) or self.state != "waiting":
            return
        for place in self.step.request:
            part = self.parts[place]
            assert part is not None
            if part.state not in ("refused", "failed"):
                continue
            if self.step.wait or self.how != "join" or self.closed:
                self._give_up(part.state)
                return
            self.parts[place] = None
        if self.how == "force" and not all(self._held()):
            self.world.at(self.world.now + self.world.chance.random() * self._pause, self._go)
            self._pause = min(2 * self._pause, MAX_PAUSE)
        else:
            self._go()

    def _go(self) -> None:
        """The next step."""
        if self._later(self._go) or self.state != "waiting":
            return
        world, client = self.world, self.client
        world.acted = client
        held = self._held()
        if all(held):
            self._install()
            return
        if self.closed:
            self._give_up("failed")
            return
        missing = [place for place, has in enumerate(held) if not has]
        step = self._several.step(held, self._is_busy) if self.how == "join" else Step([], missing, False)
        self.step = step
        for place in step.give_back:
            if (part := self.parts[place]) is not None:
                client.end_part(part)
                self.parts[place] = None
        how = "try_join" if self.how == "join" and not step.wait else self.how
        for place in step.request:
            client.acquire(self.order[place], how, partial(self._ask, place))
        self._busy = False
        self.told()

    def _ask(self, place: int, part: Task) -> None:
        self.parts[place] = part
        part.group = self

    def _is_busy(self, place: int) -> bool:
        room = self.client.rooms.get(self.order[place])
        return room is not None and (room.contended or not room.empty)

    def _held(self) -> list[bool]:
        return [part is not None and self._is_held(part) for part in self.parts]

    def _is_held(self, part: Task) -> bool:
        if part.lease is not None and part.state == "held" and self.world.now >= part.lease.deadline:
            assert part.room is not None
            part.room.woken(self.world.now)
        return part.state == "held"

    def _install(self) -> None:
        world = self.world
        self.state, self.was_held, self._busy = "held", True, False
        world.log("%r HOLDS %s", self, " ".join(self.order))
        world.served = world.now
        world.groups += 1
        if world.fencing:
            for part in self.parts:
                assert part is not None
                ask_some_time(self.client, part)
        if world.hold is not None:
            world.at(world.now + world.hold(), self._held_enough)

    def _give_up(self, state: str) -> None:
        self.state = state
        self.world.acted = self.client
        self.world.log("%r %s", self, state)
        self._end_parts()
        self._through(0.01)

    # The end

    def end(self) -> None:
        """It stops waiting (cancelled or timed out), or releases what it holds."""
        if self.state not in ("waiting", "held") or not self.client.alive:
            return
        self.world.acted = self.client
        self.world.log("%r ends (%s)", self, self.state)
        self.state = "left" if self.state == "waiting" else "released"
        self._end_parts()

    def _held_enough(self) -> None:
        if not self._later(self._held_enough) and self.state == "held":
            self.state = "released"
            self.world.acted = self.client
            self._leave()

    def _leave(self) -> None:
        """The block is left."""
        if self._later(self._leave):
            return
        self.world.acted = self.client
        parts = [part for part in self.parts if part is not None and part.state == "held"]
        self._end_parts()
        for part in parts:
            assert part.lease is not None
            if part.lease.done and part.lease.unreleased:
                self._unreleased += 1
                self.client.leaving[part.lease] = part
        if not self._unreleased:
            self._through(0.0)

    def _through(self, after: float) -> None:
        if self.world.hold is not None and not self.client.past:
            self.world.at(self.world.now + after, self.world.through, self)

    def _end_parts(self) -> None:
        for part in self.parts:
            if part is not None:
                self.client.end_part(part)

    def _later(self, what: object) -> bool:
        """Does the process not run now? Then ``what`` is called when it does."""
        client, world = self.client, self.world
        if client.frozen <= world.now:
            return False
        if client.alive:
            world.at(client.frozen, what)  # type: ignore[arg-type]
        return True


def some_names(client: Client) -> str:
    """What a task wants next: one name or several."""
    chance = client.world.chance
    return "".join(chance.sample(NAMES, chance.choice((1, 1, 2, 2, 3, 4))))


def acquire(client: Client, names: str, how: str = "join") -> Task | Group:
    if len(names) == 1:
        return client.acquire(names, how)
    group = Group(client, names, how)
    client.groups.append(group)
    return group
