"""Rules for locks that stay for a least time after they were acquired."""

from __future__ import annotations

import pytest

from asynclock.core.lease import Lease
from asynclock.core.operations import Operation
from asynclock.core.reasons import LossReason
from asynclock.core.rules import NEVER

from ..support.bench import OTHER, Bench

pytestmark = [pytest.mark.fast, pytest.mark.every_python, pytest.mark.serverless]

KEEP, RELEASE = Operation.KEEP, Operation.RELEASE


def held(bench: Bench, at_least: float) -> Lease:
    """Hold the lock, as a scope that wants it to stay for so many seconds."""
    lease = bench.hold()
    lease.keep(bench.now + at_least)
    return lease


@pytest.mark.parametrize("majority", [1, 2])
def test_the_keys_are_kept_instead_of_released(majority: int) -> None:
    bench = Bench(majority)
    lease = held(bench, 60.0)
    bench.wait(1.0)
    assert bench.release(lease)
    assert bench.asks == [(KEEP, index) for index in range(bench.rules.keys)]
    assert lease.done and bench.room.empty and bench.room.wake == NEVER
    for index in range(bench.rules.keys):
        assert not bench.settles
        bench.answer(KEEP, index)
    assert bench.settles == [lease.token]
    assert lease.loss_found_by_release() is None


def test_once_the_time_is_over_they_are_released_as_usual() -> None:
    bench = Bench()
    lease = held(bench, 1.0)
    bench.wait(1.0)
    bench.release(lease)
    assert bench.asks == [(RELEASE, 0)]
    assert lease.keep_until == 0.0  # and what is owed of it is a deletion


@pytest.mark.parametrize("least", [0.5, 60.0])
def test_nobody_here_gets_it_before_that(least: float) -> None:
    """Whoever waits here finds the key taken, and waits for its end."""
    bench = Bench(handoffs=100)
    lease = held(bench, least)
    bench.join("next")
    bench.release(lease)
    assert bench.of("granted") == []
    assert (Operation.TAKE, 0) not in bench.asks  # before the answer, which may be that it was not kept yet
    bench.answer(KEEP)
    bench.wait(0.01)
    bench.answer(Operation.TAKE, found=lease.token, ok=False)
    bench.answer(Operation.TAKE_TTL, found=lease.token, ok=False, ttl=round(least * 1000) - 10)
    assert bench.when == pytest.approx(bench.now + least, abs=0.015)
    bench.wait(least + 0.002)
    bench.answer(Operation.TAKE_TTL, ttl=5000)
    assert bench.of("granted") == ["next"]


def test_it_is_handed_on_once_its_time_is_over() -> None:
    bench = Bench(handoffs=100)
    lease = held(bench, 0.01)
    bench.join("next")
    bench.wait(0.02)
    assert not bench.release(lease)
    assert bench.of("granted") == ["next"]


def test_a_lost_lock_is_not_kept() -> None:
    bench = Bench(majority=2)
    lease = held(bench, 60.0)
    for index in (0, 1):
        bench.room.invalidated(index, bench.now)
        bench.answer(Operation.READ, index, None, -2)
    assert bench.of("lost") == [LossReason.DELETED]
    assert bench.asks == [(RELEASE, 2)]
    assert lease.keep_until == 0.0


def test_a_lock_that_has_expired_is_not_kept() -> None:
    """... although nothing has noticed yet that it has."""
    bench = Bench(majority=2)
    lease = held(bench, 60.0)
    bench.now = lease.deadline
    bench.release(lease)
    assert [operation for operation, _ in bench.asks[-3:]] == [RELEASE] * 3


def test_a_lock_that_was_taken_over_here_is_not_kept() -> None:
    bench = Bench()
    held(bench, 60.0)
    bench.room.force("boss", bench.now)
    bench.forced()
    assert bench.told == [("lost", LossReason.TAKEN_OVER, None), ("granted", "boss")]
    assert bench.asks == [(RELEASE, 0)]


def test_an_attempt_that_nobody_wants_any_more_is_not_kept() -> None:
    bench = Bench()
    bench.join("me")
    bench.room.leave("me", bench.now)
    assert bench.asks == [(Operation.TAKE, 0), (RELEASE, 0)]


def test_keys_that_others_have_are_not_kept() -> None:
    bench = Bench(majority=2)
    lease = held(bench, 60.0)
    bench.room.invalidated(1, bench.now)
    bench.answer(Operation.READ, 1, OTHER, 4000)
    bench.release(lease)
    assert bench.asks == [(KEEP, 0), (KEEP, 2)]


def test_a_loss_that_its_answer_shows_is_told() -> None:
    bench = Bench()
    lease = held(bench, 60.0)
    bench.release(lease)
    bench.answer(KEEP, found=OTHER)
    assert bench.asks == [(Operation.READ, 0)]
    bench.answer(Operation.READ, found=OTHER, ttl=4000)
    assert lease.loss_found_by_release() is LossReason.DELETED
    assert bench.settles == [lease.token]


@pytest.mark.parametrize("error", [None, OSError()])
def test_an_answer_that_never_comes_ends_the_wait_for_it(error: Exception | None) -> None:
    bench = Bench()
    lease = held(bench, 60.0)
    bench.release(lease)
    bench.fail(KEEP, error=error)
    assert bench.settles == [lease.token]
    assert lease.keep_until > bench.now  # until when it is owed


def test_it_is_owed_to_a_server_that_is_away() -> None:
    bench = Bench(majority=2)
    lease = held(bench, 60.0)
    bench.drop(1)
    bench.release(lease)
    assert bench.asks == [(KEEP, 0), (KEEP, 2)]
    assert bench.kept == [(1, lease.token)]


def test_closing_keeps_it_at_once_if_that_is_longer_than_the_lock_lasts() -> None:
    bench = Bench()
    lease = held(bench, 60.0)
    bench.room.close(bench.now)
    assert bench.told == [("lost", LossReason.CLOSED, None)]
    assert bench.asks == [(KEEP, 0)]
    bench.room.release(lease, bench.now)  # its block is left
    assert bench.asks == [(KEEP, 0)]
    assert bench.room.empty


@pytest.mark.parametrize(("after", "operation"), [(0.5, KEEP), (1.5, RELEASE)])
def test_closing_keeps_it_until_its_block_is_left_if_that_is_shorter(after: float, operation: Operation) -> None:
    bench = Bench()
    lease = held(bench, 1.0)
    bench.room.close(bench.now)
    assert bench.asks == []
    bench.wait(after)
    bench.room.release(lease, bench.now)
    assert bench.asks == [(operation, 0)]


def test_who_takes_it_over_by_force_gets_it() -> None:
    bench = Bench()
    lease = held(bench, 60.0)
    bench.release(lease)
    bench.answer(KEEP)
    bench.room.force("boss", bench.now)
    bench.forced()
    assert bench.told == [("granted", "boss")]  # nobody has lost it
    bench.room.invalidated(0, bench.now)
    assert bench.of("lost") == []
