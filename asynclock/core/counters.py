"""What the counter of a key is called: in the slot of that key, under the same prefix, and like no lock's key."""

from __future__ import annotations

from .slots import hash_tag, slot_of, tag_for


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
        return b"%b{%b}:%b" % (start, tag_for(slot_of(key)), name)
    # The first brace of both is in the prefix.
    opened = prefix.index(b"{") + 1
    if hash_tag(prefix) is not None:
        return start + name
    if b"}" in prefix[opened:]:  # an empty tag: all of the key counts
        start = b"%b%b:" % (start, name)
        return start + tag_for(slot_of(key), start)
    return b"%b%b}:%b" % (start, tag_for(slot_of(key), start[opened:]), name)
