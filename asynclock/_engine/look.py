"""Look: reads when the slots of a semaphore may be free, from all servers at once."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from ..core.findings import Findings
from ..errors import ServerError

if TYPE_CHECKING:
    from .manager import LockManager
    from .permits import Permits


class Look:
    """One request on each server. Tells ``Permits`` what it has found, in another turn of the loop, once."""

    __slots__ = ("_ended", "_errors", "_findings", "_manager", "_markers", "_permits", "_timer")

    def __init__(self, manager: LockManager, permits: Permits, slots: list[int], now: float, *, marks: bool) -> None:
        """:param marks: write how many permits there are"""
        self._manager = manager
        self._permits = permits
        self._findings = Findings(slots, manager.rules, now)
        self._markers: list[bytes | None] = []  # what the servers say of how many permits there are
        self._errors: list[ServerError] = []
        self._ended = False
        self._timer = asyncio.get_running_loop().call_later(manager.rules.try_next_after, self._patience_is_over)
        room, number = permits.room(slots[0]), b"%d" % permits.permits if marks else b""
        numbers = [b"%d" % slot for slot in slots]
        for index, key_of in enumerate(manager.slots.of(permits.name.encode())):
            node = manager.topology.home(room, index)
            if node is None:
                self._later(index, [], None, ServerError("", "no node serves the key's slot now"))
            else:
                keys = [key_of(slot) for slot in numbers]
                node.times(room, index, keys, key_of(b"n"), number, partial(self._later, index))

    def _later(self, index: int, ttls: list[int | None], marker: bytes | None, error: ServerError | None) -> None:
        """The board must not be called back while it begins a look, or while a server's replies are being parsed."""
        asyncio.get_running_loop().call_soon(self._answered, index, ttls, marker, error)

    def _answered(self, index: int, ttls: list[int | None], marker: bytes | None, error: ServerError | None) -> None:
        if error is not None:
            self._findings.failed(index, error.lasting)
            self._errors.append(error)
        else:
            self._markers.append(marker)
            self._findings.answered(index, ttls, self._manager.clock())
        self._end_if_complete()

    def cancel(self) -> None:
        """Nobody wants to know any more."""
        self._ended = True
        self._timer.cancel()

    def _patience_is_over(self) -> None:
        self._findings.late = True
        self._end_if_complete()

    def _end_if_complete(self) -> None:
        if not self._ended and self._findings.complete:
            self._ended = True
            self._timer.cancel()
            found, hopeless = self._findings.found(), self._findings.hopeless
            if found is not None:
                self._permits.look_ended(found, self._markers)
            else:
                self._permits.look_failed(next(error for error in self._errors if error.lasting is hopeless))
