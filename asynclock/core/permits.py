"""Permits: which of a semaphore's slots are free, and how the tasks of one process get one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar

from .lease import Lease
from .pool import Pool
from .room import Room
from .rules import NEVER, Rules

W = TypeVar("W")

MAX_PERMITS = 1000  # one look at so many keys is still quick
MAX_PAUSE = 1.0  # seconds between two looks while the servers do not answer, and between attempts that they refuse


class BoardPort(Protocol[W]):
    """What a board needs of the world around it. Nothing here calls back into the board before it returns."""

    def room(self, slot: int) -> Room[W]:
        """The room of that slot."""

    def ticket(self, slot: int) -> W:
        """A waiter for the room of that slot, on behalf of whoever is first in the queue. Once its wait has ended, call
        ``Board.ticket_ended``, in another turn of the loop."""

    def has_ended(self, ticket: W) -> bool:
        """Has its wait ended, so that ``ticket_ended`` was called or will be?"""

    def leave_room(self, ticket: W, now: float) -> None:
        """It waits no longer, and its end is not told."""

    def look_at(self, slots: list[int], now: float) -> None:
        """Read when these slots may be free: one request on each server. Then call ``Board.looked`` or
        ``Board.look_failed``, in another turn of the loop."""

    def granted(self, waiter: W, slot: int, lease: Lease) -> None:
        """The task has a permit."""

    def failed(self, waiter: W, error: Exception) -> None:
        """Servers refuse, and retrying cannot help."""

    def wake(self, when: float) -> None:
        """Call ``Board.serve`` by then."""

    def chance(self) -> float:
        """A random number in [0, 1)."""


class Board(Generic[W]):
    """One semaphore in one process: which slots are free, as far as is known here, and who waits for one. A slot is a
    lock, with a room and leases as every lock: whoever holds one has a permit. The board only chooses slots. What it
    believes of them may be outdated, and costs an attempt then.

    A task that finds nobody waiting makes an attempt for a slot that is believed free (``pick``): one round trip, as
    for a lock. Otherwise it queues. For those who queue,

    - a *probe* makes one attempt for each slot that is believed free, as long as there are more tasks than probes; but
      after an attempt that servers have failed, there is a pause before the next one, and one at a time;
    - a *look* reads all slots of which nothing is known;
    - *tickets* wait in the rooms of slots that others have, at most one in each, and as many as tasks wait. There, the
      rules of the room decide whose turn it is: this process's or another's. A slot that is released here gets a ticket
      before that, for the same reason.

    A probe or a ticket that gets its slot gives it to the task that waits longest. So a task is woken once, when it has
    a permit.

    Invariants:

    - Each slot is in ``_free``, ``_taken`` or ``_unknown``; or somebody here uses or tries it (``_here``, which has the
      slots of the probes); or a ticket waits for it. A ticket may wait for one that is used here.
    - ``_fresh`` are those of ``_free`` that a look has found so, and whose change the servers will tell.
    - ``queue`` is in the order in which the tasks have come.
    - ``_look`` are the slots whose answers are awaited and will count, and whether they have changed since they were
      asked for; None: no look is under way.
    - While tasks wait, something is due for each slot that they could have: its release or loss here, a ticket or a
      probe that ends, a look that ends or begins, or the time at which it may be free.
    """

    def __init__(self, permits: int, rules: Rules, port: BoardPort[W]) -> None:
        self.permits = permits
        self.queue: OrderedDict[W, float] = OrderedDict()  #: tasks, and since when they wait: first come, first served
        self.tickets: dict[int, W] = {}
        self.probes: dict[int, W] = {}
        self.looked_at_all = False  #: has a look at all slots begun?
        #: When the last look began that has ended, with or without success. -inf: none has, or it is outdated
        self.last_look = float("-inf")
        self._rules = rules
        self._port = port
        self._free = Pool(permits)
        self._fresh: set[int] = set()
        self._taken: dict[int, float] = {}  # by others: until when they may have it
        self._ends: list[tuple[float, int]] = []  # a heap of the times in ``_taken``, and of some that are outdated
        self._unknown: dict[int, None] = {}
        self._here: set[int] = set()
        self._refusals: dict[int, int] = {}  # attempts that were refused since the slot was last seen taken, or held
        # Of slots that others have: until when, as was seen first, when that was, and how long that look took ...
        self._seen: dict[int, tuple[float, float, float]] = {}
        self._doubted: set[int] = set()  # ... and which of them were said to have changed since they were seen last
        self._look: dict[int, bool] | None = None
        self._look_began = float("-inf")  # the one that is under way, or the last one. -inf: none, or it is outdated
        self._look_at = 0.0  # no look before that
        self._pause = 0.0  # after the last look, which has failed
        self._try_at = 0.0  # no probe before that
        self._try_pause = 0.0  # after the last attempt, which servers have failed

    # One attempt of a task itself

    def pick(self, waits: bool) -> int | None:
        """A slot that is believed free, for one attempt. It counts as used here until ``ended``,
        ``attempt_failed`` or ``lost``. None: look, or queue.

        :param waits: would the task queue? Then those who wait go first, and others may want the slot: it takes turns
        """
        free = self._free
        if not free.count or len(self.queue) > (0 if waits else len(self.probes)):
            return None
        slot = free.at(int(self._port.chance() * free.count))
        if waits and self._port.room(slot).contended:
            return None
        self._count_as_ours(slot)
        return slot

    def attempt_failed(self, slot: int, refused: bool, now: float) -> None:
        """The attempt for that slot has failed.

        :param refused: since somebody else has it
        """
        self._may_have_seen_ours(slot, refused)
        if refused:
            self._refused(slot)
        else:
            self._here.discard(slot)
            self._forget(slot)
        self.serve(now)

    def _refused(self, slot: int) -> None:
        """Somebody else has that slot. Then what else is believed may be outdated, too."""
        self._here.discard(slot)
        for other in [each for each in self._free if each not in self._fresh]:
            self._forget(other)
        self._refusals[slot] = self._refusals.get(slot, 0) + 1
        self._forget(slot)

    def ended(self, slot: int, now: float) -> None:
        """The slot is used here no longer. Call this right before its room hears of it, which may hand it on."""
        self._refusals.pop(slot, None)
        if self.queue and slot not in self.tickets:
            self._send_ticket(slot, now)
            self._drop_surplus(now, keep=slot)
        self._here.discard(slot)
        if self._look is not None:
            self._look.pop(slot, None)  # that answer may be older
        if slot not in self.tickets:
            self._free.add(slot)

    def lost(self, slot: int) -> None:
        """The lease of that slot was lost. Call ``serve`` in another turn of the loop."""
        self._may_have_seen_ours(slot)
        self._here.discard(slot)
        self._forget(slot)

    # The queue

    def join(self, waiter: W, since: float, now: float) -> None:
        """Queue for a permit, in front of those who have come later: an attempt of its own may have failed first."""
        queue = self.queue
        later = bool(queue) and queue[next(reversed(queue))] > since
        queue[waiter] = since
        if later:
            self.queue = OrderedDict(sorted(queue.items(), key=lambda each: each[1]))
        self.serve(now)

    def leave(self, waiter: W, now: float) -> bool:
        """The task waits no longer. False: it did not wait here."""
        if waiter not in self.queue:
            return False
        del self.queue[waiter]
        self.serve(now)
        return True

    def close(self) -> list[W]:
        """Returns who was waiting. Tickets and probes stay in their rooms, which are closed next."""
        waiters = list(self.queue)
        self.queue.clear()
        self.tickets.clear()
        self.probes.clear()
        return waiters

    def ticket_ended(
        self, slot: int, ticket: W, lease: Lease | None, refused: bool, error: Exception | None, now: float
    ) -> None:
        """The wait of a ticket or a probe has ended.

        :param lease: what it has got; None: nothing, or it was lost since
        :param refused: somebody else has the slot
        :param error: of a server, where retrying there cannot help
        """
        probe = self.probes.get(slot) is ticket
        if probe:
            del self.probes[slot]
            self._here.discard(slot)
        elif self.tickets.get(slot) is ticket:
            del self.tickets[slot]
        if lease is not None:
            self._here.add(slot)
            if self.queue:
                waiter, _ = self.queue.popitem(last=False)
                self._port.granted(waiter, slot, lease)
            else:
                self.give_back(slot, lease, now)
        elif refused:
            self._may_have_seen_ours(slot, refused)
            self._refused(slot)
        else:
            self._may_have_seen_ours(slot)
            self._forget(slot)
            if error is not None and not probe:
                self._fail(error)
            elif error is not None and self.queue:
                self._send_ticket(slot, now)  # its end comes if no majority is left, and not because of one server
        if lease is not None or refused:  # servers work
            self._try_at = self._try_pause = 0.0
        elif now >= self._try_at:
            self._try_pause = min(max(2 * self._try_pause, self._rules.try_next_after), MAX_PAUSE)
            self._try_at = now + self._try_pause * (0.5 + self._port.chance() / 2)
        self.serve(now)

    def _fail(self, error: Exception) -> None:
        waiters = list(self.queue)
        self.queue.clear()
        for waiter in waiters:
            self._port.failed(waiter, error)

    def give_back(self, slot: int, lease: Lease, now: float) -> None:
        """Release what no task has taken."""
        self.ended(slot, now)
        lease.room.release(lease, now)

    def serve(self, now: float) -> None:
        """Do what can be done for those who wait."""
        queue, port = self.queue, self._port
        if not queue:
            for slot in [*self.tickets]:
                self._drop(slot, now)
            for slot, probe in [*self.probes.items()]:
                if not port.has_ended(probe):
                    self._may_have_seen_ours(slot)
                    del self.probes[slot]
                    self._here.discard(slot)
                    port.leave_room(probe, now)
                    self._free.add(slot)
            return
        while self._ends and self._ends[0][0] <= now:
            when, slot = heappop(self._ends)
            if self._taken.get(slot) == when:
                self._forget(slot)
        self._probe(now)
        self._begin_look(now)
        while len(self.tickets) < len(queue) and self._taken:
            self._send_ticket(next(iter(self._taken)), now)
        self._drop_surplus(now)
        due = NEVER
        if self._free.count and len(self.probes) < len(queue):  # others' turn, or servers have failed an attempt
            due = max(now + self._rules.try_next_after, self._try_at)
        if self._unknown and self._look is None:
            due = min(due, self._look_at)
        while self._ends and self._taken.get(self._ends[0][1]) != self._ends[0][0]:
            heappop(self._ends)
        if self._ends:
            due = min(due, self._ends[0][0])
        if due < NEVER:
            port.wake(due)

    def _probe(self, now: float) -> None:
        """Make attempts for slots that are believed free."""
        others_turn = []
        if now < self._try_at:
            return
        most = min(len(self.queue), 1) if self._try_pause else len(self.queue)
        while len(self.probes) < most and self._free.count:
            slot = self._free.at(int(self._port.chance() * self._free.count))
            room = self._port.room(slot)
            if room.contended:  # a ticket takes turns with others; but not more than one for each task
                if len(self.tickets) < len(self.queue):
                    self._send_ticket(slot, now)
                else:
                    self._free.remove(slot)
                    others_turn.append(slot)
                continue
            self._count_as_ours(slot)
            self.probes[slot] = probe = self._port.ticket(slot)
            room.try_join(probe, now)
        for slot in others_turn:
            self._free.add(slot)
        if others_turn and self._drop_surplus(now, spare=1):
            self._send_ticket(others_turn[0], now)

    def _send_ticket(self, slot: int, now: float) -> None:
        """Let a ticket wait for that slot."""
        self._remove(slot)
        self.tickets[slot] = ticket = self._port.ticket(slot)
        self._port.room(slot).join(ticket, now)

    def _drop_surplus(self, now: float, *, keep: int | None = None, spare: int = 0) -> bool:
        """Drop the oldest tickets, until there are no more than tasks, less ``spare``; but not that for the slot
        ``keep``, nor one whose room makes an attempt. False: too many are left."""
        surplus = len(self.tickets) + spare - len(self.queue)
        if surplus > 0:
            for slot in [*self.tickets]:
                if slot != keep and self._port.room(slot).attempt is None and self._drop(slot, now):
                    surplus -= 1
                    if not surplus:
                        break
        return surplus <= 0

    def _drop(self, slot: int, now: float) -> bool:
        """Let the ticket leave. False: its wait has ended just now."""
        ticket, room = self.tickets[slot], self._port.room(slot)
        if self._port.has_ended(ticket):
            return False
        self._may_have_seen_ours(slot)
        del self.tickets[slot]
        waits_until = room.wake if room.attempt is None and room.holder is None else NEVER
        self._port.leave_room(ticket, now)
        if slot not in self._here:
            if now < waits_until < NEVER:
                self._believe_taken(slot, waits_until)  # what the room has found out
            else:
                self._unknown[slot] = None
                waits_until = now
            if self.queue:
                self._port.wake(waits_until)
        return True

    # What is known of the slots

    def look(self, now: float) -> None:
        """Look at all slots, whatever is believed of them. Beginning anywhere: those that are found to be taken first
        get the first tickets, and not all processes should wait for the same."""
        self.looked_at_all = True
        first = int(self._port.chance() * self.permits)
        self._begin_look(now, [*range(first, self.permits), *range(first)])

    @property
    def looking(self) -> bool:
        """Is a look under way?"""
        return self._look is not None

    @property
    def unsure(self) -> bool:
        """Is there a slot of which nothing is known, so that those who wait look?"""
        return bool(self._unknown)

    @property
    def may_be_had(self) -> bool:
        """Is there a slot that nobody is known to have?"""
        return bool(self._free.count or self.probes or self._unknown)

    @property
    def needs_look(self) -> bool:
        """Could a look find a free slot for somebody else? Not if this process has all permits, nor if tasks wait and
        every slot is known: then those that are free are for them."""
        return not self.all_here and (self.unsure or not self.queue)

    @property
    def idle(self) -> bool:
        """Does nobody here have a permit, or want one?"""
        return not (self._here or self.queue or self.tickets or self.probes)

    @property
    def all_here(self) -> bool:
        """Has this process all permits?"""
        return len(self._here) == self.permits

    def _begin_look(self, now: float, slots: list[int] | None = None) -> None:
        if self._look is None and (slots or (self._unknown and now >= self._look_at)):
            slots = slots or [*self._unknown]
            self._look, self._look_began = dict.fromkeys(slots, False), now
            self._port.look_at(slots, now)

    def looked(self, found: Mapping[int, float], now: float) -> int:
        """What a look has found: when each slot may be free. (It does not say anything of those that are left out.)
        Returns how many of those that were said to have changed had not."""
        look, self._look = self._look, None
        assert look is not None
        self.last_look = self._look_began
        rules, needless = self._rules, 0
        self._pause = self._look_at = 0.0
        for slot, until in found.items():
            if slot not in look or slot in self._here or slot in self.tickets:
                continue
            self._remove(slot)
            if until > now and look[slot]:  # it has changed since: read it again
                self._doubted.add(slot)
                self._unknown[slot] = None
                continue
            if until > now:
                needless += self._is_unchanged(slot, until, now)
                if not rules.tracking:
                    until = min(until, now + rules.extend_interval * (0.5 + self._port.chance() / 2))
                self._refusals.pop(slot, None)
                self._believe_taken(slot, until)
            elif self._refusals.get(slot, 0) > 1:
                # Seen free, and refused again: several who try at the same time may split its votes among them.
                self._refusals[slot] = 1
                self._believe_taken(slot, now + rules.try_next_after * (0.5 + self._port.chance()))
            else:
                self._free.add(slot)
                if rules.tracking and not look[slot]:
                    self._fresh.add(slot)
            self._doubted.discard(slot)
        if any(slot not in found for slot in look):  # read these again, a little later
            self._pause_after_failure(now)
        return needless

    def _is_unchanged(self, slot: int, until: float, now: float) -> bool:
        """Was the slot said to have changed, and had not? A new holder, or an extension, moves the time until which
        others have it. But a new holder does not move it by much, if the one before had got the slot a moment ago."""
        took = now - self._look_began  # the time is uncertain by as much
        first, since, took_then = self._seen.get(slot, (NEVER, now, 0.0))
        same = self._rules.try_next_after + max(took, took_then)
        if abs(until - first) < same:
            return slot in self._doubted and now > since + 2 * same
        self._seen[slot] = until, now, took
        return False

    def look_failed(self, error: Exception | None, now: float) -> None:
        """Too few servers have answered.

        :param error: retrying cannot help
        """
        self._look = None
        self.last_look = self._look_began
        self._pause_after_failure(now)
        if error is not None:
            self._fail(error)

    def limit_looks(self, pause: float) -> None:
        """No look until that many seconds after the last one has begun."""
        self._look_at = max(self._look_at, self._look_began + pause)

    def _pause_after_failure(self, now: float) -> None:
        self._pause = min(max(2 * self._pause, self._rules.try_next_after), MAX_PAUSE)
        self._look_at = now + self._pause * (0.5 + self._port.chance() / 2)

    def changed(self, slot: int) -> bool:
        """A server says that a key of that slot has changed. True: call ``serve`` in another turn of the loop."""
        if self._look is not None and slot in self._look:
            self._look[slot] = True  # the answer may be older. If it is free, an attempt will show
        if not slot < self.permits or slot in self._here or slot in self.tickets:
            return False
        known = slot in self._taken or slot in self._fresh
        if known:
            if slot in self._taken:
                self._doubted.add(slot)
            self._forget(slot)
        return known

    def _may_have_seen_ours(self, slot: int, refused: bool = False) -> None:
        """An attempt for that slot, or a lease, has ended, and gives its keys back. A look that is under way may have
        seen them, and servers do not tell us of changes that are ours.

        :param refused: somebody else has the slot. Then the attempt had no key, if there is only one
        """
        if self._look is not None and slot in self._look and not (refused and self._rules.keys == 1):
            self._look[slot] = True

    def all_changed(self) -> None:
        """What the servers have told so far may be outdated, and some of it they may not have told. Call ``serve``."""
        slots = [*self._taken, *self._fresh]
        if self._look is not None:
            slots += [slot for slot in self._look if slot not in self._here and slot not in self.tickets]
            self._look = {}
        self._look_began = self.last_look = float("-inf")
        for slot in slots:
            self._forget(slot)
        self._look_at = self._try_at = 0.0

    def _count_as_ours(self, slot: int) -> None:
        self._free.remove(slot)
        self._fresh.discard(slot)
        self._here.add(slot)

    def _believe_taken(self, slot: int, until: float) -> None:
        self._taken[slot] = until
        if len(self._ends) > 2 * self.permits:  # mostly outdated, and nobody has waited meanwhile
            self._ends = [(when, each) for each, when in self._taken.items()]
            heapify(self._ends)
        else:
            heappush(self._ends, (until, slot))

    def _forget(self, slot: int) -> None:
        """Nothing is known of that slot any more."""
        if slot not in self._here and slot not in self.tickets:
            self._remove(slot)
            self._unknown[slot] = None

    def _remove(self, slot: int) -> None:
        self._free.remove(slot)
        self._fresh.discard(slot)
        self._taken.pop(slot, None)
        self._unknown.pop(slot, None)

    def check(self) -> None:
        """Each slot is in one place. For tests."""
        for slot in range(self.permits):
            places = [slot in each for each in (self._free, self._taken, self._unknown)]
            used = slot in self._here or slot in self.tickets
            assert sum(places) == (not used), (slot, places, slot in self._here, slot in self.tickets)
        assert self._fresh <= {*self._free}
        assert self.probes.keys() <= self._here
