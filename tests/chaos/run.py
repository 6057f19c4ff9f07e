"""A run on one deployment: workers work, faults are injected, everything recovers and closes, the logs are judged."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asynclock.testing import Clock

from . import server_faults, wire_faults, worker_faults  # noqa: F401 - they register their kinds
from .checker import FORCED, Bounds, Verdict, judge
from .crew import Crew
from .deployments import CROWD, DEPLOYMENTS, VALIDITY, Deployment
from .faults import LOOK, PUSH, Kind, kinds_for
from .field import UNASKED, Field
from .history import History, tell
from .logs import INJECTOR, Event, Log, merged, now, read, slot_name
from .worker import Spec

PLACES = 4
CALM = 5.0  # seconds without faults at the end, in addition to what the servers need
LOOKS = 2.0  # commands a second and lock that checking it may cost, while servers send no reliable pushes
FIRST_HOLDS = 20.0  # seconds until every worker has held a lock

Say = Callable[[str], None]
Inject = Callable[[Field, list[Kind], int, float, Say], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Work:
    """What workers do, and which faults are injected meanwhile."""

    names: list[tuple[str, tuple[float, float]]]  # with the range of seconds for which each is held
    tasks: int  # of each worker: for each name, or with ``roam`` for all
    rest: tuple[float, float]
    inject: Inject
    roam: bool = False
    resp2: tuple[int, ...] = ()  # the places of workers that use RESP2
    options: dict[int, dict[str, Any]] = field(default_factory=dict)  # of the lockers in these places
    unwanted: tuple[str, ...] = ()  # kinds of faults that are not injected
    crowd: int = 0  # number of further names
    crowd_tasks: int = 0  # tasks of each worker that take these
    permits: dict[str, int] = field(default_factory=dict)  # of the names that are semaphores
    fenced: float = 0.0  # share of turns that ask for a fencing token
    kept: float = 0.0  # share of turns with ``at_least``
    planted: str = ""  # a fault of the library (see planted.py)
    quiet: tuple[int, ...] = ()  # the places of workers that take the long locks, and nothing else

    def names_of(self, place: int) -> list[tuple[str, tuple[float, float]]]:
        """The names that this worker takes."""
        if not self.quiet:
            return self.names
        return [name for name in self.names if name[0].startswith("long") == (place in self.quiet)]

    @property
    def lock_names(self) -> list[str]:
        """Of all locks, and of the slots of all semaphores."""
        permits = self.permits
        slots = [slot_name(name, slot) for name, _ in self.names for slot in range(permits.get(name, 0))]
        return [name for name, _ in self.names if name not in permits] + slots

    @property
    def crowd_names(self) -> list[str]:
        return [f"{CROWD}{number}" for number in range(self.crowd)]

    @property
    def in_all(self) -> int:
        """The number of tasks of all workers."""
        tasks = (self.tasks if self.roam else self.tasks * len(self.names_of(place)) for place in range(PLACES))
        return sum(tasks) + PLACES * self.crowd_tasks


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


async def run(
    work: Work, name: str, seconds: float, seed: int, directory: Path, say: Say, only: list[str] | None = None
) -> Outcome:
    """:param say: called with what happens now, for people who watch"""
    deployment = DEPLOYMENTS[name](work.lock_names, work.crowd_names)
    log = Log(directory, INJECTOR)
    clocks = {PLACES - 1: Clock()}
    crew = Crew(log, directory, PLACES, lambda place, who: _spec(work, deployment, directory, seed, place, who), clocks)
    scene = Field(deployment, crew, log)
    violations = []
    left_at_once = 0
    watch = None
    try:
        say("starting")
        for clock in clocks.values():
            clock.start()
        await deployment.start(PLACES)
        log("clocks", wall=time.time() - now(), servers=list(deployment.clocks))
        await crew.start_all()
        await _until_all_hold(directory, crew)
        watch = asyncio.create_task(scene.watch_roles()) if deployment.has_roles else None
        since = now()
        kinds = [kind for kind in kinds_for(name) if kind.name not in work.unwanted]
        await work.inject(scene, [kind for kind in kinds if not only or kind.name in only], seed, since + seconds, say)
        say("all is well again")
        await asyncio.to_thread(deployment.repair)
        await _man(crew)
        log("calm")
        for place in crew.working:
            crew.order(place, "hurry")
        await asyncio.sleep(CALM + deployment.settled + 2.0)
        log("closing")
        say("closing")
        await crew.stop_all()
        # Keys that are left now were not released: they would expire within the validity.
        left = await asyncio.to_thread(deployment.left)
        left_at_once = len(left)
        if left:
            violations.append(f"{len(left)} keys left when all had closed: {left[:5]}")
            await asyncio.sleep(min(deployment.validity, VALIDITY))
        if deployment.validity <= VALIDITY and (left := await asyncio.to_thread(deployment.left)):
            violations.append(f"{len(left)} keys left for ever: {left[:5]}")
    finally:
        if watch is not None:
            watch.cancel()
            await asyncio.wait([watch])
        await crew.kill_all()
        await deployment.aclose()
        for clock in clocks.values():
            clock.close()
        log.close()
    say("judging")
    history = tell(merged(directory))
    bounds = bounds_of(deployment, work)
    verdict = judge(history, bounds)
    verdict.violations += violations + crew.problems
    verdict.violations += (f"it complained: {text}" for text in crew.complaints())
    verdict.violations += _asleep(history, crew, work)
    if not history.faults:
        verdict.violations.append("no fault was injected: nothing was tried")
    return Outcome(name, seed, seconds, history, verdict, bounds, crew.started, left_at_once, directory)


def bounds_of(deployment: Deployment, work: Work) -> Bounds:
    kinds = kinds_for(deployment.name)
    told = {kind.name: kind.told for kind in kinds} | {FORCED: PUSH, UNASKED: LOOK}
    wait = math.inf if work.roam else deployment.longest_gap
    return Bounds(
        told,
        wait,
        deployment.validity,
        deployment.majority,
        heard=tuple(kind for kind, seconds in told.items() if seconds == PUSH),
        harmless=tuple(kind.name for kind in kinds if kind.harmless),
        waits={kind.name: min(wait, kind.free) for kind in kinds if kind.free is not None and wait < math.inf},
        idle=math.inf if work.quiet else wait,
        commands=LOOKS * work.in_all * deployment.keys,
    )


def _spec(work: Work, deployment: Deployment, directory: Path, seed: int, place: int, who: str) -> Spec:
    options = {"key_validity": deployment.validity, **deployment.options, **work.options.get(place, {})}
    return Spec(
        who=who,
        directory=str(directory),
        seed=f"{seed} {who}",
        servers=deployment.how(place) | {"protocol": 2 if place in work.resp2 else 3},
        options=options,
        names=work.names_of(place),
        tasks=work.tasks,
        rest=work.rest,
        roam=work.roam,
        crowd=work.crowd_names,
        crowd_tasks=work.crowd_tasks,
        permits=work.permits,
        fenced=work.fenced,
        kept=work.kept,
        planted=work.planted,
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


async def _man(crew: Crew) -> None:
    for place in crew.empty:
        await crew.start(place)


def _asleep(history: History, crew: Crew, work: Work) -> list[str]:
    """Workers that ran at the end and did not hold every lock during the calm; or none at all, if they take 200 names
    at random."""
    calm = f"in {history.closing - history.calm:.1f} s of calm"
    if work.roam:
        served = {who for who, _ in history.at_rest}
        return [f"{who} did not get any lock {calm}" for who in crew.names if who not in served]
    return [
        f"{who} did not get {name!r} {calm}"
        for who in crew.names
        for name, _ in work.names_of(int(who[1 : who.index("-")]))
        if (who, name) not in history.at_rest
    ]
