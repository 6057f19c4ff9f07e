"""Fencing tokens: how a holder gets its number from a majority of the servers."""

from __future__ import annotations

NOT_OURS = 0  # the answer of a counter whose key does not hold the token of the lease: it was not changed
MAX_NUMBER = (1 << 53) - 1  # a number that JSON and Lua can hold


class Fencing:
    """One holder's request for a fencing token, without I/O.

    Beside each key of a name there is a counter, on the same server. A request to a counter changes it only if the key
    holds the token of the lease, and does both in one step. With ``floor`` 0 it gives out a new number: more than the
    last one, and at least the server's clock in microseconds. With a ``floor`` it raises the counter to that, if it is
    lower. The answer is the value of the counter.

    1. Every counter is asked for a new number. The highest number of a majority of answers becomes ``floor``.
    2. Every counter that is lower is raised to ``floor``. Once a majority is known to have reached it, that is
       ``number``. (The counter that has given it out has. So with one key, one answer is enough.)

    Why a later holder gets a greater number (Attiya, Bar-Noy, Dolev): its majority has a server in common with the
    majority that had reached the number of the earlier holder. There, the earlier holder's request came first: the key
    had its token before it had the other's. (After a hand-off both have one token, but the earlier number was there
    before the later holder asks.) So that counter gives out more.

    State: a bit of ``_asked`` is set while a request for the current ``floor`` is in flight, a bit of ``_good`` once
    its answer is there. Answers to older requests only count if they are high enough.
    """

    __slots__ = ("_answers", "_asked", "_errors", "_good", "_keys", "_majority", "floor")

    def __init__(self, keys: int, majority: int) -> None:
        self._keys = keys
        self._majority = majority
        self._answers: dict[int, int] = {}  # the new numbers
        self._errors: dict[int, Exception] = {}  # of servers whose last answer was a refusal that is to last
        self._asked = 0
        self._good = 0
        self.floor = 0  #: what the next requests say

    def due(self) -> list[int]:
        """The keys whose counters are to be asked. They count as asked, until ``answered`` or ``failed``."""
        done = self._asked | self._good
        indexes = [index for index in range(self._keys) if not done >> index & 1]
        for index in indexes:
            self._asked |= 1 << index
        return indexes

    def answered(self, index: int, floor: int, value: int) -> bool:
        """The answer to a request. True: all others are to be asked anew, for a higher ``floor``."""
        self._no_longer_asked(index, floor)
        self._errors.pop(index, None)
        if value == NOT_OURS:
            return False
        if self.floor:
            if value >= self.floor:
                self._good |= 1 << index
            return False
        self._good |= 1 << index
        self._answers[index] = value
        if len(self._answers) < self._majority:
            return False
        self.floor = highest = max(self._answers.values())
        self._asked = self._good = 0
        for each, answer in self._answers.items():
            if answer == highest:
                self._good |= 1 << each
        return True

    def failed(self, index: int, floor: int, lasting: Exception | None) -> None:
        """No answer to a request will come.

        :param lasting: why another try will hardly help; None: it may
        """
        self._no_longer_asked(index, floor)
        if lasting is not None:
            self._errors[index] = lasting
        else:
            self._errors.pop(index, None)

    def _no_longer_asked(self, index: int, floor: int) -> None:
        if floor == self.floor:
            self._asked &= ~(1 << index)

    @property
    def number(self) -> int | None:
        """The token; None: too few counters are known to have reached it."""
        return self.floor if self.floor and self._good.bit_count() >= self._majority else None

    @property
    def error(self) -> Exception | None:
        """Why there will be no token, if so many servers refuse that no majority is left. As long as there is one,
        those are asked again too: the others may stay away, and a permission may be granted."""
        if len(self._errors) <= self._keys - self._majority:
            return None
        return next(iter(self._errors.values()))

    @property
    def any_due(self) -> bool:
        """Would ``due`` return any?"""
        return (self._asked | self._good).bit_count() < self._keys
