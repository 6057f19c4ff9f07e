"""The plan of a soak run: 200 locks, 4 processes with 50 tasks that take any of them, and a fault every ten seconds."""

from __future__ import annotations

import asyncio
import random

from tests.chaos.faults import Kind
from tests.chaos.field import Field
from tests.chaos.logs import now
from tests.chaos.run import Say, Work
from tests.chaos.worker import SELF

EVERY = 10.0  # seconds from the start of one fault to the start of the next
LONGEST_HOLD = 0.5


async def inject(field: Field, kinds: list[Kind], seed: int, until: float, say: Say) -> None:
    chance = random.Random(seed)
    field.solo = True
    bag: list[Kind] = []
    await asyncio.sleep(2 * SELF)  # until every worker has sampled itself once
    while (next_one := now() + EVERY) < until:
        bag = bag or chance.sample(kinds, len(kinds))
        kind = bag.pop()
        say(kind.name)
        await kind.run(field, random.Random(chance.random()), kind.name)
        await asyncio.to_thread(field.deployment.repair)
        field.crew.look()
        say("nothing")
        await asyncio.sleep(max(0.0, next_one - now()))
    await asyncio.sleep(max(0.0, until - now()))


SOAK = Work(
    names=[(f"lock-{number}", (0.01, LONGEST_HOLD)) for number in range(200)],
    tasks=50,
    rest=(0.2, 1.5),
    inject=inject,
    roam=True,
    unwanted=("worker SIGKILL",),  # its successor's memory would not be comparable
)
