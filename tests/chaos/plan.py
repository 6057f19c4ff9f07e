"""The plan of a run: the locks, and the sequence of faults."""

from __future__ import annotations

import asyncio
import dataclasses
import random

from .deployments import DEPLOYMENTS, QUIET
from .faults import Kind
from .field import Field
from .logs import now
from .run import Say, Work


async def inject(field: Field, kinds: list[Kind], seed: int, until: float, say: Say) -> None:
    """Inject one fault at a time in the first half, so that the effect of each is clear, and several at once in the
    second half. The seed chooses faults, times and targets, as far as the targets exist at that time."""
    chance = random.Random(seed)
    since = now()
    field.solo = True
    bag: list[Kind] = []
    while now() < since + (until - since) / 2:
        bag = bag or chance.sample(kinds, len(kinds))
        kind = bag.pop()
        say(kind.name)
        await kind.run(field, random.Random(chance.random()), kind.name)
        await asyncio.to_thread(field.deployment.repair)
        field.crew.look()
        # A wait that is too long shows only after a long pause; short pauses make room for more faults.
        await asyncio.sleep(field.deployment.longest_gap * chance.choice((0.3, 0.3, 0.5, 1.1)))
    field.solo = False
    tracks = {kind.track for kind in kinds}
    async with asyncio.TaskGroup() as group:
        for track in sorted(tracks):
            of_track = [kind for kind in kinds if kind.track == track]
            group.create_task(_storm(field, of_track, random.Random(chance.random()), until, say))


async def _storm(field: Field, kinds: list[Kind], chance: random.Random, until: float, say: Say) -> None:
    while now() < until:
        kind = chance.choice(kinds)
        await asyncio.sleep(chance.uniform(0.0, 1.0) * field.pace)
        task = asyncio.create_task(kind.run(field, random.Random(chance.random()), kind.name))
        await asyncio.sleep(0)
        say(" + ".join(field.active) or "nothing")
        await task
        if kind.track == "servers":
            await asyncio.to_thread(field.deployment.repair)
        field.crew.look()


CHAOS = Work(
    names=[
        ("long-1", (0.5, 3.0)),
        ("long-2", (0.5, 3.0)),
        ("middle-1", (0.02, 0.4)),
        ("middle-2", (0.02, 0.4)),
        ("short-1", (0.0, 0.01)),
        ("short-2", (0.0, 0.01)),
        ("pool", (0.02, 0.4)),
    ],
    tasks=2,
    rest=(0.02, 0.3),
    inject=inject,
    permits={"pool": 2},
    fenced=0.15,
    kept=0.12,
    resp2=(2,),
    options={
        1: {"fallback_setpx": True, "local_handoffs": 0},
        2: {"wait_release": False},
        3: {"no_loop_tracking": False},
    },
)
# Many locks, if the server may drop tracking entries.
CROWDED = dataclasses.replace(CHAOS, crowd=60, crowd_tasks=25)
# Workers with ``min_replicas`` contend with workers without it.
REPLICATED = dataclasses.replace(CHAOS, options={**CHAOS.options, 0: {"min_replicas": 1}})
LONG = dataclasses.replace(
    CHAOS, names=[(name, (8.0, 14.0) if name.startswith("long") else hold) for name, hold in CHAOS.names], quiet=QUIET
)


def work_for(deployment: str) -> Work:
    if DEPLOYMENTS[deployment].has_roles:
        return REPLICATED
    return {"three": CHAOS, "long": LONG}.get(deployment, CROWDED)
