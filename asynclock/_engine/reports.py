"""Reports: what a locker reports about itself: events to subscribers, warnings to the log, and counts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NamedTuple

from ..core.lease import Lease
from ..core.reasons import LossReason
from ..core.rules import NEVER
from ..core.tally import Tally
from ..errors import AcquireTimeoutError, NotLockedError, ServerError
from ..events import (
    Acquired,
    Disconnected,
    Event,
    ExtensionLate,
    GaveUp,
    Lost,
    Reconnected,
    Released,
    TimedOut,
)
from ..messages import about
from .late_extensions import LateExtensions
from .lifecycle import Lifecycle

log = logging.getLogger("asynclock")


# Since when the caller waits, while it tries several times for one wait: see Reports.one_wait.
_waits_since: ContextVar[float | None] = ContextVar("asynclock waits since", default=None)


class Hold(NamedTuple):
    """A scope's time with a lock, as its events report it: from ``Acquired`` to ``Released`` or ``Lost``."""

    number: int
    since: float


class Reports:
    """Reports what happens to the locks and servers of one locker. It is called from where that happens.

    Callbacks are called in the next turn of the event loop, in the context of the caller: so a callback cannot act
    before what it is told of is complete, and what it raises goes to the log.

    Invariants: ``listeners`` is never changed, only replaced. While it is empty, no event is made. ``_late_extensions``
    runs while there are listeners, from ``open`` to ``close``.
    """

    __slots__ = ("_clock", "_late_extensions", "_life", "acquisitions", "listeners", "longest_wait", "tally")

    def __init__(self, life: Lifecycle, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._life = life
        # ``acquire`` counts these itself, for its speed. The rest is in the tally.
        self.acquisitions = 0
        self.longest_wait = 0.0
        self.tally = Tally()
        self.listeners: tuple[Callable[[Event], object], ...] = ()
        self._late_extensions: LateExtensions | None = None

    def open(self, late_extensions: LateExtensions) -> None:
        """The locker is connected."""
        self._late_extensions = late_extensions
        self._start_or_stop()

    def close(self) -> None:
        """The locker is closed: look for late extensions no more."""
        if self._late_extensions is not None:
            self._late_extensions.stop()
            self._late_extensions = None

    def _start_or_stop(self) -> None:
        """Look for late extensions while somebody listens."""
        if self._late_extensions is not None:
            if self.listeners:
                self._late_extensions.start()
            else:
                self._late_extensions.stop()

    def subscribe(self, callback: Callable[[Event], object]) -> Callable[[], None]:
        """As ``Locker.subscribe``."""

        def listener(event: Event) -> object:  # so that one callback may be subscribed twice
            return callback(event)

        self.listeners = (*self.listeners, listener)
        self._life.call_soon(self._start_or_stop)  # in the loop, whoever calls

        def unsubscribe() -> None:
            self.listeners = tuple(each for each in self.listeners if each is not listener)
            self._life.call_soon(self._start_or_stop)

        return unsubscribe

    def _tell(self, event: Event) -> None:
        if self._life.forked:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed, or there is none
            loop = self._life.loop or asyncio.get_running_loop()  # None: it has failed to connect, in this one
            loop.call_soon_threadsafe(self._deliver, event)

    def _deliver(self, event: Event) -> None:
        for listener in self.listeners:
            if listener not in self.listeners:  # one before it has unsubscribed it
                continue
            try:
                listener(event)
            except (Exception, asyncio.CancelledError):  # the result of a future that was cancelled raises that
                log.exception(
                    "asynclock: a subscriber raised at %s",
                    type(event).__name__,
                    extra=about("subscriber_failed", event=type(event).__name__),
                )

    # Waits

    @contextlib.contextmanager
    def one_wait(self, name: str) -> Iterator[None]:
        """What is tried inside for the lock is one wait: it is told of once, when it has ended."""
        began = self._clock()
        token = _waits_since.set(began)
        try:
            yield
        except BaseException as error:
            _waits_since.reset(token)
            self.not_acquired(name, self._clock() - began, error)
            raise
        _waits_since.reset(token)

    def acquired(self, name: str, now: float, waited: float) -> Hold:
        hold = Hold(self.acquisitions, now)
        if (since := _waits_since.get()) is not None:
            waited = now - since
        self._tell(Acquired(time.time(), name, hold.number, waited))
        return hold

    def not_acquired(self, name: str, waited: float, error: BaseException) -> None:
        """A wait has ended with ``error``."""
        if _waits_since.get() is not None:
            return  # it goes on, or ``one_wait`` tells of it
        tally = self.tally
        if isinstance(error, AcquireTimeoutError):
            tally.timed_out += 1
        elif isinstance(error, NotLockedError):
            tally.refused += 1
        elif isinstance(error, ServerError):
            tally.failed += 1
        if not self.listeners:
            return
        if isinstance(error, AcquireTimeoutError):
            self._tell(TimedOut(time.time(), name, waited, error.holder))
        else:
            self._tell(GaveUp(time.time(), name, waited, type(error).__name__))

    # Holds

    def released(self, name: str, hold: Hold) -> None:
        self._tell(Released(time.time(), name, hold.number, self._clock() - hold.since))

    def lost(self, lease: Lease, hold: Hold | None, reason: LossReason, detail: str, *, held: bool) -> None:
        """:param held: by a scope until now; False: the answer to its release shows it"""
        tally, name = self.tally, lease.room.name
        tally.lost[reason] = tally.lost.get(reason, 0) + 1
        tally.lost_while_held += held
        end = self._clock() if held else lease.released_at
        seconds = end - (lease.acquired_at if hold is None else hold.since)
        if reason is not LossReason.CLOSED:  # that is the program's own decision
            log.warning(
                "asynclock: lock %r was lost after %.3f s: %s%s",
                name,
                seconds,
                reason,
                f" ({detail})" if detail else "",
                extra=about("lock_lost", lock=name, reason=str(reason), detail=detail, held=seconds),
            )
        if self.listeners:
            self._tell(Lost(time.time(), name, 0 if hold is None else hold.number, seconds, reason, detail))

    def extension_late(self, name: str, hold: Hold | None, remaining: float) -> None:
        if self.listeners:
            self._tell(ExtensionLate(time.time(), name, 0 if hold is None else hold.number, remaining))

    # Servers

    def disconnected(self, server: str, why: str) -> None:
        if self.listeners:
            self._tell(Disconnected(time.time(), server, why))

    def connected(self, server: str, after: float) -> None:
        """:param after: seconds since the connection was lost; NEVER: it is the first"""
        if after == NEVER:
            return
        self.tally.reconnects += 1
        if self.listeners:
            self._tell(Reconnected(time.time(), server, after))
