"""What is done to the workers, the servers and the wires, and what was promised for each."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from .deployments import DEPLOYMENTS, ROOM
from .field import UNASKED, Field

PUSH = 0.1  # seconds: a push takes a millisecond or two, but two cores do the work of a dozen processes
CROWDED_OUT = 1.5  # where the server itself forgets to tell: a look once a second, and a push's own
FREED = 2.0 + ROOM  # what is owed to a server that refused it, or could not be reached, is made up for after that
AWAY = 0.2  # reset, and refused when it reconnects: tens of milliseconds, and the same

Run = Callable[[Field, random.Random, str], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Kind:
    name: str
    track: str
    """Faults of one track come one after the other, those of several tracks at the same time."""
    run: Run
    told: float
    """Where it makes servers forget keys: seconds for which two may hold a lock then. 0: they keep their word."""
    only: tuple[str, ...]
    """The deployments that it is for; none: all."""
    harmless: bool = False
    """Nobody loses a lock, as far as it comes alone: the key is there when the client is back."""
    free: float | None = None
    """Seconds after it, if it came alone, for which nobody may have a lock that is waited for, where that is less than
    the deployment's own ``longest_gap``."""


KINDS: dict[str, Kind] = {}
LOOK = 1.5  # seconds: clients ask the Sentinels once a second whether another server is the primary now


def kind(
    name: str,
    track: str,
    *,
    told: float = 0.0,
    only: tuple[str, ...] = (),
    harmless: bool = False,
    free: float | None = None,
) -> Callable[[Run], Run]:
    def register(run: Run) -> Run:
        KINDS[name] = Kind(name, track, run, told, only, harmless, free)
        return run

    return register


def kinds_for(deployment: str) -> list[Kind]:
    spared = DEPLOYMENTS[deployment].spared
    return [kind for kind in KINDS.values() if kind.name not in spared and (not kind.only or deployment in kind.only)]


async def _nothing(field: Field, chance: random.Random, name: str) -> None: ...


# It is not done but seen: on a busy machine, servers count as dead that were away for a moment.
KINDS[UNASKED] = Kind(UNASKED, "servers", _nothing, LOOK, ("none",))
