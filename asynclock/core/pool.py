"""Pool: a set of small numbers from which a random one can be drawn."""

from __future__ import annotations

from array import array
from collections.abc import Iterator


class Pool:
    """Numbers from 0 to ``size - 1``, at first all of them. To add, remove or draw one takes the same short time."""

    __slots__ = ("_members", "_places", "count")

    def __init__(self, size: int) -> None:
        # The members are the first ``count`` of ``_members``; ``_places[n]`` is where n is in there.
        self.count = size
        self._members = array("H", range(size))
        self._places = array("H", range(size))

    def __iter__(self) -> Iterator[int]:
        return iter(self._members[: self.count])

    def __contains__(self, number: int) -> bool:
        return self._places[number] < self.count

    def at(self, place: int) -> int:
        return self._members[place]

    def add(self, number: int) -> None:
        if self._places[number] >= self.count:
            self._swap(number, self.count)
            self.count += 1

    def remove(self, number: int) -> None:
        if self._places[number] < self.count:
            self.count -= 1
            self._swap(number, self.count)

    def _swap(self, number: int, place: int) -> None:
        members, places = self._members, self._places
        here, other = places[number], members[place]
        members[place], members[here] = number, other
        places[number], places[other] = place, here
