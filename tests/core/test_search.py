"""The way of one task to a permit: attempts of its own, looks, and when it gives up or queues."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from asynclock.core.permits import Board
from asynclock.core.rules import Rules
from asynclock.core.search import MAX_LOOKS, MAX_TRIES, Search

pytestmark = [pytest.mark.fast, pytest.mark.serverless]

RULES = Rules(majority=1, validity=5.0, extend_interval=2.5, try_next_after=0.02, tracking=True)


class World:
    """The port of a board. The test answers its looks."""

    def __init__(self, permits: int) -> None:
        self.looks: list[list[int]] = []
        self.board: Board[Any] = Board(permits, RULES, self)  # type: ignore[arg-type]  # rooms of our own

    def room(self, slot: int) -> Any:
        return SimpleNamespace(contended=False)

    def look_at(self, slots: list[int], now: float) -> None:
        self.looks.append(slots)

    def chance(self) -> float:
        return 0.0

    def see(self, free: set[int], now: float) -> None:
        """The look that is under way ends."""
        self.board.looked({slot: 0.0 if slot in free else now + 5 for slot in self.looks[-1]}, now)

    def refuse(self, search: Search, slot: int, now: float) -> bool:
        self.board.attempt_failed(slot, True, now)
        return search.failed(refused=True)


def test_one_that_waits_makes_one_attempt_and_queues() -> None:
    world = World(3)
    search = Search(world.board, True, 0.0)
    assert search.attempt(0.0) == 0
    search.attempted(0.0)
    assert [sorted(look) for look in world.looks] == [[0, 1, 2]]
    world.see({1, 2}, 0.1)
    assert world.refuse(search, 0, 0.1)
    assert search.attempt(0.1) is None  # though slots are free: whoever is in the queue goes first
    assert not search.look(0.1)


def test_one_that_waits_queues_too_if_the_servers_fail_its_attempt() -> None:
    """There it turns out whether they do so for good."""
    world = World(1)
    search = Search(world.board, True, 0.0)
    assert search.attempt(0.0) == 0
    assert search.failed(refused=False)
    assert search.attempt(0.1) is None


def test_one_that_does_not_wait_gives_up_if_the_servers_fail_its_attempt() -> None:
    world = World(1)
    search = Search(world.board, False, 0.0)
    assert search.attempt(0.0) == 0
    assert not search.failed(refused=False)


def test_one_that_does_not_wait_goes_on_with_what_a_look_has_found() -> None:
    world = World(3)
    search = Search(world.board, False, 0.0)
    assert search.attempt(0.0) == 0
    search.attempted(0.0)
    assert world.refuse(search, 0, 0.1)
    assert search.attempt(0.1) is None  # what else was believed may be outdated as well
    assert search.look(0.1)
    assert len(world.looks) == 1  # that beside the attempt
    world.see({2}, 0.2)
    assert search.attempt(0.2) == 2
    assert world.refuse(search, 2, 0.3)
    assert search.attempt(0.3) is None
    assert search.look(0.3)  # a slot was free since then
    world.see(set(), 0.4)
    assert search.attempt(0.4) is None
    assert not search.look(0.4)


def test_a_look_that_began_before_somebody_asked_does_not_count() -> None:
    world = World(1)
    assert world.board.pick(True) == 0
    world.board.attempt_failed(0, True, 0.0)
    world.board.look(0.0)
    search = Search(world.board, False, 0.1)
    assert search.attempt(0.1) is None
    assert search.look(0.1)
    world.see(set(), 0.2)
    assert search.attempt(0.2) is None
    assert search.look(0.2)
    assert len(world.looks) == 2
    world.see(set(), 0.3)
    assert not search.look(0.3)


def test_a_look_whose_answers_are_outdated_does_not_count() -> None:
    """At some time, one that does not wait has looked often enough."""
    world = World(1)
    assert world.board.pick(True) == 0
    world.board.attempt_failed(0, True, 0.0)
    search, looks = Search(world.board, False, 0.1), 0
    while search.look(0.1):
        looks += 1
        world.board.all_changed()
        world.see({0}, 0.2)
    assert looks == len(world.looks) == MAX_LOOKS


def test_slots_that_are_seen_free_and_refused() -> None:
    """As those that others want, too: one that does not wait has tried often enough at some time."""
    world = World(50)
    search, tries, now = Search(world.board, False, 0.0), 0, 0.0
    while (slot := search.attempt(now)) is not None or search.look(now):
        now += 0.01
        if slot is None:
            world.see(set(range(50)), now)
        else:
            tries += 1
            search.attempted(now)
            assert world.refuse(search, slot, now)
    assert tries == MAX_TRIES


def test_nobody_looks_if_this_process_has_all_permits() -> None:
    world = World(1)
    assert world.board.pick(True) == 0
    search = Search(world.board, False, 0.0)
    assert search.attempt(0.0) is None
    assert not search.look(0.0)
    assert world.looks == []
