"""The board: what the workers do, by their own account."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Entry:
    who: str
    why: str = ""  # of a trouble
    at: float = field(default_factory=time.monotonic)

    def as_json(self) -> dict[str, Any]:
        """For the browser, which has another clock: how many seconds ago, instead of when."""
        return {"who": self.who, "why": self.why, "ago": time.monotonic() - self.at}


@dataclass
class Lock:
    name: str
    holder: Entry | None = None
    waiting: list[Entry] = field(default_factory=list)  # longest first
    trouble: Entry | None = None  # the last one

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "holder": self.holder and self.holder.as_json(),
            "waiting": [entry.as_json() for entry in self.waiting],
            "trouble": self.trouble and self.trouble.as_json(),
        }


class Board:
    """Workers tell it what they do; browsers watch it."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self._locks = {name: Lock(name) for name in self.names}
        self._watchers = 0
        self._closed = False
        self._changed = asyncio.Event()  # a new one for each change

    # For workers

    def waits(self, name: str, who: str) -> None:
        self._locks[name].waiting.append(Entry(who))
        self._change()

    def holds(self, name: str, who: str) -> None:
        lock = self._locks[name]
        lock.waiting = [entry for entry in lock.waiting if entry.who != who]
        lock.holder = Entry(who)
        self._change()

    def leaves(self, name: str, who: str) -> None:
        """The worker no longer holds the lock or waits for it."""
        lock = self._locks[name]
        lock.waiting = [entry for entry in lock.waiting if entry.who != who]
        if lock.holder and lock.holder.who == who:  # else a thief holds it already
            lock.holder = None
        self._change()

    def has_trouble(self, name: str, who: str, why: str) -> None:
        self._locks[name].trouble = Entry(who, why)
        self._change()

    # For browsers

    async def watch(self) -> AsyncIterator[dict[str, Any]]:
        """The board as it is now, and again whenever it has changed, until it is closed.

        Nothing is queued for a slow browser: the next that it gets is the board as it is then.
        """
        self._watchers += 1
        self._change()
        try:
            while not self._closed:
                changed = self._changed
                yield {"watchers": self._watchers, "locks": [lock.as_json() for lock in self._locks.values()]}
                await changed.wait()
        finally:
            self._watchers -= 1
            self._change()

    def close(self) -> None:
        self._closed = True
        self._change()

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
