"""The rules of fencing tokens, with answers given by hand and at random."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynclock.core.fencing import NOT_OURS, Fencing

pytestmark = [pytest.mark.fast, pytest.mark.every_python, pytest.mark.serverless]


def test_one_answer_is_enough_for_one_key() -> None:
    fencing = Fencing(1, 1)
    assert (fencing.due(), fencing.floor, fencing.number) == ([0], 0, None)
    fencing.answered(0, 0, 17)
    assert fencing.number == 17
    assert fencing.due() == []


def test_the_highest_of_a_majority_is_given_out_once_a_majority_has_it() -> None:
    fencing = Fencing(3, 2)
    assert fencing.due() == [0, 1, 2]
    assert not fencing.answered(0, 0, 5)
    assert fencing.due() == []
    assert fencing.answered(1, 0, 9)
    assert (fencing.floor, fencing.number) == (9, None)
    assert fencing.due() == [0, 2]  # the second has it, as it has given it out
    fencing.answered(2, 9, 9)
    assert fencing.number == 9


def test_a_late_answer_of_the_first_round_counts_if_it_is_high_enough() -> None:
    for late, number in ((8, None), (9, 9), (12, 9)):
        fencing = Fencing(3, 2)
        fencing.due()
        fencing.answered(0, 0, 5)
        fencing.answered(1, 0, 9)
        assert fencing.due() == [0, 2]
        fencing.answered(2, 0, late)
        assert fencing.number == number
        assert fencing.due() == []  # the request of the second round is still in flight


def test_equal_answers_need_no_second_round() -> None:
    fencing = Fencing(3, 2)
    fencing.due()
    fencing.answered(2, 0, 9)
    fencing.answered(0, 0, 9)
    assert fencing.number == 9


def test_a_key_of_somebody_else_does_not_count_and_is_asked_again() -> None:
    fencing = Fencing(3, 2)
    fencing.due()
    fencing.answered(0, 0, NOT_OURS)
    fencing.answered(1, 0, 4)
    assert (fencing.floor, fencing.any_due) == (0, True)
    assert fencing.due() == [0]
    fencing.answered(0, 0, 3)
    assert fencing.floor == 4
    fencing.due()
    fencing.answered(0, 4, NOT_OURS)
    fencing.answered(2, 4, NOT_OURS)
    assert fencing.number is None
    assert fencing.due() == [0, 2]


def test_failures() -> None:
    fencing = Fencing(3, 2)
    fencing.due()
    fencing.failed(0, 0, None)
    assert fencing.due() == [0]
    first, second = Exception("first"), Exception("second")
    fencing.failed(0, 0, first)
    assert fencing.error is None  # the others are enough
    assert fencing.due() == [0]  # ... but may stay away
    fencing.failed(2, 0, second)
    assert fencing.error is first
    assert fencing.number is None


def test_a_refusal_may_end() -> None:
    for later in (4, NOT_OURS, None):
        fencing = Fencing(3, 2)
        fencing.due()
        fencing.failed(0, 0, Exception("NOPERM"))
        assert fencing.due() == [0]
        if later is None:
            fencing.failed(0, 0, None)
        else:
            fencing.answered(0, 0, later)
        fencing.failed(1, 0, Exception("NOPERM"))
        assert fencing.error is None


@given(data=st.data(), servers=st.sampled_from([1, 3, 5]))
def test_later_holders_get_greater_numbers(data: st.DataObject, servers: int) -> None:
    """Holders one after the other, each of whom all servers serve, in any order, with clocks that differ, and with
    requests of earlier holders that arrive late."""
    majority = servers // 2 + 1
    counters = [0] * servers
    offsets = [data.draw(st.integers(0, 5)) for _ in range(servers)]
    last, now = 0, 0
    for _ in range(data.draw(st.integers(1, 5))):
        fencing = Fencing(servers, majority)
        # (index, floor, answer once the server has read it)
        unread: list[tuple[int, int]] = []
        answers: list[tuple[int, int, int]] = []
        while fencing.number is None:
            unread += [(index, fencing.floor) for index in fencing.due()]
            now += 1
            possible = len(unread) + len(answers)
            assert possible, "nothing is in flight, and there is no number"
            chosen = data.draw(st.integers(0, possible - 1))
            if chosen < len(unread):
                index, floor = unread.pop(chosen)
                counters[index] = (
                    max(counters[index], floor) if floor else max(counters[index] + 1, now + offsets[index])
                )
                answers.append((index, floor, counters[index]))
            else:
                fencing.answered(*answers.pop(chosen - len(unread)))
        assert fencing.number > last
        assert sum(counter >= fencing.number for counter in counters) >= majority
        last = fencing.number
