"""What the counter of a key is called: in the slot of that key, under the same prefix, and like no lock's key."""

from __future__ import annotations

from .slots import hash_tag, slot_of, tag_for


def counter_of(key: bytes, prefix: bytes, index: int, name: bytes) -> bytes:
    """The counter of ``key``, which is key ``index`` of lock ``name`` and begins with the prefix.

    It is ``prefix:f<index>:``, so that an ACL pattern for the keys covers it, and a tag for the slot of ``key``: the
    key's own tag, or the whole key. Where braces in the prefix or name make neither possible, it is letters that are
    looked up by their slot (``tag_for``).
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
