"""The kinds of faults for workers, servers and wires, and the limits for each."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from .deployments import DEPLOYMENTS, ROOM
from .field import UNASKED, Field

PUSH = 0.1  # seconds: a push takes a millisecond or two, but a dozen processes share two cores
CROWDED_OUT = 1.5  # seconds: the server sends no push; a check once a second finds it, plus ``PUSH``
FREED = 2.0 + ROOM  # seconds after which releases that were refused, or could not be sent, have been retried
AWAY = 0.2  # seconds: a reset, and a refused reconnect, take tens of milliseconds; plus slack

Run = Callable[[Field, random.Random, str], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Kind:
    name: str
    track: str
    """Faults of one track happen one after the other, those of different tracks at the same time."""
    run: Run
    told: float
    """If it makes servers lose keys: seconds for which a lock may have two holders then. 0: it does not."""
    only: tuple[str, ...]
    """The deployments that it applies to; empty: all."""
    harmless: bool = False
    """No lock may be lost if it happens alone: the keys are still there after the reconnect."""
    free: float | None = None
    """Seconds after it, if it happens alone, for which a lock with waiters may have no holder. None: the deployment's
    ``longest_gap``."""


KINDS: dict[str, Kind] = {}
LOOK = 1.5  # seconds: clients ask the Sentinels for the primary once a second


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


# Not injected but observed: on a busy machine, a server that pauses for a moment may be taken for dead.
KINDS[UNASKED] = Kind(UNASKED, "servers", _nothing, LOOK, ("none",))
