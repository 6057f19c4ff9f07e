"""Search: the way of one task to a permit."""

from __future__ import annotations

from typing import Any

from .permits import Board

MAX_TRIES = 8  # attempts of a task that does not wait, for slots that were free a moment ago
MAX_LOOKS = 2 * MAX_TRIES  # that such a task waits for: two for each attempt, as one may be under way already


class Search:
    """Decides what a task that wants a permit does next. Call ``attempt``. If it names a slot, try that, call
    ``attempted``, and ``failed`` if it fails. If it names none, a task that waits queues, and another one calls
    ``look``: True means, wait for the end of the look and begin again; False, there is no permit.

    A task that waits makes one attempt of its own. Another one gives up when a look that began after its last attempt
    (or after its start) has ended, and no slot is believed free.
    """

    __slots__ = ("_board", "_looks", "_since", "_tries", "_waits")

    def __init__(self, board: Board[Any], waits: bool, now: float) -> None:
        """:param waits: does the task wait until a permit is free?"""
        self._board = board
        self._waits = waits
        self._tries = 0  # attempts of its own that have failed
        self._looks = 0
        self._since = now  # the start, or the last attempt: a look that began before does not count

    def attempt(self, now: float) -> int | None:
        """A slot for which the task makes an attempt of its own now. Call ``attempted`` after that."""
        if self._tries >= (1 if self._waits else MAX_TRIES):
            return None
        slot = self._board.pick(self._waits)
        if slot is not None:
            self._since = now
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
        if board.last_look >= self._since or not board.needs_look:
            return False
        self._looks += 1
        if not board.looking:
            board.look(now)
        return True

    def failed(self, refused: bool) -> bool:
        """An attempt of its own has failed. Does the task go on? One that waits does: in the queue it turns out whether
        servers fail it for good.

        :param refused: somebody else has the slot, or took it right after
        """
        self._tries += 1
        return self._waits or refused
