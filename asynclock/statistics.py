"""Statistics: figures of one locker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .core.reasons import LossReason


@dataclass(frozen=True, slots=True)
class Statistics:
    """What ``Locker.statistics`` returns. Counts are since the locker was made."""

    held: int  #: locks that are held now
    waiting: int  #: tasks that wait for a lock now
    acquired: int  #: how often a task has acquired a lock
    released: int  #: how often a scope has released its lock
    handed_off: int  #: how often a lock has passed from task to task inside this process
    lost: Mapping[LossReason, int]  #: how often a lock was lost, for each reason that has occurred
    timed_out: int  #: waits that have ended with ``AcquireTimeoutError``
    refused: int  #: attempts that have ended with ``NotLockedError``
    failed: int  #: waits that have ended with ``ServerError``
    reconnects: int  #: how often a lost connection to a server was made again
    extensions: int  #: how often held locks were extended
    latest_extension: float  #: seconds by which the latest of them came after it was due (the event loop was busy)
    longest_wait: float  #: seconds that a task has waited for a lock that it got
