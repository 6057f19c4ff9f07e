"""Tokens: the values of keys. Each belongs to one lease, and says who has the lock and since when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

MAGIC: Final = b"asynclock:"
# How tokens begin: of an attempt for a free key, or of one by force.
TAKEN: Final = MAGIC + b"n:"
FORCED: Final = MAGIC + b"f:"

MAX_MILLISECONDS: Final = 1 << 47  # Unix time: a later one is not from a clock


class Tokens:
    """Values that no other lease ever writes: a random part for each locker, and a number for each lease.

    A token is ``asynclock:n:<locker>:<number>:<milliseconds>:<owner>``, with ``f`` in place of ``n`` if it was set by
    force: then a holder who finds it in its key knows what happened. The milliseconds are the owner's clock, in Unix
    time, when the attempt began. The owner, ``Locker(owner=…)``, comes last, since it may contain colons. Servers and
    other libraries see an opaque byte string.
    """

    __slots__ = ("_began", "_count", "_ended", "_forced", "_owner", "_rest", "_taken", "_time", "locker")

    def __init__(self, random: bytes, owner: bytes, time: Callable[[], float]) -> None:
        """:param time: the time of day, in Unix seconds"""
        self.locker = random.hex().encode()  #: the random part, in hexadecimal: in all of its tokens
        self._taken = b"%b%b:" % (TAKEN, self.locker)
        self._forced = b"%b%b:" % (FORCED, self.locker)
        self._owner = owner
        self._time = time
        self._count = 0
        # How all tokens of this millisecond end, from _began to _ended: kept, since many may be made in one.
        self._rest = b""
        self._began = self._ended = 0.0

    def next(self, forced: bool = False) -> bytes:
        self._count += 1
        now = self._time()
        if not self._began <= now < self._ended:
            milliseconds = int(now * 1000)
            self._rest = b":%d:%b" % (milliseconds, self._owner)
            self._began, self._ended = now, (milliseconds + 1) / 1000
        return b"%b%d%b" % (self._forced if forced else self._taken, self._count, self._rest)


class Claim(NamedTuple):
    """What a token says."""

    owner: str
    since: float  #: Unix seconds, by the owner's clock
    forced: bool


def claim_of(value: bytes) -> Claim | None:
    """What the value of a key says; None: it is no token of asynclock, or has another form."""
    parts = value.split(b":", 5)
    if len(parts) != 6 or not value.startswith((TAKEN, FORCED)):
        return None
    try:
        owner, milliseconds = parts[5].decode(), int(parts[4])
    except ValueError:
        return None
    if not owner.isprintable() or not 0 <= milliseconds < MAX_MILLISECONDS:
        return None
    return Claim(owner, milliseconds / 1000, parts[1] == b"f")
