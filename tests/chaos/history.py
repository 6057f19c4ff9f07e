"""What happened, merged from all logs: holds, overlaps, times without a holder, faults, stalls."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from .deployments import CROWD, Key
from .logs import KEPT, Event

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


@dataclass(slots=True, eq=False)
class Fault:
    kind: str
    on: str
    solo: bool
    since: float
    until: float = math.inf
    forgot: frozenset[Key] = frozenset()
    harmless: bool = False
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
    gaps: list[tuple[str, float, float]] = field(default_factory=list)  # name, begin and end of a time without a holder
    idle: list[tuple[str, float, float]] = field(default_factory=list)  # worker, begin and end of a time without a lock
    stalls: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    exits: list[tuple[str, float, float]] = field(default_factory=list)  # from a loss until the block was left
    errors: list[tuple[float, str]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    lost_why: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    holds: int = 0
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
        if not holders:
            free_since[hold.name] = at
        return hold

    for at, who, what, details in events:
        if math.isnan(history.since):
            history.since = at
        history.until = at
        match what:
            case "held":
                name = details["name"]
                hold = Hold(who, name, at, details["due"], at, details["votes"], forced=details.get("forced", False))
                history.holds += 1
                holding[who] += 1
                idle_until(who, at)
                history.longest_wait = max(history.longest_wait, details["waited"])
                history.overlaps += ((other, hold) for other in by_name[name])
                if not by_name[name]:
                    free = free_since.pop(name, history.since)
                    if at - free > LONG_GAP and not name.startswith(CROWD):
                        history.gaps.append((name, free, at))
                by_name[name].append(hold)
                history.open[who, details["hold"]] = hold
                if history.calm < at < history.closing:
                    history.at_rest.add((who, name))
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
            case "stall":
                history.stalls[who].append((details["since"], at))
                if details["since"] <= paused.get(who, -math.inf):
                    del paused[who]  # it runs again
            case "started":
                idle_since[who] = at
            case "paused":
                paused[details["target"]] = at
            case "killed":
                target = details["target"]
                if target in paused:  # it never came to tell
                    history.stalls[target].append((paused[target], at))
                for key in [key for key in history.open if key[0] == target]:
                    end(key, at, "killed")
                idle_until(target, at)
            case "self":
                history.samples[who].append(Sample(at, **details))
            case "turned away":  # the locker was closed
                history.longest_wait = max(history.longest_wait, details["waited"])
                if at >= history.closing and at - details["waited"] < history.calm:
                    history.asleep.append((who, details["name"], details["waited"]))
            case "refused":
                history.longest_wait = max(history.longest_wait, details["waited"])
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
            case "calm":
                history.calm = at
            case "closing":
                history.closing = at
    until = min(history.closing, history.until)
    history.gaps += (
        (name, free, until) for name, free in free_since.items() if free < until and not name.startswith(CROWD)
    )
    history.idle += ((who, since, until) for who, since in idle_since.items() if since < until)
    return history
