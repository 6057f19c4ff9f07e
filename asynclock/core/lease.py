"""One claim to the keys of a name: what was requested, which votes count and until when, what must be released."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from .operation import NO_KEY
from .operations import EXTEND, KEEP, READ, RELEASE, TAKE, TAKE_TTL, Operation
from .reasons import LossReason
from .rules import NEVER, Rules
from .tokens import FORCED, TAKEN

if TYPE_CHECKING:
    from .room import Room

OWN_EXTENSION: Final = 0.1  # seconds after an extension in which an invalidation may be about that
OWN_SET: Final = 0.01  # seconds after a lock was acquired in which an invalidation may be about that
LATE: Final = 0.75  # share of ``Rules.reserve`` that is left when an extension should have succeeded
MOVED: Final = 0.9  # share of ``Rules.term`` that a deadline is at least after the extension that has moved it
_NONE: Final[Mapping[int, float]] = MappingProxyType({})


class Lease:
    """The votes of one owner, from the attempt to get them until their release is answered.

    It sends its own requests and judges the answers. Its room decides what follows: whether an attempt is won, a
    lock lost, and who is next.

    Invariants:

    - ``votes[i]`` is 0, or a time before which key ``i`` cannot expire on its server. It counts from before the
      command was sent, so it never reaches beyond the server's own expiry.
    - ``deadline`` is the time until which a majority of the votes counts.
    - Bit ``i`` of ``may_be_ours`` is set from the moment that a command is sent that may put the token into key
      ``i``, until an answer shows that it is not there or a RELEASE or KEEP has followed it.
    - Once ``done`` is set, a RELEASE or KEEP has been sent for every key that may be ours (or will be, by whoever
      closes the locker), and the votes count no more. Late answers say when the keys of a failed attempt may be free
      (``free_at``), and why a held lock had been lost before its release (``missed``, ``cause``), and nothing else.
    - ``keep_until`` says what is owed once the lock is given up: to keep the keys until then, or to delete them, if it
      is 0 or over. A RELEASE sets it to 0, and so does a loss; but not the closing of the locker, which keeps them.
    """

    # In an attempt:
    decides: int  # with ``unsent``: the key whose answer the attempt waits for; -1: none
    watched: int  # once it has failed: bit i: a change of key i makes another attempt worthwhile
    expires: float  # once a key was refused: when the first of those keys expires
    took: float  # ... and seconds from the request to that answer
    # Once it is held:
    acquired_at: float
    checked_at: float  # when the request was sent whose answer last showed that a key is still ours
    scope_ref: Any  # the engine's: the scope to notify of a loss, and None before there is one
    # Once it is done:
    released_at: float

    __slots__ = (
        "acquired_at",
        "cause",
        "checked_at",
        "deadline",
        "decides",
        "done",
        "error",
        "expires",
        "extend_at",
        "extended_at",
        "extending",
        "forced",
        "free_at",
        "in_flight",
        "keep_until",
        "lasting_errors",
        "may_be_ours",
        "missed",
        "next_check",
        "reading_back",
        "refused",
        "release_waiter",
        "released_at",
        "room",
        "scope_ref",
        "silent",
        "stale",
        "token",
        "took",
        "unreleased",
        "unsent",
        "untracked",
        "unverified",
        "votes",
        "watched",
    )

    def __init__(self, room: Room[Any], token: bytes, forced: bool = False) -> None:
        rules = room.rules
        self.room = room
        self.token = token
        self.votes = rules.no_votes.copy()
        self.deadline = 0.0
        self.in_flight = rules.no_requests.copy()  # for each key, requests that are not answered; not RELEASE
        self.may_be_ours = 0
        self.done = False
        # An attempt
        self.forced = forced  # False: only free keys are taken
        #: bit i: key i was taken by force, and is being read before the lock counts; None: that has not begun
        self.reading_back: int | None = None
        self.unsent = 0  # keys that an attempt that goes one by one has not requested yet: the last ones
        self.silent = False  # the attempt waits no longer for servers that have not answered
        self.refused = 0  # bit i: somebody else had key i, or it was missing as soon as it had been set
        self.free_at: Mapping[int, float] = _NONE  # key -> when it may be free, for keys that refused or failed
        self.lasting_errors = 0  # keys whose servers fail in a way that retrying cannot help (``ServerError.lasting``)
        self.error: Exception | None = None  # the last one that a server answered with
        # A held lock
        self.extend_at = NEVER  # when it is extended next; NEVER: its first check has not come yet
        self.extended_at = 0.0  # when it was extended last
        self.extending = 0  # bit i: an extension of key i is not answered yet
        self.untracked = 0  # bit i: key i is set, or may be, but the server does not track it yet
        self.stale = 0  # bit i: key i changed, or was found to be lost, while a request for it was in flight
        self.unverified = 0  # bit i: key i may have changed, and was not read since then
        self.next_check = NEVER  # when those are read, if not at once
        self.cause: LossReason | None = None  # why a key is missing, if it is missing
        # A release
        self.keep_until = 0.0  # until then, a release lets the keys expire, instead of deleting them; 0: it deletes
        self.unreleased = 0  # keys whose RELEASE or KEEP is not answered yet
        self.missed = 0  # bit i: the RELEASE or KEEP of key i did not find the token
        self.release_waiter: Any = None  # the engine's: who waits for the release

    @classmethod
    def ended(cls, room: Room[Any], token: bytes, now: float) -> Lease:
        """A lease that was released ``now``, and had requested the first key only."""
        lease = cls(room, token)
        lease.unsent = room.rules.keys - 1
        lease.watched = 0
        lease.end(now)
        return lease

    # Requests

    def request(self, index: int, operation: Operation, now: float) -> bool:
        """Send a request for key ``index``. False: its server is not connected, and no answer will come."""
        room = self.room
        if not room.requests.request(self, index, operation, now):
            return False
        self.in_flight[index] += 1
        if operation.writes:
            self.may_be_ours |= 1 << index
            self.extending |= 1 << index
        return True

    def request_all(self, operation: Operation, now: float) -> bool:
        """Send a request for every key. Were all servers connected?"""
        room = self.room
        requests = room.requests
        for index in range(room.rules.keys):
            if requests.request(self, index, operation, now):
                self.in_flight[index] += 1
                self.may_be_ours |= 1 << index
            else:
                self.not_connected(index)
        return not self.free_at

    def go_one_by_one(self) -> None:
        """Request the keys one by one, in their order, by ``request_next``."""
        self.unsent = self.room.rules.keys
        self.decides = -1

    def request_next(self, now: float) -> None:
        """Request the next key, unless the answer for another decides; all the rest once one is ours; none once one is
        refused."""
        room = self.room
        while self.unsent and not self.refused:
            if self.decides >= 0 and self.in_flight[self.decides]:
                return
            index = room.rules.keys - self.unsent
            self.unsent -= 1
            silent = room.port.silent(room, index, now)
            if not self.request(index, TAKE_TTL, now):
                self.not_connected(index)
            elif not silent and not self.vote_count(now):
                self.decides = index

    def wait_no_longer(self) -> None:
        """The answers take too long: request the next key, or decide without the servers that are silent. But an
        attempt by force waits for all."""
        if self.unsent:
            self.decides = -1
        else:
            self.silent = not self.forced

    def not_connected(self, index: int) -> None:
        """The server of key ``index`` is not connected."""
        self.defer(index, NEVER)
        if (error := self.room.port.lasting_error(self.room, index)) is not None:
            self.error = error
            self.lasting_errors += 1

    def read_back(self, now: float) -> bool:
        """A majority was taken by force. Before it counts, let the previous holder see our token: if we released
        earlier, it would find no key, and report it as deleted. Read every key that was taken. True: one of them was
        read, or no READ is left to be answered.

        One more round trip takes about as long as the previous holder needs to read its key. It may need longer, and
        then a lock that was taken over and given back at once counts as deleted. More round trips are not worth it:
        two who force at the same time would take the lock from each other before either has it.
        """
        if self.reading_back is None:
            self.reading_back = 0
            for index, until in enumerate(self.votes):
                if until > now and self.request(index, READ, now):
                    self.reading_back |= 1 << index
            self.untracked |= self.reading_back
        elif not any(requests and self.reading_back >> index & 1 for index, requests in enumerate(self.in_flight)):
            self.reading_back = 0
        return not self.reading_back

    def keep(self, until: float) -> None:
        """The keys stay until then, though the lock is released earlier. 0: they need not (any more)."""
        self.keep_until = until

    def release(self, now: float) -> int:
        """Send a RELEASE after everything that may have put the token into a key: or a KEEP, if the lock is held and is
        to stay for longer. Returns how many were sent."""
        self.done = True
        self.released_at = now
        operation = RELEASE
        if self.keep_until:
            if now < self.keep_until and now < self.deadline:
                operation = KEEP
            else:
                self.keep_until = 0.0  # nothing is kept: its time is over, or the lock is
        room, sent, owed = self.room, 0, self.may_be_ours
        requests = room.requests
        for index in range(room.rules.keys):
            if owed >> index & 1 and requests.request(self, index, operation, now):
                sent += 1
        self.may_be_ours = 0
        self.unreleased = sent
        return sent

    def end(self, now: float) -> None:
        """The votes count no more. What may be ours stays so until ``release``."""
        self.done = True
        self.released_at = now

    def extend(self, now: float) -> None:
        """Extend every vote, and try to get the keys back that do not count (only if they are free)."""
        rules = self.room.rules
        self.extend_at = rules.extension(now)
        self.extended_at = now
        self.next_check = NEVER  # this is one
        for index in range(rules.keys):
            if not self.extending >> index & 1:  # a silent server gets the next one when it has answered
                self.request(index, EXTEND if self.may_be_ours >> index & 1 else TAKE, now)

    def extension_is_late(self, now: float) -> bool:
        """Was an extension sent that has not succeeded, with a quarter of ``Rules.reserve`` over, the time for it? Once
        all of it is over, the lock is lost."""
        rules = self.room.rules
        near = 0.0 < self.deadline - now < rules.reserve * LATE
        # A success moves the deadline to ``term`` after the extension was sent; or a little less, if votes differ.
        return near and self.extended_at > 0.0 and self.deadline < self.extended_at + rules.term * MOVED

    def plan_extension(self, now: float) -> None:
        """Begin to extend, if that has not begun. A deadline that is closer than usual (a late grant, a lost vote)
        needs an earlier extension."""
        rules = self.room.rules
        if self.extend_at == NEVER:
            # The first extension comes early, by a random time. Else locks that were acquired together would be
            # extended in the same turn of the event loop for ever.
            self.extend_at = rules.extension(now, 0.5 + self.room.port.chance() / 2)
            self.checked_at = now
        remaining = self.deadline - now
        self.extend_at = min(self.extend_at, self.deadline - min(rules.reserve, remaining / 2))

    def extend_by(self, when: float) -> None:
        """Extend then, at the latest."""
        self.extend_at = min(self.extend_at, when)

    def first_check(self, now: float) -> None:
        """Read the keys that are not tracked yet: from then on they are, but a change before caused no invalidation."""
        self._read_or_extend(self.untracked, now)

    def check(self, index: int, now: float) -> None:
        """Read key ``index``, now, or later if invalidations from its server have meant nothing of late."""
        port = self.room.port
        if self.extend_at != NEVER and (pause := port.pause(self.room, index, now)):
            when = self.checked_at + pause
            if when > now:
                self.next_check = min(self.next_check, when)
                self.room.wake_by(when)
                return
        self.request(index, READ, now)

    def check_unverified(self, now: float) -> None:
        """Read every key that may have changed."""
        self.next_check = NEVER
        self._read_or_extend(self.unverified, now)

    def _read_or_extend(self, which: int, now: float) -> None:
        """Read these keys (bit i: key i), except those with a request in flight.

        One that may be ours and has no vote is extended, which reads it, too: replicas may have to confirm a vote
        (``min_replicas``), and they confirm only what is written.
        """
        for index in range(self.room.rules.keys):
            if which >> index & 1 and not self.in_flight[index]:
                unconfirmed = self.may_be_ours >> index & 1 and not self.votes[index]
                self.request(index, EXTEND if unconfirmed else READ, now)

    # Doubt

    def suspect(self, index: int, cause: LossReason | None, now: float) -> None:
        """Key ``index`` may have changed: read it, now or after the answer that is in flight."""
        if self.in_flight[index]:
            self.unverified |= 1 << index
            self.stale |= 1 << index
            self.cause = cause or self.cause
        elif self.votes[index]:
            self.unverified |= 1 << index
            self.cause = cause
            if self.room.attempt is self:
                # Not counted towards a majority until the answer: an attempt must not be won with it.
                self.vote(index, 0.0)
            self.check(index, now)

    def verify(self, index: int, now: float) -> None:
        """The server of key ``index`` is back, with or without the key: check it, by extending it."""
        if self.in_flight[index]:
            # What is in flight may be older than the change: check again after it.
            self.unverified |= 1 << index
            self.stale |= 1 << index
        elif self.may_be_ours >> index & 1:
            self.unverified |= 1 << index
            self.cause = LossReason.FORGOTTEN
            self.request(index, EXTEND, now)

    def verify_all(self, now: float) -> None:
        """This process may have overwritten every key: check them, by extending them."""
        for index in range(self.room.rules.keys):
            if self.may_be_ours >> index & 1:
                self.unverified |= 1 << index
                self.request(index, EXTEND, now)

    def _verified(self, index: int, operation: Operation, sent: float, now: float) -> None:
        """Key ``index`` may have changed, and is still ours."""
        bit = 1 << index
        if self.unverified & bit and operation is READ and not self._own_invalidation(sent):
            self.room.port.needless(self.room, index, now)
        if self.stale & bit:
            if operation is READ or not self.room.port.in_order(self.room, index):
                return  # it may have changed after it was read
            # EXTEND writes, then reads: a push from before the write is older than the read, one in between is about
            # that write.
            self.stale &= ~bit
        self.unverified &= ~bit
        if not self.unverified:
            self.room.verified(self)

    def _own_invalidation(self, sent: float) -> bool:
        """May the invalidation that led to a READ be that of what this lease has written itself?"""
        if self.room.attempt is self:
            return True
        return sent - self.extended_at < OWN_EXTENSION or sent - self.acquired_at < OWN_SET

    def forget_cause(self) -> None:
        """No key is missing, unless that is still to be found out."""
        if not self.unverified and not self.pending():
            self.cause = None

    def acquired(self, now: float) -> None:
        """The attempt is won."""
        self.acquired_at = now
        self.cause = None

    # Answers

    def answered(
        self,
        index: int,
        operation: Operation,
        sent: float,
        ok: bool,
        found: bytes | None,
        ttl: int | None,
        now: float,
    ) -> LossReason | None:
        """As ``Room.answered``. Returns why the vote of key ``index`` is lost, if it counted until now."""
        self.in_flight[index] -= 1
        if self.extending and operation is not READ:
            self.extending &= ~(1 << index)
        if found != self.token:
            return self._found_other(index, operation, sent, ok, found, ttl, now)
        rules = self.room.rules
        if operation is READ:
            if self.reading_back and self.reading_back >> index & 1:
                self.reading_back = 0
            self.untracked &= ~(1 << index)
            # Another client may have shortened its life; to read it does not lengthen it. It ends between sent + ttl
            # and now + ttl: that depends on whether the request took the time, or the reply.
            until = self.votes[index]
            if ttl is not None and ttl >= 0:
                if now + ttl / 1000 < until or not until:
                    # Not for longer than a validity, though a clock that was set back may let it live for longer: the
                    # next extension makes it end a validity after that.
                    self.vote(index, sent + min(rules.term_of(ttl / 1000), rules.term))
                if until and not until < now + ttl / 1000 < until + rules.validity:
                    self.room.port.doubt_clock(self.room, index)  # though another client may have set the expiry
        elif ok:
            until = sent + rules.term
            if ttl is not None and ttl >= 0:  # another client may have shortened it already
                until = min(until, sent + rules.term_of(ttl / 1000))
            # As ``vote``, which would be a call more in every acquisition.
            self.votes[index] = until
            self.deadline = until if rules.majority == 1 else self._deadline(rules)
            if operation is TAKE or operation is TAKE_TTL:
                self.untracked |= 1 << index
                if self.extend_at != NEVER:
                    self.request(index, READ, now)  # else at the first check
        if operation is not TAKE and operation.reads:  # most are TAKE, and to ask it takes longer
            self.checked_at = sent
            if self.unverified:
                self._verified(index, operation, sent, now)
        if self.stale and self.stale >> index & 1 and not self.in_flight[index]:
            # The invalidation may be older than the answer, or not (it can come on another connection).
            self.stale &= ~(1 << index)
            self.check(index, now)
        if sent < self.extended_at and operation is not READ:  # an extension was skipped while this was in flight
            self.request(index, EXTEND, now)  # by the time of the next one, this vote may be over
        return None

    def _found_other(
        self,
        index: int,
        operation: Operation,
        sent: float,
        ok: bool,
        found: bytes | None,
        ttl: int | None,
        now: float,
    ) -> LossReason | None:
        """The answer shows that key ``index`` does not hold our token."""
        if found is None and (ok or operation.reads):
            # Missing as soon as it had been set, or before its time. Before the vote is taken back: this may send
            # something, which lets other threads run, and they must not find a lock that is over and not lost.
            self.room.port.doubt_clock(self.room, index)
        lost = self.why_lost(index, found, now) if self.votes[index] else None
        self.unverified &= ~(1 << index)
        self.vote(index, 0.0)
        if not self.in_flight[index]:
            self.may_be_ours &= ~(1 << index)
        self.refuse(index, sent, found, ttl, now)
        if self.in_flight[index]:
            # That may be a write from before, which waits for replicas (``min_replicas``): its confirmation must not
            # bring the vote back. Set after ``refuse``, which takes a stale key for one that may be free now.
            self.stale |= 1 << index
        return lost

    def refuse(self, index: int, sent: float, found: bytes | None, ttl: int | None, now: float) -> None:
        """Key ``index`` was somebody else's, or is missing: note when it may be free.

        The time to live counts from when the request was ``sent``. Then the next attempt, which takes as long to get
        to the server, arrives when the key has expired; and an answer that was read late, since the loop was blocked
        or the machine suspended, delays nothing. Should this be too early, one more attempt finds out.
        """
        rules, chance = self.room.rules, self.room.port.chance
        self.refused |= 1 << index
        if found is None or ttl == NO_KEY:
            free = now
        elif ttl is None or ttl < 0:
            free = now + rules.validity
        else:
            free = sent + (ttl + 1) / 1000  # a server counts a key as expired one millisecond after
        if self.refused & -self.refused == 1 << index:
            self.expires, self.took = free, now - sent
        if self.stale >> index & 1:
            free = now
        if not rules.tracking:
            free = min(free, now + rules.extend_interval * (0.5 + chance() / 2))
        self.defer(index, free)

    def refused_late(self, index: int, sent: float, found: bytes | None, ttl: int | None, now: float) -> None:
        """This answer came after the attempt had failed. It says what to wait for on that server."""
        if found == self.token:
            self.defer(index, now)  # our release is on its way, and that change is not worth an attempt
        else:
            self.refuse(index, sent, found, ttl, now)
            self.watched |= 1 << index

    def watch_refusals(self) -> None:
        """The attempt has failed: a change of these keys makes another one worthwhile."""
        # Not those that have not answered: what changes there may be our own release.
        self.watched = sum(1 << index for index in self.free_at if not self.in_flight[index])

    def failed(self, error: Exception | None) -> None:
        """A request has failed: the connection is lost (``None``), or the server answered with an error."""
        self.error = error

    def not_taken(self, index: int, again: float) -> None:
        """That was the request for the vote of key ``index``. Another may succeed ``again``."""
        self.lasting_errors += getattr(self.error, "lasting", False)
        if self.error is None:  # the answer was lost: the first check finds out whether the key is ours
            self.untracked |= self.may_be_ours & 1 << index
        self.defer(index, again)

    def release_answered(self, index: int, ok: bool, now: float) -> bool:
        """The RELEASE or KEEP of key ``index`` is answered (``ok``: it found the token), or never will be. True: that
        was the last one."""
        if not ok and not self.released_at < self.votes[index] <= now:  # else it may have expired since
            self.missed |= 1 << index
            if self.votes[index] and self.request(index, READ, now):
                return False  # the key was lost before: what is in it says why (``missed_because``)
        self.unreleased -= 1
        return not self.unreleased

    def is_missed(self, index: int, operation: Operation) -> bool:
        """Was key ``index`` read to find out why its RELEASE or KEEP did not find the token?"""
        return bool(self.missed >> index & 1) and operation is READ

    def missed_because(self, index: int, found: bytes | None) -> None:
        """... and ``found`` is in it."""
        self.cause = self.why_lost(index, found, self.released_at)

    def unanswered(self, index: int, operation: Operation) -> None:
        """No answer to a request will come."""
        self.in_flight[index] -= 1
        if self.extending and operation is not READ:
            self.extending &= ~(1 << index)

    # What is known

    def vote(self, index: int, until: float) -> None:
        """Count key ``index`` until then; 0 takes the vote back."""
        self.votes[index] = until
        self.deadline = self._deadline(self.room.rules)

    def _deadline(self, rules: Rules) -> float:
        return sorted(self.votes, reverse=True)[rules.majority - 1]

    def defer(self, index: int, when: float) -> None:
        """Key ``index`` could not be taken, and may be free then."""
        self.free_at = {**self.free_at, index: when}

    def vote_count(self, now: float) -> int:
        """How many votes count."""
        return sum(until > now for until in self.votes)

    def pending(self) -> int:
        """How many keys have requests in flight."""
        return sum(map(bool, self.in_flight))

    def loss_found_by_release(self) -> LossReason | None:
        """Why the lock had been lost before its release, as the answers show; None: it had not. (A key whose server
        does not answer counts as found.)"""
        if not self.missed:
            return None
        found = sum(until > self.released_at and not self.missed >> index & 1 for index, until in enumerate(self.votes))
        return None if found >= self.room.rules.majority else self.cause or LossReason.DELETED

    def refused_by_others(self, rules: Rules) -> bool:
        """Did the attempt fail because of others, rather than of servers that failed?"""
        errors = sum(not self.refused >> index & 1 for index in self.free_at)
        return self.refused != 0 and errors <= rules.keys - rules.majority

    def why_lost(self, index: int, found: bytes | None, now: float) -> LossReason:
        """What happened to key ``index``, now that ``found`` is in it instead of the token."""
        if found is not None:
            if found.startswith(FORCED):
                return LossReason.TAKEN_OVER
            if not found.startswith(TAKEN):
                return LossReason.OVERWRITTEN
            # Somebody acquired it, which takes a free key: it went away before that.
        if now >= self.votes[index]:
            return LossReason.EXPIRED
        return self.cause or LossReason.DELETED
