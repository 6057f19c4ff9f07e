"""Releases that a server still has to run: it was unavailable when they were due, or refused them.

That of a lock that stays for a least time moves the expiry of its key instead of deleting it, until that time is over.

(``_engine/pending_releases.py`` is something else: callers that wait for the reply to a release.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from .awaiting import Passing
from .background import Timer
from .backoff import Backoff

FIRST_PAUSE = 0.02  # seconds after a refusal until the release is retried; doubles each time, up to
MAX_PAUSE = 0.5
BATCH = 100  # releases in one retry: the server may refuse them all, and there may be thousands
MAX_WAIT = 1.0  # seconds for which closing waits for them


class Owed(NamedTuple):
    """What is to be released."""

    key: bytes
    token: bytes
    keep_until: float  #: ``Lease.keep_until``: before that, let the key expire then; after it, or if it is 0, delete it


class OwedReleases:
    """Keys to be released on one server as soon as possible.

    Invariant: a key that may still have the token of an ended lease is in ``_until``, or its release is in flight, or
    the server has refused it for longer than the key lives. While the server is connected and ``_until`` has keys,
    ``_timer`` is running, or a release is in flight whose reply comes back here. While it is not connected, the next
    session calls ``send_all``.
    """

    def __init__(self, clock: Callable[[], float], validity: float, send: Callable[[Owed, float], bool]) -> None:
        """:param send: called with what is owed, and the time when the key has expired; sends the release, or returns
        False if the server is not connected"""
        self._clock = clock
        self._validity = validity
        self._send = send
        self._until: dict[Owed, float] = {}  # -> when the key has expired, if no release is run
        self._backoff = Backoff(FIRST_PAUSE, MAX_PAUSE)
        self._timer = Timer()
        self._in_flight = 0  # releases that were sent and are not answered
        self._empty: asyncio.Future[None] | None = None  # what ``wait_empty`` waits for
        self._closed = False

    def owe(self, owed: Owed, until: float | None = None) -> None:
        """The server is unavailable: release the key once it is back, however late that is. (A server that hung may run
        an old SET much later, so the key may exist longer than one validity.)

        :param until: the time that ``send`` was called with; None: this release was not sent by ``send``
        """
        self._in_flight -= until is not None
        if not self._closed:
            self._until.setdefault(owed, self._clock() + self._validity if until is None else until)

    def refused(self, owed: Owed, until: float | None = None) -> None:
        """The server has answered with an error. Most errors are temporary (``NOREPLICAS``, ``READONLY``, ...), and
        only a retry shows which.

        :param until: as for ``owe``
        """
        if self._closed or (until is not None and until <= self._clock()):
            self._in_flight -= until is not None
            self._check_empty()
            return
        self.owe(owed, until)
        if not self._timer.running:
            self._timer.start(self._backoff.next(), self._try, BATCH)

    def accepted(self) -> None:
        """The server has run one of the releases: retry the others now."""
        self._in_flight -= 1
        self._check_empty()
        self._backoff.reset()
        if self._until and not self._closed:
            self._timer.start(0.0, self._try, BATCH)

    def moved_to(self, other: OwedReleases) -> None:
        """A release that was in flight here was redirected to another node of the cluster."""
        self._in_flight -= 1
        other._in_flight += 1
        self._check_empty()

    def send_all(self) -> None:
        """The server is connected again: send them all."""
        self._timer.stop()
        self._backoff.reset()
        self._try(len(self._until))

    async def wait_empty(self) -> None:
        """Wait until nothing is owed, for at most ``MAX_WAIT`` seconds."""
        if self._until or self._in_flight > 0:
            self._empty = asyncio.get_running_loop().create_future()
            await Passing(asyncio.wait([self._empty], timeout=MAX_WAIT))

    def _check_empty(self) -> None:
        if self._empty is not None and not self._empty.done() and not self._until and self._in_flight <= 0:
            self._empty.set_result(None)

    def take(self) -> list[Owed]:
        """Remove and return what is not released yet. The caller has to release it."""
        self._timer.stop()
        owed, self._until = self._until, {}
        return list(owed)

    def close(self) -> None:
        """Give up: the remaining keys expire by themselves."""
        self._closed = True
        self._timer.stop()
        self._until.clear()
        self._send = lambda owed, until: False  # no reference cycle with its owner

    def _try(self, limit: int) -> None:
        for owed, until in list(islice(self._until.items(), limit)):
            if not self._send(owed, until):
                return  # not connected: ``send_all`` follows
            del self._until[owed]
            self._in_flight += 1
