"""Releases that we still owe a server: it was away when they were due, or refused them.

(Who waits for the answers to releases is another matter: ``_engine/pending_releases.py``.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice

from .backoff import Backoff

FIRST_PAUSE = 0.02  # seconds after a refusal until the release is tried again; then twice as long, up to
MAX_PAUSE = 0.5
BATCH = 100  # releases that are tried at once after a refusal: not thousands, on a server that refuses them all
PATIENCE = 1.0  # seconds for which closing waits for them


class OwedReleases:
    """Keys to be released on one server as soon as that is possible.

    Invariant: a key that may still hold the token of a lease that is over is in ``_until``, or its release is under
    way, or it has been refused for longer than the key lives. While there are keys in ``_until`` and the server is
    connected, ``_timer`` is set, or a release is under way whose answer comes back here. While it is not connected,
    ``send_all`` follows.
    """

    def __init__(
        self, clock: Callable[[], float], validity: float, send: Callable[[bytes, bytes, float], bool]
    ) -> None:
        """:param send: sends the release of a key that holds that token, and expires at that time; returns False if
        the server is not connected"""
        self._clock = clock
        self._validity = validity
        self._send = send
        self._until: dict[tuple[bytes, bytes], float] = {}  # (key, token) -> when the key has expired
        self._backoff = Backoff(FIRST_PAUSE, MAX_PAUSE)
        self._timer: asyncio.TimerHandle | None = None
        self._under_way = 0  # releases that were sent and are not answered
        self._empty: asyncio.Future[None] | None = None  # what ``wait_empty`` waits for
        self._closed = False

    def owe(self, key: bytes, token: bytes, until: float | None = None) -> None:
        """The server is away: release ``key`` once it is back, however late that is. It may have run a command after
        it hung that was sent before.

        :param until: the release was sent by ``send``, with that time; None: it was not
        """
        self._under_way -= until is not None
        if not self._closed:
            self._until.setdefault((key, token), self._clock() + self._validity if until is None else until)

    def refused(self, key: bytes, token: bytes, until: float | None = None) -> None:
        """The server has answered with an error. Most errors pass (``NOREPLICAS``, ``READONLY``, ...), and only the
        next try shows which.

        :param until: as for ``owe``
        """
        if self._closed or (until is not None and until <= self._clock()):
            self._under_way -= until is not None
            self._check_empty()
            return
        self.owe(key, token, until)
        if self._timer is None:
            self._try_in(self._backoff.next())

    def accepted(self) -> None:
        """The server has done one of the releases: it will do the others."""
        self._under_way -= 1
        self._check_empty()
        self._backoff.reset()
        if self._until and not self._closed:
            if self._timer is not None:
                self._timer.cancel()
            self._try_in(0.0)

    def moved_to(self, other: OwedReleases) -> None:
        """A release that was under way here is now under way at another node of the cluster."""
        self._under_way -= 1
        other._under_way += 1
        self._check_empty()

    def send_all(self) -> None:
        """The server is back."""
        self._stop()
        self._backoff.reset()
        self._try(len(self._until))

    async def wait_empty(self) -> None:
        """Wait until nothing is owed, for ``PATIENCE`` seconds at most."""
        if self._until or self._under_way > 0:
            self._empty = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._empty], timeout=PATIENCE)

    def _check_empty(self) -> None:
        if self._empty is not None and not self._empty.done() and not self._until and self._under_way <= 0:
            self._empty.set_result(None)

    def take(self) -> list[tuple[bytes, bytes]]:
        """The (key, token) pairs that are still to be released. The caller has to see to them from now on."""
        self._stop()
        owed, self._until = self._until, {}
        return list(owed)

    def close(self) -> None:
        """Release nothing more: the keys that are left expire."""
        self._closed = True
        self._stop()
        self._until.clear()
        self._send = lambda key, token, until: False  # no reference cycle with its owner

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _try_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._try, BATCH)

    def _try(self, most: int) -> None:
        self._timer = None
        for (key, token), until in list(islice(self._until.items(), most)):
            if not self._send(key, token, until):
                return  # not connected: ``send_all`` follows
            del self._until[key, token]
            self._under_way += 1
