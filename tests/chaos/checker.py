"""The verdict on a history: who held a lock together with somebody else, for how long, and whose fault it was."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from .history import Fault, History, Hold

IN_FLIGHT = 0.5  # seconds between a server's granting a lock and the holder's knowing, at most (delayed wires)
NOTICED = 0.05  # seconds from when a worker's loop runs again until it has noticed that its lock is over
EXIT = 0.1  # seconds from a loss until the block is left, which waits for no server
RECONNECT = 1.5  # seconds for which a client may stay away from a server that is there again (its pause, and room)
COMMANDS = 200.0  # a second that come and go by themselves
FORCED = "taken over by force"


@dataclass(frozen=True)
class Bounds:
    """What was promised, in seconds. ``told``: by kind of fault, the time for which two may hold a lock after servers
    forgot its keys. ``wait``: how long nobody may hold a lock that is waited for, after a fault."""

    told: dict[str, float]
    wait: float
    validity: float
    majority: int
    harmless: tuple[str, ...] = ()
    """Faults that cost nobody a lock, where they come alone."""
    heard: tuple[str, ...] = ()
    """Faults that keep no other one's message from coming."""
    waits: Mapping[str, float] = field(default_factory=dict)
    """``wait``, for faults after which it is less."""
    idle: float = math.inf
    """How long a worker may get no lock at all, after a fault."""
    commands: float = math.inf
    """Commands a second that a server may get beside what it gets anyway."""


@dataclass
class Row:
    """What is known of a kind of fault."""

    injected: int = 0
    broken: int = 0
    """Overlaps though the servers kept their word: there may be none."""
    forgotten: int = 0
    """Overlaps because servers forgot."""
    longest: float = 0.0
    """... of these, the longest, without times in which the one who had it first did not run."""
    beyond: int = 0
    """... and those that were longer than the bound, which other faults around allowed."""
    stale: int = 0
    """Holders that did not run when their time was over, and thought later than somebody else's hold began that they
    had the lock."""
    noticed: float = 0.0
    """... and the longest that it took from when it ran again until it knew."""
    wait: float = 0.0
    """The longest that nobody held a lock after the fault was over. Only of those that were alone, as the next ones."""
    lost: int = 0
    rate: float = 0.0
    """The most commands a second that a server got then, where they were counted."""
    told: float = 0.0
    """From the fault's beginning until the last of those who lost a lock knew."""
    errors: int = 0
    """That were not asynclock's own, while it lasted or soon afterwards."""


@dataclass
class Verdict:
    rows: dict[str, Row] = field(default_factory=lambda: defaultdict(Row))
    violations: list[str] = field(default_factory=list)
    longest_exit: float = 0.0
    """Seconds from a loss until the block was left."""


def judge(history: History, bounds: Bounds) -> Verdict:
    verdict = Verdict()
    for fault in history.faults.values():
        verdict.rows[fault.kind].injected += 1
    stale: dict[str, set[Hold]] = defaultdict(set)
    for first, second in history.overlaps:
        _judge_overlap(history, bounds, verdict, first, second, stale)
    _judge_waits(history, bounds, verdict)
    _judge_rates(history, bounds, verdict)
    _judge_losses(history, bounds, verdict)
    for who, since, until in history.exits:
        took = _uncovered(since, until, history.stalls[who])
        verdict.longest_exit = max(verdict.longest_exit, took)
        if took > EXIT:
            verdict.violations.append(f"{who} left a block {took * 1000:.0f} ms after its lock was lost ({since:.3f})")
    for hold in history.overdue:
        over = _uncovered(hold.due, hold.ended, history.stalls[hold.who])
        if over > NOTICED:
            verdict.violations.append(
                f"{hold.who} held {hold.name!r} until {over * 1000:.0f} ms after its own deadline ({hold.due:.3f})"
            )
    for who, name, waited in history.asleep:
        verdict.violations.append(f"{who} still waited for {name!r} in the end, for {waited:.1f} s, all the calm")
    for at, text in history.errors:
        verdict.violations.append(f"an error that is not asynclock's own: {text}")
        near = {each.kind for each in history.faults.values() if each.since <= at <= each.until + bounds.validity}
        for kind in near or {"none"}:
            verdict.rows[kind].errors += 1
    verdict.violations += (
        f"{hold.who} never ended its hold of {hold.name!r} from {hold.held:.3f}" for hold in history.open.values()
    )
    return verdict


def _judge_overlap(
    history: History, bounds: Bounds, verdict: Verdict, first: Hold, second: Hold, seen: dict[str, set[Hold]]
) -> None:
    since, until = second.held, min(first.ended, second.ended)
    awake = _uncovered(since, until, history.stalls[first.who])
    excuse = FORCED if second.forced else _excuse(history, bounds, first, second)
    if excuse is not None:
        row = verdict.rows[excuse]
        row.forgotten += 1
        row.longest = max(row.longest, awake)
        bound = bounds.told[excuse]
        if not _alone(history, second.held, until, besides=bounds.heard, own=excuse):
            row.beyond += awake > bound
            bound += bounds.validity  # the message may be what another fault keeps from coming
        if awake > bound:
            verdict.violations.append(
                f"{_both(first, second)}: for {awake * 1000:.1f} ms after {excuse!r}, "
                f"where {bound * 1000:.0f} ms are the bound"
            )
        return
    around = [fault for fault in history.faults.values() if fault.since <= until and first.held <= fault.until]
    rows = {fault.kind: verdict.rows[fault.kind] for fault in around} or {"none": verdict.rows["none"]}
    # A worker that does not run cannot know that its time is over. It may not have acted after that, and nobody
    # may have got the lock before.
    late = second if second.held >= second.due else first
    other = first if late is second else second
    problem = ""
    if late is first and second.held < first.due:
        problem = f"{(first.due - second.held) * 1000:.1f} ms before the first one's time was over"
    elif late is first and first.acted > second.held:
        problem = f"the first one acted on it {(first.acted - second.held) * 1000:.1f} ms after that"
    elif late is second and second.held < first.due and first.held < _granted(second, bounds):
        problem = "when the first one had it already"
    elif not _within(history.stalls[late.who], other.held if late is second else late.acted, until):
        problem = f"for {(until - since) * 1000:.1f} ms, and its loop did run"
    if problem:
        for row in rows.values():
            row.broken += 1
        what = ", ".join(rows)
        verdict.violations.append(f"{_both(first, second)}: {problem}. Faults around: {what}")
        return
    noticed = _uncovered(max(since, late.due), until, history.stalls[late.who])
    own = [kind for kind in rows if any(fault.kind == kind and late.who in fault.on.split() for fault in around)]
    for kind in own or rows:
        if late not in seen[kind]:
            seen[kind].add(late)
            rows[kind].stale += 1
        rows[kind].noticed = max(rows[kind].noticed, noticed)
    if noticed > NOTICED:
        verdict.violations.append(f"{_both(first, second)}: noticed {noticed * 1000:.1f} ms after the loop ran again")


def _excuse(history: History, bounds: Bounds, first: Hold, second: Hold) -> str | None:
    """The fault after which the guarantee does not hold for these two: the first one's keys were not on a majority
    any more. A holder may have had just that to begin with, since others who try have the rest for a moment."""
    name, forgot = first.name, set()
    last: Fault | None = None
    if second.held >= first.due:
        return None  # that is known without a message
    for fault in history.faults.values():
        # Who has not been told yet may have passed the lock on within his process.
        over = fault.until + bounds.told.get(fault.kind, 0.0)
        if fault.since > second.held or over < first.held - IN_FLIGHT:
            continue
        if mine := {key for key in fault.forgot if key[0] == name}:
            forgot |= mine
            if last is None or fault.since >= last.since:
                last = fault
    votes = sum(until > second.held for until in first.votes)
    if last is not None and votes - len(forgot) < bounds.majority:
        return last.kind
    return None


def _granted(hold: Hold, bounds: Bounds) -> float:
    """Until when the servers granted it, also to somebody who did not know before that was over."""
    until = sorted(hold.votes, reverse=True)
    return until[bounds.majority - 1] if len(until) >= bounds.majority else -math.inf


def _alone(history: History, since: float, until: float, besides: Collection[str] = (), own: str = "") -> bool:
    """Was there just one fault around that time (``own``, if that is known), but for these? Others are over once all
    may have reconnected."""
    around = since - RECONNECT
    others = [
        fault
        for fault in history.faults.values()
        if fault.since <= until and fault.until >= around and fault.kind not in besides
    ]
    return len(others) <= (own not in besides)


def _judge_waits(history: History, bounds: Bounds, verdict: Verdict) -> None:
    faults = sorted(history.faults.values(), key=lambda fault: fault.since)
    gaps = sorted(history.gaps, key=lambda gap: gap[1])
    for number, fault in enumerate(faults):
        if not fault.solo:
            continue
        next_one = faults[number + 1].since if number + 1 < len(faults) else history.closing
        row = verdict.rows[fault.kind]
        bound = bounds.waits.get(fault.kind, bounds.wait)
        for name, wait in _after(history, fault, next_one, gaps):
            row.wait = max(row.wait, wait)
            if wait > bound:
                verdict.violations.append(
                    f"{name!r} was waited for, and nobody had it for {wait:.2f} s after {fault.kind!r} "
                    f"({fault.until:.3f}); {bound:g} s are the bound"
                )
        for who, wait in _after(history, fault, next_one, history.idle):
            if wait > bounds.idle:
                verdict.violations.append(
                    f"{who} got no lock at all for {wait:.2f} s after {fault.kind!r} ({fault.until:.3f}); "
                    f"{bounds.idle:g} s are the bound"
                )
    for name, free, taken in gaps:
        since = max(free, history.calm)
        if taken - since > bounds.wait:
            verdict.violations.append(f"{name!r}: nobody had it for {taken - since:.2f} s though all was well")


def _after(
    history: History, fault: Fault, next_one: float, without: Iterable[tuple[str, float, float]]
) -> Iterable[tuple[str, float]]:
    """Who or what went without for how long, after this fault. What lasts into the next fault is that one's. Whoever
    does not run cannot get anything."""
    for who, free, taken in without:
        if free < next_one and taken > fault.until:
            yield who, _uncovered(max(free, fault.until), min(taken, next_one), history.stalls.get(who, ()))


def _judge_rates(history: History, bounds: Bounds, verdict: Verdict) -> None:
    for fault in history.faults.values():
        if fault.rate is None or not fault.solo:
            continue
        before, during = fault.rate
        row = verdict.rows[fault.kind]
        row.rate = max(row.rate, during)
        limit = 1.5 * before + bounds.commands + COMMANDS
        if during > limit:
            verdict.violations.append(
                f"the server got {during:,.0f} commands a second during {fault.kind!r} ({fault.since:.3f}), and "
                f"{before:,.0f} before it; {limit:,.0f} are the bound"
            )


def _judge_losses(history: History, bounds: Bounds, verdict: Verdict) -> None:
    faults = sorted(history.faults.values(), key=lambda fault: fault.since)
    for hold in history.lost:
        before = [fault for fault in faults if fault.since <= hold.ended]
        if not before or min(hold.ended - fault.until for fault in before) > bounds.validity + RECONNECT:
            if not _within(history.stalls[hold.who], hold.acted - bounds.validity, hold.ended):
                verdict.violations.append(
                    f"{hold.who} lost {hold.name!r} ({hold.why}) at {hold.ended:.3f} though all was well"
                )
        elif before[-1].solo:
            fault = before[-1]
            row = verdict.rows[fault.kind]
            row.lost += 1
            row.told = max(row.told, hold.ended - fault.since)
            ran = not _within(history.stalls[hold.who], hold.acted - bounds.validity, hold.ended)
            if (fault.harmless or fault.kind in bounds.harmless) and ran and _alone(history, fault.since, hold.ended):
                verdict.violations.append(
                    f"{hold.who} lost {hold.name!r} ({hold.why}) at {hold.ended:.3f} after {fault.kind!r}, which "
                    "costs nobody a lock"
                )


def _both(first: Hold, second: Hold) -> str:
    return (
        f"{first.name!r} had two holders: {first.who} from {first.held:.4f} to {first.ended:.4f} ({first.why}; due "
        f"{first.due:.4f}) and {second.who} from {second.held:.4f} to {second.ended:.4f} ({second.why})"
    )


def _within(spans: Iterable[tuple[float, float]], since: float, until: float) -> list[tuple[float, float]]:
    return [(max(start, since), min(end, until)) for start, end in spans if start < until and end > since]


def _uncovered(since: float, until: float, spans: Iterable[tuple[float, float]]) -> float:
    """How much of the time from ``since`` to ``until`` is in none of these."""
    left = max(0.0, until - since)
    covered = since
    for start, end in sorted(_within(spans, since, until)):
        left -= max(0.0, end - max(start, covered))
        covered = max(covered, end)
    return left
