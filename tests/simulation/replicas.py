"""Replicas, and ``min_replicas=1``: each server has one, which receives its writes in order, a moment later.

A failover makes it the primary: the server then has what the replica had received, and nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from asynclock.core.rules import NEVER

if TYPE_CHECKING:
    from .links import Link
    from .requests import Request
    from .servers import Server

LAGS = (0.002, 0.01)  # seconds that a write takes to the replica, at most: one of these, in each world
MARGIN = 0.01  # seconds after its timeout in which the answer to a WAIT must be there

Entry = tuple[bytes, int | None]  # value and expiry


class Replica:
    """The replica of one server.

    ``data`` is what it has; the server's writes that it has not received are in ``_log``.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.data: dict[bytes, Entry] = {}
        self.away = 0.0  # until when it receives nothing
        self.synchronized = 0.0  # when a new one has got all that was there before it: until then it cannot take over
        self._log: deque[tuple[bytes, Entry | None]] = deque()
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()  # WAITs, with the writes that they wait for
        self._written = self._received = 0  # number of writes
        self._due = 0.0

    def has(self, key: bytes, value: bytes) -> bool:
        return self.data.get(key, (b"", None))[0] == value

    def written(self, key: bytes, entry: Entry | None) -> None:
        """The server has set the key, or deleted it (``None``)."""
        world = self.server.world
        self._log.append((key, entry))
        self._written += 1
        self._due = max(self._due, world.now + world.replica_chance.random() * world.lag)
        world.at(self._due, self._receive, self._written)

    def call_when_it_has_all(self, answer: Callable[[], None]) -> None:
        """Call ``answer`` once it has everything that is written until now. A failover forgets that."""
        if self._received == self._written:
            answer()
        else:
            self._waiting.append((self._written, answer))

    def _receive(self, number: int) -> None:
        world = self.server.world
        if number <= self._received:
            return
        if self.away > world.now:
            world.at(self.away, self._receive, number)
            return
        while self._received < number:
            key, entry = self._log.popleft()
            self._received += 1
            if entry is None:
                self.data.pop(key, None)
            else:
                self.data[key] = entry
        while self._waiting and self._waiting[0][0] <= self._received:
            self._waiting.popleft()[1]()

    def stay_away(self, seconds: float) -> None:
        self.away = max(self.away, self.server.world.now + seconds)

    def come_back(self) -> None:
        """What it has missed, it receives now."""
        self.away = 0.0
        self._receive(self._written)

    def forget(self) -> None:
        """The server has come back without its keys, and the replica copies that."""
        self.data.clear()
        self._start_anew()

    def promote(self, seconds: float) -> dict[bytes, Entry]:
        """It becomes the primary, with what it has. The next replica has synchronized with it after so many seconds."""
        self._start_anew()
        self.synchronized = self.away = self.server.world.now + seconds
        return self.data.copy()

    def _start_anew(self) -> None:
        self._log.clear()
        self._waiting.clear()
        self._received = self._written


class Confirmations:
    """WAIT, one at a time, for all writes that were answered until it left: ``asynclock.wire.replicas``.

    There, each write has a deadline of its own. Here, the next WAIT has its whole time again.
    """

    def __init__(self, link: Link, replica: Replica) -> None:
        self.covered: list[Request] = []  # by the WAIT that is under way
        self.queued: list[Request] = []
        self.failed_at = -NEVER  # when a WAIT was last not answered in time
        self._link = link
        self._replica = replica
        self._number = 0  # of the WAIT

    def confirm(self, request: Request) -> None:
        self.queued.append(request)
        if not self.covered:
            self._begin()

    def _begin(self) -> None:
        world = self._link.world
        self.covered, self.queued = self.queued, []
        self._number += 1
        world.at(world.now + world.delay(), self._arrive, self._number)
        world.at(world.now + world.rules.try_next_after + MARGIN, self._too_late, self._number)

    def _arrive(self, number: int) -> None:
        """The WAIT reaches the server."""
        link = self._link
        if not link.broken and not link.later(link.server.stalled, self._arrive, number):
            self._replica.call_when_it_has_all(partial(self._answer, number))

    def _answer(self, number: int) -> None:
        world = self._link.world
        world.at(world.now + world.delay(), self._counted, number)

    def _counted(self, number: int) -> None:
        if self._is_current(number, self._counted) and not self._link.broken:
            covered = self._over()
            for request in covered:
                request.confirmed()

    def _too_late(self, number: int) -> None:
        if self._is_current(number, self._too_late):
            self.failed_at = self._link.world.now
            self._link.world.unconfirmed += len(self.covered)
            for request in self._over():
                request.unconfirmed()

    def _is_current(self, number: int, again: Callable[[int], None]) -> bool:
        client = self._link.client
        if number != self._number or not self.covered or not client.uses(self._link):
            return False
        if self._link.later(client.frozen, again, number):
            return False
        self._link.world.acted = client
        return True

    def _over(self) -> list[Request]:
        covered, self.covered = self.covered, []
        if self.queued:
            self._begin()
        return covered

    def drop(self) -> None:
        """The connection is lost."""
        lost = self.covered + self.queued
        self.covered, self.queued = [], []
        for request in lost:
            request.unconfirmed()
