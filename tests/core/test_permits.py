"""The board of a semaphore: random histories of one process among others, without servers."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asynclock.core.permits import Board
from asynclock.core.pool import Pool
from asynclock.core.rules import NEVER, Rules

pytestmark = [pytest.mark.fast, pytest.mark.every_python, pytest.mark.serverless]

TTL = 5.0  # seconds that a slot of another process is said to be taken for


class Lease:
    def __init__(self, room: Room) -> None:
        self.room = room


class Ticket:
    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.ended = False


class Room:
    """What ``core.room.Room`` does for a board: an attempt, or a wait."""

    def __init__(self, world: World, slot: int) -> None:
        self.world = world
        self.slot = slot
        self.holder: Lease | None = None
        self.attempt: object | None = None
        self.queue: list[Ticket] = []
        self.contended = False
        self.wake = NEVER

    def try_join(self, ticket: Ticket, now: float) -> None:
        if self.holder is not None or self.queue:
            self._end(ticket, None)
        else:
            self.queue.append(ticket)
            self.attempt = ticket
            self.world.later(lambda: self._attempted(ticket))

    def _attempted(self, ticket: Ticket) -> None:
        if ticket in self.queue:
            self.attempt = None
            self.queue.remove(ticket)
            self._end(ticket, self._take())

    def join(self, ticket: Ticket, now: float) -> None:
        self.queue.append(ticket)
        self.look()

    def look(self) -> None:
        """The first in the queue gets the slot, if it is free."""
        if self.queue and self.attempt is None and self.holder is None and (lease := self._take()) is not None:
            self._end(self.queue.pop(0), lease)

    def leave(self, ticket: Ticket) -> None:
        self.queue.remove(ticket)
        if self.attempt is ticket:
            self.attempt = None

    def release(self, lease: Lease, now: float) -> None:
        assert self.holder is lease
        self.holder = None
        if self.queue and self.attempt is None:  # handed on, or free for others first
            if self.world.chance() < 0.5:
                self.holder = Lease(self)
                self._end(self.queue.pop(0), self.holder)
                return
            self.world.owner[self.slot] = None
            self.world.told(self.slot)
            self.world.later(self.look)
            return
        self.world.owner[self.slot] = None

    def _take(self) -> Lease | None:
        if self.holder is not None or self.world.owner[self.slot] is not None:
            return None
        self.world.owner[self.slot] = "us"
        self.holder = Lease(self)
        return self.holder

    def _end(self, ticket: Ticket, lease: Lease | None) -> None:
        ticket.ended = True
        self.world.later(lambda: self.world.ticket_ended(ticket, lease))


class World:
    """One process, its board and the slots."""

    def __init__(self, permits: int, seed: int, tracking: bool, majority: int = 1) -> None:
        self.random = random.Random(seed)
        self.chance = self.random.random
        self.now = 0.0
        self.owner: list[str | None] = [None] * permits
        self.rooms = [Room(self, slot) for slot in range(permits)]
        self.events: list[Callable[[], object]] = []
        self.tracked: set[int] = set()
        self.tracking = tracking
        self.held: dict[int, tuple[int, Lease]] = {}  # slot -> task, lease
        self.served: list[int] = []
        self.due = NEVER
        rules = Rules(majority=majority, validity=5.0, extend_interval=2.5, try_next_after=0.02, tracking=tracking)
        self.board: Board[object] = Board(permits, rules, self)  # type: ignore[arg-type]  # rooms of our own
        self.waits: dict[int, object] = {}
        self.tasks = 0

    def later(self, what: Callable[[], object]) -> None:
        self.events.append(what)

    def step(self) -> None:
        """The next thing happens: mostly in order, as answers of one server come."""
        if self.events:
            self.events.pop(0 if self.chance() < 0.8 else self.random.randrange(len(self.events)))()
            self.board.check()

    def settle(self) -> None:
        """All that is under way ends, and timers run for as long as anything is to come of it."""
        for _ in range(20):
            while self.events:
                self.step()
            if not self.board.queue or self.due == NEVER:
                break
            self.now, self.due = max(self.now, self.due), NEVER
            self.board.serve(self.now)
        while self.events:
            self.step()

    def told(self, slot: int) -> None:
        """The key of the slot changes: the server says so, once for each time that it was read."""
        if self.tracking and slot in self.tracked:
            self.tracked.discard(slot)
            self.later(lambda: self.board.changed(slot) and self.later(lambda: self.board.serve(self.now)))

    # Its port

    def room(self, slot: int) -> Room:
        return self.rooms[slot]

    def ticket(self, slot: int) -> Ticket:
        return Ticket(slot)

    def has_ended(self, ticket: Ticket) -> bool:
        return ticket.ended

    def leave_room(self, ticket: Ticket, now: float) -> None:
        self.rooms[ticket.slot].leave(ticket)

    def look_at(self, slots: list[int], now: float) -> None:
        def read() -> None:
            found = {slot: 0.0 if self.owner[slot] is None else self.now + TTL for slot in slots}
            self.tracked |= set(slots)
            fails = self.chance() < 0.1

            def ended() -> None:
                if fails:
                    self.board.look_failed(None, self.now)
                else:
                    self.board.looked(found, self.now)
                self.board.serve(self.now)

            self.later(ended)

        self.later(read)

    def granted(self, waiter: object, slot: int, lease: Lease) -> None:
        (task,) = (number for number, each in self.waits.items() if each is waiter)
        del self.waits[task]
        assert slot not in self.held
        self.held[slot] = task, lease
        self.served.append(task)

    def failed(self, waiter: object, error: Exception | None) -> None:
        raise AssertionError

    def wake(self, when: float) -> None:
        self.due = min(self.due, when)

    def ticket_ended(self, ticket: Ticket, lease: Lease | None) -> None:
        self.board.ticket_ended(ticket.slot, ticket, lease, lease is None, None, self.now)  # type: ignore[arg-type]

    # What happens

    def acquire(self) -> None:
        """A task comes: its own attempt if it may have one, else the queue."""
        self.tasks += 1
        task, waiter, since = self.tasks, object(), self.now
        slot = self.board.pick(True)
        if slot is None:
            self.waits[task] = waiter
            self.board.join(waiter, task, self.now)
            return
        room = self.rooms[slot]

        def answered() -> None:
            lease = None if room.queue else room._take()
            if lease is not None:
                self.held[slot] = task, lease
                return
            self.board.attempt_failed(slot, True, self.now)
            self.waits[task] = waiter
            self.board.join(waiter, task, since)

        self.later(answered)

    def release(self) -> None:
        if self.held:
            slot = self.random.choice([*self.held])
            _, lease = self.held.pop(slot)
            self.board.ended(slot, self.now)
            lease.room.release(lease, self.now)

    def lose(self) -> None:
        if self.held:
            slot = self.random.choice([*self.held])
            del self.held[slot]
            self.rooms[slot].holder = None
            self.owner[slot] = "other" if self.chance() < 0.5 else None
            self.board.lost(slot)
            self.later(lambda: self.board.serve(self.now))

    def give_up(self) -> None:
        if self.waits:
            waiter = self.waits.pop(self.random.choice([*self.waits]))
            assert self.board.leave(waiter, self.now)

    def other_takes(self) -> None:
        free = [slot for slot, owner in enumerate(self.owner) if owner is None]
        if free:
            slot = self.random.choice(free)
            self.owner[slot] = "other"
            self.told(slot)

    def other_leaves(self) -> None:
        theirs = [slot for slot, owner in enumerate(self.owner) if owner == "other"]
        if theirs:
            slot = self.random.choice(theirs)
            self.owner[slot] = None
            self.told(slot)
            self.later(self.rooms[slot].look)  # a room hears of it by itself

    def contend(self) -> None:
        room = self.random.choice(self.rooms)
        room.contended = not room.contended

    def reconnect(self) -> None:
        self.tracked.clear()
        self.board.all_changed()
        self.later(lambda: self.board.serve(self.now))


ACTIONS = {
    World.acquire: 6,
    World.release: 4,
    World.step: 10,
    World.other_takes: 2,
    World.other_leaves: 2,
    World.give_up: 1,
    World.lose: 1,
    World.contend: 1,
    World.reconnect: 1,
}


@settings(max_examples=600, deadline=None)
@given(permits=st.sampled_from([1, 2, 3, 10]), seed=st.integers(0, 1 << 32), tracking=st.booleans())
def test_no_task_waits_while_a_slot_is_free(permits: int, seed: int, tracking: bool) -> None:
    world = World(permits, seed, tracking)
    for action in world.random.choices([*ACTIONS], [*ACTIONS.values()], k=80):
        action(world)
        board = world.board
        board.check()
        assert sum(owner == "us" for owner in world.owner) <= permits
    world.settle()
    # Tasks come and go until nobody waits.
    for _ in range(1000):
        if not world.waits:
            break
        free = [slot for slot, owner in enumerate(world.owner) if owner is None]
        assert not free, f"{len(world.waits)} tasks wait, and {free} are free"
        assert len(world.board.tickets) <= len(world.waits)
        if world.held and world.chance() < 0.7:
            world.release()
            if world.chance() < 0.5:
                world.other_takes()  # before this process comes back to what it has held back from
        else:
            world.other_leaves()
        world.now += 0.1
        world.settle()
    assert not world.waits and not world.board.queue
    assert not world.board.tickets and not world.board.probes


@settings(max_examples=100, deadline=None)
@given(permits=st.integers(1, 5), seed=st.integers(0, 1 << 32))
def test_first_come_first_served(permits: int, seed: int) -> None:
    world = World(permits, seed, True)
    for _ in range(permits):
        world.acquire()
    world.settle()
    assert len(world.held) == permits
    for _ in range(10):
        world.acquire()
    while world.waits:
        world.release()
        world.settle()
    assert world.served == sorted(world.served) and len(world.served) == 10


def test_a_permit_that_nobody_wants_any_more_is_given_back() -> None:
    world = World(1, 1, True)
    world.owner[0] = "other"
    world.acquire()
    world.settle()
    assert [*world.board.tickets] == [0]
    world.other_leaves()
    while not world.rooms[0].holder:
        world.step()
    world.give_up()
    world.settle()
    assert world.owner == [None] and world.board.pick(True) == 0


@given(st.integers(1, 1000), st.data())
def test_a_pool(size: int, data: st.DataObject) -> None:
    pool, members = Pool(size), set(range(size))
    for number in data.draw(st.lists(st.integers(0, size - 1), max_size=50)):
        if data.draw(st.booleans()):
            pool.add(number)
            members.add(number)
        else:
            pool.remove(number)
            members.discard(number)
        assert set(pool) == members and pool.count == len(members)
        assert (number in pool) == (number in members)
    assert sorted(pool.at(place) for place in range(pool.count)) == sorted(members)
    assert array("H").itemsize == 2


def test_a_push_overtakes_what_the_process_has_still_to_do() -> None:
    """The replies to an attempt and to a look, and a push, are read at once. The slot was freed after both."""
    world = World(2, 1, True)
    board, waiter = world.board, object()
    world.owner = ["other", "other"]
    slot = board.pick(True)
    assert slot is not None
    board.look(world.now)
    world.events.pop(0)()  # it is read: both slots are taken
    world.owner[slot] = None
    board.changed(slot)
    board.attempt_failed(slot, True, world.now)
    world.waits[1] = waiter
    board.join(waiter, 1, world.now)
    world.settle()
    assert not world.waits and [*world.held] == [slot]
    assert world.now < 1, "it was taken for taken until its time to live was over"


def test_a_look_may_see_the_keys_of_an_attempt_of_this_process() -> None:
    """It has got some of three keys, and gives them back. Nobody tells their own owner so, with NOLOOP."""
    world = World(2, 1, True, majority=2)
    board, waiter = world.board, object()
    slot = board.pick(True)
    assert slot is not None
    board.look(world.now)
    world.owner = ["us", "us"]
    world.owner[1 - slot] = "other"
    world.events.pop(0)()  # it is read: both slots are taken
    world.owner[slot] = None
    board.attempt_failed(slot, True, world.now)
    world.waits[1] = waiter
    board.join(waiter, 1, world.now)
    world.settle()
    assert not world.waits and [*world.held] == [slot]
    assert world.now < 1, "it was taken for taken until its time to live was over"


def test_attempts_that_servers_fail_are_put_off() -> None:
    """One at a time, with longer and longer pauses; and all at once when the servers work again."""
    world = World(10, 1, True)
    tried: list[float] = []
    works = False

    def ended(ticket: Ticket, lease: Lease | None) -> None:
        tried.append(world.now)
        if not works and lease is not None:
            world.rooms[ticket.slot].holder = world.owner[ticket.slot] = lease = None
        world.board.ticket_ended(ticket.slot, ticket, lease, False, None, world.now)  # type: ignore[arg-type]

    world.ticket_ended = ended  # type: ignore[method-assign]
    for task in range(5):
        world.waits[task] = waiter = object()
        world.board.join(waiter, task, world.now)
    while world.now < 10:
        for _ in range(100):
            world.step()
        assert not world.events
        assert world.board.queue and world.due < NEVER
        world.now, world.due = max(world.now, world.due), NEVER
        world.board.serve(world.now)
    first = sum(when == tried[0] for when in tried)
    assert first <= 5 and len(tried) < 30, tried
    works = True
    world.settle()
    assert not world.waits and len(world.held) == 5


def test_which_looks_are_needless() -> None:
    """A push that means nothing leads to one. But holders that come and go within milliseconds are no such thing."""

    def found(until: float) -> int:
        board.changed(0)
        board.look(world.now)
        world.now += 0.001
        return board.looked({0: until}, world.now)

    world = World(1, 1, True)
    board = world.board
    assert found(world.now + TTL) == 0
    for _ in range(200):
        world.now += 0.004  # another one has had it meanwhile, and released it
        assert found(world.now + TTL) == 0
    until, needless = world.now + TTL, 0
    for _ in range(50):
        world.now += 0.01
        needless += found(until)
    assert 40 <= needless < 50
    world.now += 1
    assert found(world.now + TTL) == 0  # it was extended
    assert not world.board._doubted
