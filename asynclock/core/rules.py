"""The words that the rules of the lock are written in: what is asked, what is lost, and the numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum


class Operation(IntEnum):
    """What a lease asks of one key. Every ask but TAKE and RELEASE ends by reading the key, so that
    the server tracks it from then on, and the answer is newer than any push that came before it.
    TAKE_TTL reads no value: what it has set may have been overwritten, until a READ shows it."""

    TAKE = 0  #: set it if it is free
    TAKE_TTL = 1  #: the same, then read the remaining time to live of whoever has it
    FORCE = 2  #: set it whoever has it, then read it
    EXTEND = 3  #: move its expiry if it is still ours, then read it
    READ = 4  #: read it and its remaining time to live
    RELEASE = 5  #: delete it if it is still ours


# Looking one up in its class takes as long as a call.
TAKE, TAKE_TTL, FORCE, EXTEND, READ, RELEASE = Operation


class LossReason(StrEnum):
    """Why a scope no longer holds its lock. A string: ``reason == "deleted"`` works."""

    DELETED = "deleted"  #: another client deleted the key, or the server evicted it
    OVERWRITTEN = "overwritten"  #: another client wrote something else to the key
    EXPIRED = "expired"  #: the validity was over before the lock could be extended
    FLUSHED = "flushed"  #: ``FLUSHALL`` or ``FLUSHDB``
    TAKEN_OVER = "taken over"  #: ``force_acquire`` here or in another process
    FORGOTTEN = "forgotten"  #: the server came back without the key
    DISCONNECTED = "disconnected"  #: the server is gone: it refuses connections, or breaks them off
    CLOSED = "closed"  #: the locker was closed
    RELEASED = "released"  #: no loss: what is called needs the lock, and the scope has released it itself before


NEVER = float("inf")
GRID = 1 / 128  # seconds; a power of two, so that what is on the grid stays there
COARSE = 0.1  # seconds: shorter intervals between extensions are kept to exactly


def on_grid(when: float) -> float:
    """The last instant of the grid before it."""
    return when // GRID * GRID


UNMET = 64  # times that a lock passes on inside a process before it finds out whether others want it
DRIFT = 0.01  # share of the validity by which two clocks may run apart (Redlock's CLOCK_DRIFT_FACTOR)
SLACK = 0.002  # seconds, for the millisecond that expiry is rounded to and the timer that tells it


@dataclass(frozen=True, slots=True)
class Rules:
    """The numbers of one locker, in seconds."""

    majority: int
    validity: float
    extend_interval: float
    try_next_after: float
    tracking: bool = True  #: do servers push what happens to a key that was read?
    handoffs: int = 0  #: how often a lease may pass inside this process before others have a chance
    handoff_time: float = 0.05  #: ... and for how long after it was acquired, in any case
    passes: int = field(init=False)  #: how often the lock may pass inside it at first, while no others were met
    keys: int = field(init=False)  #: how many keys a name has
    term: float = field(init=False)  #: how long a granted key counts from before it was asked for
    reserve: float = field(init=False)  #: what is left of that when an extension is due

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", max(self.handoffs, UNMET))
        object.__setattr__(self, "keys", 2 * self.majority - 1)
        object.__setattr__(self, "term", self.term_of(self.validity))
        object.__setattr__(self, "reserve", self.term - self.extend_interval)

    def extension(self, now: float, share: float = 1.0) -> float:
        """When to extend next. On the grid, so that those of many locks leave in one write, by one timer."""
        when = now + self.extend_interval * share
        return when if self.extend_interval < COARSE else on_grid(when)

    @staticmethod
    def term_of(validity: float) -> float:
        """How long the caller may count on a key that lives for ``validity`` on the server."""
        return validity - validity * DRIFT - SLACK
