"""What is done to the workers, the servers and the wires, and what was promised for each."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from .field import UNASKED, Field

PUSH = 0.1  # seconds: a push takes a millisecond or two, but two cores do the work of a dozen processes
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


KINDS: dict[str, Kind] = {}
LOOK = 1.5  # seconds: clients ask the Sentinels once a second whether another server is the primary now


def kind(
    name: str, track: str, *, told: float = 0.0, only: tuple[str, ...] = (), harmless: bool = False
) -> Callable[[Run], Run]:
    def register(run: Run) -> Run:
        KINDS[name] = Kind(name, track, run, told, only, harmless)
        return run

    return register


def kinds_for(deployment: str) -> list[Kind]:
    return [kind for kind in KINDS.values() if not kind.only or deployment in kind.only]


async def _nothing(field: Field, chance: random.Random, name: str) -> None: ...


# It is not done but seen: on a busy machine, servers count as dead that were away for a moment.
KINDS[UNASKED] = Kind(UNASKED, "servers", _nothing, LOOK, ("none",))
