"""LateExtensions: finds held locks that were not extended in time, before they are lost."""

from __future__ import annotations

from collections.abc import Callable

from ..core.rules import Rules
from ..wire.background import Ticker
from .rooms import Rooms
from .scope_link import ScopeLink

LOOKS = 4  # in ``Rules.reserve``, the time between an extension and the end of the lock if it fails


class LateExtensions:
    """Looks for them from ``start`` to ``stop``: while somebody is told of them.

    Invariant: ``_ticker`` is set between ``start`` and ``stop``.
    """

    __slots__ = ("_clock", "_rooms", "_rules", "_ticker")

    def __init__(self, rooms: Rooms, rules: Rules, clock: Callable[[], float]) -> None:
        self._rooms = rooms
        self._rules = rules
        self._clock = clock
        self._ticker: Ticker | None = None

    def start(self) -> None:
        if self._ticker is None:
            every = self._rules.reserve / LOOKS
            self._ticker = Ticker("looking for extensions that fail", self._look, every)

    def stop(self) -> None:
        if self._ticker is not None:
            self._ticker.stop()
            self._ticker = None

    def _look(self) -> None:
        now = self._clock()
        for room in self._rooms.values():
            lease = room.holder
            if lease is not None and lease.extension_is_late(now):
                link: ScopeLink | None = lease.scope_ref
                if link is not None:
                    link.extension_late(lease.deadline - now)
