"""A run on one deployment: workers work, faults happen, calm returns, all is closed, and the logs are judged."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from asynclock.testing import Clock

from . import server_faults, wire_faults, worker_faults  # noqa: F401 - they register their kinds
from .checker import FORCED, Bounds, Verdict, judge
from .crew import Crew
from .deployments import DEPLOYMENTS, Deployment
from .faults import PUSH, Kind, kinds_for
from .field import Field
from .history import History, tell
from .logs import INJECTOR, Event, Log, merged, now, read
from .worker import Spec

PLACES = 4
TASKS = 2  # a worker and name
VALIDITY = 2.0
REST = (0.02, 0.3)
NAMES: list[tuple[str, tuple[float, float]]] = [  # and how long each is held
    ("long-1", (0.5, 3.0)),
    ("long-2", (0.5, 3.0)),
    ("middle-1", (0.02, 0.4)),
    ("middle-2", (0.02, 0.4)),
    ("short-1", (0.0, 0.01)),
    ("short-2", (0.0, 0.01)),
]
FIRST_HOLDS = 20.0  # seconds until everybody has begun
ROOM = 1.0  # seconds that a busy machine needs on top of all that was promised of waits


@dataclass
class Outcome:
    deployment: str
    seed: int
    seconds: float
    history: History
    verdict: Verdict
    bounds: Bounds
    workers: int
    left_at_once: int
    directory: Path
    plan: list[str] = field(default_factory=list)


async def run(
    name: str, seconds: float, seed: int, directory: Path, say: Callable[[str], None], only: list[str] | None = None
) -> Outcome:
    """:param say: is told what happens, for people to watch"""
    deployment = DEPLOYMENTS[name]([each for each, _ in NAMES], VALIDITY)
    log = Log(directory, INJECTOR)
    clocks = {PLACES - 1: Clock()}
    crew = Crew(log, directory, PLACES, lambda place, who: _spec(deployment, directory, seed, place, who), clocks)
    field = Field(deployment, crew, log)
    violations = []
    left_at_once = 0
    try:
        say("starting")
        for clock in clocks.values():
            clock.start()
        await deployment.start(PLACES)
        await crew.start_all()
        await _until_all_hold(directory, crew)
        since = now()
        kinds = [kind for kind in kinds_for(name) if only is None or kind.name in only]
        await _inject(field, kinds, seed, since + seconds, say)
        say("all is well again")
        await asyncio.to_thread(deployment.repair)
        await _man(crew)
        log("calm")
        for place in crew.working:
            crew.order(place, "hurry")
        await asyncio.sleep(2 * VALIDITY + deployment.settled + 2.0)
        log("closing")
        say("closing")
        await crew.stop_all()
        left_at_once = len(await asyncio.to_thread(deployment.left))
        await asyncio.sleep(VALIDITY)
        if left := await asyncio.to_thread(deployment.left):
            violations.append(f"{len(left)} keys left behind: {left[:5]}")
    finally:
        await crew.kill_all()
        await deployment.aclose()
        for clock in clocks.values():
            clock.close()
        log.close()
    say("judging")
    history = tell(merged(directory))
    bounds = bounds_of(deployment)
    verdict = judge(history, bounds)
    verdict.violations += violations + crew.problems
    verdict.violations += (f"it complained: {text}" for text in crew.complaints())
    verdict.violations += _asleep(history, crew)
    return Outcome(name, seed, seconds, history, verdict, bounds, crew.started, left_at_once, directory)


def bounds_of(deployment: Deployment) -> Bounds:
    told = {kind.name: kind.told for kind in kinds_for(deployment.name)} | {FORCED: PUSH}
    wait = VALIDITY + deployment.settled + deployment.pause + ROOM
    return Bounds(told, wait, VALIDITY, deployment.keys, deployment.majority)


def _spec(deployment: Deployment, directory: Path, seed: int, place: int, who: str) -> Spec:
    return Spec(
        who=who,
        directory=str(directory),
        seed=hash((seed, who)),
        servers=deployment.how(place),
        options={"key_validity": VALIDITY, **deployment.options},
        names=NAMES,
        tasks=TASKS,
        rest=REST,
        uvloop=place % 2 == 1,
    )


async def _until_all_hold(directory: Path, crew: Crew) -> None:
    async with asyncio.timeout(FIRST_HOLDS):
        for place in range(PLACES):
            while not any(event.what == "held" for event in _told(directory, crew.name(place))):
                crew.look()
                if crew.problems:
                    raise RuntimeError(f"a worker did not start: {crew.problems} {crew.complaints()}")
                await asyncio.sleep(0.1)


def _told(directory: Path, who: str) -> list[Event]:
    path = directory / f"{who}.jsonl"
    return [*read(path)] if path.exists() else []


async def _inject(field: Field, kinds: list[Kind], seed: int, until: float, say: Callable[[str], None]) -> None:
    """First one fault at a time, so that it is clear what each does; for the second half of the time several at
    once. The seed says what comes when and to whom, as far as that is there then."""
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
        await asyncio.sleep(field.deployment.recovery * chance.uniform(0.3, 1.0))
    field.solo = False
    tracks = {kind.track for kind in kinds}
    async with asyncio.TaskGroup() as group:
        for track in sorted(tracks):
            of_track = [kind for kind in kinds if kind.track == track]
            group.create_task(_storm(field, of_track, random.Random(chance.random()), until, say))


async def _storm(
    field: Field, kinds: list[Kind], chance: random.Random, until: float, say: Callable[[str], None]
) -> None:
    while now() < until:
        kind = chance.choice(kinds)
        await asyncio.sleep(chance.uniform(0.0, 1.0) * field.validity)
        task = asyncio.create_task(kind.run(field, random.Random(chance.random()), kind.name))
        await asyncio.sleep(0)
        say(" + ".join(field.active) or "nothing")
        await task
        if kind.track == "servers":
            await asyncio.to_thread(field.deployment.repair)
        field.crew.look()


async def _man(crew: Crew) -> None:
    for place in crew.empty:
        await crew.start(place)


def _asleep(history: History, crew: Crew) -> list[str]:
    """Every worker that was there at the end must have got every lock while it was calm."""
    return [
        f"{who} did not get {name!r} in {history.closing - history.calm:.1f} s of calm"
        for who in crew.names
        for name, _ in NAMES
        if (who, name) not in history.at_rest
    ]
