"""Rules for who holds a lock, one by one, on one key: until when, how it is lost, taken over and passed on."""

import pytest

from asynclock.core.contention import MIN_HOLD_BACK, REMEMBERED_ACQUISITIONS, Contention
from asynclock.core.lease import Lease
from asynclock.core.operations import Operation
from asynclock.core.reasons import LossReason
from asynclock.core.retry import MAX_AT_ONCE
from asynclock.core.rules import FIRST_HANDOFFS, GRID, NEVER, Rules, on_grid

from ..simulation.servers import Trouble
from ..support.bench import OTHER, OURS, STRANGER, Bench

pytestmark = [pytest.mark.fast, pytest.mark.every_python, pytest.mark.serverless]

TERM = 5.0 - 0.05 - 0.002  # validity less 1 % and 2 ms


# The deadline


def test_the_deadline_is_counted_from_before_the_send() -> None:
    bench = Bench()
    bench.join("me")
    sent = bench.now
    bench.wait(0.3)
    bench.answer(Operation.TAKE)
    assert bench.room.holder.deadline == pytest.approx(sent + TERM)


def test_a_grant_whose_validity_is_over_is_not_handed_out() -> None:
    bench = Bench()
    bench.join("me")
    bench.wait(4.95)
    bench.answer(Operation.TAKE)
    assert bench.of("granted") == []
    assert bench.asks == [(Operation.RELEASE, 0), (Operation.TAKE, 0)]


def test_an_extension_moves_the_deadline_and_is_counted_from_before_its_send() -> None:
    bench = Bench()
    lease = bench.hold()
    bench.wait(1.3)
    assert bench.asks == [(Operation.EXTEND, 0)]
    sent = bench.sent[0].when
    bench.wait(0.2)
    bench.answer(Operation.EXTEND)
    assert lease.deadline == pytest.approx(sent + TERM)
    assert bench.when == pytest.approx(sent + 2.5)


@pytest.mark.parametrize("luck", [0.0, 0.999])
def test_the_first_extension_comes_early_by_chance(luck: float) -> None:
    bench = Bench()
    bench.luck = luck
    bench.hold()
    assert bench.when == on_grid(bench.now + 2.5 * (0.5 + luck / 2))


def test_extensions_are_on_the_grid_unless_they_are_so_frequent_that_it_would_matter() -> None:
    rules = Rules(majority=1, validity=5.0, extend_interval=2.5, try_next_after=0.02)
    for now in (0.0, 0.1, 12345.678):
        assert now + 2.5 - GRID < rules.extension(now) <= now + 2.5
        assert on_grid(rules.extension(now)) == rules.extension(now)
    hasty = Rules(majority=1, validity=0.02, extend_interval=0.005, try_next_after=0.02)
    assert hasty.extension(12345.678) == 12345.678 + 0.005


def test_without_an_answer_the_lock_is_lost_at_the_deadline_and_not_before() -> None:
    bench = Bench()
    lease = bench.hold()
    bench.wait(TERM - 0.001)
    assert bench.told == []
    bench.wait(0.001)
    assert bench.now == pytest.approx(lease.deadline)
    assert bench.told == [("lost", LossReason.EXPIRED, None)]
    assert bench.room.empty
    assert bench.asks == [(Operation.EXTEND, 0), (Operation.RELEASE, 0)]


def test_an_extension_is_late_until_the_deadline_and_not_after_it() -> None:
    """It is told of with the seconds that are left."""
    bench = Bench()
    lease = bench.hold()
    bench.wait(1.3)
    bench.answer(Operation.EXTEND)
    bench.wait(2.5)
    assert [operation for operation, _ in bench.asks] == [Operation.EXTEND]
    assert not lease.extension_is_late(bench.now)
    assert lease.extension_is_late(lease.deadline - 0.001)
    assert not lease.extension_is_late(lease.deadline)
    assert not lease.extension_is_late(lease.deadline + 0.001)


def test_a_key_whose_life_was_shortened_shortens_the_deadline() -> None:
    bench = Bench()
    lease = bench.hold()
    bench.wait(0.5)
    bench.room.invalidated(0, bench.now)
    bench.answer(Operation.READ, ttl=1000)
    assert lease.deadline == pytest.approx(bench.now + 1.0 - 0.01 - 0.002)


def test_a_lock_whose_deadline_is_near_is_extended_before_it() -> None:
    """A late grant: the usual time for the next extension is too late."""
    bench = Bench()
    bench.luck = 0.9
    bench.join("me")
    bench.wait(3.5)
    bench.answer(Operation.TAKE)
    bench.look()
    deadline = bench.room.holder.deadline
    assert bench.when < deadline - 0.3
    bench.wait(deadline - bench.now - 0.01)
    assert (Operation.EXTEND, 0) in bench.asks


def test_a_life_that_somebody_shortened_is_not_prolonged_against_it() -> None:
    """Whoever expires a lock's key wants it to end. (An extension that is due before that still counts.)"""
    bench = Bench()
    bench.hold()
    bench.wait(0.5)
    bench.room.invalidated(0, bench.now)
    bench.answer(Operation.READ, ttl=200)
    bench.wait(0.19)
    assert (Operation.EXTEND, 0) not in bench.asks
    bench.wait(0.01)
    assert bench.room.holder is None


def test_an_extension_that_meets_an_error_is_tried_again_in_time() -> None:
    bench = Bench()
    lease = bench.hold()
    deadline = lease.deadline
    bench.wait(1.25)
    bench.fail(Operation.EXTEND, error=Trouble())
    assert bench.when - bench.now == pytest.approx((deadline - bench.now) / 4)
    bench.wait(1.0)
    bench.answer(Operation.EXTEND)
    assert lease.deadline > deadline
    assert bench.told == []


@pytest.mark.parametrize("patience", [0.02, 2.0])
def test_an_error_that_comes_late_leaves_no_time_for_a_pause(patience: float) -> None:
    bench = Bench(try_next_after=patience)
    lease = bench.hold()
    bench.wait(2.5 / 2)
    left = patience / 2
    bench.wait(lease.deadline - bench.now - left)
    bench.fail(Operation.EXTEND, error=Trouble())
    bench.wait(0.9 * left)
    assert bench.asks == [(Operation.EXTEND, 0)]
    bench.answer(Operation.EXTEND)
    assert lease.deadline > bench.now + 3.0 and bench.told == []


@pytest.mark.parametrize("operation", [Operation.READ, Operation.EXTEND])
def test_a_push_that_meets_an_error_is_looked_into_again_soon(operation: Operation) -> None:
    bench = Bench()
    bench.hold()
    bench.wait(0.1 if operation is Operation.READ else 1.25)
    bench.room.invalidated(0, bench.now)
    bench.fail(operation, error=Trouble())
    bench.wait(0.05)
    assert bench.asks == [(Operation.EXTEND, 0)]


def test_errors_that_were_got_over_do_not_make_later_ones_last_longer() -> None:
    bench = Bench()
    bench.hold()
    for _ in range(8):
        bench.room.invalidated(0, bench.now)
        bench.fail(Operation.READ, error=Trouble())
        bench.wait(0.05)
        bench.answer(Operation.EXTEND)
    assert bench.told == []


def test_a_clock_that_was_off_is_doubted() -> None:
    bench = Bench()
    bench.join("me")
    bench.answer(Operation.TAKE, found=None, ok=True)
    assert bench.of("doubt clock") == [0]
    assert bench.asks[-1][0] in (Operation.TAKE, Operation.TAKE_TTL)


# Losing


def lose(bench: Bench, reason: LossReason) -> None:
    """Bring it about."""
    room, now = bench.room, bench.now
    if reason is LossReason.EXPIRED:
        bench.wait(6.0)
    elif reason is LossReason.FORGOTTEN:
        bench.drop(0)
        bench.reconnect(0)
        bench.answer(Operation.EXTEND, found=None)
    elif reason is LossReason.DISCONNECTED:
        bench.drop(0)
        room.gone(0, now)
    elif reason is LossReason.CLOSED:
        room.close(now)
    else:
        room.invalidated(0, now, LossReason.FLUSHED if reason is LossReason.FLUSHED else None)
        found = {LossReason.OVERWRITTEN: STRANGER, LossReason.TAKEN_OVER: b"asynclock:f:ff:1"}.get(reason)
        bench.answer(Operation.READ, found=found, ttl=-2 if found is None else 4000)


@pytest.mark.parametrize("reason", [reason for reason in LossReason if reason is not LossReason.RELEASED])
def test_who_loses_the_lock_is_told_why(reason: LossReason) -> None:
    bench = Bench()
    lease = bench.hold()
    lose(bench, reason)
    assert bench.of("lost") == [reason]
    assert bench.room.empty
    assert lease.done
    if reason is not LossReason.CLOSED:
        assert lease.may_be_ours == 0


def test_a_key_that_another_took_while_it_was_free_was_deleted() -> None:
    bench = Bench()
    bench.hold()
    bench.room.invalidated(0, bench.now)
    bench.answer(Operation.READ, found=OTHER, ttl=4000)
    assert bench.of("lost") == [LossReason.DELETED]


def test_the_next_waiter_contends_when_the_holder_here_has_lost() -> None:
    bench = Bench()
    bench.hold()
    bench.join("next")
    bench.room.invalidated(0, bench.now)
    bench.answer(Operation.READ, found=None, ttl=-2)
    assert bench.asks[-1][0] in (Operation.TAKE, Operation.TAKE_TTL)
    assert not bench.room.empty


def test_a_dropped_connection_whose_key_is_intact_loses_nothing() -> None:
    bench = Bench()
    lease = bench.hold()
    bench.wait(1.0)
    bench.drop(0)
    bench.reconnect(0)
    assert bench.asks == [(Operation.EXTEND, 0)]
    bench.answer(Operation.EXTEND)
    assert bench.told == []
    assert lease.deadline == pytest.approx(bench.now + TERM)


# By force


def test_force_takes_the_lock_from_the_holder_in_this_process() -> None:
    bench = Bench()
    lease = bench.hold()
    bench.join("waiter")
    bench.room.force("me", bench.now)
    assert bench.asks == [(Operation.FORCE, 0)]
    assert bench.told == []
    bench.answer(Operation.FORCE)
    assert bench.told == []  # whoever had it elsewhere is to see what became of it
    bench.read_back()
    assert bench.told == [("lost", LossReason.TAKEN_OVER, None), ("granted", "me")]
    assert bench.room.holder is not lease
    assert bench.asks == [(Operation.RELEASE, 0)]  # of the former token
    assert list(bench.room.queue) == ["waiter"]


@pytest.mark.parametrize("found", [OURS, OTHER])
def test_force_comes_after_a_local_attempt_whatever_becomes_of_that(found: object) -> None:
    bench = Bench()
    bench.join("waiter")
    bench.room.force("me", bench.now)
    bench.answer(Operation.TAKE, found=found)
    bench.forced()
    assert bench.of("granted")[-1] == "me"
    assert bench.of("lost") == ([LossReason.TAKEN_OVER] if found is OURS else [])


def test_of_two_who_force_the_later_has_it_in_the_end() -> None:
    bench = Bench()
    bench.room.force("one", bench.now)
    bench.room.force("two", bench.now)
    bench.forced()
    bench.forced()
    assert bench.of("granted") == ["one", "two"]
    assert bench.of("lost") == [LossReason.TAKEN_OVER]


def test_a_force_that_fails_or_is_abandoned_looks_after_the_holder() -> None:
    for leave in (False, True):
        bench = Bench()
        bench.hold()
        bench.room.force("me", bench.now)
        if leave:
            assert bench.room.leave("me", bench.now) is not None
        else:
            bench.fail(Operation.FORCE, error=Trouble())
            assert bench.of("failed") == ["me"]
        assert (Operation.EXTEND, 0) in bench.asks
        assert (Operation.RELEASE, 0) in bench.asks
        bench.answer(Operation.EXTEND, found=b"asynclock:f:00:2")
        assert bench.of("lost") == [LossReason.TAKEN_OVER]


def test_an_abandoned_force_is_released_after_the_look_at_the_holders_key() -> None:
    """So that the holder is told what took its place, not that its key was deleted."""
    bench = Bench()
    bench.hold()
    bench.room.force("me", bench.now)
    bench.room.leave("me", bench.now)
    assert bench.asks == [(Operation.FORCE, 0), (Operation.EXTEND, 0), (Operation.RELEASE, 0)]


def test_an_abandoned_force_is_not_hidden_by_an_extension_that_was_under_way() -> None:
    bench = Bench()
    bench.ordered = True
    bench.hold()
    bench.wait(1.25)
    bench.room.force("me", bench.now)
    bench.room.leave("me", bench.now)
    # The second one comes after the take-over, and before its release.
    assert bench.asks == [(Operation.EXTEND, 0), (Operation.FORCE, 0), (Operation.EXTEND, 0), (Operation.RELEASE, 0)]
    bench.answer(Operation.EXTEND)
    assert bench.of("lost") == []
    bench.answer(Operation.EXTEND, found=b"asynclock:f:00:2")
    assert bench.of("lost") == [LossReason.TAKEN_OVER]


def test_a_waiter_goes_on_when_a_force_was_abandoned() -> None:
    bench = Bench()
    bench.refuse()
    bench.room.force("other", bench.now)
    bench.room.leave("other", bench.now)
    assert bench.asks[-1] == (Operation.TAKE_TTL, 0)


def test_try_is_refused_while_somebody_here_forces() -> None:
    bench = Bench()
    bench.room.force("other", bench.now)
    bench.room.try_join("me", bench.now)
    bench.answer(Operation.FORCE)
    assert bench.of("refused") == ["me"]
    assert bench.room.no_wait is None


@pytest.mark.parametrize("found", [None, OTHER])
def test_a_force_that_comes_to_nothing_between_its_two_commands_is_tried_again(found: bytes | None) -> None:
    """The server's clock was off, or somebody else forced at the same time: not a lost connection."""
    bench = Bench()
    bench.room.force("me", bench.now)
    bench.answer(Operation.FORCE, found=found, ok=True)
    assert bench.of("failed") == []
    bench.forced()
    assert bench.of("granted") == ["me"]


def test_a_force_that_is_overwritten_before_it_is_told_is_tried_again() -> None:
    bench = Bench()
    bench.room.force("me", bench.now)
    bench.answer(Operation.FORCE)
    bench.answer(Operation.READ, found=OTHER, ttl=5000)
    assert bench.told == []
    bench.forced()
    assert bench.of("granted") == ["me"]


def test_a_force_counts_after_one_look_at_the_first_key_that_answers() -> None:
    """More would let two who force at the same time take it from each other before either has it."""
    bench = Bench(majority=2)
    bench.room.force("me", bench.now)
    for index in range(3):
        bench.answer(Operation.FORCE, index)
    assert bench.told == []
    bench.answer(Operation.READ, 1, ttl=5000)
    assert bench.of("granted") == ["me"]


def test_a_force_whose_look_at_the_key_is_not_answered_holds_what_it_has() -> None:
    bench = Bench()
    bench.room.force("me", bench.now)
    bench.answer(Operation.FORCE)
    bench.fail(Operation.READ, error=Trouble())
    assert bench.of("granted") == ["me"]


def test_a_force_is_tried_as_often_as_the_one_before_it() -> None:
    bench = Bench()
    bench.hold()
    for waiter in ("one", "two"):
        bench.room.force(waiter, bench.now)
        for _ in range(1 + MAX_AT_ONCE):
            assert bench.of("failed").count(waiter) == 0
            bench.answer(Operation.FORCE, found=OTHER, ok=True)
        assert bench.of("failed").count(waiter) == 1


# Hand-off


def test_a_released_lease_passes_to_the_next_task_here_as_often_as_allowed() -> None:
    bench = Bench(handoffs=FIRST_HANDOFFS + 1)
    lease = bench.hold()
    waiters = [str(number) for number in range(FIRST_HANDOFFS + 2)]
    bench.join(*waiters)
    for _ in range(FIRST_HANDOFFS + 1):
        assert not bench.release(lease)
    assert bench.of("granted") == waiters[:-1]
    assert bench.asks == []
    assert bench.release(lease)
    assert bench.asks == [(Operation.RELEASE, 0), (Operation.READ, 0)]


def test_a_released_lease_passes_on_for_a_limited_time() -> None:
    bench = Bench(handoffs=1000, handoff_time=0.05)
    lease = bench.hold()
    bench.join("one", "two")
    bench.wait(0.04)
    assert not bench.release(lease)
    bench.wait(0.02)
    assert bench.release(lease)


def given_back_at_the_bound() -> Bench:
    """A room of several waiters that holds back for others, after its lease has passed on as often as it may."""
    bench = Bench(handoffs=2)
    lease = bench.hold()
    bench.join(*(f"first {number}" for number in range(FIRST_HANDOFFS)), *"abcdef")
    while not bench.release(lease):
        pass
    assert len(bench.of("granted")) == FIRST_HANDOFFS
    bench.answer(Operation.RELEASE)
    bench.answer(Operation.READ, found=None, ttl=-2)
    bench.told.clear()
    return bench


def test_each_time_that_nobody_takes_the_chance_the_lease_passes_on_twice_as_often() -> None:
    bench = given_back_at_the_bound()
    for often in (2 * FIRST_HANDOFFS, 4 * FIRST_HANDOFFS, 8 * FIRST_HANDOFFS):
        bench.wait(MIN_HOLD_BACK)
        bench.answer(Operation.TAKE)
        lease = bench.room.holder
        assert lease is not None
        bench.join(*(f"{often} {number}" for number in range(often + 1)))
        for _ in range(often):
            assert not bench.release(lease)
        assert bench.release(lease)
        bench.answer(Operation.RELEASE)
        bench.answer(Operation.READ, found=None, ttl=-2)
    bench.wait(MIN_HOLD_BACK)
    bench.answer(Operation.TAKE)
    lease = bench.room.holder
    assert lease is not None
    assert not bench.release(lease)
    bench.wait(0.06)
    assert bench.release(lease)  # the time is bounded in any case


def test_where_somebody_took_it_the_bound_is_the_same_again() -> None:
    bench = given_back_at_the_bound()
    bench.room.invalidated(0, bench.now)
    bench.answer(Operation.READ, found=OTHER, ttl=3000)
    bench.room.invalidated(0, bench.now)
    bench.answer(Operation.TAKE_TTL)
    lease = bench.room.holder
    assert lease is not None
    while not bench.release(lease):
        pass
    assert bench.of("granted") == ["a", "b", "c"]


def taken_again(bench: Bench, index: int = 0) -> Lease:
    """The holder has given the lock back, and taken it again behind that."""
    assert bench.asks[-2:] == [(Operation.RELEASE, index), (Operation.TAKE, index)]
    bench.answer(Operation.RELEASE, index)
    bench.answer(Operation.TAKE, index)
    lease = bench.room.holder
    assert lease is not None
    return lease


def test_without_hand_off_nobody_is_held_back_for_until_somebody_was_met() -> None:
    """The lock is taken again behind its release, as often as a lease would pass on, and then others have a chance."""
    bench = Bench()
    lease = bench.hold()
    for often in (FIRST_HANDOFFS, 2 * FIRST_HANDOFFS, 4 * FIRST_HANDOFFS):
        bench.join(*(f"{often} {number}" for number in range(often + 1)))
        for _ in range(often):
            assert bench.release(lease)
            token, lease = lease.token, taken_again(bench)
            assert lease.token != token
        assert bench.release(lease)
        assert bench.asks == [(Operation.RELEASE, 0), (Operation.READ, 0)]
        bench.answer(Operation.RELEASE)
        bench.answer(Operation.READ, found=None, ttl=-2)
        bench.wait(MIN_HOLD_BACK)
        bench.answer(Operation.TAKE)
        lease = bench.room.holder
        assert lease is not None
    bench.join("a", "b", "c")
    since = bench.now
    while bench.asks != [(Operation.RELEASE, 0), (Operation.READ, 0)]:
        bench.wait(0.02)
        assert bench.release(lease)
        if bench.asks[-1] == (Operation.TAKE, 0):
            lease = taken_again(bench)
    assert bench.now - since == pytest.approx(0.06)  # the time is bounded in any case


def test_without_hand_off_whoever_was_met_has_a_chance_after_each_turn() -> None:
    bench = Bench()
    lease = bench.hold()
    bench.join(*"abcd")
    bench.give_back(lease)
    bench.answer(Operation.RELEASE)
    bench.answer(Operation.READ, found=OTHER, ttl=3000)
    for _ in "abc":
        bench.room.invalidated(0, bench.now)
        bench.answer(Operation.TAKE_TTL)
        lease = bench.room.holder
        assert lease is not None
        assert bench.release(lease)
        assert bench.asks == [(Operation.RELEASE, 0), (Operation.READ, 0)]
        bench.answer(Operation.RELEASE)
        bench.answer(Operation.READ, found=OTHER, ttl=3000)


def test_who_is_refused_what_it_takes_again_has_met_somebody() -> None:
    bench = Bench()
    lease = bench.hold()
    bench.join("a", "b")
    bench.release(lease)
    bench.answer(Operation.RELEASE)
    bench.answer(Operation.TAKE, found=OTHER)
    bench.answer(Operation.TAKE_TTL, found=OTHER, ttl=3000)
    bench.room.invalidated(0, bench.now)
    bench.answer(Operation.TAKE_TTL)
    lease = bench.room.holder
    assert lease is not None
    bench.release(lease)
    assert bench.asks == [(Operation.RELEASE, 0), (Operation.READ, 0)]


def test_a_lock_whose_server_is_gone_is_not_taken_again_but_waited_for() -> None:
    bench = Bench()
    lease = bench.hold()
    bench.join("a")
    bench.drop(0)
    assert bench.release(lease)
    assert bench.kept == [(0, lease.token)]
    assert bench.asks == []
    bench.reconnect(0)
    bench.answer(Operation.TAKE)
    assert bench.of("granted") == ["a"]


def test_whoever_leaves_a_lock_that_is_taken_again_gives_it_back() -> None:
    bench = Bench()
    lease = bench.hold()
    bench.join("a")
    bench.release(lease)
    assert bench.room.leave("a", bench.now) is not None
    assert bench.asks == [(Operation.RELEASE, 0), (Operation.TAKE, 0), (Operation.RELEASE, 0)]
    assert bench.room.empty


def test_who_polls_would_not_find_a_lock_free_that_is_taken_again_at_once() -> None:
    bench = Bench(tracking=False)
    lease = bench.hold()
    bench.join("a")
    bench.release(lease)
    assert bench.asks == [(Operation.RELEASE, 0)]


def test_a_lease_in_doubt_or_near_its_end_does_not_pass_on() -> None:
    bench = Bench(handoffs=10, handoff_time=NEVER)
    lease = bench.hold()
    bench.join("one")
    bench.room.invalidated(0, bench.now)
    assert bench.release(lease)
    assert bench.asks == [(Operation.READ, 0), (Operation.RELEASE, 0), (Operation.TAKE, 0)]
    bench = Bench(handoffs=10, handoff_time=NEVER)
    lease = bench.hold()
    bench.join("one")
    lease.extend_at = NEVER
    bench.wait(4.0)
    assert bench.release(lease)
    assert bench.asks[-2:] == [(Operation.RELEASE, 0), (Operation.TAKE, 0)]


def test_a_lease_that_is_looked_at_for_the_first_time_or_extended_passes_on() -> None:
    """Nothing speaks against it, as long as nothing is known to have changed."""
    bench = Bench(handoffs=10, handoff_time=NEVER)
    bench.join("holder", "one", "two", "three")
    bench.answer(Operation.TAKE)
    lease = bench.room.holder
    assert lease is not None
    bench.room.first_check(lease, bench.now)
    assert bench.asks == [(Operation.READ, 0)]
    assert not bench.release(lease)
    bench.answer(Operation.READ, ttl=5000)
    bench.wait(bench.when - bench.now)
    assert bench.asks == [(Operation.EXTEND, 0)]
    assert not bench.release(lease)
    bench.room.invalidated(0, bench.now)  # that answer may be older than the change: in doubt until one more
    bench.answer(Operation.EXTEND)
    assert bench.asks == [(Operation.READ, 0)]
    assert lease.unverified
    bench.answer(Operation.READ, ttl=5000)
    assert not bench.release(lease)
    assert bench.of("granted") == ["holder", "one", "two", "three"]


@pytest.mark.parametrize("again", [False, True])
def test_a_lease_whose_server_was_away_is_in_doubt_until_it_has_answered(again: bool) -> None:
    bench = Bench(handoffs=10, handoff_time=NEVER)
    lease = bench.hold()
    bench.join("one")
    bench.drop(0)
    bench.reconnect(0)
    assert bench.asks == [(Operation.EXTEND, 0)]
    if again:
        bench.answer(Operation.EXTEND)
    assert bench.release(lease) is not again


def test_after_the_bound_the_process_holds_back_for_others() -> None:
    bench = giving_back()
    assert bench.asks == [(Operation.RELEASE, 0), (Operation.READ, 0)]
    bench.wait(0.004)
    bench.answer(Operation.RELEASE)
    bench.answer(Operation.READ, found=None, ttl=-2)
    assert bench.when == pytest.approx(bench.now + 0.004)  # as long as the release took
    bench.wait(0.004)
    assert bench.asks == [(Operation.TAKE, 0)]


def giving_back() -> Bench:
    """A room that gives the lock back though somebody waits, and asks what others make of that."""
    bench = Bench()
    lease = bench.hold()
    bench.join("next")
    bench.give_back(lease)
    return bench


def held_back() -> Bench:
    """A room that has given the lock back, and waits for what others make of that."""
    bench = giving_back()
    bench.room.invalidated(0, bench.now)  # its own release, without NOLOOP
    bench.answer(Operation.RELEASE)
    bench.answer(Operation.READ, found=None, ttl=-2)
    assert bench.asks == []
    return bench


def test_whoever_has_had_the_lock_meanwhile_ends_the_holding_back() -> None:
    bench = held_back()
    bench.room.invalidated(0, bench.now)  # somebody took it: not to be raced for before it is given back
    assert bench.asks == [(Operation.READ, 0)]
    bench.answer(Operation.READ, found=OTHER, ttl=3000)
    assert bench.asks == []
    assert bench.when == pytest.approx(bench.now + 3.001)
    bench.room.invalidated(0, bench.now)
    assert bench.asks == [(Operation.TAKE_TTL, 0)]


def test_whoever_was_quick_to_give_it_back_again_has_had_it_too() -> None:
    bench = held_back()
    bench.room.invalidated(0, bench.now)
    bench.answer(Operation.READ, found=None, ttl=-2)
    assert bench.asks == [(Operation.TAKE_TTL, 0)]
    bench = held_back()
    bench.room.invalidated(0, bench.now)
    bench.room.invalidated(0, bench.now)  # on another connection than the answer, and before it
    bench.answer(Operation.READ, found=OTHER, ttl=3000)
    assert bench.asks == [(Operation.TAKE_TTL, 0)]


def test_a_lock_that_was_taken_before_the_question_is_waited_for() -> None:
    bench = giving_back()
    bench.answer(Operation.RELEASE)
    bench.answer(Operation.READ, found=OTHER, ttl=3000)
    assert bench.when == pytest.approx(bench.now + 3.001)
    bench.room.invalidated(0, bench.now)
    assert bench.asks == [(Operation.TAKE_TTL, 0)]


def test_who_comes_back_after_the_turn_of_the_others_does_not_hold_back() -> None:
    """What the others do is asked with the release, whether or not somebody waits here by then."""
    bench = Bench()
    lease = bench.hold()
    bench.room.contention = Contention()
    bench.room.contention.met_rival()
    bench.release(lease)
    assert bench.asks == [(Operation.RELEASE, 0), (Operation.READ, 0)]
    bench.answer(Operation.RELEASE)
    bench.answer(Operation.READ, found=None, ttl=-2)
    bench.room.invalidated(0, bench.now)
    bench.answer(Operation.READ, found=None, ttl=-2)  # taken, and given back
    bench.join("again")
    assert bench.asks == [(Operation.TAKE_TTL, 0)]


def test_the_own_value_is_nobody_elses() -> None:
    """A release that had to be sent again (SCRIPT FLUSH) comes after the question."""
    bench = giving_back()
    bench.answer(Operation.READ, ttl=4000)
    bench.answer(Operation.RELEASE)
    bench.wait(0.1)
    assert bench.asks == [(Operation.TAKE, 0)]


def test_a_push_that_comes_before_the_answer_on_another_connection_is_not_waited_for_again() -> None:
    bench = giving_back()
    bench.answer(Operation.RELEASE)
    bench.room.invalidated(0, bench.now)  # newer than the answer: whoever had it has given it back
    bench.answer(Operation.READ, found=OTHER, ttl=4000)
    assert bench.asks == [(Operation.TAKE_TTL, 0)]


def test_a_question_without_an_answer_does_not_prolong_the_holding_back() -> None:
    bench = held_back()
    bench.room.invalidated(0, bench.now)
    bench.fail(Operation.READ, error=None)
    bench.wait(MIN_HOLD_BACK)
    assert bench.asks == [(Operation.TAKE, 0)]


@pytest.mark.parametrize("bench", [Bench(tracking=False), Bench(2)], ids=["without tracking", "three keys"])
def test_what_others_do_is_not_asked_where_that_would_not_end_the_holding_back(bench: Bench) -> None:
    lease = bench.hold()
    bench.join("next")
    bench.room.contention = Contention()
    bench.room.contention.met_rival(OTHER)
    bench.give_back(lease)
    assert {operation for operation, _ in bench.asks} == {Operation.RELEASE}


@pytest.mark.parametrize("majority", [1, 2])
def test_who_does_not_hold_back_itself_is_given_no_more_than_its_turn(majority: int) -> None:
    """A Go service takes the lock again as soon as it has released it, as often as it is quicker."""
    bench = Bench(majority)
    bench.refuse("me")  # twice
    lease = own_turn(bench)
    for _ in range(3):
        bench.join("me again")
        bench.release(lease)
        assert (Operation.READ, 0) in bench.asks
        for index in range(bench.rules.keys):
            bench.answer(Operation.RELEASE, index)
        bench.answer(Operation.READ, found=None, ttl=-2)
        bench.room.invalidated(0, bench.now)
        bench.answer(Operation.READ, found=STRANGER, ttl=3000)
        assert bench.when == pytest.approx(bench.now + 3.001)
        lease = own_turn(bench)


def own_turn(bench: Bench) -> Lease:
    """It is released elsewhere, and acquired here."""
    bench.sent.clear()
    bench.room.invalidated(0, bench.now)
    for index in range(bench.rules.keys):
        bench.answer(Operation.TAKE_TTL, index)
    lease = bench.room.holder
    assert lease is not None
    return lease


def test_the_first_of_several_keys_is_the_one_that_tells_of_a_turn() -> None:
    bench = Bench(2)
    lease = bench.hold()
    bench.join("next")
    bench.give_back(lease)
    for index in range(3):
        bench.answer(Operation.RELEASE, index)
    bench.answer(Operation.READ, found=None, ttl=-2)
    bench.room.invalidated(1, bench.now)
    bench.room.invalidated(2, bench.now)
    assert bench.asks == []
    bench.room.invalidated(0, bench.now)
    assert bench.asks == [(Operation.READ, 0)]
    bench.answer(Operation.READ, found=STRANGER, ttl=3000)
    bench.room.invalidated(1, bench.now)
    assert bench.asks == []
    bench.room.invalidated(0, bench.now)
    assert bench.asks == [(Operation.TAKE_TTL, 0)]


def test_among_many_the_holding_back_takes_its_time() -> None:
    """Whoever had its turn would be as quick as those who wait for theirs."""
    bench = Bench()
    bench.refuse("me")  # twice
    bench.room.invalidated(0, bench.now)
    bench.answer(Operation.TAKE_TTL)
    bench.look()
    lease = bench.room.holder
    assert lease is not None
    assert bench.room.contention is not None
    bench.room.contention.met_rival(OTHER)
    bench.join("next")
    bench.release(lease)
    assert bench.asks == [(Operation.RELEASE, 0)]


def test_holding_back_is_bounded_from_both_sides() -> None:
    bench = giving_back()
    bench.answer(Operation.RELEASE)
    assert bench.when == pytest.approx(bench.now + MIN_HOLD_BACK)
    bench = giving_back()
    bench.wait(0.02)  # no answer
    assert bench.asks == [(Operation.RELEASE, 0), (Operation.READ, 0), (Operation.TAKE, 0)]


def shared_lock() -> Bench:
    """A room that has been refused the lock and got it later, and gives it back with nobody else here."""
    bench = Bench()
    bench.refuse("first")
    bench.room.invalidated(0, bench.now)
    bench.answer(Operation.TAKE_TTL)
    lease = bench.room.holder
    assert lease is not None
    assert bench.room.contention is not None
    bench.room.contention.met_rival(OTHER)
    bench.release(lease)
    bench.told.clear()
    return bench


def test_who_knows_of_others_lets_them_go_first_after_its_own_turn() -> None:
    bench = shared_lock()
    bench.join("again")
    assert bench.asks == [(Operation.RELEASE, 0)]
    bench.wait(0.004)
    bench.answer(Operation.RELEASE)
    assert bench.asks == []
    assert bench.when == pytest.approx(bench.now + 0.004)
    bench.wait(0.004)
    assert bench.asks == [(Operation.TAKE_TTL, 0)]


def test_who_comes_back_later_does_not_hold_back() -> None:
    bench = shared_lock()
    bench.answer(Operation.RELEASE)
    bench.wait(0.1)
    bench.join("again")
    assert bench.asks == [(Operation.TAKE_TTL, 0)]


def test_who_does_not_wait_does_not_hold_back() -> None:
    bench = shared_lock()
    bench.room.try_join("again", bench.now)
    assert bench.asks == [(Operation.RELEASE, 0), (Operation.TAKE_TTL, 0)]


def test_others_are_forgotten_when_they_have_not_been_met_for_a_while() -> None:
    bench = shared_lock()
    bench.answer(Operation.RELEASE)
    for _ in range(REMEMBERED_ACQUISITIONS):
        bench.wait(0.1)
        bench.join("again")
        bench.answer(bench.asks[0][0])
        bench.release(bench.room.holder)
        bench.answer(Operation.RELEASE)
    bench.join("again")
    assert bench.asks == [(Operation.TAKE, 0)]


def test_a_lock_that_is_given_back_at_once_is_never_looked_at() -> None:
    bench = Bench()
    bench.join("me")
    bench.answer(Operation.TAKE)
    assert bench.of("granted") == ["me"]
    bench.release(bench.room.holder)
    bench.answer(Operation.RELEASE)
    bench.look()
    assert bench.asks == []


@pytest.mark.parametrize(("found", "reason"), [(None, LossReason.DELETED), (STRANGER, LossReason.OVERWRITTEN)])
def test_what_happened_before_the_key_was_tracked_is_found_by_the_first_look(found: object, reason: LossReason) -> None:
    bench = Bench()
    bench.join("me")
    bench.answer(Operation.TAKE)
    bench.room.first_check(bench.looks[0], bench.now)
    bench.answer(Operation.READ, found=found, ttl=-2 if found is None else 4000)
    assert bench.of("lost") == [reason]
    # A key that is gone may have expired on arrival: the clock that its expiry was set by is doubted.
    assert bench.of("doubt clock") == ([0] if found is None else [])


def test_a_vote_that_comes_after_the_first_look_is_looked_at_at_once() -> None:
    bench = Bench(2)
    bench.join("me")
    bench.answer(Operation.TAKE, 0)
    bench.answer(Operation.TAKE, 1)
    assert bench.of("granted") == ["me"]
    bench.room.first_check(bench.looks[0], bench.now)
    assert bench.asks == [(Operation.TAKE, 2), (Operation.READ, 0), (Operation.READ, 1)]
    bench.answer(Operation.TAKE, 2)
    assert bench.asks == [(Operation.READ, 0), (Operation.READ, 1), (Operation.READ, 2)]


def test_a_vote_that_comes_before_the_first_look_waits_for_it() -> None:
    """A lock that is released before that has no more than three commands for each key."""
    bench = Bench(2)
    bench.join("me")
    for index in range(3):
        bench.answer(Operation.TAKE, index)
    assert bench.asks == []
    bench.room.first_check(bench.looks[0], bench.now)
    assert bench.asks == [(Operation.READ, 0), (Operation.READ, 1), (Operation.READ, 2)]


def test_a_key_that_is_lost_before_the_first_look_does_not_put_the_first_extension_off() -> None:
    """Where nothing is tracked, that is when the loss of another one is found."""
    bench = Bench(2)
    bench.join("me")
    for index in range(3):
        bench.answer(Operation.TAKE, index)
    bench.room.invalidated(0, bench.now, LossReason.FLUSHED)
    bench.answer(Operation.READ, 0, found=None, ttl=-2)
    bench.look()
    assert bench.when == on_grid(bench.now + 2.5 / 2)
    bench.wait(2.5)
    assert bench.asks == [(Operation.TAKE, 0), (Operation.EXTEND, 1), (Operation.EXTEND, 2)]


@pytest.mark.parametrize("forced", [False, True], ids=["take", "force"])
def test_a_key_whose_answer_was_lost_during_the_attempt_is_looked_at_first_of_all(forced: bool) -> None:
    """It may well be ours. Without its vote until the first extension, one more key less would lose the lock, though a
    majority is there. It is written, and not only read: with ``min_replicas``, only what replicas confirm is a vote."""
    bench = Bench(2)
    take = Operation.FORCE if forced else Operation.TAKE
    bench.room.force("me", bench.now) if forced else bench.join("me")
    bench.drop(0)
    bench.reconnect(0)
    bench.answer(take, 1)
    bench.answer(take, 2)
    if forced:
        bench.read_back(1)
        bench.read_back(2)
    assert bench.of("granted") == ["me"]
    bench.room.first_check(bench.looks[0], bench.now)
    assert (Operation.EXTEND, 0) in bench.asks and (Operation.READ, 0) not in bench.asks
    bench.answer(Operation.EXTEND, 0)
    lease = bench.room.holder
    assert lease is not None and lease.vote_count(bench.now) == 3


def test_a_key_that_was_not_set_when_its_answer_was_lost_costs_nothing() -> None:
    bench = Bench(2)
    bench.join("me")
    bench.drop(0)
    bench.reconnect(0)
    bench.answer(Operation.TAKE, 1)
    bench.answer(Operation.TAKE, 2)
    bench.room.first_check(bench.looks[0], bench.now)
    bench.answer(Operation.EXTEND, 0, found=None, ok=False)
    lease = bench.room.holder
    assert lease is not None and lease.vote_count(bench.now) == 2
    bench.look()
    bench.wait(2.5)
    assert bench.asks == [(Operation.TAKE, 0), (Operation.EXTEND, 1), (Operation.EXTEND, 2)]


def test_a_vote_that_a_server_has_refused_does_not_come_back_by_the_first_look() -> None:
    """Perhaps too few replicas have the key, which is there (``min_replicas``)."""
    bench = Bench(2)
    bench.join("me")
    bench.fail(Operation.TAKE, 0, error=Trouble())
    bench.answer(Operation.TAKE, 1)
    bench.answer(Operation.TAKE, 2)
    bench.room.first_check(bench.looks[0], bench.now)
    assert bench.asks == [(Operation.READ, 1), (Operation.READ, 2)]


def test_an_error_before_the_first_look_does_not_put_the_first_extension_off() -> None:
    bench = Bench(extend_interval=0.05)
    bench.join("me")
    bench.answer(Operation.TAKE)
    bench.room.reconnected(0, bench.now)
    bench.fail(Operation.EXTEND, error=Trouble())
    bench.look()
    bench.wait(0.05)
    assert bench.asks == [(Operation.EXTEND, 0)]


def test_an_extension_that_is_due_while_a_key_is_looked_at_is_not_left_out() -> None:
    bench = Bench()
    lease = bench.hold()
    due = bench.when
    bench.wait(due - bench.now - 0.01)
    bench.room.invalidated(0, bench.now)
    assert bench.asks == [(Operation.READ, 0)]
    bench.wait(0.02)
    assert bench.asks == [(Operation.READ, 0), (Operation.EXTEND, 0)]
    bench.wait(2.5)  # nothing is answered: no more is asked
    assert bench.asks == [(Operation.READ, 0), (Operation.EXTEND, 0)]
    bench.answer(Operation.READ, ttl=3700)
    bench.answer(Operation.EXTEND)
    assert bench.told == [] and lease.deadline > bench.now


def test_an_extension_that_was_due_while_one_was_under_way_is_made_up_for_when_that_is_answered() -> None:
    """What was answered late may be over before the next one is due."""
    bench = Bench()
    lease = bench.hold()
    bench.wait(2.5 / 2)
    late = bench.now
    bench.wait(2.5)  # the next one is due: nothing more is asked of a server that has not answered
    assert bench.asks == [(Operation.EXTEND, 0)]
    bench.answer(Operation.EXTEND)
    assert lease.deadline == pytest.approx(late + TERM, abs=GRID)
    assert bench.asks == [(Operation.EXTEND, 0)]
    bench.answer(Operation.EXTEND)
    assert bench.asks == []
    bench.wait(late + TERM - bench.now + 0.01)
    assert bench.told == [] and bench.room.holder is lease


def test_an_extension_is_late_while_it_is_not_answered_and_the_end_comes_near() -> None:
    bench = Bench()
    lease = bench.hold()
    assert not lease.extension_is_late(lease.deadline - 0.1)  # there was none yet
    bench.wait(2.5)
    bench.answer(Operation.EXTEND)
    bench.wait(lease.extend_at - bench.now)
    assert (Operation.EXTEND, 0) in bench.asks
    assert not lease.extension_is_late(bench.now)  # it was just sent
    bench.wait(1.2)
    assert lease.extension_is_late(bench.now)
    bench.answer(Operation.EXTEND)
    assert not lease.extension_is_late(bench.now)


def test_a_vote_that_was_not_confirmed_does_not_come_back_by_a_check_that_was_put_off() -> None:
    """As at the first check: the key is there, but perhaps too few replicas have it (``min_replicas``)."""
    bench = Bench(2)
    bench.luck = 1.0  # the first extension comes later than the check
    bench.join("me")
    bench.answer(Operation.TAKE, 0)
    bench.answer(Operation.TAKE, 1)
    bench.look()
    bench.wait(0.5)
    for _ in range(200):
        bench.pace.needless(bench.now)
    bench.room.invalidated(2, bench.now)
    bench.fail(Operation.TAKE, 2, error=Trouble())
    bench.room.invalidated(0, bench.now)
    assert bench.asks == []
    bench.wait(1.0)
    assert bench.asks == [(Operation.READ, 0), (Operation.EXTEND, 2)]


def test_a_write_that_is_confirmed_late_does_not_bring_back_a_key_that_was_found_to_be_lost() -> None:
    """Only writes are confirmed (``min_replicas``), so the answer that somebody else has the key comes first."""
    bench = Bench(2)
    lease = bench.hold()
    bench.wait(2.0)
    bench.answer(Operation.EXTEND, 1)
    bench.answer(Operation.EXTEND, 2)
    bench.down |= {1, 2}
    bench.room.force("another task", bench.now)
    bench.fail(Operation.FORCE, 0, error=Trouble())
    (_, again) = (sent for sent in bench.sent if sent.operation is Operation.EXTEND)
    bench.sent.remove(again)
    bench.room.answered(*again[:3], again.when, False, OTHER, None, bench.now)
    assert lease.votes[0] == 0.0
    assert lease.stale & 1  # so ``Request.confirmed`` reads the key again
