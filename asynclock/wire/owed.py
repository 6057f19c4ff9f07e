"""Keys that are still to be released on a server that was away, or refused to release them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from itertools import islice

FIRST_PAUSE = 0.02  # seconds after a refusal until it is tried again; then twice as long, up to
MAX_PAUSE = 0.5
BATCH = 100  # releases that are tried at once after a refusal: not thousands, on a server that refuses them all


class OwedReleases:
    """Keys that are to be released on one server as soon as that can be done.

    Invariant: a key that may still hold the token of a lease that is over is in ``_until``, or its release is under
    way, or it was refused for longer than the key lives. While some are in ``_until`` and the server is connected,
    ``_timer`` is set or a release is under way, whose answer comes back here; while it is not, ``send_all`` follows.
    """

    def __init__(
        self, clock: Callable[[], float], validity: float, send: Callable[[bytes, bytes, float], bool]
    ) -> None:
        """:param send: send the release of that key and token, which is worth it until then; False: not connected"""
        self._clock = clock
        self._validity = validity
        self._send = send
        self._until: dict[tuple[bytes, bytes], float] = {}  # (key, token) -> when the key has expired
        self._pause = 0.0  # before the next try; 0: nothing was refused of late
        self._timer: asyncio.TimerHandle | None = None
        self._under_way = 0  # releases that were sent, and are not answered
        self._waiting: asyncio.Future[None] | None = None  # until nothing is owed
        self._closed = False

    def owe(self, key: bytes, token: bytes, until: float | None = None) -> None:
        """The server is away: release ``key`` once it is back. However late: what it was sent before it hung, it may
        have done after that. ``until``: its release was under way, and the key has expired then."""
        self._under_way -= until is not None
        if not self._closed:
            self._until.setdefault((key, token), self._clock() + self._validity if until is None else until)

    def refused(self, key: bytes, token: bytes, until: float | None = None) -> None:
        """The server is there, and has answered with an error. Most pass (``NOREPLICAS``, ``READONLY``, ...),
        and whether one does only the next try shows."""
        if self._closed or (until is not None and until <= self._clock()):
            self._under_way -= until is not None
            self._told()
            return
        self.owe(key, token, until)
        if self._timer is None:
            self._pause = min(max(FIRST_PAUSE, 2 * self._pause), MAX_PAUSE)
            self._again(self._pause * (0.5 + random.random() / 2))

    def accepted(self) -> None:
        """The server has done what was owed: it will do the rest."""
        self._under_way -= 1
        self._told()
        self._pause = 0.0
        if self._until and not self._closed:
            if self._timer is not None:
                self._timer.cancel()
            self._again(0.0)

    def passed_on(self, other: OwedReleases) -> None:
        """What was under way is another node's now."""
        self._under_way -= 1
        other._under_way += 1
        self._told()

    def send_all(self) -> None:
        """The server is back."""
        self._stop()
        self._pause = 0.0
        self._try(len(self._until))

    async def wait_empty(self, seconds: float) -> None:
        """Wait until nothing is owed, for so many seconds at most."""
        if self._until or self._under_way > 0:
            self._waiting = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._waiting], timeout=seconds)

    def _told(self) -> None:
        if self._waiting is not None and not self._waiting.done() and not self._until and self._under_way <= 0:
            self._waiting.set_result(None)

    def take(self) -> list[tuple[bytes, bytes]]:
        """The (key, token) pairs that are still to be released; they are the caller's from now on."""
        self._stop()
        owed, self._until = self._until, {}
        return list(owed)

    def close(self) -> None:
        """Release nothing more: what is left dies by its time to live."""
        self._closed = True
        self._stop()
        self._until.clear()
        self._send = lambda key, token, until: False  # no cycle with its owner

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _again(self, pause: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(pause, self._try, BATCH)

    def _try(self, most: int) -> None:
        self._timer = None
        for (key, token), until in list(islice(self._until.items(), most)):
            if not self._send(key, token, until):
                return  # not connected: ``send_all`` follows
            del self._until[key, token]
            self._under_way += 1
