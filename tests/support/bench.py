"""A room on the test bench: its port records what the room does, and the test supplies time and answers."""

from __future__ import annotations

from typing import Any, NamedTuple

from asynclock.core.contention import Contention
from asynclock.core.lease import Lease
from asynclock.core.operations import Operation
from asynclock.core.pace import Pace
from asynclock.core.port import Requests
from asynclock.core.reasons import LossReason
from asynclock.core.room import Room
from asynclock.core.rules import NEVER, Rules
from asynclock.core.tally import Tally
from asynclock.core.tokens import Tokens

OURS: Any = object()  # stands for the token of the lease that asked
OTHER = b"asynclock:n:ff:1"  # of another process
STRANGER = b"hello"


class Sent(NamedTuple):
    lease: Lease
    index: int
    operation: Operation
    when: float


class Bench(Requests):
    """The port of ``room``. ``sent`` is what the room requested and got no answer to yet, ``told`` its other calls."""

    def __init__(self, majority: int = 1, **rules: Any) -> None:
        numbers = {"validity": 5.0, "extend_interval": 2.5, "try_next_after": 0.02, **rules}
        self.rules = Rules(majority=majority, **numbers)
        self.now = 100.0
        self.sent: list[Sent] = []
        self.told: list[tuple[Any, ...]] = []
        self.settles: list[bytes] = []  # tokens whose release was answered
        self.down: set[int] = set()  # indexes of keys whose server is not connected
        self.lasting: Exception | None = None  # why those servers will never be connected
        self.kept: list[tuple[int, bytes]] = []  # releases for the servers that are down
        self.hung: set[int] = set()  # indexes of keys whose server is silent
        self.luck = 0.0
        self.pace = Pace()
        self.needless_checks = 0
        self.ordered = False  # do pushes and answers arrive on one connection?
        self.looks: list[Lease] = []  # leases whose first check is due
        self.tally = Tally()
        self.requests = self
        self.tokens = Tokens(b"\0", b"me", lambda: 0.0)
        self.room: Room[str] = Room("name", self.rules, self)

    # What a test does

    def join(self, *waiters: str) -> None:
        for waiter in waiters:
            self.room.join(waiter, self.now)

    def hold(self, waiter: str = "holder") -> Lease:
        """``waiter`` acquires the lock in no time, and its keys pass the first check."""
        self.room.join(waiter, self.now)
        for index in range(self.rules.keys):
            self.answer(Operation.TAKE, index)
        assert self.room.holder is not None
        self.look()
        assert not self.room.holder.untracked
        self.told.clear()
        return self.room.holder

    def refuse(self, waiter: str = "me", ttl: int = 4000) -> None:
        """``waiter`` finds that another process has the lock, and waits."""
        self.room.join(waiter, self.now)
        for index in range(self.rules.keys):
            self.answer(Operation.TAKE, index, OTHER)
        for index in range(self.rules.keys):
            self.answer(Operation.TAKE_TTL, index, OTHER, ttl)
        self.sent.clear()

    def release(self, lease: Lease) -> bool:
        """Release ``lease``. Was it released to the servers, other than handed off or released before?"""
        ours = lease.may_be_ours
        self.room.release(lease, self.now)
        return ours != 0 and lease.may_be_ours == 0

    def give_back(self, lease: Lease) -> None:
        """Release ``lease`` to the servers: it has been handed off in this process for as long as allowed."""
        self.wait(1.1 * self.rules.handoff_time)
        assert self.release(lease)

    def expect_others(self) -> None:
        """Make the room expect contention: another process was faster before."""
        self.room.contention = Contention()
        self.room.contention.lost_race()

    def look(self) -> None:
        """Do the first checks that are due. They find the keys as they should be."""
        looks, self.looks = self.looks, []
        for lease in looks:
            self.room.first_check(lease, self.now)
        for operation, index in self.asks:
            if operation is Operation.READ:
                self.answer(Operation.READ, index, ttl=round(self.rules.validity * 1000))

    @property
    def asks(self) -> list[tuple[Operation, int]]:
        return [(sent.operation, sent.index) for sent in self.sent]

    def answer(
        self, operation: Operation, index: int = 0, found: Any = OURS, ttl: int | None = None, ok: bool | None = None
    ) -> None:
        """Answer the first request of this kind that has no answer yet."""
        sent = self._take(operation, index)
        if operation.ends:
            self.room.released(sent.lease, sent.index, found is OURS, self.now)
            return
        value = sent.lease.token if found is OURS else found
        okay = operation is Operation.READ or found is OURS if ok is None else ok
        self.room.answered(*sent[:3], sent.when, okay, value, ttl, self.now)

    def forced(self, *indexes: int) -> None:
        """Answer that these keys (default: the only one) were taken over, and the READ of the first before the lock
        counts."""
        for index in indexes or (0,):
            self.answer(Operation.FORCE, index)
        self.read_back(indexes[0] if indexes else 0)

    def read_back(self, index: int = 0) -> None:
        """Answer the READ of a key that was taken by force: now the lock counts."""
        self.answer(Operation.READ, index, ttl=round(self.rules.validity * 1000))

    def fail(self, operation: Operation, index: int = 0, error: Exception | None = None) -> None:
        self.room.failed(*self._take(operation, index)[:3], error, self.now)

    def drop(self, *indexes: int) -> None:
        """Lose the connections to the servers of these keys."""
        self.down.update(indexes)
        for sent in [sent for sent in self.sent if sent.index in indexes]:
            self.sent.remove(sent)
            if sent.operation.ends:
                self.kept.append((sent.index, sent.lease.token))
            self.room.failed(*sent[:3], None, self.now)

    def reconnect(self, *indexes: int) -> None:
        self.down.difference_update(indexes)
        for index in indexes:
            self.room.reconnected(index, self.now)

    def wait(self, seconds: float) -> None:
        """Let time pass, and fire the timer when it is due."""
        until = self.now + seconds
        while self.room.due <= until:
            self.now, self.room.due = max(self.now, self.room.due), NEVER
            if self.room.wake <= self.now:
                self.room.woken(self.now)
            elif self.room.wake < NEVER:
                self.wake(self.room, self.room.wake)
        self.now = until

    @property
    def when(self) -> float:
        """When the room wants to be woken."""
        assert self.room.due <= self.room.wake
        return self.room.wake

    def _take(self, operation: Operation, index: int) -> Sent:
        for sent in self.sent:
            if sent.operation is operation and sent.index == index:
                self.sent.remove(sent)
                return sent
        raise AssertionError(f"{operation.name} was not asked of key {index}: {self.asks}")

    # The port

    def request(self, lease: Lease, index: int, operation: Operation, now: float) -> bool:
        if index in self.down:
            if operation.ends:
                self.kept.append((index, lease.token))
            return False
        self.sent.append(Sent(lease, index, operation, now))
        return True

    def lasting_error(self, room: Room[str], index: int) -> Exception | None:
        return self.lasting if index in self.down else None

    def silent(self, room: Room[str], index: int, now: float) -> bool:
        return index in self.hung

    def wake(self, room: Room[str], when: float) -> None:
        room.due = when

    def first_check_soon(self, lease: Lease) -> None:
        self.looks.append(lease)

    def chance(self) -> float:
        return self.luck

    def pause(self, room: Room[str], index: int, now: float) -> float:
        return self.pace.pause(now)

    def needless(self, room: Room[str], index: int, now: float) -> None:
        self.needless_checks += 1
        self.pace.needless(now)

    def in_order(self, room: Room[str], index: int) -> bool:
        return self.ordered

    def doubt_clock(self, room: Room[str], index: int) -> None:
        self.told.append(("doubt clock", index))

    def granted(self, waiter: str, lease: Lease) -> None:
        self.told.append(("granted", waiter))

    def refused(self, waiter: str) -> None:
        self.told.append(("refused", waiter))

    def failed(self, waiter: str, error: Exception | None) -> None:
        self.told.append(("failed", waiter, error))

    def lost(self, lease: Lease, reason: LossReason, index: int | None) -> None:
        self.told.append(("lost", reason, index))

    def release_answered(self, lease: Lease) -> None:
        self.settles.append(lease.token)

    # What the room did, by kind

    def of(self, kind: str) -> list[Any]:
        """For each call of this kind its first argument: mostly the waiter."""
        return [told[1] if len(told) > 1 else None for told in self.told if told[0] == kind]
