"""Queue: who waits for a name, first come, first served."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

W = TypeVar("W")


class Queue(Generic[W]):
    """Mostly nobody waits, or one who gets the lock at once: so the first is kept apart, which costs next to nothing.

    Invariant: while ``first`` is None, nobody waits.
    """

    __slots__ = ("_others", "first")

    def __init__(self) -> None:
        self.first: W | None = None
        self._others: OrderedDict[W, None] | None = None  # behind the first; None: there has never been one

    def add(self, waiter: W) -> None:
        """The last one from now on."""
        if self.first is None:
            self.first = waiter
            return
        if self._others is None:
            self._others = OrderedDict()
        self._others[waiter] = None

    def pop(self) -> W:
        """Remove the first, and return it."""
        first = self.first
        assert first is not None
        self.first = self._others.popitem(last=False)[0] if self._others else None
        return first

    def remove(self, waiter: W) -> None:
        """It waits no longer."""
        if waiter is self.first:
            self.pop()
        else:
            assert self._others is not None
            del self._others[waiter]

    def clear(self) -> list[W]:
        """Remove all, and return them."""
        waiters = list(self)
        self.first = self._others = None
        return waiters

    def __contains__(self, waiter: object) -> bool:
        return waiter is not None and (waiter is self.first or (self._others is not None and waiter in self._others))

    def __iter__(self) -> Iterator[W]:
        waiters = [] if self.first is None else [self.first]
        return iter([*waiters, *(self._others or ())])

    def __len__(self) -> int:
        others = self._others  # once: other threads ask, too
        return (self.first is not None) + (0 if others is None else len(others))
