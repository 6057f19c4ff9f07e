"""Several names for one scope: which are requested next, and which are given back first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Step(NamedTuple):
    """What to do next. Names are given by their places in the agreed order."""

    give_back: list[int]  #: release these first
    request: list[int]  #: then request these, all at once
    wait: bool  #: wait until the requested one is ours (there is only one then); else make one attempt for each


class Several:
    """All or none of several names, without deadlock.

    Everybody who acquires several names waits for them in the same order (``agreed_order``), and whoever waits for a
    name holds none that comes after it. So nobody waits in a circle: one of those in it would wait for a name that
    comes before one that it holds (Havender, 1968). To make one attempt for every missing name at once is no waiting,
    whatever is held.

    If all names are free, they are acquired in one round trip. If not, this waits for the first that is missing, and
    then tries the rest at once again.
    """

    __slots__ = ("_tried",)

    def __init__(self) -> None:
        self._tried = False  # was the last step an attempt for several at once?

    def step(self, held: Sequence[bool], busy: Callable[[int], bool]) -> Step:
        """The next step, as long as a name is missing.

        :param held: for each name, whether it is held now
        :param busy: would one attempt for that name be in vain, or not let others go first?
        """
        missing = [place for place, has in enumerate(held) if not has]
        if not self._tried:
            free = missing
            for number, place in enumerate(missing):
                if busy(place):  # what comes after it would have to be given back
                    free = missing[:number]
                    break
            if len(free) > 1:
                self._tried = True
                return Step([], free, False)
        self._tried = False
        first = missing[0]
        return Step([place for place in range(first + 1, len(held)) if held[place]], [first], True)


def agreed_order(names: Sequence[str]) -> list[str]:
    """The order in which everybody waits for these names: that of their bytes in UTF-8."""
    return sorted(names)  # which is that of their code points
