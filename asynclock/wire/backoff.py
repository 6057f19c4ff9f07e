"""Pauses between attempts: exponential backoff with jitter."""

from __future__ import annotations

import random


class Backoff:
    """Each pause is twice as long as the one before, from ``first`` to ``longest`` seconds.

    Up to half of each is taken off at random, so that clients that failed together do not retry together.
    """

    __slots__ = ("_first", "_longest", "_pause")

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._pause = 0.0  # the last one, before its random part was taken off

    def next(self) -> float:
        """Seconds to wait before the next attempt."""
        self._pause = min(max(self._first, 2 * self._pause), self._longest)
        return self._pause * (0.5 + random.random() / 2)

    def reset(self) -> None:
        """An attempt has succeeded: the next pause is ``first`` again."""
        self._pause = 0.0
