"""The slots of a cluster: the slot of a key, and hash tags that lead to a slot."""

from __future__ import annotations

import string
from binascii import crc_hqx
from functools import cache
from itertools import product

SLOTS = 16384
TAG = 3  # length of a tag from ``tag_for``: with fewer letters, some slots could not be reached
_LETTERS = (string.digits + string.ascii_letters).encode()


def slot_of(key: bytes) -> int:
    """Its slot in a cluster: CRC16 (XMODEM) of its hash tag, or of all of it."""
    return crc_hqx(hash_tag(key) or key, 0) % SLOTS


def hash_tag(key: bytes) -> bytes | None:
    """The part of a key that its slot depends on; None: all of it."""
    _, _, rest = key.partition(b"{")
    tag, closed, _ = rest.partition(b"}")
    return tag if tag and closed else None


def tag_for(slot: int, before: bytes = b"") -> bytes:
    """``TAG`` letters and digits which, appended to ``before``, have this slot: as a hash tag, or as a whole key."""
    # The checksum is linear: what comes before the letters adds (XOR) the same to it, whatever the letters are.
    at = TAG * (slot ^ crc_hqx(bytes(TAG), crc_hqx(before, 0)) % SLOTS)
    return _tags()[at : at + TAG]


@cache
def _tags() -> bytes:
    """The tags of all slots, one after the other: 48 KB. Made when the first is needed, which takes some 10 ms."""
    table = bytearray(TAG * SLOTS)
    missing = set(range(SLOTS))
    last = [(letter, crc_hqx(bytes([letter]), 0)) for letter in _LETTERS]
    for start in product(_LETTERS, repeat=TAG - 1):
        before = crc_hqx(bytes([*start, 0]), 0)
        for letter, added in last:
            slot = (before ^ added) % SLOTS
            if slot in missing:
                missing.remove(slot)
                table[TAG * slot : TAG * slot + TAG] = bytes([*start, letter])
        if not missing:
            break
    return bytes(table)
