"""Findings: what a look at the slots of a semaphore has found, from the servers of all its keys."""

from __future__ import annotations

from collections.abc import Sequence

from .operation import NO_KEY
from .rules import NEVER, Rules


class Findings:
    """The answers to one look: each server says how long the keys of one index still live, one key for each slot.

    Invariant: each index is in ``_answers`` once its server has answered, or is known not to: then with None.
    """

    __slots__ = ("_answers", "_lasting", "_rules", "_sent", "_slots", "late")

    def __init__(self, slots: Sequence[int], rules: Rules, sent: float) -> None:
        """:param sent: when the requests were"""
        self._slots = slots
        self._rules = rules
        self._sent = sent
        self._answers: dict[int, list[float] | None] = {}  # when each key may be free
        self._lasting = 0  # servers that will not answer the next time, either
        self.late = False  #: ``Rules.try_next_after`` is over: a majority is enough now

    def answered(self, index: int, ttls: Sequence[int | None], now: float) -> None:
        """:param ttls: milliseconds, as PTTL says it; None: not known"""
        self._answers[index] = [self._free_at(ttl, now) for ttl in ttls]

    def _free_at(self, ttl: int | None, now: float) -> float:
        if ttl is None:
            return NEVER
        if ttl == NO_KEY:
            return 0.0
        if ttl < 0:  # it never expires, so it is somebody else's
            return now + self._rules.validity
        return self._sent + (ttl + 1) / 1000  # a server counts a key as expired one millisecond after

    def failed(self, index: int, lasting: bool) -> None:
        """That server will not answer.

        :param lasting: retrying cannot help
        """
        self._answers[index] = None
        self._lasting += lasting

    @property
    def hopeless(self) -> bool:
        """Is no majority left that may answer another time?"""
        return self._lasting > self._rules.keys - self._rules.majority

    @property
    def complete(self) -> bool:
        """Is there nothing more to wait for?"""
        known = sum(answer is not None for answer in self._answers.values())
        return len(self._answers) == self._rules.keys or (self.late and known >= self._rules.majority)

    def found(self) -> dict[int, float] | None:
        """When each slot may be free: as soon as a majority of its keys may be. Without those of which that is not
        known. None: too few servers have answered."""
        majority = self._rules.majority
        answers = [answer for answer in self._answers.values() if answer is not None]
        if len(answers) < majority:
            return None
        free = {
            slot: sorted(answer[place] for answer in answers)[majority - 1] for place, slot in enumerate(self._slots)
        }
        return {slot: when for slot, when in free.items() if when < NEVER}
