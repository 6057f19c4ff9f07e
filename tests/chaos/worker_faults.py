"""What befalls the processes that use locks."""

from __future__ import annotations

import asyncio
import random

from .faults import kind
from .field import Field


@kind("worker SIGKILL", "workers")
async def killed(field: Field, chance: random.Random, name: str) -> None:
    place = field.pick_worker(chance)
    if place is None:
        return
    async with field.fault(name, field.crew.name(place)):
        await field.crew.kill(place)
    await asyncio.sleep(chance.uniform(0.0, 1.5) * field.validity)
    await field.crew.start(place)
