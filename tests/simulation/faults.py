"""Faults to plant in the lock's rules, one at a time. The schedules must find each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from asynclock.core.fencing import Fencing
from asynclock.core.lease import Lease
from asynclock.core.operations import Operation
from asynclock.core.permits import Board
from asynclock.core.room import Room
from asynclock.core.rules import Rules
from asynclock.core.several import Several, Step

from . import several
from .links import Link
from .permits import Semaphore
from .processes import Client, Task
from .replicas import Confirmations
from .servers import Expiry, Server
from .worlds import REPLICAS, SEVERAL

Plant = Callable[[pytest.MonkeyPatch], None]


def count_from_the_reply(patch: pytest.MonkeyPatch) -> None:
    """The deadline counts from the reply, not from before the request was sent."""
    answered = Room.answered

    def late(
        self: Room[Any],
        lease: Lease,
        index: int,
        operation: Operation,
        sent: float,
        ok: bool,
        found: bytes | None,
        ttl: int | None,
        now: float,
    ) -> None:
        answered(self, lease, index, operation, now, ok, found, ttl, now)

    patch.setattr(Room, "answered", late)


def forget_to_wake(patch: pytest.MonkeyPatch) -> None:
    """A waiter relies on pushes, and sets no timer for the expiry of the holder's key."""
    wake = Client.wake

    def not_for_waiters(self: Client, room: Room[Task], when: float) -> None:
        waits = room.queue and room.holder is None and room.attempt is None
        if not waits or when <= self.world.now + room.rules.try_next_after:
            wake(self, room, when)

    patch.setattr(Client, "wake", not_for_waiters)


def release_whatever_is_there(patch: pytest.MonkeyPatch) -> None:
    """A release deletes the key, whatever value it has."""
    execute = Server._execute

    def careless(self: Server, command: str, key: bytes, token: bytes, *rest: Any) -> Any:
        entry = self.peek(key)
        return execute(self, command, key, entry[0] if command == "DELIFEQ" and entry else token, *rest)

    patch.setattr(Server, "_execute", careless)


def one_vote_less(patch: pytest.MonkeyPatch) -> None:
    """One vote less than a majority is enough."""
    init = Rules.__init__

    def less(self: Rules, **numbers: Any) -> None:
        init(self, **numbers)
        self.majority = max(1, self.majority - 1)

    patch.setattr(Rules, "__init__", less)


def deaf_while_acquiring(patch: pytest.MonkeyPatch) -> None:
    """Pushes are ignored while the lock is being acquired."""
    pushed = Room.invalidated

    def deaf(self: Room[Any], *told: Any) -> None:
        if self.attempt is None:
            pushed(self, *told)

    patch.setattr(Room, "invalidated", deaf)


def deaf_after_a_reconnect(patch: pytest.MonkeyPatch) -> None:
    """A holder does not check its key after a reconnect."""
    reconnected = Room.reconnected

    def trusting(self: Room[Any], *told: Any) -> None:
        if self.holder is None:
            reconnected(self, *told)

    patch.setattr(Room, "reconnected", trusting)


def no_second_look(patch: pytest.MonkeyPatch) -> None:
    """A push that arrives while a reply is pending is taken to be older than the reply."""
    answered = Room.answered

    def once(self: Room[Any], lease: Lease, index: int, *rest: Any) -> None:
        lease.stale &= ~(1 << index)
        answered(self, lease, index, *rest)

    patch.setattr(Room, "answered", once)


def forget_refused_releases(patch: pytest.MonkeyPatch) -> None:
    """A release that a server has refused is not retried."""
    patch.setattr(Client, "_refused", lambda self, home, key, token, keep_until: None)


def keep_noloop(patch: pytest.MonkeyPatch) -> None:
    """NOLOOP stays on, though the server evicts keys."""
    patch.setattr(Client, "_silence_told", lambda self, link, report: None)


def believe_the_uptime(patch: pytest.MonkeyPatch) -> None:
    """A server that claims a long uptime gets no quarantine, even if its run_id has changed."""
    connect = Client._connect

    def trusting(self: Client, home: int, sent: float, time: float) -> Link:
        link = connect(self, home, sent, time)
        if link.server.lies:
            link.quarantined = False
        return link

    patch.setattr(Client, "_connect", trusting)


def written_back_to_one(patch: pytest.MonkeyPatch) -> None:
    """A fencing token is given out as soon as one counter has reached it."""
    patch.setattr(Fencing, "number", property(lambda self: self.floor or None))


def counted_without_the_clock(patch: pytest.MonkeyPatch) -> None:
    """A counter starts at 1, though the server may have forgotten it."""
    patch.setattr(Server, "new_number", lambda self, last: last + 1)


def counted_for_anybody(patch: pytest.MonkeyPatch) -> None:
    """A counter gives out a number without a look at the key."""
    execute = Server._execute

    def careless(self: Server, command: str, key: bytes, token: bytes, expiry: Expiry, link: Link) -> Any:
        if command == "COUNT" and self.world.now >= self.troubled:
            return self.count(key, expiry.when)
        return execute(self, command, key, token, expiry, link)

    patch.setattr(Server, "_execute", careless)


def one_slot_more(patch: pytest.MonkeyPatch) -> None:
    """A process counts one permit more than the others."""
    init = Semaphore.__init__

    def more(self: Semaphore, client: Client, name: str, permits: int) -> None:
        init(self, client, name, permits + (client.name == "A"))

    patch.setattr(Semaphore, "__init__", more)


def deaf_to_other_slots(patch: pytest.MonkeyPatch) -> None:
    """Those who wait for a permit hear only of the slots that their tickets wait for."""
    patch.setattr(Board, "changed", lambda self, slot: False)


def tickets_for_nobody(patch: pytest.MonkeyPatch) -> None:
    """A ticket that gets its slot when nobody waits any more keeps it."""
    patch.setattr(Board, "give_back", lambda self, slot, lease, now: None)


def deleted_all_the_same(patch: pytest.MonkeyPatch) -> None:
    """A lock that is to stay for a least time is released."""
    request = Client.request

    def hasty(self: Client, lease: Lease, index: int, operation: Operation, now: float) -> bool:
        return request(self, lease, index, Operation.RELEASE if operation is Operation.KEEP else operation, now)

    patch.setattr(Client, "request", hasty)


def owed_as_a_deletion(patch: pytest.MonkeyPatch) -> None:
    """A lock that is to stay is released, if its server was away or has refused to keep it."""
    send = Client._send_owed

    def hasty(self: Client, link: Link) -> None:
        owed = self.may_be_ours[link.server.name]
        owed.update(dict.fromkeys(owed, 0.0))
        send(self, link)

    patch.setattr(Client, "_send_owed", hasty)


def handed_on_too_early(patch: pytest.MonkeyPatch) -> None:
    """A lock that is to stay is handed on to another task of the process."""
    release = Room.release

    def hasty(self: Room[Any], lease: Lease, now: float) -> None:
        if self.queue:
            lease.keep_until = 0.0
        release(self, lease, now)

    patch.setattr(Room, "release", hasty)


def kept_though_lost(patch: pytest.MonkeyPatch) -> None:
    """A lock that was lost is kept."""
    request = Client.request

    def sticky(self: Client, lease: Lease, index: int, operation: Operation, now: float) -> bool:
        task = getattr(lease, "scope_ref", None)
        if operation is Operation.RELEASE and task is not None and task.stay is not None and task.state == "lost":
            lease.keep(task.stay.until)
            operation = Operation.KEEP
        return request(self, lease, index, operation, now)

    patch.setattr(Client, "request", sticky)


def keep_later_names(patch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a name keeps those that come after it."""
    step = Several.step

    def keep(self: Several, held: Sequence[bool], busy: Callable[[int], bool]) -> Step:
        return step(self, held, busy)._replace(give_back=[])

    patch.setattr(Several, "step", keep)


def each_in_its_own_order(patch: pytest.MonkeyPatch) -> None:
    """Names are waited for in the order in which they were given."""
    patch.setattr(several, "agreed_order", list)


def counted_before_replicas_have_it(patch: pytest.MonkeyPatch) -> None:
    """A vote counts as soon as its server has answered."""
    patch.setattr(Confirmations, "confirm", lambda self, request: request.confirmed())


def read_instead_of_extended(patch: pytest.MonkeyPatch) -> None:
    """A key whose answer was lost counts once the first check has read it, which no replica confirms.

    At the boundary of the rules: where these are compiled, they do not call what is patched.
    """
    look, request = Client._look, Client.request

    def reading(self: Client, lease: Lease, index: int, operation: Operation, now: float) -> bool:
        return request(self, lease, index, Operation.READ if operation is Operation.EXTEND else operation, now)

    def only_look(self: Client, lease: Lease) -> None:
        with pytest.MonkeyPatch.context() as meanwhile:
            meanwhile.setattr(Client, "request", reading)
            look(self, lease)

    patch.setattr(Client, "_look", only_look)


FAULTS: dict[str, Plant] = {
    "deadline counted from the reply": count_from_the_reply,
    "no wake-up at the time to live": forget_to_wake,
    "release without a look at the value": release_whatever_is_there,
    "a majority of one less": one_vote_less,
    "pushes ignored while acquiring": deaf_while_acquiring,
    "no look at the key after a reconnect": deaf_after_a_reconnect,
    "no second look after a push that overtook an answer": no_second_look,
    "a refused release forgotten": forget_refused_releases,
    "NOLOOP kept while keys are evicted": keep_noloop,
    "uptime believed": believe_the_uptime,
    "fencing token written back to one server only": written_back_to_one,
    "fencing token not compared with the clock": counted_without_the_clock,
    "fencing token without a look at the key": counted_for_anybody,
    "one permit more than the others count": one_slot_more,
    "no look at a slot that has changed": deaf_to_other_slots,
    "a permit kept that nobody wants any more": tickets_for_nobody,
    "a lock deleted before its least time is over": deleted_all_the_same,
    "a lock deleted after a reconnect, before its least time is over": owed_as_a_deletion,
    "a lock handed on before its least time is over": handed_on_too_early,
    "a lost lock kept": kept_though_lost,
    "a later name kept while an earlier one is waited for": keep_later_names,
    "names in an order of one's own": each_in_its_own_order,
    "a vote counted before replicas have it": counted_before_replicas_have_it,
    "a key read, and not extended, after a lost answer": read_instead_of_extended,
}
WORLD_OF: dict[Plant, str] = {  # others: the seed chooses
    keep_later_names: SEVERAL,
    each_in_its_own_order: SEVERAL,
    counted_before_replicas_have_it: REPLICAS,
    read_instead_of_extended: REPLICAS,
}
