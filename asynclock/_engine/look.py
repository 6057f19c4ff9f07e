"""Look: when the slots of a semaphore may be free, read from all servers at once."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from ..core.rules import NEVER
from ..errors import ServerError

if TYPE_CHECKING:
    from .manager import LockManager
    from .permits import Permits

NO_KEY = -2  # the answer to PTTL


class Look:
    """One request on each server, for one key of every slot. Tells ``Permits.look_ended``, in another turn of the loop.

    It ends when all servers have answered, or are known not to; or, ``try_next_after`` seconds after it began, as soon
    as a majority has (``_late``).
    """

    __slots__ = ("_answers", "_ended", "_late", "_manager", "_markers", "_permits", "_sent", "_slots", "_timer")

    def __init__(self, manager: LockManager, permits: Permits, slots: list[int], now: float, *, marks: bool) -> None:
        """:param marks: write how many permits there are"""
        self._manager = manager
        self._permits = permits
        self._slots = slots
        self._sent = now
        self._answers: dict[int, list[float] | None] = {}  # by index: when each key may be free; None: no answer
        self._markers: list[bytes | None] = []
        self._late = self._ended = False
        loop, rules = asyncio.get_running_loop(), manager.rules
        self._timer = loop.call_later(rules.try_next_after, self._patience_is_over)
        name = permits.name.encode()
        room, number = permits.room(slots[0]), b"%d" % permits.permits if marks else b""
        numbers = [b"%d" % slot for slot in slots]
        for index, make in enumerate(manager.slots.of(name)):
            node = manager.topology.home(room, index)
            if node is None:
                self._later(index, [], None, ServerError("", "no node serves the key's slot now"))
                continue
            node.times(room, index, [make(slot) for slot in numbers], make(b"n"), number, partial(self._later, index))

    def _later(self, index: int, ttls: list[int | None], marker: bytes | None, error: ServerError | None) -> None:
        """The board must not be called back while it begins a look, or while a server's replies are being parsed."""
        asyncio.get_running_loop().call_soon(self._answered, index, ttls, marker, error)

    def _answered(self, index: int, ttls: list[int | None], marker: bytes | None, error: ServerError | None) -> None:
        now, validity = self._manager.clock(), self._manager.rules.validity
        if error is not None:
            self._answers[index] = None
        else:
            self._markers.append(marker)
            self._answers[index] = [
                NEVER
                if ttl is None
                else 0.0
                if ttl == NO_KEY
                else now + validity
                if ttl < 0
                else self._sent + (ttl + 1) / 1000  # a server counts a key as expired one millisecond after
                for ttl in ttls
            ]
        self._end_if_clear()

    def _patience_is_over(self) -> None:
        self._late = True
        self._end_if_clear()

    def _end_if_clear(self) -> None:
        rules = self._manager.rules
        answers = [answer for answer in self._answers.values() if answer is not None]
        complete = len(self._answers) == rules.keys
        if self._ended or not (complete or (self._late and len(answers) >= rules.majority)):
            return
        self._ended = True
        self._timer.cancel()
        found: dict[int, float] | None = None
        if len(answers) >= rules.majority:
            found = {}
            for place, slot in enumerate(self._slots):
                # It may be free as soon as a majority of its keys may be.
                free = sorted(answer[place] for answer in answers)[rules.majority - 1]
                if free < NEVER:
                    found[slot] = free
        self._permits.look_ended(found, self._markers, self._manager.clock())
