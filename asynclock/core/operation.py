"""What a lease asks of a key on a server."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

# Replies to PTTL that are no milliseconds:
NO_END: Final = -1  # it never expires
NO_KEY: Final = -2  # it does not exist


class Operation(IntEnum):
    """One thing that a lease asks of one key, and what is known of it without a server.

    An operation that ``reads`` ends by reading the key: the server tracks the key from then on, and the answer is
    newer than any invalidation that came before it. TAKE and TAKE_TTL do not, so a key that they have set counts as
    untracked until a READ.
    """

    acquires: bool  #: asks for a vote that the lease does not have yet
    writes: bool  #: sets an expiry one validity from now, so it needs one
    reads: bool  #: ends by reading the value
    ends: bool  #: gives the key up: the last that is sent for it, and never lost (``Requests.request``)
    replies: int  #: how many replies the server sends

    #          acquires writes reads ends replies
    TAKE = 0, True, True, False, False, 1  #: set the key if it is free
    TAKE_TTL = 1, True, True, False, False, 2  #: the same, then read the time that it has left, whoever has it
    FORCE = 2, True, True, True, False, 2  #: set it whoever has it, then read it
    EXTEND = 3, False, True, True, False, 2  #: move its expiry if it still holds our token, then read it
    READ = 4, False, False, True, False, 2  #: read its remaining time to live and its value
    RELEASE = 5, False, False, False, True, 1  #: delete it if it still holds our token
    KEEP = 6, False, False, False, True, 1  #: let it expire at ``Lease.keep_until`` if it still holds our token

    def __new__(cls, value: int, acquires: bool, writes: bool, reads: bool, ends: bool, replies: int) -> Operation:
        self = int.__new__(cls, value)
        self._value_ = value
        self.acquires, self.writes, self.reads, self.ends, self.replies = acquires, writes, reads, ends, replies
        return self
