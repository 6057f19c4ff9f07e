"""Search: the way of one task to a permit."""

from __future__ import annotations

from typing import Any

from .permits import Board

MAX_TRIES = 8  # attempts of a task that does not wait, for slots that were free a moment ago
MAX_LOOKS = 2 * MAX_TRIES  # that it waits for: two for each attempt, if one was under way already


class Search:
    """What a task does next that wants a permit. Ask ``attempt``, then ``look``; if there is neither, it queues if it
    waits, and has found none otherwise.

    A task that waits makes one attempt of its own. One that does not wait goes on while slots are believed free, and
    gives up once a look that began after it had asked has found none.
    """

    __slots__ = ("_asked", "_board", "_looks", "_tries", "_waits")

    def __init__(self, board: Board[Any], waits: bool, now: float) -> None:
        """:param waits: does the task wait until a permit is free?"""
        self._board = board
        self._waits = waits
        self._tries = 0  # attempts of its own that have failed
        self._looks = 0
        self._asked = now  # a look that began before that does not count

    def attempt(self, now: float) -> int | None:
        """A slot for which the task makes an attempt of its own now. Call ``attempted`` after that."""
        if self._tries >= (1 if self._waits else MAX_TRIES):
            return None
        slot = self._board.pick(self._waits)
        if slot is not None:
            self._asked = now
        return slot

    def attempted(self, now: float) -> None:
        """The request for that slot has been sent. The first time, all slots are looked at beside it."""
        if not self._board.looked_at_all:
            self._board.look(now)

    def look(self, now: float) -> bool:
        """Whether a look is under way whose end the task waits for. Begins one if there is none."""
        board = self._board
        if self._waits or self._tries >= MAX_TRIES or self._looks >= MAX_LOOKS:
            return False
        if board.known_since >= self._asked or not board.needs_look:
            return False
        self._looks += 1
        if not board.looking:
            board.look(now)
        return True

    def failed(self, refused: bool) -> bool:
        """An attempt of its own has failed. Is there something else to be done?

        :param refused: somebody else has the slot; otherwise the servers failed it. In the queue, it turns out whether
            they do so for good
        """
        self._tries += 1
        return self._waits or refused
