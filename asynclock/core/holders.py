"""Who holds a lock, as its keys say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from .tokens import claim_of


@dataclass(frozen=True, slots=True)
class KeyState:
    """One key of a lock, when it was read."""

    key: str  #: the name of the key on the server
    server: str  #: the address, without credentials
    value: bytes | None = field(repr=False)  #: what is in it; None: there is no such key, or it could not be read
    remaining: float | None = None  #: seconds until it expires; None: it never does, or there is none
    problem: str = ""  #: why it could not be read


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock, as its keys said when they were read."""

    name: str  #: of the lock
    owner: str | None  #: ``Locker(owner=…)`` of the holder; None: another library has written the value
    since: datetime | None  #: when the holder's attempt began, by the holder's clock; None: the value does not say
    remaining: float | None  #: seconds until the lock expires, unless it is extended; None: it never does
    forced: bool  #: was it taken over by force?
    keys: tuple[KeyState, ...]  #: every key of the lock, in their order
    value: bytes = field(repr=False)  #: what is in the holder's keys. Whoever knows it can release them: do not show it

    @property
    def votes(self) -> int:
        """How many of the keys the holder has."""
        return sum(state.value == self.value for state in self.keys)

    @property
    def host(self) -> str | None:
        """From an owner of the form ``host:pid``; None: it has another form."""
        return self._address()[0]

    @property
    def pid(self) -> int | None:
        """The process, from an owner of that form."""
        return self._address()[1]

    def _address(self) -> tuple[str | None, int | None]:
        host, _, pid = (self.owner or "").rpartition(":")
        return (host, int(pid)) if host and pid.isascii() and pid.isdecimal() and len(pid) < 12 else (None, None)

    def __str__(self) -> str:
        """For messages: ``web-3:812, since 2026-01-31 09:30:00 UTC``."""
        who = "another library" if self.owner is None else self.owner or "an owner without a name"
        return who if self.since is None else f"{who}, since {self.since:%Y-%m-%d %H:%M:%S} UTC"


def is_unknown(keys: Sequence[KeyState], majority: int) -> bool:
    """Could too few keys be read to say who holds the lock? The unreadable ones alone may be somebody's majority."""
    return sum(bool(state.problem) for state in keys) >= majority


def is_clear(keys: Sequence[KeyState], majority: int) -> bool:
    """Does it not depend on the unreadable ones who holds the lock, or that nobody does?"""
    most = most_votes(keys)
    return most >= majority or most + sum(bool(state.problem) for state in keys) < majority


def most_votes(keys: Sequence[KeyState]) -> int:
    """How many keys the one has who has most of these."""
    values = Counter(state.value for state in keys if state.value is not None)
    return max(values.values(), default=0)


def holder_of(name: str, keys: Sequence[KeyState], majority: int) -> Holder | None:
    """Who has a majority of the keys, or may have one, with those that could not be read. Ask ``is_unknown`` first."""
    values = Counter(state.value for state in keys if state.value is not None)
    if not values:
        return None
    value, votes = values.most_common(1)[0]
    if votes + sum(bool(state.problem) for state in keys) < majority:
        return None
    # The lock lasts as long as a majority of its keys: the votes beyond a majority that end first do not matter.
    ends = sorted(
        (float("inf") if state.remaining is None else state.remaining for state in keys if state.value == value),
        reverse=True,
    )
    remaining = ends[min(majority, votes) - 1]
    claim = claim_of(value)
    return Holder(
        name=name,
        owner=None if claim is None else claim.owner,
        since=None if claim is None else datetime.fromtimestamp(claim.since, UTC),
        remaining=None if remaining == float("inf") else remaining,
        forced=claim is not None and claim.forced,
        keys=tuple(keys),
        value=value,
    )
