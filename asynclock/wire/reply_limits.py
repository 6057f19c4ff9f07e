"""Limits the length of a reply and the number of its elements. A connection that exceeds one is dropped.

``hiredis.Reader`` buffers its input until a reply is complete, and allocates all the elements that a header announces
as soon as it reads the header: ``>1000000000`` has 13 bytes, and costs a minute and 8 GB. So headers are checked before
the reader gets them. That costs next to nothing for input without headers, which is nearly all of it: replies to locks
are strings and integers, and pushes are short.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import hiredis

from .violations import ViolationError

MAX_REPLY = 16 << 20  # bytes: somebody else may have written a large value to a lock's key
MAX_ELEMENTS = 500_000  # of one reply on all levels: CLUSTER SLOTS of the most fragmented cluster has 350,000
_MAX_HEADER = 20  # bytes

# A possible header of one of the types for which hiredis allocates elements: with more than 9 elements, or truncated.
# It may also be inside a string. The lookahead consumes nothing: the next header may follow at once.
_LARGE = re.compile(rb"[*>~](?=[^\r]{2}|[^\r]?\Z)")
_ANY = re.compile(rb"[*>~]")


class ReplyLimits:
    """Checks input before a reader gets it.

    State: ``size``: how many bytes of an incomplete reply the reader has (the reader's owner resets it to 0 when the
    reply is complete). While it is not 0, all elements are counted; otherwise, only those of large headers.
    """

    __slots__ = ("_elements", "_reader", "cut", "size")

    def __init__(self, reader: hiredis.Reader) -> None:
        self._reader = reader
        self.size = 0
        self.cut = b""  #: input that is held back, since it may be the beginning of a header
        self._elements = 0

    def more(self, size: int) -> None:
        """Count ``size`` bytes of a reply that is still incomplete. :raises ViolationError: it is too long"""
        self.size += size
        if self.size > MAX_REPLY:
            raise ViolationError(f"a reply of more than {MAX_REPLY >> 20} MB")

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield ``data`` in pieces that the reader may get. Take all complete replies out of the reader before asking
        for the next piece.

        :raises ViolationError: a reply has too many elements
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
                continue  # inside a string, past its first byte (no value starts like a header)
            end = data.find(b"\r", at, at + _MAX_HEADER)
            if end < 0 and len(data) < at + _MAX_HEADER:
                self.cut = data[at:]
                return
            number = data[at + 1 : end]
            if end > 0 and number.isdigit():  # else the reader itself will reject it
                self._count(int(number))
        yield data[start:]

    def _count(self, elements: int) -> None:
        self._elements += elements
        if self._elements > MAX_ELEMENTS:
            raise ViolationError(f"a reply of more than {MAX_ELEMENTS:,} elements")


def _usual(data: bytes) -> bool:
    """Are all headers, if there are any, those of an invalidation push? The fast path."""
    return data.count(b">") == data.count(b">2\r\n") and data.count(b"*") == data.count(b"*1\r\n") and b"~" not in data
