"""How long a reply may get, and how many elements it may announce, before its connection is given up.

``hiredis.Reader`` keeps what it is fed until the reply is whole, and makes room for all the elements
that a header announces as soon as it sees that: ``>1000000000`` is 13 bytes, and costs a minute and 8 GB.
So headers are looked at before it is fed. That costs next to nothing where there are none, as in
nearly all that is read: those of a lock's replies are strings, integers and short pushes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import hiredis

from .violations import ViolationError

MAX_REPLY = 16 << 20  # bytes: what is in a lock's key is mostly a lock's value, but can be anybody's
MAX_ELEMENTS = 500_000  # of one reply, all levels together: the slots of the most scattered cluster are 350,000
_LONGEST = 20  # bytes of a header

# What may be a header (all of those that hiredis makes room for), or may be in a string: of more than 9 elements,
# or cut off. Nothing else is consumed: the next one may follow at once.
_LARGE = re.compile(rb"[*>~](?=[^\r]{2}|[^\r]?\Z)")
_ANY = re.compile(rb"[*>~]")


class ReplyLimits:
    """Looks at what a reader is about to be fed. ``size`` is how much of a reply has come, in bytes, if it did
    not begin in what was fed last (the reader's owner sets it back to 0). Its elements are counted from then
    on, those of large headers always."""

    __slots__ = ("_elements", "_reader", "cut", "size")

    def __init__(self, reader: hiredis.Reader) -> None:
        self._reader = reader
        self.size = 0
        self.cut = b""  #: what was held back, since it may be the beginning of a header
        self._elements = 0

    def more(self, size: int) -> None:
        """Another part of a reply, and it is not whole yet. :raises ViolationError: it is too long"""
        self.size += size
        if self.size > MAX_REPLY:
            raise ViolationError(f"a reply of more than {MAX_REPLY >> 20} MB")

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What to feed, piece by piece; before the next one is asked for, what is whole must be taken out.

        :raises ViolationError: too much is announced
        """
        if self.cut:
            data, self.cut = self.cut + data, b""
        if not self.size:
            self._elements = 0
            if _usual(data):
                yield data
                return
        start = 0
        for found in (_ANY if self.size else _LARGE).finditer(data):
            at = found.start()
            if at > start:
                yield data[start:at]
                start = at
            self._count(1)
            if self._reader.has_data():
                continue  # in the middle of a string (further than its first byte, and none begins like that)
            end = data.find(b"\r", at, at + _LONGEST)
            if end < 0 and len(data) < at + _LONGEST:
                self.cut = data[at:]
                return
            number = data[at + 1 : end]
            if end > 0 and number.isdigit():  # else it is none that the reader accepts
                self._count(int(number))
        yield data[start:]

    def _count(self, elements: int) -> None:
        self._elements += elements
        if self._elements > MAX_ELEMENTS:
            raise ViolationError(f"a reply of more than {MAX_ELEMENTS:,} elements")


def _usual(data: bytes) -> bool:
    """Are the headers, if any, those of invalidations?"""
    return data.count(b">") == data.count(b">2\r\n") and data.count(b"*") == data.count(b"*1\r\n") and b"~" not in data
