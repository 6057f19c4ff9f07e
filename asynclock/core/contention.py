"""Contention: how a process that has had a lock makes room for those who want it elsewhere."""

from __future__ import annotations

from .lease import MAGIC, Lease
from .rules import NEVER, Rules

REMEMBERED_ACQUISITIONS = 8  # acquisitions without a refusal after which nobody else is expected to want the lock
MAX_RIVALS = 8  # refusals before an acquisition that count towards the pause after it
REMEMBERED_SECONDS = 1.0  # seconds for which others are expected while nobody here wants the lock
MIN_HOLD_BACK = 0.0005  # seconds: the shortest pause that lets a waiter elsewhere win


class Contention:
    """What a room knows of the others who want its lock, and how long it holds back for them.

    A room has one from the first refusal, or from the first time that it releases the lock although somebody waits
    here, until it has met nobody else for a while.
    """

    __slots__ = ("_back_at", "_crowded", "_left_at", "_polite", "_quiet", "_refusals", "_rivals", "contended", "watch")

    def __init__(self) -> None:
        self.contended = 0  #: for how many more acquisitions others are expected
        self._refusals = 0  # since the last acquisition
        self._rivals = 0  # before it: how often others were faster
        self._crowded = 0  # for how many more acquisitions several others are expected
        self._polite = False  # is one of them known to hold back, too?
        self._quiet: Lease | None = None  # the room holds back until the release of this is answered
        self._back_at = 0.0  # ... and a little longer, until then
        self._left_at = NEVER  # when the last waiter here went away, until one comes
        self.watch: Lease | None = None  #: while the room holds back: asks what the others do

    def met(self, token: bytes | None = None) -> None:
        """Somebody else has the lock, or had it. ``token``: what they wrote, if that was seen."""
        self.contended = REMEMBERED_ACQUISITIONS
        if token is not None and token.startswith(MAGIC):
            self._polite = True

    def refused(self) -> None:
        """Somebody else was faster."""
        self.met()
        self._refusals += 1

    def won(self) -> bool:
        """The lock was acquired. False: nobody else is expected any more."""
        self.contended -= self.contended > 0
        self._crowded = REMEMBERED_ACQUISITIONS if self._refusals > 1 else max(0, self._crowded - 1)
        self._rivals, self._refusals = min(self._refusals, MAX_RIVALS), 0
        self.over()
        return self.contended > 0 or self._rivals > 0

    def leave(self, now: float) -> None:
        """Nobody here wants the lock any more."""
        self._left_at = now

    def outdated(self, now: float) -> bool:
        """Somebody here wants the lock, perhaps again. Was the last time too long ago to expect others still?"""
        left_at, self._left_at = self._left_at, NEVER
        return now - left_at > REMEMBERED_SECONDS

    def hold_back(self, lease: Lease) -> None:
        """``lease`` is being released: hold back until its server, and those who wait there, know."""
        self._quiet = lease

    def heard(self, lease: Lease, now: float, rules: Rules) -> bool:
        """The release of ``lease`` is answered. Did the room hold back for that?"""
        if lease is not self._quiet:
            return False
        # A waiter elsewhere has its invalidation by now: leave it the time of one more round trip. With several keys
        # it needs two, and the more waiters there are, the longer coming back only means to be refused.
        self._quiet = None
        trips = 1 if rules.keys == 1 else 2 * max(1, self._rivals)
        pause = max(now - lease.released_at, MIN_HOLD_BACK) * trips
        self._back_at = now + min(pause, rules.try_next_after)
        return True

    def over(self) -> None:
        """The room has held back long enough."""
        self._quiet = self.watch = None
        self._back_at = 0.0

    def watches(self, rules: Rules) -> bool:
        """Is it worth asking what the others do, so as to come back as soon as one has had a turn?

        Among several who hold back, whoever has just had a turn would be the fastest; and with several keys a turn
        would take many requests. But others (Go services) take the lock again as soon as they have released it: every
        moment that they are given beyond their turn is another turn of theirs.
        """
        return rules.tracking and (not self._polite or (not self._crowded and rules.keys == 1))

    @property
    def waits(self) -> bool:
        """Does the room hold back until a release is answered?"""
        return self._quiet is not None

    def back_at(self, now: float, rules: Rules) -> float:
        """When it is this process's turn again, at the latest. ``now`` or earlier: it is."""
        return self._back_at if self._quiet is None else now + rules.try_next_after
