"""The order in which several names are acquired (``core.several``), without servers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asynclock.core.several import Several, agreed_order


def nobody(place: int) -> bool:
    return False


def test_all_at_once_if_all_may_be_free() -> None:
    assert Several().step([False] * 3, nobody) == ([], [0, 1, 2], False)


def test_it_waits_for_the_first_that_was_refused_and_gives_back_what_comes_after() -> None:
    several = Several()
    several.step([False] * 4, nobody)
    assert several.step([True, False, True, False], nobody) == ([2], [1], True)


def test_it_tries_the_rest_at_once_again_when_it_has_waited() -> None:
    several = Several()
    several.step([False] * 4, nobody)
    several.step([True, False, True, False], nobody)
    assert several.step([True, True, False, False], nobody) == ([], [2, 3], False)


def test_what_comes_after_a_busy_one_is_not_tried() -> None:
    several = Several()
    assert several.step([False] * 4, lambda place: place == 2) == ([], [0, 1], False)
    assert several.step([True, True, False, False], lambda place: place == 2) == ([], [2], True)
    assert Several().step([False] * 3, lambda place: place == 0) == ([], [0], True)


def test_the_last_one_is_waited_for_without_an_attempt_before() -> None:
    assert Several().step([True, True, False], nobody) == ([], [2], True)


def test_one_that_was_lost_meanwhile_is_the_next_to_wait_for() -> None:
    assert Several().step([False, True, True], nobody) == ([1, 2], [0], True)


def test_the_order_is_that_of_the_bytes() -> None:
    names = ["z", "é", "a", "\U0001f512", "￿", "aa", "Z"]
    assert agreed_order(names) == sorted(names, key=str.encode)


@given(st.lists(st.text(), unique=True))
def test_for_all_names(names: list[str]) -> None:
    names = [name for name in names if name.isprintable()]  # no lone surrogates
    assert agreed_order(names) == sorted(names, key=str.encode)


@given(st.data())
def test_it_never_waits_while_it_holds_one_that_comes_after(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 6))
    several = Several()
    held = [False] * count
    for _ in range(30):
        if all(held):
            break
        busy = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
        give_back, request, wait = several.step(held, busy.__getitem__)
        for place in give_back:
            assert held[place]
            held[place] = False
        assert request and not any(held[place] for place in request)
        if wait:
            assert len(request) == 1
            assert not any(held[request[0] :])
            held[request[0]] = True
        else:
            for place in request:
                held[place] = data.draw(st.booleans())
        for place in range(count):  # some are lost
            held[place] &= data.draw(st.integers(0, 9)) > 0
