"""What ``asynclock watch`` knows of a lock, and what it tells."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime

from asynclock import Holder


@dataclass(slots=True)
class Watched:
    """One lock, as the servers told last. Times are those of ``time.monotonic()``."""

    name: str
    given: bool  #: was it named on the command line?
    changed_at: float
    known: bool = False  #: has anything been told?
    holder: Holder | None = None
    read_at: float = 0.0  #: when ``holder.remaining`` was read
    task: asyncio.Task[None] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Change:
    """A lock has another holder, or none."""

    at: datetime
    name: str
    holder: Holder | None
    initial: bool  #: it was so when the watching began
