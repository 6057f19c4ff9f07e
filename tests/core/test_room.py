"""Rules of the waiting room, one by one, on one key: answers and time are given by hand."""

import pytest

from asynclock.core.operations import Operation
from asynclock.core.reasons import LossReason
from asynclock.core.retry import MAX_BACKOFF
from asynclock.core.rules import NEVER

from ..simulation.servers import Trouble
from ..support.bench import OTHER, STRANGER, Bench

pytestmark = [pytest.mark.fast, pytest.mark.every_python, pytest.mark.serverless]

# Acquiring and releasing


def test_an_uncontended_lock_is_one_round_trip_each_way() -> None:
    bench = Bench()
    bench.join("me")
    assert bench.asks == [(Operation.TAKE, 0)]
    bench.answer(Operation.TAKE)
    lease = bench.room.holder
    assert bench.told == [("granted", "me")]
    assert bench.release(lease)
    assert bench.asks == [(Operation.RELEASE, 0)]
    assert bench.settles == []
    bench.answer(Operation.RELEASE)
    assert bench.settles == [lease.token]
    assert lease.loss_found_by_release() is None
    assert bench.room.empty
    assert bench.when == NEVER


def test_a_lease_is_released_once_and_by_its_holder_only() -> None:
    bench = Bench()
    lease = bench.hold()
    assert bench.release(lease)
    assert not bench.release(lease)
    assert bench.asks == [(Operation.RELEASE, 0)]


def test_a_release_that_finds_somebody_else_says_so() -> None:
    bench = Bench()
    lease = bench.hold()
    bench.release(lease)
    bench.answer(Operation.RELEASE, found=OTHER)
    assert lease.loss_found_by_release() is not None


def test_the_second_attempt_asks_how_long_the_holder_has_left_and_the_third_comes_one_millisecond_after() -> None:
    bench = Bench()
    bench.join("me")
    bench.answer(Operation.TAKE, found=OTHER)
    assert bench.asks == [(Operation.TAKE_TTL, 0)]
    bench.answer(Operation.TAKE_TTL, found=OTHER, ttl=700)
    assert bench.asks == []
    assert bench.when == pytest.approx(bench.now + 0.701)
    bench.wait(0.7005)
    assert bench.asks == []
    bench.wait(0.001)
    assert bench.asks == [(Operation.TAKE_TTL, 0)]
    bench.answer(Operation.TAKE_TTL)
    assert bench.of("granted") == ["me"]


def test_a_key_without_an_end_is_looked_at_again_after_the_validity() -> None:
    bench = Bench()
    bench.join("me")
    bench.answer(Operation.TAKE, found=STRANGER)
    bench.answer(Operation.TAKE_TTL, found=STRANGER, ttl=-1)
    assert bench.when == pytest.approx(bench.now + 5.0)


def test_an_answer_that_is_read_late_does_not_lengthen_the_wait() -> None:
    """The loop was blocked, or the machine suspended, while the answer had come already."""
    bench = Bench()
    bench.join("me")
    bench.answer(Operation.TAKE, found=STRANGER)
    asked = bench.now
    bench.now += 3.0
    bench.answer(Operation.TAKE_TTL, found=STRANGER, ttl=4000)
    assert bench.when == pytest.approx(asked + 4.001)


def test_only_an_attempt_that_an_invalidation_caused_was_needless() -> None:
    bench = Bench()
    bench.refuse(ttl=4000)
    since = bench.now
    for caused in (False, True):
        bench.now += 0.1
        if caused:
            bench.room.invalidated(0, bench.now)
        else:
            bench.room.woken(bench.now)  # its own time has come
        bench.answer(Operation.TAKE_TTL, found=OTHER, ttl=4000 - round((bench.now - since) * 1000))
        assert bench.needless_checks == caused


def test_a_check_was_needless_though_another_invalidation_came_before_its_answer() -> None:
    """Else a server whose tracking table is full could have a key read again and again, as fast as it answers."""
    bench = Bench()
    bench.hold()
    bench.wait(0.05)
    bench.room.invalidated(0, bench.now)
    for number in range(1, 4):
        bench.room.invalidated(0, bench.now)
        bench.answer(Operation.READ, ttl=5000)
        assert bench.needless_checks == number
        assert bench.asks == [(Operation.READ, 0)]


def test_an_attempt_was_needless_though_another_invalidation_came_before_its_answer() -> None:
    bench = Bench()
    bench.refuse(ttl=4000)
    bench.wait(0.1)
    bench.room.invalidated(0, bench.now)
    for number in range(1, 4):
        bench.room.invalidated(0, bench.now)
        bench.answer(Operation.TAKE_TTL, found=OTHER, ttl=3900)
        assert bench.needless_checks == number


def test_what_a_lease_has_written_itself_causes_no_needless_check() -> None:
    """Where NOLOOP is not in force, an invalidation follows one's own SET, and one's own extension."""
    bench = Bench()
    bench.hold()
    for own in (True, False):
        bench.room.invalidated(0, bench.now)
        bench.answer(Operation.READ, ttl=5000)
        assert bench.needless_checks == (not own)
        bench.wait(0.05)


def test_a_key_that_went_away_meanwhile_is_tried_at_once_but_not_for_ever_without_a_pause() -> None:
    bench = Bench()
    bench.join("me")
    bench.answer(Operation.TAKE, found=OTHER)
    for _ in range(4):
        bench.answer(Operation.TAKE_TTL, found=None, ttl=-2)
    assert bench.asks == []
    assert bench.now < bench.when <= bench.now + 0.03


def test_a_waiter_wakes_on_a_push() -> None:
    bench = Bench()
    bench.refuse()
    bench.room.invalidated(0, bench.now)
    assert bench.asks == [(Operation.TAKE_TTL, 0)]


def test_a_push_while_the_answer_is_under_way_is_not_lost_on_an_attempt() -> None:
    bench = Bench()
    bench.join("me")
    bench.answer(Operation.TAKE, found=OTHER)
    bench.room.invalidated(0, bench.now)
    bench.answer(Operation.TAKE_TTL, found=OTHER, ttl=4000)
    assert bench.asks == [(Operation.TAKE_TTL, 0)]


def test_a_push_while_the_answer_is_under_way_is_not_lost_on_a_holder() -> None:
    bench = Bench()
    lease = bench.hold()
    bench.wait(2.0)
    assert bench.asks == [(Operation.EXTEND, 0)]
    bench.room.invalidated(0, bench.now)
    assert bench.asks == [(Operation.EXTEND, 0)]
    bench.answer(Operation.EXTEND)
    assert bench.asks == [(Operation.READ, 0)]
    bench.answer(Operation.READ, found=None, ttl=-2)
    assert bench.told == [("doubt clock", 0), ("lost", LossReason.DELETED, 0)]
    assert bench.room.empty
    assert lease.done


def test_a_push_that_finds_the_token_changes_nothing() -> None:
    bench = Bench()
    lease = bench.hold()
    deadline = lease.deadline
    bench.wait(0.5)
    bench.room.invalidated(0, bench.now)
    bench.answer(Operation.READ, ttl=4600)
    assert bench.told == []
    assert lease.deadline == deadline


# Leaving


def test_an_abandoned_attempt_is_followed_by_its_release() -> None:
    bench = Bench()
    bench.join("me")
    abandoned = bench.room.leave("me", bench.now)
    assert abandoned is not None
    assert bench.asks == [(Operation.TAKE, 0), (Operation.RELEASE, 0)]
    assert bench.room.empty
    bench.answer(Operation.TAKE)  # too late to matter
    bench.answer(Operation.RELEASE)
    assert bench.settles == [abandoned.token]
    assert bench.of("granted") == []


def test_an_abandoned_attempt_is_followed_by_its_release_after_a_reconnect_too() -> None:
    bench = Bench()
    bench.join("me")
    abandoned = bench.room.leave("me", bench.now)
    bench.drop(0)
    assert bench.kept == [(0, abandoned.token)]
    assert bench.settles == [abandoned.token]


def test_a_waiter_that_leaves_while_nothing_is_asked_leaves_nothing_behind() -> None:
    bench = Bench()
    bench.refuse()
    assert bench.room.leave("me", bench.now) is None
    assert bench.asks == []
    assert bench.when == NEVER
    assert bench.room.empty


def test_a_waiter_behind_a_local_holder_leaves_without_a_trace() -> None:
    bench = Bench()
    bench.hold()
    bench.join("me")
    assert bench.room.leave("me", bench.now) is None
    assert bench.asks == []
    assert bench.told == []


def test_who_leaves_while_the_process_holds_back_ends_it() -> None:
    bench = Bench()
    lease = bench.hold()
    bench.join("me")
    bench.give_back(lease)
    assert bench.room.leave("me", bench.now) is None
    assert bench.room.empty
    bench.answer(Operation.RELEASE)
    bench.answer(Operation.READ, found=None, ttl=-2)
    assert bench.asks == []
    assert bench.when == NEVER


def test_who_does_not_wait_cannot_leave() -> None:
    bench = Bench()
    lease = bench.hold()
    assert bench.room.leave("nobody", bench.now) is None
    assert bench.room.holder is lease
    assert bench.told == []


def test_an_attempt_is_inherited_by_the_next_waiter() -> None:
    bench = Bench()
    bench.join("first", "second")
    assert bench.room.leave("first", bench.now) is None
    assert bench.asks == [(Operation.TAKE, 0)]
    bench.answer(Operation.TAKE)
    assert bench.of("granted") == ["second"]


# Not waiting


def test_try_is_refused_at_once_if_the_lock_is_held_or_waited_for_here() -> None:
    bench = Bench()
    bench.hold()
    bench.room.try_join("me", bench.now)
    assert bench.told == [("refused", "me")]
    bench = Bench()
    bench.join("other")
    bench.room.try_join("me", bench.now)
    assert bench.told == [("refused", "me")]
    assert bench.asks == [(Operation.TAKE, 0)]


def test_try_is_refused_by_the_first_answer() -> None:
    bench = Bench()
    bench.room.try_join("me", bench.now)
    bench.answer(Operation.TAKE, found=OTHER)
    assert bench.of("refused") == ["me"]
    assert bench.room.empty
    assert bench.asks == []


def test_who_waits_behind_a_try_goes_on_when_it_is_refused() -> None:
    bench = Bench()
    bench.room.try_join("me", bench.now)
    bench.join("patient")
    bench.answer(Operation.TAKE, found=OTHER)
    assert bench.told == [("refused", "me")]
    assert bench.asks == [(Operation.TAKE_TTL, 0)]


def test_a_try_that_left_does_not_make_the_next_impatient() -> None:
    bench = Bench()
    bench.room.try_join("me", bench.now)
    bench.join("patient")
    bench.room.leave("me", bench.now)
    bench.answer(Operation.TAKE, found=OTHER)
    assert bench.told == []
    assert bench.asks == [(Operation.TAKE_TTL, 0)]


def test_a_try_without_a_connection_fails() -> None:
    bench = Bench()
    bench.down.add(0)
    bench.room.try_join("me", bench.now)
    assert bench.told == [("failed", "me", None)]
    assert bench.room.empty


# Errors and lost connections


def test_a_passing_error_is_waited_out_longer_each_time() -> None:
    bench = Bench()
    bench.join("me")
    pauses = []
    for _ in range(12):
        bench.fail(Operation.TAKE, error=Trouble())
        assert bench.told == []
        pauses.append(bench.when - bench.now)
        bench.wait(pauses[-1])
    assert pauses == sorted(pauses)
    assert 0 < pauses[0] <= 0.04
    assert pauses[-1] == pytest.approx(MAX_BACKOFF / 2)


def test_a_lasting_error_fails_everybody_who_waits() -> None:
    bench = Bench()
    bench.join("one", "two")
    error = Trouble(lasting=True)
    bench.fail(Operation.TAKE, error=error)
    assert bench.told == [("failed", "one", error), ("failed", "two", error)]
    assert bench.room.empty
    assert bench.asks == [(Operation.RELEASE, 0)]  # an error says nothing about what was done


def test_a_waiter_outlasts_a_lost_connection() -> None:
    bench = Bench()
    bench.join("me")
    bench.drop(0)
    assert bench.when == NEVER
    assert bench.told == []
    bench.reconnect(0)
    assert bench.asks[-1][0] in (Operation.TAKE, Operation.TAKE_TTL)


def test_a_waiter_is_told_that_the_server_will_not_have_it_any_more() -> None:
    bench = Bench()
    bench.refuse()
    bench.down.add(0)
    bench.lasting = Trouble(lasting=True)
    bench.room.lasting_failure(bench.now)
    assert bench.told == [("failed", "me", bench.lasting)]
    assert bench.room.empty


# Closing, resting, and doing without tracking


def test_close_sends_everybody_away() -> None:
    bench = Bench()
    lease = bench.hold()
    bench.join("one")
    bench.room.force("two", bench.now)
    assert bench.room.close(bench.now) == ["one", "two"]
    assert bench.told == [("lost", LossReason.CLOSED, None)]
    assert bench.room.empty
    assert bench.asks == [(Operation.FORCE, 0), (Operation.RELEASE, 0)]
    assert bench.release(lease)
    assert not bench.release(lease)
    assert bench.asks == [(Operation.FORCE, 0), (Operation.RELEASE, 0), (Operation.RELEASE, 0)]
    assert bench.when == NEVER


def test_the_room_says_once_that_nobody_is_there() -> None:
    bench = Bench(handoffs=5)
    lease = bench.hold()
    bench.join("next")
    bench.release(lease)
    assert not bench.room.empty
    bench.release(lease)
    bench.answer(Operation.RELEASE)
    assert bench.room.empty


@pytest.mark.parametrize("luck", [0.0, 0.999])
def test_without_tracking_waiters_ask_again_at_least_every_extend_interval(luck: float) -> None:
    bench = Bench(tracking=False)
    bench.luck = luck
    bench.refuse(ttl=4900)
    assert bench.now + 1.25 <= bench.when <= bench.now + 2.5
    bench = Bench(tracking=False)
    bench.refuse(ttl=100)
    assert bench.when == pytest.approx(bench.now + 0.101)
