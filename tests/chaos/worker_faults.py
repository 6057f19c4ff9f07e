"""Faults of the worker processes."""

from __future__ import annotations

import asyncio
import random

from .checker import FORCED
from .deployments import DEPLOYMENTS, LONG
from .faults import FREED, PUSH, kind
from .field import Field

BY_NAME = tuple(name for name, kind in DEPLOYMENTS.items() if kind.by_name)


@kind("worker SIGKILL", "workers")
async def killed(field: Field, chance: random.Random, name: str) -> None:
    if (place := field.pick_worker(chance)) is None:
        return
    async with field.fault(name, field.crew.name(place)):
        await field.crew.kill(place)
    await asyncio.sleep(chance.uniform(0.0, 1.5) * field.pace)
    await field.crew.start(place)


@kind("worker SIGSTOP past the validity", "workers")
async def stopped_for_long(field: Field, chance: random.Random, name: str) -> None:
    await _stopped(field, chance, name, chance.uniform(1.05, 2.0) * field.pace)


@kind("worker SIGSTOP for a moment", "workers")
async def stopped(field: Field, chance: random.Random, name: str) -> None:
    await _stopped(field, chance, name, chance.uniform(0.1, 0.7) * field.pace)


async def _stopped(field: Field, chance: random.Random, name: str, seconds: float) -> None:
    if (place := field.pick_worker(chance)) is None:
        return
    async with field.fault(name, field.crew.name(place), f"{seconds:.1f} s"):
        field.crew.pause(place)
        await asyncio.sleep(seconds)
        field.crew.resume(place)


@kind("event loop blocked", "workers")
async def blocked(field: Field, chance: random.Random, name: str) -> None:
    if (place := field.pick_worker(chance)) is None:
        return
    seconds = chance.choice((0.3, 0.9, 1.2, 2.0)) * field.pace
    async with field.fault(name, field.crew.name(place), f"{seconds:.1f} s"):
        field.crew.order(place, f"block {seconds:.3f}")
        await asyncio.sleep(seconds)


@kind("locker closed and reopened", "workers")
async def reopened(field: Field, chance: random.Random, name: str) -> None:
    if (place := field.pick_worker(chance)) is None:
        return
    if field.deployment.validity == LONG and field.active:
        return  # what a closed locker cannot give back, because its server is away just then, stays for half a minute
    async with field.fault(name, field.crew.name(place)):
        field.crew.order(place, "reopen")
        await asyncio.sleep(0.2)


@kind("no file descriptor at the reconnect", "workers", free=FREED)
async def without_descriptors(field: Field, chance: random.Random, name: str) -> None:
    await _unable_to_reconnect(field, chance, name, field.pick_worker(chance), "descriptors")


@kind("no names looked up at the reconnect", "workers", only=BY_NAME, free=FREED)
async def without_names(field: Field, chance: random.Random, name: str) -> None:
    places = [place for place in field.deployment.by_name if place in field.crew.working]
    await _unable_to_reconnect(field, chance, name, chance.choice(places) if places else None, "names")


async def _unable_to_reconnect(field: Field, chance: random.Random, name: str, place: int | None, order: str) -> None:
    """An error of this machine, which says nothing about the server: no lock may be lost at once."""
    if place is None:
        return
    seconds = chance.choice((0.05, 0.1, 0.5)) * field.pace
    async with field.fault(name, field.crew.name(place), f"{seconds:.1f} s", harmless=seconds <= 0.1 * field.pace):
        field.crew.order(place, f"without {order} {seconds:.3f}")
        await asyncio.sleep(0.05)  # until the worker has read the command
        for proxy in field.wires_of(place):
            proxy.reset()
        await asyncio.sleep(seconds)


@kind(FORCED, "workers", told=PUSH)
async def forced(field: Field, chance: random.Random, name: str) -> None:
    if (place := field.pick_worker(chance)) is None:
        return
    lock = field.pick_name(chance, slots=False)  # a permit cannot be taken over
    async with field.fault(name, field.crew.name(place), lock) as forgot:
        # The old holder, or one that was just granted the lock, may be notified after the next one has it.
        forgot.update((lock, index) for index in range(field.deployment.keys))
        field.crew.order(place, f"force {lock}")
        await asyncio.sleep(0.2)


@kind("worker's time of day jumps", "workers", harmless=True)
async def worker_clock_jumps(field: Field, chance: random.Random, name: str) -> None:
    """It must have no effect."""
    if not field.crew.clocks:
        return
    place, clock = chance.choice(sorted(field.crew.clocks.items()))
    off = chance.choice((-7200.0, -1.5, 1.5, 7200.0))
    async with field.fault(name, field.crew.name(place), f"{off:+g} s"):
        clock.set(off)
        await asyncio.sleep(field.pace)
        clock.set(0.0)
