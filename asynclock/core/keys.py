"""Layouts: what the keys of a lock are called, and which lock a key belongs to. Nothing else knows that.

All keys begin with the prefix and ``:``. What comes next tells the layouts apart: a number (``Plain``), or a letter and
a number (``Spread``, ``Slots``; with another letter, ``core/counters.py``). So no key belongs to two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol
from zlib import crc32

from .slots import SLOTS, TAG, hash_tag, slot_of, tag_for

MAX_DIGITS = 4  # of the number of a slot: a semaphore has up to 1,000
MARGIN = 64  # at each end of a part of the slots, 1/64 of the part is not used


class Layout(Protocol):
    """Names to keys, and back. Nothing changes after ``__init__``."""

    def keys(self, name: bytes) -> list[bytes]:
        """The keys of a lock, in the order of their indexes."""

    def parsed(self, key: bytes) -> tuple[int, bytes] | None:
        """The index and the name in a key; None: it is no key of this layout. (A name may be empty or too long
        there: anybody can write keys.)"""


class Plain:
    """``prefix:INDEX:name``, as the Go libraries have it. In a cluster, chance decides the slot of each key."""

    def __init__(self, prefix: bytes, count: int) -> None:
        """:param count: how many keys a lock has"""
        self._starts = [b"%b:%d:" % (prefix, index) for index in range(count)]

    def keys(self, name: bytes) -> list[bytes]:
        return [start + name for start in self._starts]

    def parsed(self, key: bytes) -> tuple[int, bytes] | None:
        for index, start in enumerate(self._starts):
            if key.startswith(start):
                return index, key[len(start) :]
        return None


class Spread:
    """``prefix:sINDEX:{TAG}:name``: the slots are divided into as many equal parts as a lock has keys, and each key is
    in another part, where its tag leads to.

    All keys of a lock are equally far from the beginnings of their parts. So there is a whole part's length between two
    of them, and a shard whose slots are one range of that length or less has one of them at most, wherever its range
    begins. With three keys and three shards that have a third each, one key is on each shard.

    The ends of the parts are not used, so that it does not matter where tools round, nor whether a shard has a few
    slots more than its share. The prefix must not contain ``{``: the first one in a key begins its tag.
    """

    def __init__(self, prefix: bytes, count: int) -> None:
        """:param count: how many keys a lock has"""
        assert b"{" not in prefix and count <= SLOTS
        size = SLOTS // count
        margin = size // MARGIN
        self._count = count
        self._starts = [b"%b:s%d:{" % (prefix, index) for index in range(count)]
        # The parts begin where redis-cli and valkey-cli let shards begin.
        self._firsts = [round(part * SLOTS / count) + margin for part in range(count)]
        self._choices = size - 2 * margin  # slots of each part that are used

    def ranges(self) -> list[range]:
        """The slots in each part that have keys. Those at the same place in all ranges belong to the same locks."""
        return [range(first, first + self._choices) for first in self._firsts]

    def keys(self, name: bytes) -> list[bytes]:
        at, turn = divmod(crc32(name), self._count)
        at %= self._choices
        slots = [first + at for first in self._firsts]
        # Not always key 0 in part 0: key 0 is requested most, and its load is to be on all shards.
        return [
            b"%b%b}:%b" % (start, tag_for(slots[(turn + index) % self._count]), name)
            for index, start in enumerate(self._starts)
        ]

    def parsed(self, key: bytes) -> tuple[int, bytes] | None:
        for index, start in enumerate(self._starts):
            if key.startswith(start):
                at = len(start) + TAG
                return (index, key[at + 2 :]) if key[at : at + 2] == b"}:" else None
        return None


class Slots:
    """``prefix:pINDEX:{TAG}:SLOT:name``: the slots of a semaphore, each with as many keys as a lock has.

    All keys with the same index are in one slot of a cluster, so that one request can look at all of them: there, where
    the key of that index would be if the name were a lock's. So they are spread as the keys of a lock are. Another key
    there, with ``n`` in place of a number, says how many permits there are.
    """

    def __init__(self, layout: Layout, prefix: bytes, count: int) -> None:
        """
        :param layout: of locks
        :param count: how many keys a lock has
        """
        self._layout = layout
        self._starts = [b"%b:p%d:" % (prefix, index) for index in range(count)]
        # The first brace of a key may be in the prefix. If it closes there, too, the tag is the prefix's; or there is
        # none, since an empty one does not count, and letters at the end of the key lead to its slot.
        self._opened = b"{" in prefix
        self._closed = self._opened and b"}" in prefix[prefix.index(b"{") :]
        self._at_end = self._closed and hash_tag(prefix) is None

    def keys(self, name: bytes, slot: int) -> list[bytes]:
        """The keys of one slot, in the order of their indexes."""
        return [start(b"%d" % slot) for start in self.of(name)]

    def markers(self, name: bytes) -> list[bytes]:
        """The keys that say how many permits there are, one beside the keys of each index."""
        return [start(b"n") for start in self.of(name)]

    def of(self, name: bytes) -> list[Callable[[bytes], bytes]]:
        """For each index, what makes the key of a slot from its number."""
        places = [slot_of(key) for key in self._layout.keys(name)]
        return [self._maker(start, name, place) for start, place in zip(self._starts, places, strict=True)]

    def _maker(self, start: bytes, name: bytes, place: int) -> Callable[[bytes], bytes]:
        if self._at_end:

            def with_letters(slot: bytes) -> bytes:
                key = b"%b%b:%b:" % (start, slot, name)
                return key + tag_for(place, key)

            return with_letters
        if self._closed:
            before = start
        elif self._opened:
            before = b"%b%b}:" % (start, tag_for(place, start[start.index(b"{") + 1 :]))
        else:
            before = b"%b{%b}:" % (start, tag_for(place))
        return lambda slot: b"%b%b:%b" % (before, slot, name)

    def parsed(self, key: bytes) -> tuple[int, int, bytes] | None:
        """The index, the slot and the name in a key; None: it is no key of a slot."""
        for index, start in enumerate(self._starts):
            if key.startswith(start):
                at = len(start)
                if not self._closed:
                    at += TAG + (2 if self._opened else 3)
                    if key[at - 2 : at] != b"}:":
                        return None
                slot, colon, name = key[at:].partition(b":")
                if not colon or not slot.isdigit() or len(slot) > MAX_DIGITS:
                    return None
                if self._at_end:
                    if name[-TAG - 1 : -TAG] != b":":
                        return None
                    name = name[: -TAG - 1]
                return index, int(slot), name
        return None


def layouts(prefix: str, count: int, *, spread: bool) -> Sequence[Layout]:
    """The layout of a locker, and behind it the other one that somebody else may have, if there can be one.

    :param count: how many keys a lock has
    """
    raw = prefix.encode()
    plain = Plain(raw, count)
    if not 1 < count <= SLOTS or "{" in prefix:
        return (plain,)
    return (Spread(raw, count), plain) if spread else (plain, Spread(raw, count))
