"""Contention: how a process that has had a lock makes room for those who want it elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .lease import Lease
from .operations import READ
from .rules import NEVER, Rules
from .tokens import MAGIC

if TYPE_CHECKING:
    from .room import Room

REMEMBERED_ACQUISITIONS = 8  # acquisitions without a refusal after which nobody else is expected to want the lock
REMEMBERED_SECONDS = 1.0  # for which others are expected while nobody here wants the lock
MAX_RIVALS = 8  # refusals before an acquisition that count towards the pause after it
MIN_HOLD_BACK = 0.0005  # seconds: the shortest pause that lets a waiter elsewhere win


class Contention:
    """What a room knows of the others who want its lock, and how long it holds back for them.

    A room has one from the first refusal, or from the first time that it releases the lock although somebody waits
    here, until it has met nobody else for a while.
    """

    __slots__ = (
        "_crowded",
        "_held_back_until",
        "_idle_since",
        "_polite",
        "_refusals",
        "_released",
        "_rivals",
        "expected",
        "watch",
    )

    def __init__(self) -> None:
        self.expected = 0  #: for how many more acquisitions others are expected
        self._refusals = 0  # since the last acquisition
        self._rivals = 0  # before it: how often others were faster
        self._crowded = 0  # for how many more acquisitions several others are expected
        self._polite = False  # is one of them known to hold back, too?
        self._released: Lease | None = None  # the room holds back until the release of this is answered
        self._held_back_until = 0.0  # ... and a little longer, until then
        self._idle_since = NEVER  # when the last waiter here went away, until one comes
        self.watch: Watch | None = None  #: while the room holds back, if that is worth it

    # The others

    def met_rival(self, token: bytes | None = None) -> None:
        """Somebody else has the lock, or had it. ``token``: what they wrote, if that was seen."""
        self.expected = REMEMBERED_ACQUISITIONS
        if token is not None and token.startswith(MAGIC):
            self._polite = True

    def lost_race(self) -> None:
        """Somebody else was faster."""
        self.met_rival()
        self._refusals += 1

    def acquired(self) -> bool:
        """The lock was acquired here. False: nobody else is expected any more."""
        self.expected -= self.expected > 0
        self._crowded = REMEMBERED_ACQUISITIONS if self._refusals > 1 else max(0, self._crowded - 1)
        self._rivals, self._refusals = min(self._refusals, MAX_RIVALS), 0
        self.stop_holding_back()
        return self.expected > 0 or self._rivals > 0

    def idle(self, now: float) -> None:
        """Nobody here wants the lock any more."""
        self._idle_since = now

    def wanted_again(self, now: float) -> bool:
        """Somebody here wants the lock. False: the last time was too long ago to expect others still."""
        idle_since, self._idle_since = self._idle_since, NEVER
        return now - idle_since <= REMEMBERED_SECONDS

    # Holding back

    def hold_back(self, lease: Lease) -> None:
        """``lease`` is being released: hold back until its server, and those who wait there, know."""
        self._released = lease

    def release_answered(self, lease: Lease, now: float, rules: Rules) -> bool:
        """The release of ``lease`` is answered. Did the room hold back for that?"""
        if lease is not self._released:
            return False
        # A waiter elsewhere has its invalidation by now: leave it the time of one more round trip. With several keys
        # it needs two, and the more waiters there are, the longer coming back only means to be refused.
        self._released = None
        trips = 1 if rules.keys == 1 else 2 * max(1, self._rivals)
        pause = max(now - lease.released_at, MIN_HOLD_BACK) * trips
        self._held_back_until = now + min(pause, rules.try_next_after)
        return True

    @property
    def awaits_release(self) -> bool:
        """Does the room hold back until a release is answered?"""
        return self._released is not None

    def held_back_until(self, now: float, rules: Rules) -> float:
        """When it is this process's turn again, at the latest. ``now`` or earlier: it is."""
        return self._held_back_until if self._released is None else now + rules.try_next_after

    def stop_holding_back(self) -> None:
        """It is this process's turn again."""
        self._released = self.watch = None
        self._held_back_until = 0.0

    # Watching, meanwhile

    def watch_if_worth_it(self, room: Room[Any], token: bytes, now: float) -> None:
        """Watch what the others do, so as to come back as soon as one has had a turn.

        Not among several who hold back: whoever has just had a turn would be the fastest; and with several keys a turn
        would take many requests. But others (Go services) take the lock again as soon as they have released it: every
        moment that they are given beyond their turn is another turn of theirs.

        :param token: of the lease whose release was just sent
        """
        rules = room.rules
        if rules.tracking and (not self._polite or (not self._crowded and rules.keys == 1)):
            self.watch = Watch(room, token, now)

    def stop_watching(self) -> None:
        """What is still to be answered comes too late."""
        self.watch = None


class Watch:
    """Watches what the others do with the first key: whoever has had it and released it has had the lock.

    It reads the key, right behind the release. From the answer on, an invalidation means that somebody has taken it.
    (One before that may be about the release.) Then it reads the key again.
    """

    __slots__ = ("_armed", "_taken", "changed_since", "probe")

    def __init__(self, room: Room[Any], token: bytes, now: float) -> None:
        self.probe = Lease.ended(room, token, now)  #: what the key is read for, so the answers are to this lease
        self.changed_since = False  #: has the key changed while it was read?
        self._armed = False  # was the key free when it was read?
        self._taken = False  # has it changed since then?
        self.probe.request(0, READ, now)

    def key_changed(self, now: float) -> None:
        """Somebody took the key, or released it."""
        if self.probe.in_flight[0]:
            self.changed_since = True
        elif self._armed:
            self._taken = True
            self.probe.request(0, READ, now)

    def answered(self, found: bytes | None) -> bool:
        """The key was read, and ``found`` is in it. Has somebody taken it?"""
        if found is not None or self._taken:
            return True
        self._armed, self.changed_since = True, False
        return False
