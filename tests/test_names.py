"""Names: any Unicode, of any length that is allowed; and two different ones never share a key, on a real server.

``test_bad_input.py`` has what cannot be a name.
"""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from asynclock import Locker, NotLockedError
from asynclock.options import MAX_NAME
from asynclock.testing import Server
from tests.support.helpers import until

# Pieces that mean something to somebody: to servers, to the protocol, to a cluster, to a terminal; and the
# pieces of the keys themselves.
PIECES = [
    ":", "0", "1", "2", "10", "0:", ":0:", "1:", "asynclock", "asynclock:", "asynclock:0:", "asynclock:1:", "wait",
    "{", "}", "{}", "{a}", "{a}{b}", "\0", "\n", "\r\n", "\r\n$3\r\nfoo\r\n", "*", "?", "[a-z]", "\\", '"', "'", " ",
    "\t", "a", "b", "A", "é", "e\u0301", "שלום", "\u202e", "\u200f", "\u200b", "\ufeff", "🔒", "👩‍👩‍👧‍👦",
    "\U0010ffff", "ß", "\x7f", "\x1b[31m", "%s", "../", "İ",
]  # fmt: skip

TEXTS = st.one_of(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join), st.text(min_size=1, max_size=30)
)
# Text and length in bytes: 0 for that of the text. (A name of 64 KiB makes no good report.)
NAMES = st.tuples(TEXTS, st.sampled_from([0, 0, 0, 0, 255, 4096, MAX_NAME - 1, MAX_NAME]))
PREFIXES = st.one_of(st.just("asynclock"), st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map("".join))
WHERE = st.tuples(PREFIXES, st.sampled_from([1, 2, 3]), NAMES)  # prefix, majority, name
Name = tuple[str, int]
Where = tuple[str, int, Name]

CHECKS = settings(
    max_examples=150,
    deadline=None,  # machines are busy
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def spelled(name: Name) -> str:
    text, length = name
    if not length:
        return text
    return (text * length).encode(errors="replace")[:length].decode(errors="ignore")


def valid(*texts: str) -> bool:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def keys(prefix: str, majority: int, name: str) -> set[bytes]:
    return {f"{prefix}:{index}:{name}".encode() for index in range(2 * majority - 1)}


@given(named=NAMES)
@example(("a", 0))
@example(("\0", 0))
@example(("\0", MAX_NAME))
@example(("🔒", MAX_NAME))
@CHECKS
def test_any_name_can_be_locked(server: Server, named: Name) -> None:
    """Its keys are ``{prefix}:{i}:{name}`` to the byte, nobody else gets it meanwhile, its loss is told by a push
    that carries the key, and nothing is left of it."""
    name = spelled(named)

    async def run() -> None:
        async with Locker(server.url, key_majority=2) as locker, Locker(server.url, key_majority=2) as other:
            scope = await locker.acquire(name)
            assert scope.name == name
            await until(lambda: of(server) == keys("asynclock", 2, name))
            with pytest.raises(NotLockedError):
                await other.try_acquire(name)
            assert server.execute("DEL", *of(server)) == 3
            assert await asyncio.wait_for(scope.wait_lost(), 5) == "deleted"
            await (await other.try_acquire(name)).release()
            await until(lambda: of(server) == set())

    asyncio.run(run())


def of(server: Server) -> set[bytes]:
    """The keys that it has. (A lock is held with a majority of its own: the others come a little later.)"""
    found = server.execute("KEYS", "*")
    assert isinstance(found, list)
    return {key for key in found if isinstance(key, bytes)}


@given(one=WHERE, another=WHERE)
@example(one=("asynclock", 1, ("0:job", 0)), another=("asynclock:0", 1, ("job", 0)))
@example(one=("asynclock", 2, ("1:job", 0)), another=("asynclock:1", 2, ("job", 0)))
@example(one=("asynclock", 2, ("job", 0)), another=("asynclock", 2, ("1:job", 0)))
@example(one=("asynclock", 1, ("é", 0)), another=("asynclock", 1, ("e\u0301", 0)))
@example(one=("asynclock", 1, ("job", 0)), another=("asynclock", 1, ("JOB", 0)))
@example(one=("asynclock", 1, ("{a}", 0)), another=("asynclock", 1, ("a", 0)))
@CHECKS
def test_two_names_never_share_a_key(server: Server, one: Where, another: Where) -> None:
    """Of one prefix, whatever the majorities are. (Two prefixes, one of which goes on where the other ends, are the
    application's choice, and are looked at in the test after this one.)"""
    (prefix, majority, _), (_, other_majority, _) = one, another
    name, other_name = spelled(one[2]), spelled(another[2])
    assume(valid(prefix))
    theirs = keys(prefix, majority, name), keys(prefix, other_majority, other_name)
    assert bool(theirs[0] & theirs[1]) is (name == other_name)
    assume(name != other_name)

    async def run() -> None:
        async with (
            Locker(server.url, key_prefix=prefix, key_majority=majority) as locker,
            Locker(server.url, key_prefix=prefix, key_majority=other_majority) as other,
        ):
            held, beside = await locker.try_acquire(name), await other.try_acquire(other_name)
            await until(lambda: of(server) == theirs[0] | theirs[1])
            await beside.release()
            await until(lambda: of(server) == theirs[0])
            held.check()
            await held.release()
            await until(lambda: of(server) == set())

    asyncio.run(run())


@given(one=WHERE, another=WHERE)
@example(one=("asynclock", 1, ("0:job", 0)), another=("asynclock:0", 1, ("job", 0)))
@CHECKS
def test_two_prefixes_share_a_key_only_where_one_begins_with_the_other(one: Where, another: Where) -> None:
    """``asynclock`` and ``asynclock:0`` do: what a prefix must not be, beside another, is another's with an index."""
    (prefix, majority, name), (other, other_majority, other_name) = one, another
    assume(prefix != other)
    if keys(prefix, majority, spelled(name)) & keys(other, other_majority, spelled(other_name)):
        assert f"{prefix}:".startswith(f"{other}:") or f"{other}:".startswith(f"{prefix}:")
