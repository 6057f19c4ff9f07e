"""Judges a history: which locks had two holders at once, for how long, and which fault explains it."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from .deployments import Key
from .history import Fault, History, Hold, Token

IN_FLIGHT = 0.5  # seconds from a server's grant until the holder knows, at most (delayed wires)
NOTICED = 0.05  # seconds from when a worker's loop runs again until it has noticed that its lock has expired, at most
EXIT = 0.1  # seconds from a loss until the block is left, at most: that waits for no server
RECONNECT = 1.5  # seconds from a server's return until its clients have reconnected, at most (pause, and slack)
APART = 0.01  # seconds by which clocks and times in logs differ, at most
COMMANDS = 200.0  # commands a second by which the rate may vary without a reason
FORCED = "taken over by force"


@dataclass(frozen=True)
class Bounds:
    """The limits, in seconds. ``told``: for each kind of fault, how long a lock may have two holders after servers have
    lost its keys. ``wait``: how long a lock with waiters may have no holder after a fault."""

    told: dict[str, float]
    wait: float
    validity: float
    majority: int
    harmless: tuple[str, ...] = ()
    """Faults that must not cause losses, if they happen alone."""
    heard: tuple[str, ...] = ()
    """Faults that do not delay the pushes of other faults."""
    waits: Mapping[str, float] = field(default_factory=dict)
    """``wait``, for faults with a smaller limit."""
    idle: float = math.inf
    """How long a worker may get no lock at all after a fault."""
    commands: float = math.inf
    """Extra commands a second that a server may get during a fault."""


@dataclass
class Row:
    """The results for one kind of fault."""

    injected: int = 0
    broken: int = 0
    """Overlaps (two holders at once) although the servers kept the keys: none is allowed."""
    forgotten: int = 0
    """Overlaps because servers lost keys."""
    longest: float = 0.0
    """The longest of these, without times in which the first holder's process did not run."""
    beyond: int = 0
    """Those of them that exceeded the limit, which other faults at the same time excuse."""
    stale: int = 0
    """Holders whose process did not run at their deadline, and that believed to have the lock after another had it."""
    noticed: float = 0.0
    """The longest time that such a process took to notice, after it ran again."""
    wait: float = 0.0
    """The longest time without a holder after the end of the fault. This and the next ones: only of faults that
    happened alone."""
    lost: int = 0
    rate: float = 0.0
    """The highest rate of commands a second at a server, where it was measured."""
    told: float = 0.0
    """From the start of the fault until the last holder that lost a lock was notified."""
    errors: int = 0
    """Errors that are not asynclock's, during the fault or soon after it."""


@dataclass
class Verdict:
    rows: dict[str, Row] = field(default_factory=lambda: defaultdict(Row))
    violations: list[str] = field(default_factory=list)
    longest_exit: float = 0.0
    """Seconds from a loss until the block was left."""
    disorder: int = 0
    """Fencing tokens that were not greater than an earlier one, since a server had lost its counter and its clock was
    behind."""
    not_kept: int = 0
    """Locks that somebody else got within their least time, since servers had lost keys, or by force."""


def judge(history: History, bounds: Bounds) -> Verdict:
    verdict = Verdict()
    for fault in history.faults.values():
        verdict.rows[fault.kind].injected += 1
    stale: dict[str, set[Hold]] = defaultdict(set)
    for first, second in history.overlaps:
        _judge_overlap(history, bounds, verdict, first, second, stale)
    _judge_stays(history, bounds, verdict)
    _judge_tokens(history, verdict)
    verdict.violations += (
        f"{hold.who} had {hold.name!r} from {hold.held:.4f}, when {slots} permits were held; there are {permits}"
        for hold, slots, permits in history.crowded
    )
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
    if excuse is None and (fault := _robbed_before(history, bounds, second)) is not None:
        # The second holder's process has lost the lock longest, and handed it from task to task since then.
        excuse, awake = fault.kind, _uncovered(fault.until, until, history.stalls[second.who])
    if excuse is not None:
        row = verdict.rows[excuse]
        row.forgotten += 1
        row.longest = max(row.longest, awake)
        bound = bounds.told[excuse]
        if not _alone(history, second.held, until, besides=bounds.heard, own=excuse):
            row.beyond += awake > bound
            bound += bounds.validity  # another fault may have delayed the push
        if awake > bound:
            verdict.violations.append(
                f"{_both(first, second)}: for {awake * 1000:.1f} ms after {excuse!r}, "
                f"where {bound * 1000:.0f} ms are the bound"
            )
        return
    around = [fault for fault in history.faults.values() if fault.since <= until and first.held <= fault.until]
    rows = {fault.kind: verdict.rows[fault.kind] for fault in around} or {"none": verdict.rows["none"]}
    # A worker that does not run cannot notice its deadline. But it must not act after it, and nobody else may get the
    # lock before it.
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
    """The fault that excuses this overlap."""
    if second.held >= first.due:
        return None  # a holder knows its own deadline, without a push
    votes = sum(until > second.held for until in first.votes)
    return _cost_the_majority(history, bounds, first, second.held, votes)


def _cost_the_majority(
    history: History, bounds: Bounds, hold: Hold, at: float, votes: int, stays: bool = False
) -> str | None:
    """The fault that had cost this holder its majority of ``votes`` keys by then. (A holder may have a bare majority
    from the start, while the attempts of others have the remaining keys for a moment.)

    :param stays: the lock is only kept for its least time, and a quarantine may end before that
    """
    forgot: set[Key] = set()
    last: Fault | None = None
    for fault in history.faults.values():
        # A process that was not notified yet may have handed the lock from task to task.
        over = fault.until + bounds.told.get(fault.kind, 0.0)
        if fault.since > at or over < hold.held - IN_FLIGHT:
            continue
        keys = fault.forgot
        if stays and at >= fault.since + bounds.validity:
            keys |= fault.emptied
        if mine := {key for key in keys if key[0] == hold.name}:
            forgot |= mine
            if last is None or fault.since >= last.since:
                last = fault
    if last is not None and votes - len(forgot) < bounds.majority:
        return last.kind
    return None


def _robbed_before(history: History, bounds: Bounds, hold: Hold) -> Fault | None:
    """The fault that took this lock's keys after the servers had confirmed them for the last time, and before the task
    had it: from another task of the same process, which was not notified."""
    found = None
    for fault in history.faults.values():
        lost = sum(key[0] == hold.name for key in fault.forgot)
        confirmed_before = fault.since < _granted(hold, bounds) <= fault.until + bounds.validity
        if lost and fault.since <= hold.held and confirmed_before and len(hold.votes) - lost < bounds.majority:
            found = fault
    return found


def _granted(hold: Hold, bounds: Bounds) -> float:
    """Until when the servers had granted it, whether the holder knew in time or not."""
    until = sorted(hold.votes, reverse=True)
    return until[bounds.majority - 1] if len(until) >= bounds.majority else -math.inf


def _alone(history: History, since: float, until: float, besides: Collection[str] = (), own: str = "") -> bool:
    """Was there a single fault (``own``, if given) around that time, not counting ``besides``? A fault counts until
    ``RECONNECT`` after its end."""
    around = since - RECONNECT
    others = [
        fault
        for fault in history.faults.values()
        if fault.since <= until and fault.until >= around and fault.kind not in besides
    ]
    return len(others) <= (own not in besides)


def _judge_stays(history: History, bounds: Bounds, verdict: Verdict) -> None:
    """Nobody gets a lock within its least time, after it was left."""
    for first, second in history.early:
        # It counts from when the program had the lock. A loop that did not run logs that late.
        began = min(
            (start for start, end in history.stalls[first.who] if start < first.held <= end), default=first.held
        )
        until = first.stays - (first.held - began) - APART
        if second.held >= until:
            continue
        votes = sum(until > first.ended for until in first.votes)
        excused = second.forced or _cost_the_majority(history, bounds, first, second.held, votes, stays=True)
        if excused or _robbed_before(history, bounds, first):
            verdict.not_kept += 1
        elif second.held < first.due or not _in_trouble(history, first.ended):
            verdict.violations.append(
                f"{first.name!r} was to stay until {first.stays:.4f}: {first.who} had it from {first.held:.4f} to "
                f"{first.ended:.4f} ({first.why}; due {first.due:.4f}), and {second.who} got it at {second.held:.4f}, "
                f"{(first.stays - second.held) * 1000:.1f} ms too early"
            )


def _in_trouble(history: History, at: float) -> bool:
    """Was there a fault that may have kept a release of that time from its servers? Then the keys end as ever, at the
    holder's deadline."""
    return any(fault.since <= at + IN_FLIGHT and fault.until + RECONNECT >= at for fault in history.faults.values())


def _judge_tokens(history: History, verdict: Verdict) -> None:
    """A fencing token is greater than all that others were given before it was asked for, so also than those of earlier
    holders. In one hold, it stays the same."""
    for name, tokens in history.tokens.items():
        of_hold: dict[Hold, int] = {}
        given = deque(tokens)
        highest: list[Token] = []  # of those that were given before: each with a lower number than the one before it
        for token in sorted(tokens, key=lambda token: token.asked):
            while given and given[0].got <= token.asked:
                one = given.popleft()
                highest = [*(each for each in highest if each.number > one.number), one]
            whose = f"{token.hold.who} got token {token.number} of {name!r} ({token.asked:.4f} to {token.got:.4f})"
            if (before := of_hold.get(token.hold)) is not None:
                if before != token.number:
                    verdict.violations.append(f"{whose}, and {before} in the same hold before")
                continue  # no server was asked again
            of_hold[token.hold] = token.number
            if not 0 < token.number < 1 << 53:
                verdict.violations.append(f"{whose}, which is no positive number of 53 bits")
            clock = _slowest_clock(history, token.asked, token.got)
            if token.number < (clock - APART) * 1e6:
                behind = clock - token.number / 1e6
                verdict.violations.append(f"{whose}, which is {behind:.3f} s behind the server's clock")
            for each in [each for each in highest if each.number >= token.number]:
                if _lost_a_counter(history, each, token):
                    verdict.disorder += 1
                    highest.remove(each)
                else:
                    verdict.violations.append(f"{whose} after {each.hold.who} had got {each.number} at {each.got:.4f}")


def _lost_a_counter(history: History, first: Token, second: Token) -> bool:
    """Did a server lose the counter in between? Then the second token may be lower, but not behind the clocks. (So it
    takes a clock that was set back, or that differs from another one.)"""
    return any(
        fault.since <= second.got
        and fault.until >= first.asked
        and any(key[0] == first.hold.name for key in fault.emptied)
        for fault in history.faults.values()
    )


def _slowest_clock(history: History, since: float, until: float) -> float:
    """The lowest time of day that any server's clock showed after ``since``, or minus infinity if that is not known."""
    if math.isnan(history.wall):
        return -math.inf
    offsets = [0.0] if not history.clocks else []
    for server in {server for _, server, _ in history.clocks}:
        jumps = [(at, offset) for at, which, offset in history.clocks if which == server]
        last = max((jump for jump in jumps if jump[0] < since - IN_FLIGHT), default=jumps[0])
        offsets += (
            offset for at, offset in jumps if (at, offset) == last or since - IN_FLIGHT <= at <= until + IN_FLIGHT
        )
    return since + history.wall + min(offsets)


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
    """The times without a holder (or without a lock, for workers) that belong to this fault: those after it, up to the
    next one. Times in which a worker did not run do not count."""
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
        f"{first.due:.4f}) and {second.who} from {second.held:.4f} to {second.ended:.4f} ({second.why}; due "
        f"{second.due:.4f})"
    )


def _within(spans: Iterable[tuple[float, float]], since: float, until: float) -> list[tuple[float, float]]:
    return [(max(start, since), min(end, until)) for start, end in spans if start < until and end > since]


def _uncovered(since: float, until: float, spans: Iterable[tuple[float, float]]) -> float:
    """The part of the time from ``since`` to ``until`` that none of the spans covers."""
    left = max(0.0, until - since)
    covered = since
    for start, end in sorted(_within(spans, since, until)):
        left -= max(0.0, end - max(start, covered))
        covered = max(covered, end)
    return left
