"""What a reply may announce: looked at before the reader sees it, wherever the bytes were cut."""

from __future__ import annotations

import random
from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynclock.wire.limited_parser import _LimitedReader
from asynclock.wire.reply_limits import MAX_ELEMENTS, MAX_REPLY, ReplyLimits
from asynclock.wire.violations import ViolationError, unexpected

MORE = object()


class Fed:
    """A reader as ``Connection`` feeds it."""

    def __init__(self) -> None:
        self.reader = hiredis.Reader(notEnoughData=MORE)
        self.headers = ReplyLimits(self.reader)
        self.replies: list[Any] = []
        self.fed = 0

    def feed(self, data: bytes) -> None:
        for piece in self.headers.pieces(data):
            self.reader.feed(piece)
            self.fed += len(piece)
            before = len(self.replies)
            while (reply := self.reader.gets()) is not MORE:
                self.replies.append(reply)
            if len(self.replies) == before:
                self.headers.more(len(piece))
            else:
                self.headers.size = 0


def bulk(word: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(word), word)


def many(kind: bytes, elements: list[bytes]) -> bytes:
    return b"%b%d\r\n%b" % (kind, len(elements), b"".join(elements))


# Strings are mostly made of what headers are made of.
WORDS = st.lists(st.sampled_from([b"*", b">", b"~", b"1", b"99999999", b"\r\n", b"x"]), max_size=6).map(b"".join)
LINES = WORDS.map(lambda word: b"+x%b\r\n" % word.replace(b"\r\n", b""))
PLAIN = WORDS.map(bulk) | LINES | st.sampled_from([b":1\r\n", b"_\r\n", b"$-1\r\n", b"+OK\r\n"])
REPLIES = st.recursive(
    PLAIN,
    lambda inner: st.builds(many, st.sampled_from([b"*", b"~", b">"]), st.lists(inner, max_size=12)),
    max_leaves=30,
)


def cut(data: bytes, seed: int) -> list[bytes]:
    """In pieces, most of them short."""
    r, pieces = random.Random(seed), []
    while data:
        size = r.choice((1, 2, 3, 7, 40, len(data)))
        pieces.append(data[:size])
        data = data[size:]
    return pieces


@given(st.lists(REPLIES, max_size=8).map(b"".join), st.integers())
def test_replies_are_read_as_without_it(data: bytes, seed: int) -> None:
    reader = hiredis.Reader(notEnoughData=MORE)
    reader.feed(data)
    expected = []
    while (reply := reader.gets()) is not MORE:
        expected.append(reply)
    fed = Fed()
    for piece in cut(data, seed):
        fed.feed(piece)
    assert fed.replies == expected
    assert not fed.headers.cut


@given(
    st.lists(REPLIES, max_size=8).map(b"".join),
    st.sampled_from([b"", b"*2\r\n", b">2\r\n$10\r\ninvalidate\r\n"]),
    st.sampled_from([b"*", b">", b"~"]),
    st.integers(MAX_ELEMENTS, 1 << 40),
    st.integers(),
)
def test_too_many_elements_are_never_shown_to_the_reader(
    before: bytes, around: bytes, kind: bytes, elements: int, seed: int
) -> None:
    fed = Fed()
    data = before + around + b"%b%d\r\n" % (kind, elements)
    with pytest.raises(ViolationError, match="elements"):
        for piece in cut(data + b":1\r\n", seed):
            fed.feed(piece)
    assert fed.fed <= len(before + around)


@pytest.mark.parametrize("elements", [0, 1, 9, 10, 99, 1000])
@pytest.mark.parametrize("size", [5, 4096, 65536])
def test_arrays_beside_arrays(elements: int, size: int) -> None:
    """Each is small: together they are too much, before they cost more than a few bytes each."""
    fed, said = Fed(), 0
    fed.feed(b"*%d\r\n" % (MAX_ELEMENTS - 1))
    part = many(b"*", [b"_\r\n"] * elements)
    parts = part * (size // len(part) + 1)
    with pytest.raises(ViolationError, match="elements"):
        while said < MAX_REPLY:
            fed.feed(parts)
            said += len(parts)
    assert said <= 2 * len(parts)


@pytest.mark.parametrize("elements", [1, 9, 10, 99])
def test_arrays_in_arrays(elements: int) -> None:
    """Newer readers have enough of them soon by themselves."""
    fed, said = Fed(), 0
    bomb = b"*%d\r\n" % elements * 10_000
    with pytest.raises((hiredis.ProtocolError, ViolationError), match=r"depth|elements"):
        while said < MAX_REPLY:
            fed.feed(bomb)
            said += len(bomb)
    assert said < 4 * MAX_ELEMENTS


def test_a_string_without_an_end() -> None:
    fed, said = Fed(), 0
    fed.feed(b"$536870912\r\n")
    with pytest.raises(ViolationError, match="16 MB"):
        while said < 2 * MAX_REPLY:
            fed.feed(bytes(65536))
            said += 65536
    assert said <= MAX_REPLY + 65536


def test_what_was_announced_is_forgotten_with_its_reply() -> None:
    fed = Fed()
    for _ in range(30):
        fed.feed(b"*100000\r\n")
        fed.feed(b":1\r\n" * 99_999)
        fed.feed(b":1\r\n")
    assert len(fed.replies) == 30


def test_a_slot_for_each_range_and_a_replica_for_each() -> None:
    """CLUSTER SLOTS of the most scattered cluster that there can be."""
    node = many(b"*", [bulk(b"127.0.0.1"), b":6379\r\n", bulk(b"0" * 40), b"*0\r\n"])
    fed = Fed()
    for piece in cut(many(b"*", [many(b"*", [b":1\r\n", b":1\r\n", node, node])] * 16384), 1):
        fed.feed(piece)
    assert len(fed.replies) == 1


def test_what_redis_py_reads_while_it_connects_is_limited_too() -> None:
    connecting = _LimitedReader(hiredis.Reader())
    connecting.feed(b"+OK\r\n$%d\r\n" % (4 * MAX_REPLY))
    assert connecting.gets() == b"OK"
    size = 0
    with pytest.raises(ViolationError, match="16 MB"):
        while size < 2 * MAX_REPLY:
            assert connecting.gets() is False
            connecting.feed(b"x" * (1 << 20))
            size += 1 << 20
    assert size > MAX_REPLY - (2 << 20)
    connecting = _LimitedReader(hiredis.Reader())
    connecting.feed(b"*%d\r\n" % (2 * MAX_ELEMENTS))
    with pytest.raises(ViolationError, match="elements"):
        connecting.gets()


def test_a_violation_shows_the_type_of_a_reply_and_not_its_content() -> None:
    assert str(unexpected("the answer to GET", b"s3cret")) == "malformed reply: the answer to GET was a string"
    assert "s3cret" not in str(unexpected("the answer to GET", {"s3cret"}))
