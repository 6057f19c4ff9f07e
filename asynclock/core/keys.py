"""Layouts: what the keys of a lock are called, and which lock a key belongs to. Nothing else knows that.

All keys begin with the prefix and ``:``. What comes next tells the layouts apart: a number (``Plain``), or a letter and
a number (``Spread``; with another letter, ``core/counters.py``). So no key belongs to two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from zlib import crc32

from .slots import SLOTS, TAG, tag_for

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


def layouts(prefix: str, count: int, *, spread: bool) -> Sequence[Layout]:
    """The layout of a locker, and behind it the other one that somebody else may have, if there can be one.

    :param count: how many keys a lock has
    """
    raw = prefix.encode()
    plain = Plain(raw, count)
    if not 1 < count <= SLOTS or "{" in prefix:
        return (plain,)
    return (Spread(raw, count), plain) if spread else (plain, Spread(raw, count))
