"""What counters are called, for odd prefixes and names."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from redis.crc import key_slot

from asynclock.core.counters import counter_of
from asynclock.core.keys import Layout, Plain, Spread
from asynclock.core.slots import hash_tag, slot_of

pytestmark = [pytest.mark.fast, pytest.mark.every_python, pytest.mark.serverless]

odd = st.text(st.sampled_from("{}:a0f\u00e9 "), min_size=1, max_size=12) | st.text(min_size=1, max_size=30)
prefixes = st.text(st.sampled_from("{}:a0f"), min_size=1, max_size=8) | st.just("asynclock")


def key_of(prefix: str, index: int, name: str) -> bytes:
    return f"{prefix}:{index}:{name}".encode()


def counter(prefix: str, index: int, name: str) -> bytes:
    return counter_of(key_of(prefix, index, name), prefix.encode(), index, name.encode())


@given(prefix=prefixes, index=st.integers(0, 20), name=odd)
@example("asynclock", 0, "{}")
@example("asynclock", 0, "a}b")
@example("asynclock", 0, "{}{a}")
@example("asynclock", 0, "{{a}}")
@example("a{", 1, "}")
@example("a{b", 1, "c}d")
@example("a{b", 1, "c")
@example("a{}b", 1, "c{d}")
@example("a{b}c", 1, "d")
def test_a_counter_is_in_the_slot_of_its_key(prefix: str, index: int, name: str) -> None:
    assert key_slot(counter(prefix, index, name)) == key_slot(key_of(prefix, index, name))


@given(prefix=prefixes.filter(lambda prefix: "{" not in prefix), index=st.integers(0, 4), name=odd)
@example("asynclock", 0, "{}")
@example("a}", 2, "}{a}")
def test_so_is_that_of_a_key_that_is_spread(prefix: str, index: int, name: str) -> None:
    raw = prefix.encode()
    key = Spread(raw, 5).keys(name.encode())[index]
    found = counter_of(key, raw, index, name.encode())
    assert key_slot(found) == key_slot(key)
    assert found.startswith(b"%b:f%d:" % (raw, index)) and found.endswith(b":" + name.encode())
    layouts: list[Layout] = [Spread(raw, 5), Plain(raw, 5)]
    assert [layout.parsed(found) for layout in layouts] == [None, None]


@given(key=st.binary(max_size=20) | odd.map(str.encode))
def test_slots_are_those_of_a_cluster(key: bytes) -> None:
    assert slot_of(key) == key_slot(key)
    tag = hash_tag(key)
    assert tag is None or b"{%b}" % tag in key


@given(prefix=prefixes, one=odd, other=odd, indexes=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_no_two_names_share_a_counter_and_no_lock_has_its_name(
    prefix: str, one: str, other: str, indexes: tuple[int, int]
) -> None:
    first, second = counter(prefix, indexes[0], one), counter(prefix, indexes[1], other)
    assert (first == second) == ((one, indexes[0]) == (other, indexes[1]))
    # What an ACL grants for the prefix covers it. Behind it, a key of a lock has a number, and this has a letter.
    assert first.startswith(f"{prefix}:f{indexes[0]}:".encode())
    assert first != key_of(prefix, indexes[1], other)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("my_lock", "asynclock:f0:{asynclock:0:my_lock}"),
        ("order{42}", "asynclock:f0:{42}:order{42}"),
        ("a{b", "asynclock:f0:{asynclock:0:a{b}"),
    ],
)
def test_usual_names_can_be_read(name: str, expected: str) -> None:
    assert counter("asynclock", 0, name).decode() == expected
