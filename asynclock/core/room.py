"""The waiting room of one name in one process: who holds, who contends, who waits, and whose turn it is."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Generic, TypeVar

from .contention import Contention
from .lease import Lease, when_enough_free
from .port import Port
from .rules import EXTEND, FORCE, NEVER, READ, RELEASE, TAKE, TAKE_TTL, LossReason, Operation, Rules

W = TypeVar("W")

MAX_BACKOFF = 1.0  # seconds between attempts while a server answers with passing errors
MAX_IMMEDIATE_RETRIES = 3  # attempts in a row without a pause, before pausing all the same
MANY = 1 << 20  # hand-offs: only their time is bounded
OWN_PUSH = 0.1  # seconds after an extension in which a push may be about that
SAME = 0.01  # seconds by which the time at which a key is to be free may seem to change, if it does not


class Room(Generic[W]):
    """All that this process knows about one name. Feed it what happens; it calls its port.

    Invariants:

    - At most one lease is ``holder``, and at most one ``attempt`` is under way. An attempt takes
      free keys, on behalf of whoever is first in ``queue``, and only while there is no holder; or
      it is ``forced``, on behalf of whoever is first in ``forces``, which go before the queue.
    - An attempt for the queue outlives a waiter that leaves, as long as another is there.
    - If the queue is not empty, something will come back to it: the holder's release or loss, the
      attempt's answers, ``wake`` at a finite time, or the reconnect of a server.
    - A first attempt asks for all keys at once. Once others are known to want them too, attempts go
      in order: whoever gets the first key asks for the rest, whoever is refused it stops there. So
      contenders do not split the votes among them.
    """

    __slots__ = (
        "attempt",
        "confirming",
        "contention",
        "due",
        "expected",
        "expected_since",
        "failures",
        "forced",
        "forces",
        "holder",
        "immediate_retries",
        "kept",
        "kept_since",
        "keys",
        "last_failed",
        "left",
        "name",
        "no_wait",
        "passes",
        "places",
        "port",
        "queue",
        "rules",
        "slot",
        "timer",
        "wake",
    )

    def __init__(self, name: str, rules: Rules, port: Port[W], keys: tuple[bytes, ...] = ()) -> None:
        self.name = name
        self.rules = rules
        self.port = port
        self.keys = keys  # the shell's, like the four that follow
        self.places: tuple[int, ...] = ()
        self.timer: Any = None
        self.slot = NEVER
        self.due = NEVER  # by when the shell looks at ``wake`` again
        self.holder: Lease | None = None
        self.attempt: Lease | None = None
        self.queue: OrderedDict[W, None] = OrderedDict()
        self.no_wait: W | None = None  # the first in the queue, if it does not wait
        self.forces: dict[W, None] = {}
        self.forced = False  # is the attempt on behalf of the first in forces?
        self.confirming = 0  # ... and these keys, which it has got, are read once more
        self.contention: Contention | None = None  # while others are known to want it
        self.last_failed: Lease | None = None  # the last attempt, while the time for another is waited for
        self.expected = NEVER  # when the key that refused the last attempt was to be free
        self.expected_since = NEVER  # ... and since when that has been known
        self.passes = 0  # how often the lock may pass on here until others have a chance to be met
        self.kept: Lease | None = None  # the last one that was to pass on, or that was taken to pass the lock on
        self.kept_since = 0.0  # since when it passes on
        self.left = 0  # how often it still may
        self.immediate_retries = 0
        self.failures = 0
        self.wake = NEVER

    # What the process wants

    def join(self, waiter: W, now: float) -> None:
        """Queue for the lock."""
        self.queue[waiter] = None
        if len(self.queue) == 1:
            if self.contention is None:
                if self.holder is None and self.attempt is None and not self.forces:
                    self._attempt(now)
                return
            if self.contention.outdated(now):
                self.contention = None
            self._next(now)

    def try_join(self, waiter: W, now: float) -> None:
        """Take the lock now or not at all."""
        if self.holder is not None or self.queue or self.forces:
            self.port.refused(waiter)
            return
        self.no_wait = waiter
        self.join(waiter, now)

    def force(self, waiter: W, now: float) -> None:
        """Take the lock over, whoever has it."""
        self.forces[waiter] = None
        if self.attempt is None:  # else its answers come back here
            self._force(now)

    def leave(self, waiter: W, now: float) -> Lease | None:
        """Stop waiting. Returns the lease whose release is under way because of it, if any."""
        abandoned = None
        if waiter in self.queue:
            del self.queue[waiter]
            if self.no_wait is waiter:
                self.no_wait = None
            if not self.queue and not self.forced:
                abandoned = self.attempt
        elif waiter in self.forces:
            if self.forced and waiter is next(iter(self.forces)):
                abandoned = self.attempt
            del self.forces[waiter]
        if abandoned is None:
            self._rest(now)
            return None
        self.attempt = None
        if self.forced:
            self.forced = False
            self._verify_holder(None, now)  # before the release, so that the holder is told what was there
        self._release(abandoned, now)
        self._next(now)
        return abandoned

    def release(self, lease: Lease, now: float) -> bool:
        """The scope gives its lease back. True: ``release_answered`` will be called for it."""
        if lease is not self.holder:
            if not lease.may_be_ours:
                return False
            self._release(lease, now)  # ``close`` took it from its scope, and left its keys
            return True
        rules = self.rules
        contention = self.contention
        if self.queue and not self.forces:
            if lease is not self.kept:
                self.kept, self.kept_since, self.left = lease, lease.acquired_at, self.passes
            if self.left > 0 and now - self.kept_since < rules.handoff_time:
                self.left -= 1
                if (
                    rules.handoffs
                    and not lease.unverified
                    and lease.deadline - now > (rules.term - rules.extend_interval) / 2
                ):
                    waiter, _ = self.queue.popitem(last=False)
                    self.port.granted(waiter, lease)
                    return False
                if contention is None and rules.tracking:  # who polls would not find it free between the two
                    self.holder = None
                    self._release(lease, now)
                    self._attempt(now)  # right behind the release
                    self.kept = self.attempt
                    return True
        self.holder = None
        if self.queue or (contention is not None and contention.contended):
            if contention is None:
                contention = self.contention = Contention()
            contention.hold_back(lease)
            self._release(lease, now)
            if not self.forces and contention.watches(rules):
                self._watch(contention, lease.token, now)  # right behind the release
        else:
            self._release(lease, now)
        if self.queue or self.forces:
            self._next(now)
        elif self.attempt is None:
            self._empty(now)
        return True

    def close(self, now: float) -> list[W]:
        """The locker closes: take the lock from its scope, which keeps the keys until ``release``, and
        give up every attempt. Returns the waiters."""
        waiters = [*self.queue, *self.forces]
        self.queue.clear()
        self.forces.clear()
        if self.attempt is not None:
            self._release(self.attempt, now)
        self.attempt = self.no_wait = None
        self.forced = False
        if self.holder is not None:
            lease, self.holder = self.holder, None
            lease.done = True
            self.port.lost(lease, LossReason.CLOSED, None)
        self._rest(now)
        return waiters

    # What the servers say

    def answered(
        self,
        lease: Lease,
        index: int,
        operation: Operation,
        sent: float,
        ok: bool,
        found: bytes | None,
        ttl: int | None,
        now: float,
    ) -> None:
        """An answer to anything but a RELEASE. ``ok``: the command did what it was to do; ``found``: what is
        in the key after it; ``ttl``: milliseconds that the key has left, -1 for no end, -2 for no key, None
        for not asked."""
        lease.in_flight[index] -= 1
        if lease.extending and operation is not READ:
            lease.extending &= ~(1 << index)
        if lease.done:
            if lease.missed >> index & 1 and operation is READ:
                lease.cause = lease.why_lost(index, found, lease.released_at)
                self.released(lease, index, True, now)
            elif self.contention is not None and lease is self.contention.watch:
                self._watched(self.contention, lease, found, ttl, now)
            elif lease is self.last_failed and self.attempt is None and self.queue:
                self._answered_late(lease, index, found, ttl, now)
            return
        rules = self.rules
        if found == lease.token:
            if operation is READ:
                lease.untracked &= ~(1 << index)
                # Somebody may have shortened its life; nobody lengthens it by reading. It ends between
                # sent + ttl and now + ttl, as it was the question that took its time, or the answer.
                until = lease.votes[index]
                if ttl is not None and ttl >= 0 and (now + ttl / 1000 < until or not until):
                    lease.vote(index, sent + rules.term_of(ttl / 1000), rules.majority)
            elif ok:
                until = sent + rules.term
                if ttl is not None and ttl >= 0:  # somebody may have been quick to shorten it
                    until = min(until, sent + rules.term_of(ttl / 1000))
                lease.vote(index, until, rules.majority)
                if operation is TAKE or operation is TAKE_TTL:
                    lease.untracked |= 1 << index
                    if lease is self.holder and lease.extend_at != NEVER:
                        self._request(lease, index, READ, now)  # else at the first look
            if operation > TAKE_TTL:
                lease.checked_at = sent
                if lease.unverified:
                    self._doubt_dispelled(lease, index, operation, sent, now)
            if lease.stale and lease.stale >> index & 1 and not lease.in_flight[index]:
                # The push may be older than the answer, or not (it can come on another connection).
                lease.stale &= ~(1 << index)
                self._check_key(lease, index, now)
            if sent < lease.extended_at and operation is not READ:  # an extension was left out while this was under way
                self._request(lease, index, EXTEND, now)  # by the time of the next one, what this got may be over
            lost = None
        else:
            lost = lease.why_lost(index, found, now) if lease.votes[index] else None
            lease.unverified &= ~(1 << index)
            lease.vote(index, 0.0, rules.majority)
            if not lease.in_flight[index]:
                lease.may_be_ours &= ~(1 << index)
            if found is None and (ok or operation > TAKE_TTL):
                self.port.doubt_clock(self, index)  # gone as soon as it was there, or before its time
            lease.refused |= 1 << index
            lease.defer(index, self._free_at(lease, index, found, ttl, now))
        if lease is self.attempt:
            self._decide(now)
        elif operation is READ or lost is not None or lease.cause is not None or now >= lease.deadline:
            self._judge(lease, lost, index, now)  # else it counts for longer, and will be woken in time

    def failed(self, lease: Lease, index: int, operation: Operation, error: Exception | None, now: float) -> None:
        """No answer will come: the connection is gone (``None``), or the server answered with an error."""
        if operation is RELEASE:
            self.released(lease, index, True, now)
            return
        lease.in_flight[index] -= 1
        if lease.extending and operation is not READ:
            lease.extending &= ~(1 << index)
        if lease.done:
            if lease.missed >> index & 1 and operation is READ:
                self.released(lease, index, True, now)
            return
        lease.error = error
        if operation <= FORCE:
            lease.barred += getattr(error, "lasting", False)
            lease.defer(index, NEVER if error is None else now + self._backoff())
        elif error is not None:
            if lease is self.holder:
                self._extend_in_time(lease, now)
            # The vote counts on until its time is over: try again well before that, and soon if the
            # key is known to have changed.
            left = lease.deadline - now
            if operation is READ or lease.stale >> index & 1:
                again = self._backoff()
            else:
                again = max(self.rules.try_next_after, left / 4)
            lease.extend_at = min(lease.extend_at, now + min(again, left / 2))
        self._judge(lease, None, index, now)

    def released(self, lease: Lease, index: int, ok: bool, now: float) -> None:
        """The RELEASE of key ``index`` is answered (``ok``: it found the token), or never will be."""
        if not ok:
            lease.missed |= 1 << index
            if lease.votes[index] and self.port.request(self, lease, index, READ, now):
                lease.in_flight[index] += 1  # it was lost before: what has become of it says why, and comes back here
                return
        lease.unreleased -= 1
        if lease.unreleased:
            return
        if self.contention is not None:
            self._heard(lease, now)
        self.port.release_answered(lease)

    def invalidated(self, index: int, now: float, cause: LossReason | None = None) -> None:
        """The server says that key ``index`` is no longer what it was when it was read."""
        if self.attempt is not None:
            self._suspect(self.attempt, index, cause, now)
            if index in self.attempt.free_at:
                self.attempt.defer(index, now)
        if self.holder is not None:
            self._suspect(self.holder, index, cause, now)
        elif self._waits_for(index):
            self._key_has_changed(index, now)
        elif not index and self.contention is not None and self.contention.watch is not None:
            self._taken(self.contention.watch, now)

    def reconnected(self, index: int, now: float) -> None:
        """The server of key ``index`` is back, with or without the key, and tracks nothing yet."""
        if self.attempt is not None:
            self._suspect(self.attempt, index, LossReason.FORGOTTEN, now)
            if index in self.attempt.free_at:
                self.attempt.defer(index, now)
        if self.holder is not None:
            self._verify_holder(index, now)
        elif self.attempt is None and self.queue and not self._waits_for_its_release():
            self._attempt(now)

    def shut_out(self, now: float) -> None:
        """A server will not have this client any more: whoever waits for nothing else is to know."""
        if self.queue and self.holder is None and self.attempt is None and not self._waits_for_its_release():
            self._attempt(now)

    def gone(self, index: int, now: float) -> None:
        """The server of key ``index`` was asked for a new connection and refused it."""
        for lease in (self.attempt, self.holder):
            if lease is not None and lease.votes[index]:
                lease.vote(index, 0.0, self.rules.majority)
                self._judge(lease, LossReason.DISCONNECTED, index, now)
        if self._waits_for(index):
            self._attempt(now)  # what was waited for there will not be told; the others may do

    def look(self, lease: Lease, now: float) -> None:
        """The lease is held for a moment now. Many are released before that; this one is worth being
        extended, and having its keys tracked and looked at: what happened to them until now was not told."""
        if lease is not self.holder:
            return
        if now >= lease.deadline:  # the loop was blocked for so long
            self._judge(lease, None, None, now)
            return
        for index in range(self.rules.keys):
            if lease.untracked >> index & 1 and not lease.in_flight[index]:
                self._request(lease, index, READ, now)
        self._extend_in_time(lease, now)

    def woken(self, now: float) -> None:
        """The time that was asked for has come, or the clock has jumped."""
        self.wake = NEVER
        lease = self.holder
        if lease is not None:
            if lease.extend_at <= now < lease.deadline:
                self._extend(lease, now)
                again, deadline = lease.extend_at, lease.deadline
                self._wake_at(again if again < deadline else deadline)
            elif lease.next_check <= now < lease.deadline:
                self._check_again(lease, now)
            else:
                self._judge(lease, None, None, now)
        elif self.attempt is not None:
            if self.attempt.unsent:
                self.attempt.decides = -1
                self._wake_at(now + self.rules.try_next_after)
            else:
                self.attempt.silent = not self.forced
            self._decide(now)
        elif self.last_failed is not None:
            # In order, a first key that never becomes free would keep us from a majority of the others.
            self._attempt(now, in_order=False)
        else:
            if self.contention is not None:
                self.contention.over()
            self._next(now)

    # Whose turn it is

    def _next(self, now: float) -> None:
        """Let the first in the queue contend, unless

        1. an attempt is under way: its answers come back here;
        2. somebody takes the lock by force: they go first, whoever holds it;
        3. the lock is held here: its release or its loss comes back here;
        4. nobody waits;
        5. others are to have their chance first: the release's answer and a pause come back here.
        """
        if self.attempt is not None:
            return
        if self.forces:
            self._force(now)
        elif self.holder is not None:
            return
        elif not self.queue:
            self._rest(now)
        elif (
            self.contention is not None
            and self.no_wait is None
            and (again := self.contention.back_at(now, self.rules)) > now
        ):
            self._wake_at(again)
        else:
            self._attempt(now)

    def _force(self, now: float) -> None:
        self.attempt = lease = Lease(self.port.token(True), self.rules.keys)
        self.forced = True
        self.confirming = 0
        self._request_all(lease, FORCE, now)
        self._decide(now)

    def _attempt(self, now: float, in_order: bool = True) -> None:
        self.last_failed = None
        lease = self.attempt = Lease(self.port.token(False), self.rules.keys)
        if self.rules.keys > 1:
            self._wake_at(now + self.rules.try_next_after)
        else:
            self.wake = NEVER
        contended = False
        if self.contention is not None:
            self.contention.watch = None  # whatever it says comes too late
            contended = self.contention.contended > 0
        if contended and in_order and self.rules.keys > 1 and self.no_wait is None:
            lease.unsent = self.rules.keys
            lease.decides = -1
            self._decide(now)
        elif not self._request_all(lease, TAKE_TTL if contended else TAKE, now):
            self._decide(now)

    def _request_in_order(self, lease: Lease, now: float) -> None:
        """Ask for the next key, unless the answer for another is to be waited for; for all the rest
        once one is ours; for none once one is refused."""
        while lease.unsent and not lease.refused:
            if lease.decides >= 0 and lease.in_flight[lease.decides]:
                return
            index = self.rules.keys - lease.unsent
            lease.unsent -= 1
            silent = self.port.silent(self, index, now)
            if not self._request(lease, index, TAKE_TTL, now):
                self._not_there(lease, index)
            elif not silent and not lease.granted(now):
                lease.decides = index

    def _decide(self, now: float) -> None:
        """Is the attempt won or lost, with the answers that there are?"""
        lease, rules = self.attempt, self.rules
        assert lease is not None
        if lease.unsent:
            self._request_in_order(lease, now)
        if now < lease.deadline:  # a majority is ours
            if self.forced:
                if not self._told_of_force(lease, now):
                    return
                self.attempt = None
                self.forced = False
                waiter = next(iter(self.forces))
                del self.forces[waiter]
                if self.holder is not None:
                    self._lose(self.holder, LossReason.TAKEN_OVER, None, now)
            else:
                self.attempt = self.no_wait = None
                waiter, _ = self.queue.popitem(last=False)
            self._install(lease, waiter, now)
            if self.forces:
                self._next(now)
            return
        pending = lease.pending()
        if (
            lease.granted(now) + pending + lease.unsent < rules.majority
            or (lease.unsent and lease.refused)
            or (lease.silent and pending <= rules.keys - rules.majority)
        ):
            if self.forced:
                self._give_up_force(lease, now)
            else:
                self._give_up(lease, now)

    def _told_of_force(self, lease: Lease, now: float) -> bool:
        """Has whoever had the lock been told by now, and had the time to see what is in their key instead?

        Their server has pushed that before it answered; one more question and answer is as long as theirs take. A
        lock that was given back at once would be gone by then, and seem to have been deleted."""
        keys = range(self.rules.keys)
        if not self.confirming:
            for index in keys:
                if lease.votes[index] > now and self._request(lease, index, READ, now):
                    self.confirming |= 1 << index
            lease.untracked |= self.confirming
            return not self.confirming
        waited_for = self.confirming & lease.untracked
        return waited_for != self.confirming or not any(
            lease.in_flight[index] for index in keys if waited_for >> index & 1
        )

    def _give_up_force(self, lease: Lease, now: float) -> None:
        """The lock could not be taken over: see what is left of the lease of its holder."""
        self.attempt = None
        self.forced = False
        if lease.refused_by_others(self.rules) and self.immediate_retries < MAX_IMMEDIATE_RETRIES:
            # Overwritten or expired between two commands: somebody else forces too, or a clock was off.
            self.immediate_retries += 1
            self._release(lease, now)
            self._force(now)
            return
        self.immediate_retries = 0
        # If too few servers are connected, they are for the others who force as well: one answer for all.
        unreachable = sum(until == NEVER for until in lease.free_at.values())
        waiters = list(self.forces)[: None if unreachable > self.rules.keys - self.rules.majority else 1]
        self._verify_holder(None, now)
        self._release(lease, now)
        for waiter in waiters:
            del self.forces[waiter]
            self.port.failed(waiter, lease.error)
        self._next(now)

    def _give_up(self, lease: Lease, now: float) -> None:
        """The attempt is lost: give back what it got, and find out when to try again."""
        self.attempt = None
        self._release(lease, now)
        refused = lease.refused_by_others(self.rules)
        if lease.barred > self.rules.keys - self.rules.majority:
            waiters = list(self.queue)
            self.queue.clear()
            self.no_wait = None
            for waiter in waiters:
                self.port.failed(waiter, lease.error)
        elif self.no_wait is not None:
            waiter, self.no_wait = self.no_wait, None
            del self.queue[waiter]
            if refused:
                self.port.refused(waiter)
            else:
                self.port.failed(waiter, lease.error)
        if self.forces or not self.queue:
            self._next(now)
            return
        known = self.contended
        if refused:
            if self.contention is None:
                self.contention = Contention()
            self.contention.refused()
        if refused and not known:
            # The first attempt did not ask how long the holder has left. Ask, while trying again.
            self._attempt(now, in_order=False)
            return
        for index, asked in enumerate(lease.in_flight):
            if asked:  # silent
                lease.defer(index, now + self._backoff())
        again = self._when_possible(lease, now)
        if again <= now and self.immediate_retries < MAX_IMMEDIATE_RETRIES:
            self.immediate_retries += 1
            self._attempt(now)
            return
        if again <= now:
            again = now + self.rules.try_next_after * (0.5 + self.port.chance())
        self.immediate_retries = 0
        if lease.refused:
            first = (lease.refused & -lease.refused).bit_length() - 1
            expected = lease.free_at.get(first, NEVER)
            if not abs(expected - self.expected) < SAME:
                self.expected, self.expected_since = expected, now  # another holder, or an extension
            elif now > self.expected_since + 2 * SAME:  # one that has had it only just now looks the same
                self.port.needless(self, first, now)
        self.last_failed = lease
        # Not those that have not answered: what changes there may be our own release of it.
        lease.watched = sum(1 << index for index in lease.free_at if not lease.in_flight[index])
        self._wake_at(again)

    def _install(self, lease: Lease, waiter: W, now: float) -> None:
        """The lease is won: hold it on behalf of ``waiter``."""
        self.holder = lease
        self.immediate_retries = self.failures = 0
        self.last_failed = None
        lease.acquired_at = now
        if self.contention is None:
            if lease is not self.kept:
                self.passes = self.rules.passes
        elif self.contention.won():
            self.passes = self.rules.handoffs
        else:  # others had their chance, and nobody took it
            self.contention = None
            self.passes = min(max(2 * self.passes, self.rules.passes), MANY)
        lease.cause = None
        lease.extend_at = NEVER
        if lease.untracked:
            self.wake = NEVER  # until it is looked at
            self.port.first_check_soon(self, lease)
        else:
            self._extend_in_time(lease, now)
        self.port.granted(waiter, lease)

    # While others have their chance

    def _watch(self, contention: Contention, ours: bytes, now: float) -> None:
        """Be told what becomes of the first key: who has had it and given it back has had the lock."""
        lease = contention.watch = Lease(ours, self.rules.keys)
        lease.unsent = self.rules.keys - 1
        lease.done = True
        lease.released_at = now
        lease.watched = 0  # what is pushed before the answer may be our own release
        self._request_watch(lease, now)

    def _request_watch(self, lease: Lease, now: float) -> None:
        if self.port.request(self, lease, 0, READ, now):  # its answer comes to ``_watched``
            lease.in_flight[0] += 1

    def _taken(self, lease: Lease, now: float) -> None:
        """The key has changed. To try now may be to be quicker than those who wait for it to be given back."""
        if lease.in_flight[0]:
            lease.stale = 1
        elif lease.watched:
            lease.refused = 1
            self._request_watch(lease, now)

    def _watched(self, contention: Contention, lease: Lease, found: bytes | None, ttl: int | None, now: float) -> None:
        """What has become of it."""
        if found == lease.token:
            contention.watch = None  # its release is still on its way
            return
        if found is None and not lease.refused:
            lease.watched, lease.stale = 1, 0  # nobody has it yet
            return
        contention.met(found)
        contention.over()
        if self.attempt is not None or self.holder is not None or not self.queue:
            return
        if found is None or lease.stale:
            self._attempt(now)  # somebody had it, and gave it back
        else:
            self.last_failed = lease
            lease.refused = lease.watched = 1
            lease.defer(0, self._free_at(lease, 0, found, ttl, now))
            self._wake_at(self._when_possible(lease, now))

    # What becomes of a lease

    def _judge(self, lease: Lease, lost: LossReason | None, index: int | None, now: float) -> None:
        """Something about ``lease`` has changed. ``lost``: why the vote of ``index`` counts no more."""
        if lease is self.attempt:
            self._decide(now)
        elif lease is self.holder:
            if now >= lease.deadline:
                self._lose(lease, lost or LossReason.EXPIRED, index, now)
                self._next(now)
            else:
                if not lease.unverified and not lease.pending():
                    lease.cause = None
                if lost is not None:
                    self._extend_in_time(lease, now)  # an older vote decides now
                self._wake_at(min(lease.extend_at, lease.next_check, lease.deadline))

    def _lose(self, lease: Lease, reason: LossReason, index: int | None, now: float) -> None:
        self.holder = None
        self._release(lease, now)
        self.port.lost(lease, reason, index)

    def _release(self, lease: Lease, now: float) -> None:
        """Send a RELEASE after everything that may have put the token into a key."""
        lease.done = True
        lease.released_at = now
        operation, asked, owed = self.port.request, 0, lease.may_be_ours
        for index in range(self.rules.keys):
            if owed >> index & 1 and operation(self, lease, index, RELEASE, now):
                asked += 1
        lease.may_be_ours = 0
        lease.releases = lease.unreleased = asked
        if not asked:
            self._heard(lease, now)
            self.port.release_answered(lease)

    def _heard(self, lease: Lease, now: float) -> None:
        """Every RELEASE is answered, or never will be: the pause that others were to have begins."""
        contention = self.contention
        waited_for = contention is not None and contention.heard(lease, now, self.rules)
        if contention is not None and waited_for and self.queue and self.holder is None and self.attempt is None:
            self._wake_at(contention.back_at(now, self.rules))

    def _extend(self, lease: Lease, now: float) -> None:
        """Extend every vote, and try to get the keys back that do not count (only if they are free)."""
        lease.extend_at = self.rules.extension(now)
        lease.extended_at = now
        lease.next_check = NEVER  # this is one
        for index in range(self.rules.keys):
            if not lease.extending >> index & 1:  # a silent server is asked again when it has answered
                self._request(lease, index, EXTEND if lease.may_be_ours >> index & 1 else TAKE, now)

    def _extend_in_time(self, lease: Lease, now: float) -> None:
        """Begin to extend, if that has not begun. A deadline that is nearer than usual (a late grant, a lost vote)
        wants its extension earlier."""
        if lease.extend_at == NEVER:
            # The first extension comes early by chance, so that locks acquired together are not all
            # extended in the same loop turn for ever.
            lease.extend_at = self.rules.extension(now, 0.5 + self.port.chance() / 2)
            lease.checked_at = now
        deadline = lease.deadline
        latest = deadline - min(self.rules.reserve, (deadline - now) / 2)
        if latest < lease.extend_at:
            lease.extend_at = latest
        self._wake_at(min(lease.extend_at, lease.next_check, deadline))

    def _suspect(self, lease: Lease, index: int, cause: LossReason | None, now: float) -> None:
        """Key ``index`` changed: look at it, now or after the answer that is under way."""
        if lease.in_flight[index]:
            lease.unverified |= 1 << index
            lease.stale |= 1 << index
            lease.cause = cause or lease.cause
        elif lease.votes[index]:
            lease.unverified |= 1 << index
            lease.cause = cause
            if lease is not self.holder:
                # Not counted towards a majority until the answer: an attempt must not be won with it.
                lease.vote(index, 0.0, self.rules.majority)
            self._check_key(lease, index, now)

    def _check_key(self, lease: Lease, index: int, now: float) -> None:
        """Read key ``index``, now or when it is time for another look."""
        if lease is self.holder and lease.extend_at != NEVER and (pause := self.port.pause(self, index, now)):
            when = lease.checked_at + pause
            if when > now:
                lease.next_check = min(lease.next_check, when)
                if when < self.wake:
                    self._wake_at(when)
                return
        self._request(lease, index, READ, now)

    def _check_again(self, lease: Lease, now: float) -> None:
        """It is time for another look at the keys that are in doubt."""
        lease.next_check = NEVER
        for index in range(self.rules.keys):
            if lease.unverified >> index & 1 and not lease.in_flight[index]:
                self._request(lease, index, READ, now)
        self._wake_at(min(lease.extend_at, lease.deadline))

    def _doubt_dispelled(self, lease: Lease, index: int, operation: Operation, sent: float, now: float) -> None:
        """Key ``index`` was in doubt, perhaps, and is ours."""
        bit = 1 << index
        if lease.stale & bit:
            if operation is READ or not self.port.in_order(self, index):
                return  # it may have changed after it was read
            # What was pushed before the key was read is older; after the SET it was that SET itself.
            lease.stale &= ~bit
        if lease.unverified & bit:
            lease.unverified &= ~bit
            # A push of one's own extension is none that means nothing.
            if operation is READ and sent - lease.extended_at > OWN_PUSH:
                self.port.needless(self, index, now)
        if not lease.unverified and lease is self.holder:
            self.failures = 0

    def _verify_holder(self, index: int | None, now: float) -> None:
        """The holder's keys (or the one) may have changed without a push."""
        lease = self.holder
        if lease is None:
            return
        for i in range(self.rules.keys) if index is None else (index,):
            if lease.in_flight[i] and index is not None:
                lease.unverified |= 1 << i
                lease.stale |= 1 << i  # what is under way may be older than the change: look again after it
            elif lease.may_be_ours >> i & 1:
                lease.unverified |= 1 << i
                if index is not None:
                    lease.cause = LossReason.FORGOTTEN
                self._request(lease, i, EXTEND, now)

    def _request_all(self, lease: Lease, operation: Operation, now: float) -> bool:
        """Were all of them there to be asked?"""
        send = self.port.request
        for index in range(self.rules.keys):
            if send(self, lease, index, operation, now):
                lease.in_flight[index] += 1
                lease.may_be_ours |= 1 << index
            else:
                self._not_there(lease, index)
        return not lease.free_at

    def _not_there(self, lease: Lease, index: int) -> None:
        lease.defer(index, NEVER)
        if (error := self.port.barred(self, index)) is not None:
            lease.error = error
            lease.barred += 1

    def _request(self, lease: Lease, index: int, operation: Operation, now: float) -> bool:
        if not self.port.request(self, lease, index, operation, now):
            return False
        lease.in_flight[index] += 1
        if operation is not READ:
            lease.may_be_ours |= 1 << index
            lease.extending |= 1 << index
        return True

    # When to look again

    def _waits_for(self, index: int) -> bool:
        """Is key ``index`` one whose change may end the wait for another attempt?"""
        lease = self.last_failed
        if lease is None or self.attempt is not None or not self.queue:  # that attempt is one by force
            return False
        return bool(lease.watched >> index & 1)

    def _key_has_changed(self, index: int, now: float) -> None:
        """A key that refused the last attempt is said to have changed. Try again, now or when it is time for that."""
        lease = self.last_failed
        assert lease is not None
        when = lease.released_at + self.port.pause(self, index, now)
        if when > now:
            lease.defer(index, min(when, lease.free_at[index]))
            again = self._when_possible(lease, now)
            if again < self.wake:
                self._wake_at(again)
        else:
            self._key_may_be_free(index, now)

    def _key_may_be_free(self, index: int, now: float) -> None:
        """A key that refused the last attempt has changed. Its holder mostly releases the others too;
        but if too many servers failed for a majority, an attempt would be in vain, and its release
        would wake those who wait for this key elsewhere, in turn and without end."""
        lease = self.last_failed
        assert lease is not None
        lease.defer(index, now)
        failed = sum(when > now and not lease.refused >> key & 1 for key, when in lease.free_at.items())
        if failed <= self.rules.keys - self.rules.majority:
            # A key before it that has not changed is somebody else's, and may be for long: ask for all
            # at once, if the others are enough.
            blocked = any(when > now for key, when in lease.free_at.items() if key < index)
            enough = not lease.unsent and when_enough_free(lease, self.rules, now) <= now
            self._attempt(now, in_order=not (blocked and enough))
        else:
            self._wake_at(self._when_possible(lease, now))

    def _answered_late(self, lease: Lease, index: int, found: bytes | None, ttl: int | None, now: float) -> None:
        """The attempt was lost without this answer: now it is known what may be waited for there."""
        if found == lease.token:
            lease.defer(index, now)  # its release is on its way, and no push of that is worth an attempt
        else:
            lease.refused |= 1 << index
            lease.watched |= 1 << index
            lease.defer(index, self._free_at(lease, index, found, ttl, now))
        again = self._when_possible(lease, now)
        if again <= now:
            again = now + self.rules.try_next_after * (0.5 + self.port.chance())
        if again < self.wake:
            self._wake_at(again)

    def _when_possible(self, lease: Lease, now: float) -> float:
        """When another attempt may do better than that one, for all that is known."""
        if lease.unsent and lease.refused:  # stopped at a refusal: what that key does decides
            again = min(when for index, when in lease.free_at.items() if lease.refused >> index & 1)
            return min(again, now + self.rules.validity)  # then the others are asked all the same
        return when_enough_free(lease, self.rules, now)

    def _free_at(self, lease: Lease, index: int, found: bytes | None, ttl: int | None, now: float) -> float:
        """When a key that was refused may be free."""
        rules = self.rules
        if found is None or ttl == -2 or lease.stale >> index & 1:
            free = now
        elif ttl is None or ttl < 0:
            free = now + rules.validity
        else:
            free = now + (ttl + 1) / 1000  # a server counts a key as expired one millisecond after
        if not rules.tracking:
            free = min(free, now + rules.extend_interval * (0.5 + self.port.chance() / 2))
        return free

    def _backoff(self) -> float:
        self.failures += 1
        pause = min(self.rules.try_next_after * 2.0 ** min(self.failures, 10), MAX_BACKOFF)
        return pause * (0.5 + self.port.chance() / 2)

    def _wake_at(self, when: float) -> None:
        self.wake = when
        if when < self.due:
            self.port.wake(self, when)

    @property
    def empty(self) -> bool:
        """Does nobody hold, contend or wait?"""
        return self.holder is None and self.attempt is None and not self.queue and not self.forces

    def _rest(self, now: float) -> None:
        """Forget what only matters while somebody is here, if nobody is."""
        if self.empty:
            self._empty(now)

    def _empty(self, now: float) -> None:
        self.last_failed = self.kept = None
        self.immediate_retries = self.failures = 0
        self.wake = NEVER
        if self.contention is not None:
            if self.contention.contended:
                self.contention.leave(now)
            else:
                self.contention = None

    # Others

    @property
    def contended(self) -> bool:
        """Are others expected to want the lock?"""
        return self.contention is not None and self.contention.contended > 0

    def _waits_for_its_release(self) -> bool:
        return self.contention is not None and self.contention.waits
