"""Turns: how a process that has had a lock makes room for those who want it elsewhere."""

from __future__ import annotations

from .lease import MAGIC, Lease
from .rules import NEVER, Rules

REMEMBERED = 8  # acquisitions without a refusal after which nobody else is expected to want the lock
MAX_RIVALS = 8  # refusals before an acquisition that count for how long is held back after it
REMEMBERED_FOR = 1.0  # seconds for which that is expected while nobody is here
MIN_HOLD_BACK = 0.0005  # seconds: the least that lets a waiter elsewhere win


class Contention:
    """What a room knows of the others who want its lock, and how long it holds back for them.

    There is one from the first refusal, or the first time that the lock goes back to its server although
    somebody waits here, until nobody else has been met for a while.
    """

    __slots__ = ("_back_at", "_crowded", "_left_at", "_polite", "_quiet", "_refusals", "_rivals", "contended", "watch")

    def __init__(self) -> None:
        self.contended = 0  #: for how many more acquisitions others are expected
        self._refusals = 0  # since the last acquisition
        self._rivals = 0  # before it: how often others were quicker
        self._crowded = 0  # for how many more acquisitions several others are expected
        self._polite = False  # is one of them known to let others go first, too?
        self._quiet: Lease | None = None  # held back until its release is answered
        self._back_at = 0.0  # ... and a little longer, until then
        self._left_at = NEVER  # when the last one here went away, until somebody comes
        self.watch: Lease | None = None  #: while it is held back: by which is asked what the others do

    def met(self, token: bytes | None = None) -> None:
        """Somebody else has it, or had it. ``token``: what they have put there, if that was seen."""
        self.contended = REMEMBERED
        if token is not None and token.startswith(MAGIC):
            self._polite = True

    def refused(self) -> None:
        """Somebody else was quicker."""
        self.met()
        self._refusals += 1

    def won(self) -> bool:
        """The lock was acquired. False: nobody else is expected any more."""
        self.contended -= self.contended > 0
        self._crowded = REMEMBERED if self._refusals > 1 else max(0, self._crowded - 1)
        self._rivals, self._refusals = min(self._refusals, MAX_RIVALS), 0
        self.over()
        return self.contended > 0 or self._rivals > 0

    def leave(self, now: float) -> None:
        """Nobody is here any more."""
        self._left_at = now

    def outdated(self, now: float) -> bool:
        """Somebody is here, perhaps again. Is what is known of others too long ago to say anything?"""
        left_at, self._left_at = self._left_at, NEVER
        return now - left_at > REMEMBERED_FOR

    def hold_back(self, lease: Lease) -> None:
        """The lock goes back to its server: until that has heard of it, and those who wait there too."""
        self._quiet = lease

    def heard(self, lease: Lease, now: float, rules: Rules) -> bool:
        """The release of ``lease`` is answered. Was that waited for?"""
        if lease is not self._quiet:
            return False
        # A waiter elsewhere has heard of it by now: leave it the time of one more round trip. In order
        # it takes two, and the more there are, the longer coming back is only to be refused.
        self._quiet = None
        trips = 1 if rules.keys == 1 else 2 * max(1, self._rivals)
        pause = max(now - lease.released_at, MIN_HOLD_BACK) * trips
        self._back_at = now + min(pause, rules.try_next_after)
        return True

    def over(self) -> None:
        """That was long enough."""
        self._quiet = self.watch = None
        self._back_at = 0.0

    def watches(self, rules: Rules) -> bool:
        """Is it worth while to ask what the others do, so as to come back as soon as one has had a turn?

        Among several who let others go first, who has just had its turn would be the quickest; and with several
        keys there would be many questions for a turn. But others (Go services) take the lock again as soon as
        they have released it: each moment that they are given beyond their turn is another turn of theirs.
        """
        return rules.tracking and (not self._polite or (not self._crowded and rules.keys == 1))

    @property
    def waits(self) -> bool:
        """Is a release to be answered first?"""
        return self._quiet is not None

    def back_at(self, now: float, rules: Rules) -> float:
        """When it is this process's turn again, at the latest; now or earlier: it is."""
        return self._back_at if self._quiet is None else now + rules.try_next_after
