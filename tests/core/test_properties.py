"""The small parts, with random numbers. The whole is in ``tests/simulation``."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynclock.core.clock import ServerClock
from asynclock.core.lease import Lease
from asynclock.core.retry import enough_free_at
from asynclock.core.rules import NEVER, Rules
from asynclock.core.tokens import Tokens
from tests.support.bench import Bench

pytestmark = [pytest.mark.fast, pytest.mark.every_python, pytest.mark.serverless]

seconds = st.floats(0, 1e6)


@given(now=seconds, offset=st.floats(-1e9, 1e9), there=st.floats(0, 10), back=st.floats(0, 10), later=st.floats(0, 100))
def test_a_servers_clock_is_never_behind_the_server(
    now: float, offset: float, there: float, back: float, later: float
) -> None:
    clock = ServerClock(5000.0)  # for which such an answer is no late one
    assert not clock.usable(now)
    clock.observe(sent=now, server=now + there + offset, received=now + there + back)
    then = now + there + back + later
    real = then + offset
    assert clock.at_most(then) >= real - 1e-6  # a microsecond of rounding, at these magnitudes
    assert clock.at_most(then) <= real + there + 1e-6
    clock.forget()
    assert clock.due(then)
    assert not clock.usable(then)


@pytest.mark.parametrize("took", [0.001, 1.0])  # the second is too long to measure by, and still shows a step
@pytest.mark.parametrize("step", [0.0, 4.0, -4.0])
def test_a_clock_that_was_set_is_noticed_once(took: float, step: float) -> None:
    clock = ServerClock(5.0)
    assert not clock.observe(sent=100.0, server=5000.0, received=100.001)
    later = [clock.observe(sent=now, server=4900.0 + now + step, received=now + took) for now in (102.0, 104.0)]
    assert later == [step != 0.0, False]


@given(majority=st.integers(1, 4), data=st.data())
def test_a_lease_counts_until_the_vote_that_makes_the_majority_ends(majority: int, data: st.DataObject) -> None:
    lease = Lease(Bench(majority=majority).room, b"")
    for _ in range(data.draw(st.integers(1, 12))):
        index = data.draw(st.integers(0, 2 * majority - 2))
        lease.vote(index, data.draw(st.sampled_from([0.0, 1.0, 2.0, 3.5])))
        assert lease.deadline == sorted(lease.votes, reverse=True)[majority - 1]
        now = data.draw(st.sampled_from([0.5, 1.0, 3.0, 4.0]))
        assert (lease.vote_count(now) >= majority) == (now < lease.deadline)


@given(majority=st.integers(1, 3), times=st.dictionaries(st.integers(0, 4), st.sampled_from([1.0, 2.0, 3.0, NEVER])))
def test_a_waiter_looks_again_when_a_majority_can_be_free_and_not_before(
    majority: int, times: dict[int, float]
) -> None:
    lease = Lease(Bench(majority=majority).room, b"")
    rules = lease.room.rules
    lease.free_at = {index: when for index, when in times.items() if index < rules.keys}

    def possible(when: float) -> bool:
        return rules.keys - sum(free > when for free in lease.free_at.values()) >= majority

    again = enough_free_at(lease, rules, 0.5)
    if again == NEVER:
        assert not possible(3.0)
    else:
        assert possible(again)
        assert again == 0.5 or not possible(again - 0.1)


def test_no_two_tokens_are_the_same() -> None:
    one, two = Tokens(b"1", b"a", lambda: 0.0), Tokens(b"2", b"a", lambda: 0.0)
    tokens = [tokens.next(forced=forced) for tokens in (one, two) for forced in (False, True) for _ in range(500)]
    assert len(set(tokens)) == len(tokens)


@given(
    majority=st.integers(1, 10),
    validity=st.floats(0.01, 1e4),
    share=st.floats(0.01, 0.7),
)
def test_the_numbers_of_the_rules_fit_each_other(majority: int, validity: float, share: float) -> None:
    rules = Rules(majority=majority, validity=validity, extend_interval=validity * share, try_next_after=0.02)
    assert rules.keys // 2 + 1 == majority
    assert rules.keys % 2 == 1
    assert validity - rules.term == pytest.approx(validity * 0.01 + 0.002)
    assert 0 < rules.extend_interval < rules.term
