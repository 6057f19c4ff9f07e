"""OtherLayout: warns if somebody locks the same names with the other layout of keys (``spread_keys``)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from ..core.keys import Layout
from ..core.room import Room
from ..messages import about
from ..wire.background import Ticker
from .reading import Reading
from .rooms import Rooms, slot_and_name
from .waiter import Waiter

log = logging.getLogger("asynclock")

FIRST_LOOK = 1.0  # seconds until a locker looks for the first time whether it uses any name
LOOK_AGAIN = 10.0  # seconds between two looks at one of the names that it uses
AT_MOST_EVERY = 1.0  # seconds between two looks on behalf of those who ask who holds a lock
WARN_AGAIN = 60.0  # seconds between two warnings


class OtherLayout:
    """Keys of the other layout, which exclude nobody who has this one.

    An acquisition never reads the keys that its name has in the other layout, so something else has to. A locker with
    ``spread_keys`` looks by itself, every few seconds, at one of its names; a mixed fleet always has such a locker. One
    without looks only when somebody asks who holds a lock. Both notice such keys in a search for names. No acquisition
    waits for any of this.

    State: ``_looked`` and ``_warned`` are the times of the last look on behalf of somebody, and of the last warning.
    """

    def __init__(
        self,
        layout: Layout,
        rooms: Rooms,
        make: Callable[[str, Layout], Room[Waiter]],
        read: Callable[[Room[Waiter]], Reading],
        clock: Callable[[], float],
        chance: Callable[[], float],
        *,
        spread: bool,
    ) -> None:
        """
        :param layout: the other one
        :param make: makes a room of that name and layout
        :param read: begins to read who holds the lock of a room
        :param spread: does this locker have ``spread_keys``?
        """
        self._layout = layout
        self._rooms = rooms
        self._make = make
        self._read = read
        self._clock = clock
        self._chance = chance
        self._spread = spread
        self._looked = self._warned = float("-inf")
        self._ticker = Ticker("looking for another layout of keys", self._tick, FIRST_LOOK) if spread else None

    def close(self) -> None:
        if self._ticker is not None:
            self._ticker.stop()

    def _tick(self) -> float | None:
        names = _locks(self._rooms.busy()) or _locks(self._rooms)
        if not names:
            return None
        self._begin(names[int(self._chance() * len(names))])
        return LOOK_AGAIN

    def look(self, name: str) -> Reading | None:
        """Somebody asks who holds that lock: begin to look, unless that was done a moment ago."""
        now = self._clock()
        if now - self._looked < AT_MOST_EVERY:
            return None
        self._looked = now
        return self._begin(name)

    def _begin(self, name: str) -> Reading:
        # In no ``Rooms``: nobody acquires by it. It only says where the keys are.
        reading = self._read(self._make(name, self._layout))

        def warn() -> None:
            if reading.holder is not None:
                self._warn(name, f"held by {reading.holder}")

        reading.when_complete(warn)
        return reading

    def met(self, key: bytes) -> None:
        """A search for names has come across that key, which is not of this locker's layout."""
        parsed = self._layout.parsed(key)
        if parsed is not None and parsed[1]:
            self._warn(parsed[1].decode(errors="replace"), f"key {key.decode(errors='replace')!r}")

    def _warn(self, name: str, how: str) -> None:
        now = self._clock()
        if now - self._warned >= WARN_AGAIN:
            self._warned = now
            log.warning(
                "asynclock: lock %r is used with another layout of keys, too (%s): whoever does so and this locker, "
                "which has spread_keys=%s, do not exclude each other; give all the same spread_keys",
                name,
                how,
                self._spread,
                extra=about("mixed_layouts", lock=name, spread_keys=self._spread),
            )


def _locks(rooms: Iterable[str]) -> list[str]:
    """Those that are not of a semaphore's slots."""
    return [name for name in rooms if slot_and_name(name) is None]
