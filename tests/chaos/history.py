"""What happened, merged from all logs: holds, overlaps, times without a holder, faults, stalls."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .deployments import CROWD, Key
from .logs import KEPT, LEFT, Event, semaphore_of, slot_name

SINGLE, SEVERAL, FENCED, LEAST, PERMIT = "single lock", "several names", "fencing token", "least time", "permit"
LONG_GAP = 0.1  # seconds without a holder from which on a gap is recorded


@dataclass(slots=True, eq=False)
class Hold:
    """Its worker believed to have the lock from ``held`` to ``ended``. It last acted on that at ``acted``; the deadline
    was ``due`` then, and its votes counted until ``votes``."""

    who: str
    name: str
    held: float
    due: float
    acted: float
    votes: list[float]
    ended: float = math.inf
    why: str = ""
    forced: bool = False
    stays: float = 0.0
    """Its least time: until then nobody else may have it, even if it was left before."""
    kinds: tuple[str, ...] = (SINGLE,)

    @property
    def left_early(self) -> bool:
        """Was it left, as a lock that was still held, before its least time was over?"""
        return self.why in LEFT and self.ended < min(self.stays, self.due)


class Token(NamedTuple):
    """A fencing token: asked for, and got, at these times."""

    hold: Hold
    number: int
    asked: float
    got: float


@dataclass(slots=True, eq=False)
class Fault:
    kind: str
    on: str
    solo: bool
    since: float
    until: float = math.inf
    forgot: frozenset[Key] = frozenset()
    harmless: bool = False
    emptied: frozenset[Key] = frozenset()
    """Keys on servers that lost all their data, perhaps with a quarantine after it."""
    rate: tuple[float, float] | None = None
    """Commands a second at the server: before the fault, and during it."""


class Sample(NamedTuple):
    """A worker's own memory, files and tasks."""

    at: float
    resident: int  # bytes
    files: int
    tasks: int


@dataclass
class History:
    faults: dict[int, Fault] = field(default_factory=dict)
    overlaps: list[tuple[Hold, Hold]] = field(default_factory=list)  # the earlier one first
    lost: list[Hold] = field(default_factory=list)  # ended by a loss
    overdue: list[Hold] = field(default_factory=list)  # ended after their own deadline
    early: list[tuple[Hold, Hold]] = field(default_factory=list)  # the second one within the least time of the first
    tokens: dict[str, list[Token]] = field(default_factory=lambda: defaultdict(list))  # by name, as they were got
    crowded: list[tuple[Hold, int, int]] = field(
        default_factory=list
    )  # a permit; slots held then; slots that there are
    most: Counter[str] = field(default_factory=Counter)  # semaphore -> most slots that were held at once
    gaps: list[tuple[str, float, float]] = field(default_factory=list)  # name, begin and end of a time without a holder
    idle: list[tuple[str, float, float]] = field(default_factory=list)  # worker, begin and end of a time without a lock
    stalls: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    exits: list[tuple[str, float, float]] = field(default_factory=list)  # from a loss until the block was left
    errors: list[tuple[float, str]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    lost_why: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    holds: int = 0
    of_kind: Counter[str] = field(default_factory=Counter)  # holds; one may be of several kinds
    lost_of_kind: Counter[str] = field(default_factory=Counter)
    killed: Counter[str] = field(default_factory=Counter)  # kind -> holds whose worker got a SIGKILL
    paused: Counter[str] = field(default_factory=Counter)  # kind -> holds whose worker got a SIGSTOP
    left_early: int = 0  # holds that were left before their least time was over
    wall: float = math.nan  # the time of day, less that of the logs
    clocks: list[tuple[float, int, float]] = field(default_factory=list)  # time, server, by how much its clock is off
    longest_wait: float = 0.0  # of a single acquisition
    longest_close: float = 0.0
    open: dict[tuple[str, int], Hold] = field(default_factory=dict)  # holds that have not ended
    calm: float = math.inf  # when the faults ended
    closing: float = math.inf
    asleep: list[tuple[str, str, float]] = field(default_factory=list)  # waited from before the calm until its end
    at_rest: set[tuple[str, str]] = field(default_factory=set)  # (worker, name) of holds during the calm
    since: float = math.nan
    until: float = math.nan
    kept: list[Hold] = field(default_factory=list)  # all holds of the ``stretch``


def tell(events: Iterable[Event], stretch: tuple[float, float] | None = None) -> History:
    """Build the history from ``events``, which are in the order of their times. Memory grows with the number of
    problems, not with the number of holds."""
    begin, finish = stretch or (math.inf, -math.inf)
    history = History()
    by_name: dict[str, list[Hold]] = defaultdict(list)
    free_since: dict[str, float] = {}
    paused: dict[str, float] = {}
    idle_since: dict[str, float] = {}
    holding: Counter[str] = Counter()
    kept: dict[str, Hold] = {}  # name -> the last hold that was left before its least time was over
    permits: dict[str, int] = {}  # semaphore -> how many it has
    waited: dict[str, tuple[float, float]] = {}  # semaphore -> begin and end of the last time in which somebody waited

    def gap(name: str, since: float, until: float) -> None:
        if until - since > LONG_GAP and not name.startswith(CROWD):
            history.gaps.append((name, since, until))

    def free_slots(semaphore: str, last: float) -> None:
        """The slots that nobody had although somebody waited, until ``last``."""
        since, until = waited[semaphore]
        for slot in range(permits[semaphore]):
            free = free_since.get(slot_name(semaphore, slot), math.inf)
            gap(slot_name(semaphore, slot), max(free, since), min(until, last))

    def waits(semaphore: str, since: float, until: float) -> None:
        """Somebody waited for a permit. (Each lock is waited for all the time; of slots, that is not so.)"""
        begin, end = waited.setdefault(semaphore, (since, since))
        if since > end:  # nobody waited in between
            free_slots(semaphore, end)
            begin = since
        waited[semaphore] = min(begin, since), until

    def idle_until(who: str, at: float) -> None:
        since = idle_since.pop(who, at)
        if at - since > LONG_GAP:
            history.idle.append((who, since, at))

    def end(key: tuple[str, int], at: float, why: str) -> Hold | None:
        hold = history.open.pop(key, None)
        if hold is None:
            return None
        hold.ended, hold.why = at, why
        if hold.held < finish and at > begin:
            history.kept.append(hold)
        holding[hold.who] -= 1
        if not holding[hold.who]:
            idle_since[hold.who] = at
        holders = by_name[hold.name]
        holders.remove(hold)
        if hold.left_early:
            history.left_early += 1
            kept[hold.name] = hold
        if not holders:
            free_since[hold.name] = hold.stays if hold.left_early else at
        return hold

    for at, who, what, details in events:
        if math.isnan(history.since):
            history.since = at
        history.until = at
        match what:
            case "held":
                name, semaphore = details["name"], semaphore_of(details["name"])
                hold = Hold(who, name, at, details["due"], at, details["votes"])
                hold.forced, hold.stays = details.get("forced", False), details.get("stays", 0.0)
                hold.kinds = _kinds(details)
                history.holds += 1
                history.of_kind.update(hold.kinds)
                holding[who] += 1
                idle_until(who, at)
                history.longest_wait = max(history.longest_wait, details["waited"])
                history.overlaps += ((other, hold) for other in by_name[name])
                if name in kept and at < kept[name].stays:
                    history.early.append((kept[name], hold))
                if semaphore:
                    if semaphore not in permits:
                        permits[semaphore] = details["permits"]
                        names = [slot_name(semaphore, slot) for slot in range(details["permits"])]
                        free_since.update((each, history.since) for each in names)
                    waits(semaphore, at - details["waited"], at)
                if not by_name[name]:
                    free = free_since.pop(name, history.since)
                    # A task that waits for several names keeps those that come before the one that is not free.
                    until = at - details["waited"] if details.get("before") else at
                    gap(name, max(free, waited[semaphore][0]) if semaphore else free, until)
                by_name[name].append(hold)
                if semaphore:
                    slots = sum(bool(held) for each, held in by_name.items() if semaphore_of(each) == semaphore)
                    history.most[semaphore] = max(history.most[semaphore], slots)
                    if slots > details["permits"]:
                        history.crowded.append((hold, slots, details["permits"]))
                history.open[who, details["hold"]] = hold
                if history.calm < at < history.closing:
                    history.at_rest.add((who, semaphore or name))
            case "ended":
                ended = end((who, details["hold"]), at, details["why"])
                if ended is None:
                    history.errors.append((at, f"{who} ended a hold that it never had: {details}"))
                    continue
                ended.acted, ended.due = details["acted"], max(ended.due, details["due"])
                ended.votes = details["votes"]
                if at > ended.due:
                    history.overdue.append(ended)
                if ended.why not in KEPT:
                    history.lost.append(ended)
                    history.lost_why[ended.why] += 1
                    history.lost_of_kind.update(ended.kinds)
            case "token":
                # None: its worker was about to be killed.
                if (hold_of := history.open.get((who, details["hold"]))) is not None:
                    token = Token(hold_of, details["number"], details["asked"], at)
                    history.tokens[details["name"]].append(token)
            case "no token":
                history.refused[f"{details['why']} for a token"] += 1
            case "stall":
                history.stalls[who].append((details["since"], at))
                if details["since"] <= paused.get(who, -math.inf):
                    del paused[who]  # it runs again
            case "started":
                idle_since[who] = at
            case "paused":
                paused[details["target"]] = at
                for key, each in history.open.items():
                    if key[0] == details["target"]:
                        history.paused.update(each.kinds)
            case "killed":
                target = details["target"]
                if target in paused:  # it never came to tell
                    history.stalls[target].append((paused[target], at))
                for key in [key for key in history.open if key[0] == target]:
                    history.killed.update(history.open[key].kinds)
                    end(key, at, "killed")
                idle_until(target, at)
            case "self":
                history.samples[who].append(Sample(at, **details))
            case "turned away":  # the locker was closed
                history.longest_wait = max(history.longest_wait, details["waited"])
                if details["name"] in permits:
                    waits(details["name"], at - details["waited"], at)
                if at >= history.closing and at - details["waited"] < history.calm:
                    history.asleep.append((who, details["name"], details["waited"]))
            case "refused":
                history.longest_wait = max(history.longest_wait, details["waited"])
                if details["name"] in permits:
                    waits(details["name"], at - details["waited"], at)
                history.refused[details["why"]] += 1
            case "left":
                history.exits.append((who, details["since"], at))
            case "closed":
                history.longest_close = max(history.longest_close, details["took"])
            case "error":
                history.errors.append((at, f"{who}: {details['text']}"))
            case "fault":
                history.faults[details["number"]] = Fault(
                    details["kind"], details["on"], details["solo"], at, harmless=details.get("harmless", False)
                )
            case "rate":
                history.faults[details["number"]].rate = details["before"], details["during"]
            case "over":
                fault = history.faults[details["number"]]
                fault.until = at
                fault.forgot = frozenset((name, index) for name, index in details["forgot"])
                fault.emptied = frozenset((name, index) for name, index in details.get("emptied", ()))
            case "clocks":
                history.wall = details["wall"]
                history.clocks += ((-math.inf, server, 0.0) for server in details["servers"])
            case "clock":
                history.clocks.append((at, details["server"], details["offset"]))
            case "calm":
                history.calm = at
            case "closing":
                history.closing = at
    until = min(history.closing, history.until)
    for semaphore in waited:
        free_slots(semaphore, until)
    history.gaps += (
        (name, free, until)
        for name, free in free_since.items()
        if free < until and not name.startswith(CROWD) and not semaphore_of(name)
    )
    history.idle += ((who, since, until) for who, since in idle_since.items() if since < until)
    return history


def _kinds(details: dict[str, Any]) -> tuple[str, ...]:
    """The kinds of a hold, from what was logged."""
    of = {SEVERAL: "several", FENCED: "fenced", LEAST: "stays", PERMIT: "permits"}
    return tuple(kind for kind, key in of.items() if details.get(key)) or (SINGLE,)
