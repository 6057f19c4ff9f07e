"""What the counter of a key is called: in the slot of that key, under the same prefix, and like no lock's key."""

from __future__ import annotations

from binascii import crc_hqx
from functools import cache
from itertools import product

SLOTS = 16384
_LETTERS = b"0123456789abcdefghijklmnopqrstuvwxyz"
_LENGTH = 4  # letters of a tag that is found by its slot: the shortest with which every slot can be reached


def counter_of(key: bytes, prefix: bytes, index: int, name: bytes) -> bytes:
    """The counter of ``key``, which is key ``index`` of this name, and begins with the prefix.

    It is ``prefix:f<index>:`` and what leads to the slot of the key: the key's hash tag, if it has one, or the whole
    key as a tag. So it is covered by the same pattern in an ACL. Some prefixes and names leave no choice but letters
    that happen to lead there.
    """
    start = b"%b:f%d:" % (prefix, index)
    if b"{" not in prefix:
        tag = hash_tag(key)
        if tag is not None:
            return b"%b{%b}:%b" % (start, tag, name)
        if b"}" not in key:
            return b"%b{%b}" % (start, key)
        return b"%b{%b}:%b" % (start, _letters_for(key, b""), name)
    # The first brace of both is in the prefix.
    opened = prefix.index(b"{") + 1
    if hash_tag(prefix) is not None:
        return start + name
    if b"}" in prefix[opened:]:  # an empty tag: all of the key counts
        start = b"%b%b:" % (start, name)
        return start + _letters_for(key, start)
    return b"%b%b}:%b" % (start, _letters_for(key, start[opened:]), name)


def hash_tag(key: bytes) -> bytes | None:
    """The part of a key that its slot depends on; None: all of it."""
    _, _, rest = key.partition(b"{")
    tag, closed, _ = rest.partition(b"}")
    return tag if tag and closed else None


def slot_of(key: bytes) -> int:
    """Its slot in a cluster."""
    return crc_hqx(hash_tag(key) or key, 0) % SLOTS


def _letters_for(key: bytes, before: bytes) -> bytes:
    """Letters that lead to the slot of ``key``, behind these bytes."""
    # The checksum is linear: what comes before the letters adds (XOR) the same to it, whatever the letters are.
    added = crc_hqx(bytes(_LENGTH), crc_hqx(before, 0)) % SLOTS
    return _letters()[slot_of(key) ^ added]


@cache
def _letters() -> list[bytes]:
    """For each slot, letters that lead to it. Made when it is needed first, which takes some milliseconds."""
    found: list[bytes | None] = [None] * SLOTS
    missing = SLOTS
    for each in product(_LETTERS, repeat=_LENGTH):
        letters = bytes(each)
        slot = crc_hqx(letters, 0) % SLOTS
        if found[slot] is None:
            found[slot] = letters
            missing -= 1
            if not missing:
                break
    return [letters for letters in found if letters is not None]
