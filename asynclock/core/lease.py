"""One owner's claim to the keys of a name: which of them count, until when, and what is still owed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from .rules import NEVER, LossReason, Rules

MAGIC = b"asynclock:"
_NONE: Mapping[int, float] = MappingProxyType({})


class Tokens:
    """Values that no other lease ever writes: a random part for each locker, a number for each lease.

    They say of themselves whether they were set by force, so that a holder who finds one in its key
    knows what happened to it. Servers and other libraries see an opaque byte string.
    """

    __slots__ = ("_count", "_forced", "_id", "_taken")

    def __init__(self, random: bytes) -> None:
        self._id = random.hex().encode()
        self._taken = b"%bn:%b:" % (MAGIC, self._id)
        self._forced = b"%bf:%b:" % (MAGIC, self._id)
        self._count = 0

    def next(self, forced: bool = False) -> bytes:
        self._count += 1
        return b"%b%x" % (self._forced if forced else self._taken, self._count)


class Lease:
    """The votes of one owner.

    Invariants:

    - ``votes[i]`` is 0, or a time before which key ``i`` cannot expire on its server. It is counted
      from before the command was sent, so it never reaches beyond the server's own expiry.
    - ``deadline`` is the time until which a majority of the votes counts.
    - Bit ``i`` of ``may_be_ours`` is set from the moment that a command is sent that may put the token into
      key ``i``, until an answer shows that it is not there or a RELEASE has followed it.
    - Once ``done`` is set, a RELEASE has been sent for everything owed (or will be by whoever closes
      the locker), the votes count no more, and late answers are of no interest.
    """

    # In an attempt:
    decides: int  # with ``unsent``: the key whose answer it waits for; -1: none
    watched: int  # once it is lost: bit i: a change of key i makes another one worth while
    # Once it is won:
    acquired_at: float
    checked_at: float  # once it is extended: when was sent what showed last that a key is still ours
    scope_ref: Any  # the shell's: who is told of a loss
    # Once it is done:
    released_at: float
    releases: int  # keys that were to be released

    __slots__ = (
        "acquired_at",
        "barred",
        "cause",
        "checked_at",
        "deadline",
        "decides",
        "done",
        "error",
        "extend_at",
        "extended_at",
        "extending",
        "free_at",
        "in_flight",
        "may_be_ours",
        "missed",
        "next_check",
        "refused",
        "release_waiter",
        "released_at",
        "releases",
        "scope_ref",
        "silent",
        "stale",
        "token",
        "unreleased",
        "unsent",
        "untracked",
        "unverified",
        "votes",
        "watched",
    )

    def __init__(self, token: bytes, keys: int) -> None:
        self.token = token
        self.votes = [0.0] * keys
        self.in_flight = [0] * keys  # requests under way, each key; RELEASE not counted
        self.stale = 0  # bit i: key i changed while it was being asked
        self.unverified = 0  # bit i: key i may have changed, and has not been looked at since then
        self.next_check = NEVER  # when that is done, if not at once
        self.may_be_ours = 0
        self.refused = 0  # bit i: somebody else had key i, or it was gone again at once
        self.deadline = 0.0
        self.done = False
        self.free_at: Mapping[int, float] = _NONE  # key -> when it may be free, for keys that refused or failed
        self.error: Exception | None = None  # the last one that a server answered with
        self.barred = 0  # keys whose servers will not do better if they are asked again
        self.cause: LossReason | None = None  # what a missing key is put down to
        self.silent = False
        self.unsent = 0  # keys that an attempt in order has not come to yet: the last ones
        self.untracked = 0  # bit i: key i is set, but not tracked yet
        self.extend_at = 0.0
        self.extending = 0  # bit i: an extension of key i is under way
        self.extended_at = 0.0  # when all keys were due last
        self.unreleased = 0  # keys that are not yet known to be released
        self.missed = 0  # bit i: the release of key i did not find the token
        self.release_waiter: Any = None  # the shell's: who waits for the release

    def vote(self, index: int, until: float, majority: int) -> None:
        """Count key ``index`` until then; 0 takes the vote back."""
        self.votes[index] = until
        self.deadline = until if majority == 1 else sorted(self.votes, reverse=True)[majority - 1]

    def defer(self, index: int, when: float) -> None:
        """Key ``index`` was not to be had, and may be free then."""
        self.free_at = {**self.free_at, index: when}

    def granted(self, now: float) -> int:
        return sum(until > now for until in self.votes)

    def pending(self) -> int:
        return sum(map(bool, self.in_flight))

    def lost_unnoticed(self, majority: int) -> bool:
        """Did the release find fewer keys than a holder has? Whoever does not answer counts as kept."""
        return self.missed != 0 and self.releases - self.missed.bit_count() < majority

    def refused_by_others(self, rules: Rules) -> bool:
        """Did the attempt fail because of others, rather than of servers that failed?"""
        errors = sum(not self.refused >> index & 1 for index in self.free_at)
        return self.refused != 0 and errors <= rules.keys - rules.majority

    def why_lost(self, index: int, found: bytes | None, now: float) -> LossReason:
        """What happened to key ``index``, now that ``found`` is in it instead of the token."""
        if found is not None:
            if found.startswith(MAGIC + b"f"):
                return LossReason.TAKEN_OVER
            if not found.startswith(MAGIC + b"n"):
                return LossReason.OVERWRITTEN
            # Somebody acquired it, which takes a free key: it went away before that.
        if now >= self.votes[index]:
            return LossReason.EXPIRED
        return self.cause or LossReason.DELETED


def when_enough_free(lease: Lease, rules: Rules, now: float) -> float:
    """When so many of the keys that were not to be had may be free that a majority is possible."""
    missing = len(lease.free_at) - (rules.keys - rules.majority)
    if missing <= 0:
        return now
    return sorted(lease.free_at.values())[missing - 1]
