"""Fence: the fencing token of one scope, requested from its servers."""

from __future__ import annotations

import asyncio
from functools import partial

from ..core.counters import counter_of
from ..core.fencing import NOT_OURS, Fencing
from ..core.lease import Lease
from ..errors import ServerError
from ..wire.background import Timer
from ..wire.backoff import Backoff
from ..wire.commands import unbulk
from .manager import LockManager

FIRST_PAUSE = 0.01  # seconds until counters whose servers have failed are asked again; doubles each time, up to
MAX_PAUSE = 0.1


class Fence:
    """Sends what ``Fencing`` wants, for all tasks that wait for the token of one scope.

    Invariants: as long as anybody waits and the lock is held, a request is in flight or the timer runs. The timer never
    runs while nobody waits. The scope is not kept: it wakes those who wait when the lock is lost or released, and they
    find out why.
    """

    __slots__ = ("_backoff", "_counters", "_fencing", "_lease", "_link", "_manager", "_timer", "_waiting", "error")

    def __init__(self, manager: LockManager, lease: Lease) -> None:
        """:param lease: that of the scope, which is held"""
        rules, name = lease.room.rules, lease.room.name.encode()
        prefix = manager.options.key_prefix.encode()
        self._manager = manager
        self._lease = lease
        self._link = lease.scope_ref  # another scope may get the lease later
        self._fencing = Fencing(rules.keys, rules.majority)
        self._counters = [counter_of(unbulk(key), prefix, index, name) for index, key in enumerate(lease.room.keys)]
        self._waiting: set[asyncio.Future[None]] = set()
        self._timer = Timer()
        self._backoff = Backoff(FIRST_PAUSE, MAX_PAUSE)
        self.error: ServerError | None = None  #: why there will be no token

    @property
    def number(self) -> int | None:
        """The token, once it is there."""
        return self._fencing.number

    def wait(self) -> asyncio.Future[None]:
        """A future that is done when ``number`` or ``error`` is set. Whoever waits for it may cancel it, and set it
        when the lock is no longer the scope's."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        future.add_done_callback(self._left)
        if not self._timer.running:
            self._ask()
        return future

    def _left(self, future: asyncio.Future[None]) -> None:
        self._waiting.discard(future)
        if not self._waiting:
            self._timer.stop()

    def _held(self) -> bool:
        """Is the lock still held, by the scope that this is for? The deadline does not matter: until the room has
        judged, an answer that comes late may move it. Whoever waits looks at it in the end."""
        lease = self._lease
        return not lease.done and lease.scope_ref is self._link

    def _ask(self) -> None:
        """Ask every counter that is due."""
        if not self._held():
            return  # whoever waits is told by the scope
        lease, topology, floor = self._lease, self._manager.topology, self._fencing.floor
        for index in self._fencing.due():
            node = topology.home(lease.room, index)
            if node is None:  # its slot has no owner now
                self._fencing.failed(index, floor, None)
            else:
                node.count(lease, index, self._counters[index], floor, partial(self._answered, index, floor))
        self._ask_again_later()

    def _answered(self, index: int, floor: int, value: int, error: ServerError | None) -> None:
        fencing, lease = self._fencing, self._lease
        if fencing.number is not None or self.error is not None:
            return  # late
        anew = False
        if error is not None:
            fencing.failed(index, floor, error if error.lasting else None)
            if fencing.error is not None:
                self.error = error
        else:
            anew = fencing.answered(index, floor, value)
            if value == NOT_OURS and self._held():
                lease.room.invalidated(index, self._manager.clock())  # the room reads the key, and judges
        if fencing.number is not None or self.error is not None:
            for future in self._waiting:
                if not future.done():
                    future.set_result(None)
        elif anew:
            self._ask()
        else:
            self._ask_again_later()

    def _ask_again_later(self) -> None:
        if self._waiting and not self._timer.running and self._fencing.any_due and self._held():
            self._timer.start(self._backoff.next(), self._ask)
