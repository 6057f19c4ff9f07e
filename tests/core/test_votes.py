"""Rules of the waiting room where a lock has three keys, and two of them make it held."""

import pytest

from asynclock.core.operations import Operation
from asynclock.core.reasons import LossReason
from asynclock.core.rules import NEVER

from ..simulation.servers import Trouble
from ..support.bench import OTHER, STRANGER, Bench

pytestmark = [pytest.mark.fast, pytest.mark.every_python, pytest.mark.serverless]

TERM = 5.0 - 0.05 - 0.002


def test_all_keys_are_asked_at_once_and_two_answers_are_enough() -> None:
    bench = Bench(2)
    bench.join("me")
    assert bench.asks == [(Operation.TAKE, 0), (Operation.TAKE, 1), (Operation.TAKE, 2)]
    bench.answer(Operation.TAKE, 2)
    assert bench.told == []
    bench.answer(Operation.TAKE, 0)
    assert bench.told == [("granted", "me")]
    bench.answer(Operation.TAKE, 1)
    assert bench.room.holder.vote_count(bench.now) == 3


def test_the_deadline_is_that_of_the_second_longest_vote() -> None:
    bench = Bench(2)
    lease = bench.hold()
    start = bench.now
    bench.wait(1.25)
    bench.answer(Operation.EXTEND, 1)
    assert lease.deadline == pytest.approx(start + TERM)
    bench.answer(Operation.EXTEND, 2)
    assert lease.deadline == pytest.approx(start + 1.25 + TERM)


def test_a_lost_majority_is_given_back_and_what_refused_is_watched() -> None:
    bench = Bench(2)
    bench.expect_others()
    bench.join("me")
    bench.answer(Operation.TAKE_TTL, 0)
    bench.answer(Operation.TAKE_TTL, 1, found=OTHER, ttl=3000)
    bench.answer(Operation.TAKE_TTL, 2, found=OTHER, ttl=2000)
    assert bench.asks == [(Operation.RELEASE, 0)]
    assert bench.when == pytest.approx(bench.now + 2.001)
    bench.room.invalidated(0, bench.now)
    assert bench.asks == [(Operation.RELEASE, 0)]
    bench.room.invalidated(1, bench.now)
    assert bench.asks[1:] == [(Operation.TAKE_TTL, 0)]


def test_who_has_been_refused_asks_in_order_and_for_nothing_more_than_what_refuses() -> None:
    bench = Bench(2)
    bench.refuse()
    bench.room.invalidated(1, bench.now)
    assert bench.asks == [(Operation.TAKE_TTL, 0)]
    bench.answer(Operation.TAKE_TTL, 0, found=OTHER, ttl=3000)
    assert bench.asks == []
    assert bench.when == pytest.approx(bench.now + 3.001)
    bench.room.invalidated(1, bench.now)
    assert bench.asks == []
    bench.room.invalidated(0, bench.now)
    bench.answer(Operation.TAKE_TTL, 0)
    assert bench.asks == [(Operation.TAKE_TTL, 1), (Operation.TAKE_TTL, 2)]
    bench.answer(Operation.TAKE_TTL, 2)
    assert bench.told == [("granted", "me")]


def test_a_first_key_that_never_becomes_free_does_not_keep_the_others_from_being_enough() -> None:
    bench = Bench(2)
    bench.refuse()
    bench.room.invalidated(0, bench.now)
    bench.answer(Operation.TAKE_TTL, 0, found=STRANGER, ttl=-1)
    assert bench.asks == []
    bench.wait(5.0)
    bench.answer(Operation.TAKE_TTL, 0, found=STRANGER, ttl=-1)
    bench.answer(Operation.TAKE_TTL, 1)
    bench.answer(Operation.TAKE_TTL, 2)
    assert bench.told == [("granted", "me")]


@pytest.mark.parametrize("trouble", ["down", "hung", "late", "error"])
def test_in_order_a_first_server_that_fails_is_passed_over(trouble: str) -> None:
    bench = Bench(2)
    bench.expect_others()
    if trouble == "down":
        bench.down.add(0)
    elif trouble == "hung":
        bench.hung.add(0)
    bench.join("me")
    if trouble == "late":
        assert bench.asks == [(Operation.TAKE_TTL, 0)]
        bench.wait(0.02)
    elif trouble == "error":
        bench.fail(Operation.TAKE_TTL, 0, error=Trouble(lasting=False))
    assert bench.asks[-1] == (Operation.TAKE_TTL, 1)
    bench.answer(Operation.TAKE_TTL, 1)
    bench.answer(Operation.TAKE_TTL, 2)
    assert bench.told == [("granted", "me")]


def test_in_order_a_majority_that_is_down_ends_the_attempt_before_all_are_asked() -> None:
    bench = Bench(3)
    bench.refuse()
    bench.drop(0, 1, 2)
    bench.room.gone(0, bench.now)
    assert bench.asks[0] == (Operation.TAKE_TTL, 3)  # the first that is there; with it, three of five cannot be had
    assert (Operation.RELEASE, 3) in bench.asks and (Operation.TAKE_TTL, 4) not in bench.asks
    assert bench.room.attempt is None and bench.told == []
    bench.sent.clear()
    bench.reconnect(1)
    bench.answer(Operation.TAKE_TTL, 1)
    bench.answer(Operation.TAKE_TTL, 3)
    bench.answer(Operation.TAKE_TTL, 4)
    assert bench.of("granted") == ["me"]


def test_in_order_silent_servers_are_passed_over_one_after_the_other() -> None:
    bench = Bench(3)
    bench.expect_others()
    bench.join("me")
    for index in range(3):
        assert bench.asks[-1] == (Operation.TAKE_TTL, index)
        bench.wait(0.02)
    bench.answer(Operation.TAKE_TTL, 3)
    assert bench.asks[-1] == (Operation.TAKE_TTL, 4)
    bench.answer(Operation.TAKE_TTL, 4)
    assert bench.told == []
    bench.answer(Operation.TAKE_TTL, 1)
    assert bench.told == [("granted", "me")]


def test_who_does_not_wait_asks_for_all_at_once_and_is_not_refused_by_a_minority() -> None:
    bench = Bench(2)
    bench.expect_others()
    bench.room.try_join("me", bench.now)
    bench.answer(Operation.TAKE_TTL, 0, found=STRANGER, ttl=-1)
    assert bench.told == []
    for index in (1, 2):
        bench.answer(Operation.TAKE_TTL, index)
    assert bench.told == [("granted", "me")]


def test_a_failed_attempt_releases_what_is_still_under_way() -> None:
    bench = Bench(2)
    bench.join("me")
    bench.answer(Operation.TAKE, 1, found=OTHER)
    bench.answer(Operation.TAKE, 2, found=OTHER)
    assert bench.asks == [
        (Operation.TAKE, 0),
        (Operation.RELEASE, 0),
        *((Operation.TAKE_TTL, index) for index in range(3)),
    ]
    bench.answer(Operation.TAKE, 0)  # in vain
    assert bench.of("granted") == []


def test_a_pushed_key_does_not_count_in_an_attempt_until_it_was_read_again() -> None:
    bench = Bench(2)
    bench.join("me")
    bench.answer(Operation.TAKE, 0)
    bench.room.invalidated(0, bench.now)
    assert (Operation.READ, 0) in bench.asks
    bench.answer(Operation.TAKE, 1)
    assert bench.told == []
    bench.answer(Operation.READ, 0, ttl=4990)
    assert bench.told == [("granted", "me")]
    assert bench.room.holder.deadline <= bench.now + TERM


def test_a_pushed_key_that_is_gone_does_not_count_at_all() -> None:
    bench = Bench(2)
    bench.join("me")
    bench.answer(Operation.TAKE, 0)
    bench.room.invalidated(0, bench.now)
    bench.answer(Operation.TAKE, 1)
    bench.answer(Operation.READ, 0, found=STRANGER, ttl=-1)
    assert bench.told == []
    bench.answer(Operation.TAKE, 2)
    assert bench.told == [("granted", "me")]


def test_one_lost_vote_is_tolerated_and_taken_again_at_the_next_extension() -> None:
    bench = Bench(2)
    lease = bench.hold()
    bench.room.invalidated(1, bench.now)
    bench.answer(Operation.READ, 1, found=None, ttl=-2)
    assert bench.told == [("doubt clock", 1)]
    assert bench.asks == []
    bench.wait(1.25)
    assert bench.asks == [(Operation.EXTEND, 0), (Operation.TAKE, 1), (Operation.EXTEND, 2)]
    for operation, index in bench.asks:
        bench.answer(operation, index)
    assert lease.vote_count(bench.now) == 3
    assert bench.of("lost") == []


def test_a_second_lost_vote_is_a_lost_lock() -> None:
    bench = Bench(2)
    bench.hold()
    for index in (1, 2):
        bench.room.invalidated(index, bench.now)
        bench.answer(Operation.READ, index, found=STRANGER, ttl=-1)
    assert bench.of("lost") == [LossReason.OVERWRITTEN]
    assert bench.asks == [(Operation.RELEASE, 0)]  # the others are not ours to release


def test_a_deadline_that_a_lost_vote_brings_near_is_extended_before_it() -> None:
    """One vote could not be extended, then another is lost: the older one decides, and the lost one may be free."""
    bench = Bench(2)
    bench.luck = 0.999
    bench.hold()
    bench.wait(2.5)
    bench.drop(0)
    bench.answer(Operation.EXTEND, 1)
    bench.answer(Operation.EXTEND, 2)
    bench.room.invalidated(1, bench.now)
    bench.answer(Operation.READ, 1, found=None, ttl=-2)
    assert bench.room.holder.deadline - bench.now < 2.5
    bench.wait(bench.room.holder.deadline - bench.now - 0.01)
    assert bench.asks == [(Operation.TAKE, 1), (Operation.EXTEND, 2)]


def test_a_silent_server_is_waited_for_no_longer_than_it_takes_to_try_the_next() -> None:
    bench = Bench(2)
    bench.expect_others()
    bench.join("me")
    bench.answer(Operation.TAKE_TTL, 0)
    bench.answer(Operation.TAKE_TTL, 1, found=OTHER, ttl=3000)
    assert (Operation.RELEASE, 0) not in bench.asks
    bench.wait(0.02)
    assert (Operation.RELEASE, 0) in bench.asks
    assert (Operation.RELEASE, 2) in bench.asks


def test_two_silent_servers_are_waited_for() -> None:
    bench = Bench(2)
    bench.join("me")
    bench.answer(Operation.TAKE, 0)
    bench.wait(3.0)
    assert bench.asks == [(Operation.TAKE, 1), (Operation.TAKE, 2)]
    bench.answer(Operation.TAKE, 2)
    assert bench.told == [("granted", "me")]


def test_a_force_is_not_given_up_for_a_timer_of_something_else() -> None:
    """The waiter's timer, or that of holding back, goes off while FORCE is under way."""
    bench = Bench(2)
    bench.refuse("waiter", ttl=100)
    bench.room.force("me", bench.now)
    bench.answer(Operation.FORCE, 0)
    bench.wait(0.2)
    bench.answer(Operation.FORCE, 1, found=OTHER, ok=True)
    assert bench.told == []
    bench.answer(Operation.FORCE, 2)
    bench.read_back(0)
    assert bench.told == [("granted", "me")]


def test_the_servers_that_are_connected_are_enough_if_they_are_the_majority() -> None:
    bench = Bench(2)
    bench.down.add(1)
    bench.join("me")
    bench.answer(Operation.TAKE, 0)
    bench.answer(Operation.TAKE, 2)
    assert bench.told == [("granted", "me")]


def test_a_waiter_goes_on_when_so_many_servers_are_back_that_a_majority_is_possible() -> None:
    bench = Bench(2)
    bench.down.update((0, 1))
    bench.join("me")
    assert bench.when == NEVER
    bench.reconnect(0)
    assert bench.asks[-2:] == [(Operation.TAKE, 0), (Operation.TAKE, 2)]


def test_a_server_that_comes_back_during_an_attempt_is_not_waited_for_afterwards() -> None:
    bench = Bench(2)
    bench.down.add(0)
    bench.join("me")
    bench.reconnect(0)  # while the answers of 1 and 2 are under way
    bench.drop(1)
    assert (Operation.TAKE, 0) in bench.asks or bench.when < NEVER


def test_a_vote_does_not_outlive_the_connection_that_it_came_over() -> None:
    bench = Bench(2)
    bench.join("me")
    bench.answer(Operation.TAKE, 0)
    bench.drop(0)
    bench.reconnect(0)
    bench.answer(Operation.TAKE, 1)
    assert bench.told == []
    bench.answer(Operation.READ, 0, found=None, ttl=-2)
    bench.answer(Operation.TAKE, 2)
    assert bench.of("granted") == ["me"]


def test_a_server_that_is_gone_takes_its_vote_along() -> None:
    bench = Bench(2)
    lease = bench.hold()
    for index in (0, 2):
        bench.drop(index)
        bench.room.gone(index, bench.now)
    assert bench.of("lost") == [LossReason.DISCONNECTED]
    assert bench.kept == [(0, lease.token), (2, lease.token)]


def test_a_vote_of_a_server_that_is_back_with_the_key_counts_again() -> None:
    bench = Bench(2)
    lease = bench.hold()
    bench.drop(0)
    bench.room.gone(0, bench.now)
    assert lease.vote_count(bench.now) == 2
    bench.reconnect(0)
    bench.answer(Operation.EXTEND, 0)
    assert lease.vote_count(bench.now) == 3
    assert bench.told == []


def test_one_lasting_error_does_not_fail_waiters_that_a_majority_can_serve() -> None:
    bench = Bench(2)
    bench.expect_others()
    bench.join("me")
    bench.fail(Operation.TAKE_TTL, 0, error=Trouble(lasting=True))
    bench.answer(Operation.TAKE_TTL, 1, found=OTHER, ttl=200)
    assert bench.told == []
    assert bench.when < bench.now + 1.0


@pytest.mark.parametrize("lasting", [False, True])
def test_one_servers_error_does_not_hide_that_the_others_refuse(lasting: bool) -> None:
    bench = Bench(2)
    bench.room.try_join("me", bench.now)
    bench.fail(Operation.TAKE, 0, error=Trouble(lasting))
    bench.answer(Operation.TAKE, 1, found=OTHER)
    bench.answer(Operation.TAKE, 2, found=OTHER)
    assert bench.of("refused") == ["me"]
    bench = Bench(2)
    bench.join("me")
    bench.fail(Operation.TAKE, 0, error=Trouble(lasting))
    bench.answer(Operation.TAKE, 1, found=OTHER)
    bench.answer(Operation.TAKE, 2, found=OTHER)
    assert (Operation.TAKE_TTL, 1) in bench.asks  # or a crashed holder's lock is taken late


def test_many_who_force_in_vain_are_told_one_by_one() -> None:
    bench = Bench(2)
    bench.room.force("first", bench.now)
    for number in range(400):
        bench.room.force(f"{number}", bench.now)
    bench.drop(0)
    bench.drop(1)
    assert len(bench.of("failed")) == 401
    assert bench.room.empty


def test_two_lasting_errors_do() -> None:
    bench = Bench(2)
    bench.join("me")
    bench.fail(Operation.TAKE, 0, error=Trouble(lasting=True))
    bench.fail(Operation.TAKE, 1, error=Trouble(lasting=True))
    assert bench.of("failed") == ["me"]


def test_a_release_that_finds_fewer_keys_than_a_holder_has_says_so() -> None:
    bench = Bench(2)
    lease = bench.hold()
    bench.release(lease)
    bench.answer(Operation.RELEASE, 0)
    bench.answer(Operation.RELEASE, 1, found=None)
    assert lease.loss_found_by_release() is None
    bench.answer(Operation.RELEASE, 2, found=None)
    assert lease.loss_found_by_release() is not None
    assert bench.settles == [] and bench.asks == [(Operation.READ, 1), (Operation.READ, 2)]  # why?
    bench.answer(Operation.READ, 1, found=None)
    bench.answer(Operation.READ, 2, found=b"asynclock:f:ff:1")
    assert bench.settles == [lease.token] and lease.cause is LossReason.TAKEN_OVER


def test_a_release_counts_a_key_whose_server_is_not_connected() -> None:
    """It may be there: nobody knows better."""
    bench = Bench(2)
    lease = bench.hold()
    bench.drop(2)
    bench.release(lease)
    bench.answer(Operation.RELEASE, 0)
    bench.answer(Operation.RELEASE, 1, found=None)
    assert lease.loss_found_by_release() is None


@pytest.mark.parametrize("late", [False, True])
def test_an_answer_that_comes_after_the_key_has_expired_proves_nothing(late: bool) -> None:
    bench = Bench()
    lease = bench.hold()
    bench.release(lease)
    bench.now += bench.rules.validity if late else bench.rules.validity / 2
    bench.answer(Operation.RELEASE, found=None)
    assert (lease.loss_found_by_release() is None) == late


def test_a_release_that_comes_after_the_key_has_expired_finds_that() -> None:
    bench = Bench()
    lease = bench.hold()
    bench.now += bench.rules.validity
    bench.release(lease)
    bench.answer(Operation.RELEASE, found=None)
    bench.answer(Operation.READ, found=None)
    assert lease.loss_found_by_release() is LossReason.EXPIRED


def test_a_connection_that_breaks_while_it_is_asked_why_a_release_found_nothing_ends_the_wait_for_it() -> None:
    bench = Bench()
    lease = bench.hold()
    bench.release(lease)
    bench.answer(Operation.RELEASE, 0, found=None)
    assert bench.settles == [] and bench.asks == [(Operation.READ, 0)]
    bench.drop(0)
    assert bench.settles == [lease.token] and lease.loss_found_by_release() is not None and lease.cause is None


def test_a_push_for_who_waits_does_not_disturb_a_take_over() -> None:
    bench = Bench(2)
    bench.refuse("waiter")
    bench.room.force("me", bench.now)
    attempt = bench.room.attempt
    bench.room.invalidated(1, bench.now)
    assert bench.room.attempt is attempt
    bench.forced(0, 2)
    assert bench.told == [("granted", "me")]


def test_a_push_starts_no_attempt_that_too_few_servers_could_serve() -> None:
    """Each attempt in vain would take and release that key, and wake others who wait for it, without end."""
    bench = Bench(2)
    bench.down.update((1, 2))
    bench.join("me")
    bench.answer(Operation.TAKE, 0, found=OTHER)
    bench.sent.clear()
    assert bench.when == NEVER
    bench.room.invalidated(0, bench.now)
    assert bench.asks == []
    bench.reconnect(1)
    for index in (0, 1):
        bench.answer(Operation.TAKE, index)
    assert bench.of("granted") == ["me"]


def test_the_more_often_others_were_quicker_the_longer_is_held_back() -> None:
    bench = Bench(2)
    bench.refuse()  # twice
    bench.room.invalidated(0, bench.now)
    for index in range(3):
        bench.answer(Operation.TAKE_TTL, index)
    bench.release(bench.room.holder)
    bench.wait(0.001)
    for index in range(3):
        bench.answer(Operation.RELEASE, index)
    bench.join("again")
    assert bench.when == pytest.approx(bench.now + 0.001 * 2 * 2)


def test_a_first_key_that_stays_somebody_elses_is_passed_over_when_the_others_are_free() -> None:
    """The key of the second one expires, and the server says so before our own timer does."""
    bench = Bench(2)
    bench.join("me")
    bench.answer(Operation.TAKE, 0, found=STRANGER)
    bench.answer(Operation.TAKE, 1, found=OTHER)
    bench.answer(Operation.TAKE, 2)
    for index, (found, ttl) in enumerate([(STRANGER, 60_000), (OTHER, 400)]):
        bench.answer(Operation.TAKE_TTL, index, found=found, ttl=ttl)
    bench.answer(Operation.TAKE_TTL, 2)
    bench.sent.clear()
    bench.wait(0.39)
    bench.room.invalidated(1, bench.now)
    for index in (1, 2):
        bench.answer(Operation.TAKE_TTL, index)
    assert bench.of("granted") == ["me"]


def test_a_push_ends_the_wait_though_a_refusal_came_when_the_attempt_was_lost_already() -> None:
    bench = Bench(majority=2)
    bench.drop(0)
    bench.join("me")
    for operation in (Operation.TAKE, Operation.TAKE_TTL):
        bench.answer(operation, 1, OTHER, 4000 if operation is Operation.TAKE_TTL else None)
    for operation in (Operation.TAKE, Operation.TAKE_TTL):
        bench.answer(operation, 2, OTHER, 4000 if operation is Operation.TAKE_TTL else None)
    bench.sent.clear()
    bench.room.invalidated(1, bench.now)
    bench.room.invalidated(2, bench.now)
    assert bench.asks  # both of the servers that are up have said that their keys are free


def test_a_slow_server_is_extended_again_before_it_is_needed() -> None:
    """One of three answers later than the next extension was due. When another one stops answering, its vote counts."""
    bench = Bench(2)
    lease = bench.hold()
    bench.wait(2.5 / 2)
    bench.answer(Operation.EXTEND, 0)
    bench.answer(Operation.EXTEND, 1)
    bench.wait(2.5)
    assert bench.asks == [(Operation.EXTEND, 2), (Operation.EXTEND, 0), (Operation.EXTEND, 1)]
    bench.answer(Operation.EXTEND, 2)
    bench.answer(Operation.EXTEND, 0)
    bench.answer(Operation.EXTEND, 2)  # at once: the next one was due
    bench.wait(2.45)  # nothing of the second one, and an extension is due only after what the third had first is over
    assert bench.room.holder is lease and bench.told == []


def test_an_attempt_begins_anew_once_when_the_clock_was_set() -> None:
    """Whatever it has set expires at another time than its votes say."""
    bench = Bench(2)
    bench.join("me")
    bench.answer(Operation.TAKE, 0)
    bench.room.clock_was_set(bench.now)
    assert [ask for ask in bench.asks if ask[0] is Operation.RELEASE] == [
        (Operation.RELEASE, index) for index in range(3)
    ]
    assert bench.asks.count((Operation.TAKE, 0)) == 1
    assert not bench.told


def test_a_held_lock_is_extended_at_once_when_the_clock_was_set() -> None:
    bench = Bench(2)
    bench.hold()
    bench.room.clock_was_set(bench.now)
    assert bench.asks == [(Operation.EXTEND, index) for index in range(3)]
