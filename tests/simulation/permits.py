"""Semaphores of a simulated process: as ``_engine.permits`` and ``_engine.look``, and as ``Times`` in
``wire.requests``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from asynclock.core.findings import Findings
from asynclock.core.lease import Lease
from asynclock.core.permits import Board
from asynclock.core.room import Room
from asynclock.core.rules import NEVER
from asynclock.core.search import Search

from .requests import NO_EXPIRY, Command
from .servers import Trouble

if TYPE_CHECKING:
    from .processes import Client, Task


def room_name(name: str, slot: int) -> str:
    return f"{name}#{slot}"


def slot_of(key: bytes) -> tuple[str, int] | None:
    """The semaphore and the slot of a key; None: it is a lock's."""
    name, sharp, slot = key.decode()[2:].partition("#")
    return (name, int(slot)) if sharp else None


class Times:
    """A request for the times to live of one key of each slot."""

    __slots__ = ("_answered", "_index", "_name", "_replies", "_slots", "left")

    def __init__(self, name: str, slots: list[int], index: int, answered: Callable[[int, list[Any]], None]) -> None:
        self._name = name
        self._slots = slots
        self._index = index
        self._replies: list[Any] = []
        self._answered = answered
        self.left = len(slots)

    @property
    def commands(self) -> list[Command]:
        keys = [b"%d:%b" % (self._index, room_name(self._name, slot).encode()) for slot in self._slots]
        return [("PTTL", key, b"", NO_EXPIRY) for key in keys]

    def reply(self, reply: Any, now: float) -> None:
        self._replies.append(reply)
        self.left -= 1
        if not self.left:
            self._answered(self._index, self._replies)

    def dropped(self) -> None:
        self.left = 0
        self._answered(self._index, [Trouble()])


class Ticket:
    """Waits in the room of a slot on behalf of a board, in place of a task."""

    __slots__ = ("client", "lease", "name", "problem", "room", "semaphore", "slot", "state")

    group = stay = None  # as a task without them

    def __init__(self, semaphore: Semaphore, slot: int, room: Room[Any]) -> None:
        self.client = semaphore.client
        self.semaphore = semaphore
        self.slot = slot
        self.room = room
        self.name = room.name
        self.lease: Lease | None = None
        self.state = "waiting"  # held, lost, refused, failed, left
        self.problem: Any = None

    def __repr__(self) -> str:
        return f"{self.client.name}.ticket[{self.slot}]"

    def ended(self, state: str, problem: Any, lease: Lease | None) -> None:
        assert self.state == "waiting"
        self.state, self.problem, self.lease = state, problem, lease
        self.semaphore.soon(lambda: self.semaphore.ticket_ended(self))


class Semaphore:
    """One semaphore in one process, around its board."""

    def __init__(self, client: Client, name: str, permits: int) -> None:
        self.client = client
        self.world = client.world
        self.name = name
        self.board: Board[Any] = Board(permits, client.world.rules, self)
        self.between: set[Task] = set()  # tasks whose own attempt has failed, and that are about to do something else
        self._searches: dict[Task, Search] = {}
        self._slots: dict[Task, int] = {}  # of tasks that have a permit, or make an attempt
        self._looking: list[Task] = []  # those who do not wait, and look
        self._due = NEVER

    # What tasks do

    def acquire(self, task: Task) -> None:
        self._searches[task] = Search(self.board, task.how != "try_join", self.world.now)
        self._try(task)

    def _try(self, task: Task) -> None:
        """As the loop in ``asynclock.semaphore._acquire``."""
        search, now = self._searches[task], self.world.now
        slot = search.attempt(now)
        if slot is not None:
            room = self.room(slot)
            task.room, self._slots[task] = room, slot
            room.try_join(task, now)
            search.attempted(now)
        elif task.how != "try_join":
            self.board.join(task, task.since, now)
        elif search.look(now):
            self._looking.append(task)
            self.between.add(task)
        else:
            self.client.give_up(task, "refused", None)

    def goes_on(self, task: Task, state: str) -> bool:
        """The task's own attempt has failed. Is something else to be done?"""
        if task not in self._slots or not self.client.alive:
            return False
        refused = state == "refused"
        again = self._searches[task].failed(refused)
        if again:
            self.between.add(task)
        self.soon(lambda: self._attempt_failed(task, refused, again))
        return again

    def _attempt_failed(self, task: Task, refused: bool, again: bool) -> None:
        slot = self._slots.pop(task, None)
        self.between.discard(task)
        if slot is not None:
            self.board.attempt_failed(slot, refused, self.world.now)
            if again and task.state == "waiting":
                task.room = None
                self._try(task)

    def end(self, task: Task) -> None:
        """As ``Client.end``."""
        now = self.world.now
        self.between.discard(task)
        if task in self._looking:
            self._looking.remove(task)
        slot = self._slots.pop(task, None)
        if slot is None:
            self.board.leave(task, now)
            return
        assert task.room is not None
        self.board.ended(slot, now)
        if task.lease is None:
            task.room.leave(task, now)
        else:
            task.room.release(task.lease, now)

    def lost(self, task: Task) -> None:
        if (slot := self._slots.pop(task, None)) is not None:
            self.board.lost(slot)
            self.serve_soon()

    def knows(self, task: Task) -> bool:
        """Does somebody come back to this task, which waits?"""
        if task in self.board.queue or task in self.between:
            return True
        return task.room is not None and task in task.room.queue

    def close(self) -> None:
        for task in [*self.board.close(), *self._looking]:
            task.state = "failed"
        self._looking.clear()
        self.between.clear()

    # What servers tell

    def changed(self, slot: int) -> None:
        if self.board.changed(slot) and self.board.queue:
            self.serve_soon()

    def all_changed(self) -> None:
        self.board.all_changed()
        self.serve_soon()

    def serve_soon(self) -> None:
        self.soon(lambda: self.board.serve(self.world.now))

    def soon(self, what: Callable[[], object]) -> None:
        """In another turn of the loop."""
        self.world.at(self.world.now, self._run, what)

    def _run(self, what: Callable[[], object]) -> None:
        client = self.client
        if client.frozen > self.world.now:
            if client.alive:
                self.world.at(client.frozen, self._run, what)
        elif not client.past:
            self.world.acted = client
            what()
            self.board.check()

    # For the board (asynclock.core.permits.BoardPort)

    def room(self, slot: int) -> Room[Any]:
        return self.client.room(room_name(self.name, slot))

    def chance(self) -> float:
        return self.world.random.random()

    def ticket(self, slot: int) -> Ticket:
        return Ticket(self, slot, self.room(slot))

    def has_ended(self, ticket: Ticket) -> bool:
        return ticket.state != "waiting"

    def leave_room(self, ticket: Ticket, now: float) -> None:
        ticket.state = "left"
        ticket.room.leave(ticket, now)

    def ticket_ended(self, ticket: Ticket) -> None:
        now, lease = self.world.now, ticket.lease
        if lease is not None:
            if now >= lease.deadline and not lease.done:
                ticket.room.woken(now)
            if lease.done:
                lease = None
        error = ticket.problem if ticket.state == "failed" and getattr(ticket.problem, "lasting", False) else None
        self.board.ticket_ended(ticket.slot, ticket, lease, ticket.state == "refused", error, now)

    def granted(self, task: Task, slot: int, lease: Lease) -> None:
        task.room, self._slots[task] = lease.room, slot
        self.client.granted(task, lease)

    def failed(self, task: Task, error: Exception | None) -> None:
        self.client.give_up(task, "failed", error)

    def wake(self, when: float) -> None:
        if when < self._due:
            self._due = when
            self.world.at(max(when, self.world.now) + self.world.random.random() * 1e-4, self._run, self._wake)

    def _wake(self) -> None:
        self._due = NEVER
        self.board.serve(self.world.now)

    def look_at(self, slots: list[int], now: float) -> None:
        findings, client = Findings(slots, self.world.rules, now), self.client
        over, lasting = False, list[Trouble]()  # errors after which retrying cannot help

        def answered(index: int, replies: list[Any]) -> None:
            if troubles := [reply for reply in replies if isinstance(reply, Trouble)]:
                findings.failed(index, troubles[0].lasting)
                if troubles[0].lasting:
                    lasting.append(troubles[0])
            else:
                findings.answered(index, replies, self.world.now)
            self.soon(end_if_complete)

        def late() -> None:
            findings.late = True
            end_if_complete()

        def end_if_complete() -> None:
            nonlocal over
            if not over and findings.complete:
                over = True
                self._look_ended(findings.found(), lasting[0] if findings.hopeless else None)

        for index in range(self.world.rules.keys):
            link = client.links[client.homes[index]]
            times = Times(self.name, slots, index, answered)
            if link is None:
                problem = client.problems[client.homes[index]]
                answered(index, [Trouble() if problem is None else problem])
            else:
                link.send(times, times.commands)
        self.world.at(now + self.world.rules.try_next_after, self._run, late)

    def _look_ended(self, found: dict[int, float] | None, error: Exception | None) -> None:
        now = self.world.now
        if found is None:
            self.board.look_failed(error, now)
        else:
            needless, pause = self.board.looked(found, now), 0.0
            for index in range(self.world.rules.keys):
                for _ in range(needless):
                    self.client.needless(self.room(0), index, now)
                pause = max(pause, self.client.pause(self.room(0), index, now))
            if pause:
                self.board.limit_looks(pause)
        self.board.serve(now)
        looking, self._looking = self._looking, []
        for task in looking:
            self.between.discard(task)
            self._try(task)
