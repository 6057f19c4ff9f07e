"""One name in one process: who holds the lock, who waits for it, and what is done to get it."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from .contention import Contention, Watch
from .handoff import LocalHandoffs
from .lease import Lease
from .operations import FORCE, READ, TAKE, TAKE_TTL, Operation
from .port import Port
from .queue import Queue
from .reasons import LossReason
from .retry import Retries, enough_free_at, possible_at
from .rules import NEVER, Rules

W = TypeVar("W")


class Room(Generic[W]):
    """All that this process knows about one name. The engine tells it what happens, and it calls its port.

    Invariants:

    - At most one lease is ``holder``, and at most one ``attempt`` is under way. An attempt takes free keys, for the
      first in ``queue``, and only while there is no holder; or it is ``forced``, for the first in ``forces``, who go
      before the queue.
    - An attempt for the queue goes on when its waiter leaves, as long as another is there.
    - While the queue is not empty, something is due that comes back to it: the holder's release or loss, the
      attempt's answers, ``wake`` at a finite time, or the reconnect of a server.
    - A first attempt asks for all keys at once. Once others are known to want them too, an attempt goes one by one, in
      the order of the keys: whoever gets the first key requests the rest, whoever is refused the first one stops there.
      So contenders do not split the votes among them.
    """

    __slots__ = (
        "attempt",
        "batch",
        "contention",
        "due",
        "forces",
        "handoffs",
        "holder",
        "keys",
        "last_failed",
        "name",
        "no_wait",
        "places",
        "port",
        "queue",
        "requests",
        "retries",
        "rules",
        "timer",
        "tokens",
        "unattended_since",
        "wake",
    )

    def __init__(
        self, name: str, rules: Rules, port: Port[W], keys: tuple[bytes, ...] = (), places: tuple[int, ...] = ()
    ) -> None:
        """
        :param keys: what the keys are called on their servers
        :param places: for each key, what leads to its server (``Topology.places``)
        """
        self.name = name
        self.rules = rules
        self.port = port
        self.requests = port.requests
        self.tokens = port.tokens
        self.keys = keys
        self.places = places
        self.unattended_since = NEVER  # owned by whoever waits for releases (``_engine.pending_releases``)
        # Whoever wakes the room (``_engine.timers.Timers``) owns these:
        self.timer: Any = None  # of its own
        self.batch = NEVER  # when it is woken with others
        self.due = NEVER  # by when ``wake`` is looked at again
        self.holder: Lease | None = None
        self.attempt: Lease | None = None
        self.queue: Queue[W] = Queue()
        self.no_wait: W | None = None  # the first in the queue, if it wants one attempt only
        self.forces: dict[W, None] = {}
        self.contention: Contention | None = None  # while others are known to want the lock
        self.handoffs = LocalHandoffs()
        self.retries = Retries()
        self.last_failed: Lease | None = None  # the last attempt, while the room waits for the time of the next
        self.wake = NEVER  # when the room has something to do next

    # What the process wants

    def join(self, waiter: W, now: float) -> None:
        """Queue for the lock."""
        others_wait = self.queue.first is not None
        self.queue.add(waiter)
        if others_wait:
            return
        if self.contention is None:
            if self.holder is None and self.attempt is None and not self.forces:
                self._attempt(now)
            return
        if not self.contention.wanted_again(now):
            self.contention = None
        self._next(now)

    def try_join(self, waiter: W, now: float) -> None:
        """Take the lock now or not at all."""
        if self.holder is not None or self.queue.first is not None or self.forces:
            self.port.refused(waiter)
            return
        self.no_wait = waiter
        self.join(waiter, now)

    def force(self, waiter: W, now: float) -> None:
        """Take the lock over, whoever holds it."""
        self.forces[waiter] = None
        if self.attempt is None:  # else its answers come back here
            self._force(now)

    def leave(self, waiter: W, now: float) -> Lease | None:
        """Stop waiting. Returns the lease that is released because of that, if any."""
        abandoned = None
        if waiter in self.queue:
            self.queue.remove(waiter)
            if self.no_wait is waiter:
                self.no_wait = None
            if self.queue.first is None and self.attempt is not None and not self.attempt.forced:
                abandoned = self.attempt
        elif waiter in self.forces:
            if self.attempt is not None and self.attempt.forced and waiter is next(iter(self.forces)):
                abandoned = self.attempt
            del self.forces[waiter]
        if abandoned is None:
            self._forget_if_empty(now)
            return None
        self.attempt = None
        if abandoned.forced and self.holder is not None:
            self.holder.verify_all(now)  # before the release, so that the holder learns what was there
        self._release(abandoned, now)
        self._next(now)
        return abandoned

    def release(self, lease: Lease, now: float) -> None:
        """The scope releases the lock: to the next who waits here, or to the servers. If it stays until
        ``Lease.keep_until``, whoever waits here waits for that as others do, by its expiry."""
        if lease is not self.holder:
            if lease.may_be_ours:
                self._release(lease, now)  # ``close`` took it from its scope, and left its keys
            return
        contention = self.contention
        queue = self.queue
        if (
            queue.first is not None
            and not self.forces
            and lease.keep_until <= now
            and self.handoffs.take(lease, now, self.rules)
        ):
            rules = self.rules
            if rules.handoffs and not lease.unverified and lease.deadline - now > rules.reserve / 2:
                waiter = queue.pop()
                self.port.tally.hand_off()
                self.port.granted(waiter, lease)
                return
            if contention is None and rules.tracking:  # else those who poll would never see it free in between
                self.holder = None
                self._release(lease, now)
                self._attempt(now)  # right behind the release
                self.handoffs.go_on_with(self.attempt)
                return
        self.holder = None
        if queue.first is not None or (contention is not None and contention.expected):
            if contention is None:
                contention = self.contention = Contention()
            contention.hold_back(lease)
            self._release(lease, now)
            if not self.forces:
                contention.watch_if_worth_it(self, lease.token, now)  # right behind the release
        else:
            self._release(lease, now)
        if queue.first is not None or self.forces:
            self._next(now)
        elif self.attempt is None:
            self._forget(now)

    def close(self, now: float) -> list[W]:
        """The locker closes: take the lock from its scope, which keeps the keys until ``release`` (unless they stay for
        longer anyway), and give up every attempt. Returns who was waiting."""
        waiters = [*self.queue.clear(), *self.forces]
        self.forces.clear()
        if self.attempt is not None:
            self._release(self.attempt, now)
        self.attempt = self.no_wait = None
        if self.holder is not None:
            lease, self.holder = self.holder, None
            lease.end(now)
            self.port.lost(lease, LossReason.CLOSED, None)
            if lease.keep_until > lease.deadline:
                # At once: nobody extends it any more, so after the deadline no KEEP could be sent. And a KEEP frees
                # nothing, so it need not wait for the block.
                self._release(lease, now)
        self._forget_if_empty(now)
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
        """The answer to a request, except to a RELEASE or KEEP.

        :param ok: the command did what it was meant to do
        :param found: what is in the key after it
        :param ttl: milliseconds that the key has left, ``NO_END`` or ``NO_KEY``; None: unknown
        """
        if lease.done:
            self._answered_too_late(lease, index, operation, sent, found, ttl, now)
            return
        lost = lease.answered(index, operation, sent, ok, found, ttl, now)
        if lease is self.attempt:
            self._decide(now)
        elif operation is READ or lost is not None or lease.cause is not None or now >= lease.deadline:
            self._judge(lease, lost, index, now)  # else it only counts for longer, and ``wake`` is early enough

    def _answered_too_late(
        self,
        lease: Lease,
        index: int,
        operation: Operation,
        sent: float,
        found: bytes | None,
        ttl: int | None,
        now: float,
    ) -> None:
        """The lease is done. Some answers are still useful."""
        lease.unanswered(index, operation)
        if lease.is_missed(index, operation):
            lease.missed_because(index, found)
            self.released(lease, index, True, now)
        elif self.contention is not None and (watch := self.contention.watch) is not None and lease is watch.probe:
            self._watched(self.contention, watch, sent, found, ttl, now)
        elif lease is self.last_failed and self.attempt is None and self.queue.first is not None:
            self._refused_late(lease, index, sent, found, ttl, now)

    def verified(self, lease: Lease) -> None:
        """Every key of ``lease`` that may have changed has been read, and is ours."""
        if lease is self.holder:
            self.retries.servers_work()

    def failed(self, lease: Lease, index: int, operation: Operation, error: Exception | None, now: float) -> None:
        """The request has failed: the connection is lost (``None``), or the server answered with an error."""
        if operation.ends:
            self.released(lease, index, True, now)
            return
        lease.unanswered(index, operation)
        if lease.done:
            if lease.is_missed(index, operation):
                self.released(lease, index, True, now)
            return
        lease.failed(error)
        if operation.acquires:
            lease.not_taken(index, NEVER if error is None else now + self._backoff())
        elif error is not None and lease is self.holder:
            self._plan_extension(lease, now)
            # The vote counts until its time is over: try again well before that, and soon if the
            # key is known to have changed.
            remaining = lease.deadline - now
            if operation is READ or lease.stale >> index & 1:
                again = self._backoff()
            else:
                again = max(self.rules.try_next_after, remaining / 4)
            lease.extend_by(now + min(again, remaining / 2))
        self._judge(lease, None, index, now)

    def released(self, lease: Lease, index: int, ok: bool, now: float) -> None:
        """The RELEASE or KEEP of key ``index`` is answered (``ok``: it found the token), or never will be."""
        if lease.release_answered(index, ok, now):
            if self.contention is not None:
                self._release_answered(lease, now)
            self.port.release_answered(lease)

    def invalidated(self, index: int, now: float, cause: LossReason | None = None) -> None:
        """The server says that key ``index`` has changed since it was read."""
        if self.attempt is not None:
            self.attempt.suspect(index, cause, now)
            self.retries.invalidated()
            if index in self.attempt.free_at:
                self.attempt.defer(index, now)
        if self.holder is not None:
            self.holder.suspect(index, cause, now)
        elif self._waits_for(index):
            self._key_has_changed(index, now)
        elif not index and self.contention is not None and self.contention.watch is not None:
            self.contention.watch.key_changed(now)  # an attempt now might beat those who waited for our release

    def reconnected(self, index: int, now: float) -> None:
        """The server of key ``index`` is back, with or without the key, and tracks nothing yet."""
        if self.attempt is not None:
            self.attempt.suspect(index, LossReason.FORGOTTEN, now)
            if index in self.attempt.free_at:
                self.attempt.defer(index, now)
        if self.holder is not None:
            self.holder.verify(index, now)
        elif self.attempt is None and self.queue.first is not None and not self._holds_back_for_release():
            self._attempt(now)

    def clock_was_set(self, now: float) -> None:
        """The clock of a server of this name was set, and keys expire at another time than thought: write them anew."""
        attempt = self.attempt
        if attempt is not None:
            self.attempt = None
            self._release(attempt, now)
            if attempt.forced:
                self._force(now)
            else:
                self._attempt(now)
        elif self.holder is not None and self.holder.extend_at != NEVER:
            self.holder.extend(now)
            self._wake_at(min(self.holder.extend_at, self.holder.deadline))
        elif self.holder is not None:
            self.first_check(self.holder, now)  # its expiry is read then

    def lasting_failure(self, now: float) -> None:
        """A server refuses this client, and retrying cannot help: an attempt fails those who wait, if that server is
        needed."""
        waited_for = self.queue.first is not None and self.holder is None and self.attempt is None
        if waited_for and not self._holds_back_for_release():
            self._attempt(now)

    def gone(self, index: int, now: float) -> None:
        """The server of key ``index`` is gone: it refuses new connections."""
        for lease in (self.attempt, self.holder):
            if lease is not None and lease.votes[index]:
                lease.vote(index, 0.0)
                self._judge(lease, LossReason.DISCONNECTED, index, now)
        if self._waits_for(index):
            self._attempt(now)  # no invalidation will come from there; the other keys may be enough

    def first_check(self, lease: Lease, now: float) -> None:
        """The lock was acquired a moment ago. Most are released before that; this one is worth being tracked, and
        extended from now on."""
        if lease is not self.holder:
            return
        if now >= lease.deadline:  # the loop was blocked for that long
            self._judge(lease, None, None, now)
            return
        lease.first_check(now)
        self._plan_extension(lease, now)

    def woken(self, now: float) -> None:
        """The time ``wake`` has come, or the clock has jumped."""
        self.wake = NEVER
        lease = self.holder
        if lease is not None:
            if lease.extend_at <= now < lease.deadline:
                self.port.tally.extension(now - lease.extend_at)
                lease.extend(now)
                again, deadline = lease.extend_at, lease.deadline
                self._wake_at(again if again < deadline else deadline)
            elif lease.next_check <= now < lease.deadline:
                lease.check_unverified(now)
                self._wake_at(min(lease.extend_at, lease.deadline))
            else:
                self._judge(lease, None, None, now)
        elif self.attempt is not None:
            if self.attempt.unsent:
                self._wake_at(now + self.rules.try_next_after)
            self.attempt.wait_no_longer()
            self._decide(now)
        elif self.last_failed is not None:
            # Not one by one: a first key that never becomes free would keep us from a majority of the others.
            self._attempt(now, one_by_one=False)
        else:
            if self.contention is not None:
                self.contention.stop_holding_back()
            self._next(now)

    # Whose turn it is

    def _next(self, now: float) -> None:
        """Let the first in the queue contend, unless

        1. an attempt is under way: its answers come back here;
        2. somebody takes the lock by force: they go first, whoever holds it;
        3. the lock is held here: its release or its loss comes back here;
        4. nobody waits;
        5. others have their turn first: the answer to the release, and a pause, come back here.
        """
        if self.attempt is not None:
            return
        if self.forces:
            self._force(now)
        elif self.holder is not None:
            return
        elif self.queue.first is None:
            self._forget_if_empty(now)
        elif (
            self.contention is not None
            and self.no_wait is None
            and (again := self.contention.held_back_until(now, self.rules)) > now
        ):
            self._wake_at(again)
        else:
            self._attempt(now)

    def _force(self, now: float) -> None:
        """Begin an attempt for the first in ``forces``."""
        self.attempt = lease = Lease(self, self.tokens.next(True), forced=True)
        lease.request_all(FORCE, now)
        self._decide(now)

    def _attempt(self, now: float, one_by_one: bool = True) -> None:
        """Begin an attempt for the first in ``queue``: one by one if that is better, unless it must not be."""
        self.last_failed = None
        lease = self.attempt = Lease(self, self.tokens.next(False))
        if self.rules.keys > 1:
            self._wake_at(now + self.rules.try_next_after)
        else:
            self.wake = NEVER
        contended = False
        if self.contention is not None:
            self.contention.stop_watching()
            contended = self.contention.expected > 0
        if contended and one_by_one and self.rules.keys > 1 and self.no_wait is None:
            lease.go_one_by_one()
            self._decide(now)
        elif not lease.request_all(TAKE_TTL if contended else TAKE, now):
            self._decide(now)

    def _decide(self, now: float) -> None:
        """Has the attempt been won or lost, by the answers until now?"""
        lease, rules = self.attempt, self.rules
        assert lease is not None
        if lease.unsent:
            lease.request_next(now)
        if now < lease.deadline:  # a majority is ours
            if lease.forced:
                if not lease.read_back(now):
                    return
                self.attempt = None
                waiter = next(iter(self.forces))
                del self.forces[waiter]
                if self.holder is not None:
                    self._lose(self.holder, LossReason.TAKEN_OVER, None, now)
            else:
                self.attempt = self.no_wait = None
                waiter = self.queue.pop()
            self._install(lease, waiter, now)
            if self.forces:
                self._next(now)
            return
        pending = lease.pending()
        if (
            lease.vote_count(now) + pending + lease.unsent < rules.majority
            or (lease.unsent and lease.refused)
            or (lease.silent and pending <= rules.keys - rules.majority)
        ):
            if lease.forced:
                self._give_up_force(lease, now)
            else:
                self._give_up(lease, now)

    def _give_up_force(self, lease: Lease, now: float) -> None:
        """The lock could not be taken over: find out what is left of its holder's lease."""
        self.attempt = None
        if lease.refused_by_others(self.rules) and self.retries.may_follow_at_once():
            # Overwritten or expired between two commands: somebody else forces too, or a clock was off.
            self._release(lease, now)
            self._force(now)
            return
        self.retries.pause()
        # If too few servers are connected, that holds for all who force: they get the same answer.
        unreachable = sum(until == NEVER for until in lease.free_at.values())
        waiters = list(self.forces)[: None if unreachable > self.rules.keys - self.rules.majority else 1]
        if self.holder is not None:
            self.holder.verify_all(now)
        self._release(lease, now)
        for waiter in waiters:
            del self.forces[waiter]
            self.port.failed(waiter, lease.error)
        self._next(now)

    def _give_up(self, lease: Lease, now: float) -> None:
        """The attempt has failed: release what it got. Then tell those for whom another attempt is no use, and plan it
        for the others."""
        self.attempt = None
        self._release(lease, now)
        refused = lease.refused_by_others(self.rules)
        if lease.lasting_errors > self.rules.keys - self.rules.majority:
            self.no_wait = None
            for waiter in self.queue.clear():
                self.port.failed(waiter, lease.error)
        elif self.no_wait is not None:
            waiter, self.no_wait = self.no_wait, None
            self.queue.remove(waiter)
            if refused:
                self.port.refused(waiter)
            else:
                self.port.failed(waiter, lease.error)
        if self.forces or self.queue.first is None:
            self._next(now)
            return
        known = self.contended
        if refused:
            if self.contention is None:
                self.contention = Contention()
            self.contention.lost_race()
        if refused and not known:
            # The first attempt did not read how long the holder has left. Do so, while trying again.
            self._attempt(now, one_by_one=False)
        else:
            self._try_again(lease, now)

    def _try_again(self, lease: Lease, now: float) -> None:
        """The attempt has failed, and tasks wait: try again at once, or when another attempt may do better."""
        for index, requests in enumerate(lease.in_flight):
            if requests:  # silent
                lease.defer(index, now + self._backoff())
        again = possible_at(lease, self.rules, now)
        pause = 0.0
        if lease.refused:
            first = (lease.refused & -lease.refused).bit_length() - 1
            if self.retries.needless(lease.expires, lease.took, now):
                self.port.needless(self, first, now)
            pause = self.port.pause(self, first, now)
        if again <= now:
            if not pause and self.retries.may_follow_at_once():
                self._attempt(now)
                return
            again = self._after_a_pause(now)
            if pause:  # but not beyond the time at which the key expires
                again = min(now + pause, max(again, lease.expires))
        self.retries.pause()
        self.last_failed = lease
        lease.watch_refusals()
        self._wake_at(again)

    def _install(self, lease: Lease, waiter: W, now: float) -> None:
        """The lease is won: hold it on behalf of ``waiter``."""
        self.holder = lease
        lease.acquired(now)
        if self.retries.counts:
            self.retries.reset()
        self.last_failed = None
        if self.contention is None:
            self.handoffs.acquired(lease, self.rules)
        elif self.contention.acquired():
            self.handoffs.limit(self.rules)
        else:
            self.contention = None
            self.handoffs.grow(self.rules)
        if lease.untracked:
            self.wake = NEVER  # until the first check
            self.port.first_check_soon(lease)
        else:
            self._plan_extension(lease, now)
        self.port.granted(waiter, lease)

    # While others have their chance

    def _watched(
        self, contention: Contention, watch: Watch, sent: float, found: bytes | None, ttl: int | None, now: float
    ) -> None:
        """The first key was read: has somebody had a turn?"""
        probe = watch.probe
        if found == probe.token:
            contention.stop_watching()  # our release is still on its way
            return
        if not watch.answered(found):
            return
        contention.met_rival(found)
        contention.stop_holding_back()
        if self.attempt is not None or self.holder is not None or self.queue.first is None:
            return
        if found is None or watch.changed_since:
            self._attempt(now)  # somebody had it, and released it
        else:
            self.last_failed = probe  # as if it had tried to take the key
            probe.refused_late(0, sent, found, ttl, now)
            self._wake_at(possible_at(probe, self.rules, now))

    # What becomes of a lease

    def _judge(self, lease: Lease, lost: LossReason | None, index: int | None, now: float) -> None:
        """Something about ``lease`` has changed. ``lost``: why the vote of key ``index`` no longer counts."""
        if lease is self.attempt:
            self._decide(now)
        elif lease is self.holder:
            if now >= lease.deadline:
                self._lose(lease, lost or LossReason.EXPIRED, index, now)
                self._next(now)
            else:
                lease.forget_cause()
                if lost is not None:
                    lease.plan_extension(now)  # an older vote decides now
                self._wake_at(min(lease.extend_at, lease.next_check, lease.deadline))

    def _lose(self, lease: Lease, reason: LossReason, index: int | None, now: float) -> None:
        self.holder = None
        lease.keep(0.0)
        try:
            self.port.lost(lease, reason, index)  # before anything is sent, which lets other threads run
        finally:
            self._release(lease, now)

    def _release(self, lease: Lease, now: float) -> None:
        if not lease.release(now):
            self._release_answered(lease, now)
            self.port.release_answered(lease)

    def _release_answered(self, lease: Lease, now: float) -> None:
        """Every RELEASE or KEEP is answered, or never will be: now the pause begins that gives others a turn."""
        contention = self.contention
        if contention is None or not contention.release_answered(lease, now, self.rules):
            return
        if self.queue.first is not None and self.holder is None and self.attempt is None:
            self._wake_at(contention.held_back_until(now, self.rules))

    def _plan_extension(self, lease: Lease, now: float) -> None:
        lease.plan_extension(now)
        self._wake_at(min(lease.extend_at, lease.next_check, lease.deadline))

    # When to try again

    def _waits_for(self, index: int) -> bool:
        """May a change of key ``index`` make another attempt worthwhile?"""
        lease = self.last_failed
        if lease is None or self.attempt is not None or self.queue.first is None:
            return False  # an attempt that is under way can only be one by force
        return bool(lease.watched >> index & 1)

    def _key_has_changed(self, index: int, now: float) -> None:
        """A key that refused the last attempt may have changed. Try again, now or after ``Port.pause``."""
        lease = self.last_failed
        assert lease is not None
        self.retries.invalidated()
        when = lease.released_at + self.port.pause(self, index, now)
        if when > now:
            lease.defer(index, min(when, lease.free_at[index]))
            again = possible_at(lease, self.rules, now)
            self.wake_by(again)
        else:
            self._key_may_be_free(index, now)

    def _key_may_be_free(self, index: int, now: float) -> None:
        """A key that refused the last attempt has changed. Its holder usually releases the others too. But if too many
        servers have failed for a majority, an attempt would be in vain, and its release would wake those who wait for
        this key elsewhere, and theirs would wake us, without end."""
        lease = self.last_failed
        assert lease is not None
        lease.defer(index, now)
        failed = sum(when > now and not lease.refused >> key & 1 for key, when in lease.free_at.items())
        if failed <= self.rules.keys - self.rules.majority:
            # A key before it that has not changed may be somebody else's for long: request all at once, if the others
            # are enough.
            blocked = any(when > now for key, when in lease.free_at.items() if key < index)
            enough = not lease.unsent and enough_free_at(lease, self.rules, now) <= now
            self._attempt(now, one_by_one=not (blocked and enough))
        else:
            self._wake_at(possible_at(lease, self.rules, now))

    def _refused_late(
        self, lease: Lease, index: int, sent: float, found: bytes | None, ttl: int | None, now: float
    ) -> None:
        """This answer comes after the attempt has failed. It says what to wait for on that server."""
        lease.refused_late(index, sent, found, ttl, now)
        again = possible_at(lease, self.rules, now)
        if again <= now:
            again = self._after_a_pause(now)
        self.wake_by(again)

    def _after_a_pause(self, now: float) -> float:
        return now + self.rules.try_next_after * (0.5 + self.port.chance())

    def _backoff(self) -> float:
        return self.retries.backoff(self.rules, self.port.chance())

    def wake_by(self, when: float) -> None:
        """The room has something to do then."""
        if when < self.wake:
            self._wake_at(when)

    def _wake_at(self, when: float) -> None:
        self.wake = when
        if when < self.due:
            self.port.wake(self, when)

    @property
    def empty(self) -> bool:
        """Does nobody here hold the lock, or want it?"""
        return self.holder is None and self.attempt is None and self.queue.first is None and not self.forces

    def _forget_if_empty(self, now: float) -> None:
        """Forget what matters only while somebody holds the lock or wants it, if nobody does."""
        if self.empty:
            self._forget(now)

    def _forget(self, now: float) -> None:
        self.last_failed = None
        if self.handoffs.lease is not None:
            self.handoffs.end()
        if self.retries.counts:
            self.retries.reset()
        self.wake = NEVER
        if self.contention is not None:
            if self.contention.expected:
                self.contention.idle(now)
            else:
                self.contention = None

    # Others

    @property
    def contended(self) -> bool:
        """Are others expected to want the lock?"""
        return self.contention is not None and self.contention.expected > 0

    def _holds_back_for_release(self) -> bool:
        return self.contention is not None and self.contention.awaits_release
