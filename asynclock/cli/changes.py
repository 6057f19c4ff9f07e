"""What ``asynclock watch`` knows of a lock, and a change of that."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime

from asynclock import Holder


@dataclass(slots=True)
class Watched:
    """One lock, as it was read last. Times are those of ``time.monotonic()``."""

    name: str
    given: bool  #: was it named on the command line?
    changed_at: float
    known: bool = False  #: was it read at all?
    holder: Holder | None = None
    read_at: float = 0.0  #: when ``holder.remaining`` was read
    task: asyncio.Task[None] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Change:
    """A lock has another holder, or none."""

    at: datetime
    name: str
    holder: Holder | None
    initial: bool  #: no change: this is how it was when the watching began
