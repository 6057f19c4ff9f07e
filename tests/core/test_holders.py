"""Tokens, and who holds a lock, as its keys say."""

from __future__ import annotations

import pytest

from asynclock.core.holders import KeyState, holder_of
from asynclock.core.tokens import Tokens, claim_of


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"asynclock:n:",
        b"asynclock:n:ab:1",  # of a version before there were owners
        b"asynclock:x:ab:1:1700000000000:me",
        b"asynclock:n:ab:1:never:me",
        b"asynclock:n:ab:1:-5:me",
        b"asynclock:n:ab:1:" + b"9" * 30 + b":me",
        b"asynclock:n:ab:1:" + b"9" * 5000 + b":me",
        b"asynclock:n:ab:1:1700000000000:\x1b[2J",
        b"asynclock:n:ab:1:1700000000000:\xff",
        b"asynclock:w:ab",
        b"\x00" * 1000,
    ],
)
def test_what_is_no_token_claims_nothing(value: bytes) -> None:
    assert claim_of(value) is None
    found = holder_of("job", [KeyState("k", "s", value)], 1)
    assert found is not None and found.owner is None and found.since is None


def test_a_token_says_what_was_put_in() -> None:
    tokens = Tokens(b"ab", b"a:b:c", lambda: 1_700_000_000.25)
    for forced in (False, True):
        claim = claim_of(tokens.next(forced))
        assert claim is not None
        assert claim == ("a:b:c", 1_700_000_000.25, forced)


def some(*values: str | None, ttl: float | None = 4.0) -> list[KeyState]:
    """``?``: it cannot be read."""
    return [
        KeyState(str(index), "server", None, None, "is away")
        if value == "?"
        else KeyState(str(index), "server", None if value is None else value.encode(), ttl)
        for index, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("values", "holds"),
    [
        (["a", "a", "a"], "a"),
        (["a", "a", None], "a"),
        (["a", "b", "a"], "a"),
        (["a", "b", "c"], None),
        (["a", None, None], None),
        (["a", "?", None], "a"),  # it may be
        (["a", "?", "?"], "a"),
        (["?", "?", "?"], None),
        ([None, None, "?"], None),
    ],
)
def test_who_holds_a_lock_of_three_keys(values: list[str | None], holds: str | None) -> None:
    found = holder_of("job", some(*values), 2)
    assert (None if found is None else found.value.decode()) == holds


def test_a_lock_lasts_as_long_as_a_majority_of_its_keys() -> None:
    keys = [KeyState(str(index), "server", b"a", remaining) for index, remaining in enumerate((1.0, 3.0, None))]
    found = holder_of("job", keys, 2)
    assert found is not None and found.remaining == 3.0 and found.votes == 3
