"""Events: what ``Locker.subscribe`` calls its callbacks with.

Each comes in the context (``contextvars``) of the task that it happened to, if there is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from .core.holders import Holder
from .core.reasons import LossReason

__all__ = [
    "Acquired",
    "Disconnected",
    "Event",
    "ExtensionLate",
    "GaveUp",
    "Lost",
    "Reconnected",
    "Released",
    "TimedOut",
]


@dataclass(frozen=True, slots=True)
class Acquired:
    """A task has acquired a lock."""

    at: float  #: Unix seconds, on this machine's clock
    name: str  #: of the lock
    hold: int  #: the number of this hold, which no other one of this locker has: its later events have it, too
    waited: float  #: seconds from the call


@dataclass(frozen=True, slots=True)
class Released:
    """A scope has released its lock. If only the server's answer shows that the lock had been lost, ``Lost`` follows.
    There is none for a hold that began before the subscription."""

    at: float  #: Unix seconds, on this machine's clock
    name: str  #: of the lock
    hold: int  #: as in ``Acquired``
    held: float  #: seconds for which the lock was held


@dataclass(frozen=True, slots=True)
class Lost:
    """A scope has lost its lock."""

    at: float  #: Unix seconds, on this machine's clock
    name: str  #: of the lock
    hold: int  #: as in ``Acquired``; 0: it began before the subscription
    held: float  #: seconds for which the lock was held
    reason: LossReason  #: why, as in ``LockLostError``
    detail: str  #: as in ``LockLostError``


@dataclass(frozen=True, slots=True)
class TimedOut:
    """A task did not acquire a lock within its ``timeout``."""

    at: float  #: Unix seconds, on this machine's clock
    name: str  #: of the lock
    waited: float  #: seconds from the call
    holder: Holder | None  #: who had the lock then, if that is known


@dataclass(frozen=True, slots=True)
class GaveUp:
    """A task did not acquire a lock, and not because of a ``timeout``: the lock was not free and the task did not want
    to wait, servers failed, the task was cancelled, or the locker was closed."""

    at: float  #: Unix seconds, on this machine's clock
    name: str  #: of the lock
    waited: float  #: seconds from the call
    error: str  #: the name of the exception's class: ``NotLockedError``, ``ServerError``, ``CancelledError``, …


@dataclass(frozen=True, slots=True)
class ExtensionLate:
    """A held lock was not extended in time: extensions fail, or are not answered. Comes again until an extension
    succeeds, or the lock is lost."""

    at: float  #: Unix seconds, on this machine's clock
    name: str  #: of the lock
    hold: int  #: as in ``Acquired``; 0: it began before the subscription
    remaining: float  #: seconds until the lock is lost


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection to a server was lost. It is being made again."""

    at: float  #: Unix seconds, on this machine's clock
    server: str  #: its address, without credentials
    why: str  #: what was wrong


@dataclass(frozen=True, slots=True)
class Reconnected:
    """A server is connected again."""

    at: float  #: Unix seconds, on this machine's clock
    server: str  #: its address, without credentials
    after: float  #: seconds since its connection was lost


Event: TypeAlias = Acquired | Released | Lost | TimedOut | GaveUp | ExtensionLate | Disconnected | Reconnected
