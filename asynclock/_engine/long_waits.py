"""LongWaits: warns when tasks wait long for a lock."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ..core.room import Room
from ..messages import about
from ..wire.background import Ticker
from .reading import Reading
from .rooms import Rooms, slot_and_name
from .semaphores import Semaphores

log = logging.getLogger("asynclock")

LOOKS = 4  # in ``warn_after``: so a warning comes at most a quarter of that late


class LongWaits:
    """Logs a warning for each lock and each semaphore that a task has waited for ``warn_after`` seconds or longer, and
    another one after each further ``warn_after`` seconds.

    State: ``_warned`` has the time of the last warning for each lock that tasks have waited for ever since;
    ``_warned_of`` the same for semaphores.
    """

    __slots__ = (
        "_clock",
        "_read",
        "_rooms",
        "_semaphores",
        "_ticker",
        "_warn_after",
        "_warned",
        "_warned_of",
        "_where",
    )

    def __init__(
        self,
        rooms: Rooms,
        semaphores: Semaphores,
        clock: Callable[[], float],
        warn_after: float | None,
        where: Callable[[], str],
        read: Callable[[Room[Any]], Reading],
    ) -> None:
        """
        :param warn_after: seconds; None: never
        :param read: begins to read who holds the lock of a room
        """
        self._rooms = rooms
        self._semaphores = semaphores
        self._clock = clock
        self._where = where
        self._read = read
        self._warned: dict[str, float] = {}
        self._warned_of: dict[str, float] = {}
        self._ticker: Ticker | None = None
        if warn_after is not None:
            self._warn_after = warn_after
            self._ticker = Ticker("looking for tasks that wait for long", self._look, warn_after / LOOKS)

    def close(self) -> None:
        if self._ticker is not None:
            self._ticker.stop()

    def _look(self) -> None:
        now = self._clock()
        self._warned = {name: when for name, when in self._warned.items() if self._waits(name)}
        for name, room in self._rooms.items():
            if room.queue.first is not None and slot_and_name(name) is None:
                since = room.queue.first.since
                if now - max(since, self._warned.get(name, since)) >= self._warn_after:
                    self._warned[name] = now
                    self._warn_with_holder(room, now - since)
        waited_for = {permits.name: permits for permits in self._semaphores if permits.waiting}
        self._warned_of = {name: when for name, when in self._warned_of.items() if name in waited_for}
        for name, permits in waited_for.items():
            since = next(iter(permits.waiting)).since
            if now - max(since, self._warned_of.get(name, since)) >= self._warn_after:
                self._warned_of[name] = now
                log.warning(
                    "asynclock: semaphore %r on %s: a task has waited for a permit for %.1f s (%d wait here); "
                    "there are %d permits",
                    name,
                    self._where(),
                    now - since,
                    len(permits.waiting),
                    permits.permits,
                    extra=about(
                        "long_wait_for_permit",
                        semaphore=name,
                        waited=now - since,
                        tasks=len(permits.waiting),
                        permits=permits.permits,
                    ),
                )

    def _waits(self, name: str) -> bool:
        room = self._rooms.get(name)
        return room is not None and bool(room.queue)

    def _warn_with_holder(self, room: Room[Any], waited: float) -> None:
        reading = self._read(room)
        tasks = len(room.queue)

        def warn() -> None:
            if not self._waits(room.name):
                return  # no more: they have the lock, gave up, or the locker closes
            holder = reading.holder
            if holder is not None:
                who = f"held by {holder}"
            else:
                who = "nobody holds it now" if reading.known else "it is not known who holds it"
            log.warning(
                "asynclock: lock %r on %s: a task has waited for it for %.1f s (%d wait here); %s",
                room.name,
                self._where(),
                waited,
                tasks,
                who,
                extra=about("long_wait", lock=room.name, waited=waited, tasks=tasks, holder=holder),
            )

        reading.when_complete(warn)
