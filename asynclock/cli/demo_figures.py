"""What happened in the demo, the figures that follow from it, and whether they are within their bounds. No I/O."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

SERVER = "server"
WORKERS = ("worker 1", "worker 2", "worker 3", "worker 4")
STOPPED = "stopped"  # why work is cancelled when the demo is over

# Limits, in seconds. They are generous, since machines vary.
MOST_HANDOVER = 0.1
MOST_AFTER_EXPIRY = 0.25
MOST_AFTER_DELETE = 0.1
MOST_AFTER_CRASH = 0.5
MOST_AFTER_START = 3.0
NOT_MEASURED = "not measured"
EARLY = 0.002  # a server counts in milliseconds


class What(StrEnum):
    WAITING = "waiting"
    ACQUIRED = "acquired"
    RELEASED = "released"
    CANCELLED = "cancelled"
    BYE = "bye"
    DIED = "died"  # a worker has ended by itself, and its hold with it
    KILLED = "killed"
    DELETED = "deleted"  # the key that ``who`` holds
    STARTED = "started"
    TOLD = "told"  # the story says what is happening now


@dataclass(frozen=True, slots=True)
class Event:
    at: float  # time.monotonic(), which is the same in all processes
    what: What
    who: str = ""  # a worker, or SERVER
    text: str = ""  # the reason of CANCELLED, the words of TOLD
    seconds: float = 0.0  # ACQUIRED: for how long; KILLED: what the worker's key had left to live


@dataclass(slots=True)
class Log:
    """All events and problems. Events are added as they arrive, which is nearly in the order of their times."""

    start: float
    events: list[Event] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # what went wrong, a sentence each

    def add(self, at: float, what: What, who: str = "", text: str = "", seconds: float = 0.0) -> Event:
        event = Event(at, what, who, text, seconds)
        self.events.append(event)
        return event

    def in_order(self, until: float = float("inf")) -> list[Event]:
        return sorted((event for event in self.events if event.at <= until), key=lambda event: event.at)


@dataclass(frozen=True, slots=True)
class Hold:
    """One worker's time with the lock."""

    who: str
    start: float
    end: float  # its work ended, was cancelled, or was killed; infinity: not yet
    rightful_end: float  # the same, or when the key was deleted under it


@dataclass(slots=True)
class Figures:
    """In seconds. ``None``: it has not come to that."""

    handovers: list[float] = field(default_factory=list)
    kill_to_next: float | None = None
    expiry_to_next: float | None = None
    delete_to_cancelled: float | None = None
    delete_to_next: float | None = None
    crash_to_cancelled: float | None = None
    start_to_next: float | None = None
    holds: int = 0
    overlap: float = 0.0  # how long two workers held the lock at once
    overlap_after_delete: float = 0.0


def measure(events: Sequence[Event]) -> Figures:
    """The figures, from events in the order of their time."""
    figures = Figures()

    def first(match: Callable[[Event], bool], after: Event | None) -> Event | None:
        if after is None:
            return None
        return next((event for event in events if event.at > after.at and match(event)), None)

    def between(begin: Event | None, end: Event | None) -> float | None:
        return None if begin is None or end is None else end.at - begin.at

    begin = Event(float("-inf"), What.TOLD)
    killed = first(lambda event: event.what is What.KILLED and event.who != SERVER, begin)
    deleted = first(lambda event: event.what is What.DELETED, begin)
    crashed = first(lambda event: event.what is What.KILLED and event.who == SERVER, begin)
    started = first(lambda event: event.what is What.STARTED, crashed)

    turns = [event for event in events if event.what in (What.ACQUIRED, What.RELEASED)]
    for one, other in itertools.pairwise(turns):
        if one.what is What.RELEASED and other.what is What.ACQUIRED and (killed is None or other.at < killed.at):
            figures.handovers.append(other.at - one.at)

    figures.kill_to_next = between(killed, first(lambda event: event.what is What.ACQUIRED, killed))
    if killed is not None and figures.kill_to_next is not None:
        figures.expiry_to_next = figures.kill_to_next - killed.seconds

    if deleted is not None:
        holder = deleted.who
        told = first(lambda event: event.what is What.CANCELLED and event.who == holder, deleted)
        figures.delete_to_cancelled = between(deleted, told)
        figures.delete_to_next = between(deleted, first(lambda event: event.what is What.ACQUIRED, deleted))

    figures.crash_to_cancelled = between(crashed, first(lambda event: event.what is What.CANCELLED, crashed))
    next_holder = first(lambda event: event.what is What.ACQUIRED, crashed)
    if started is not None and next_holder is not None:
        # The server may answer the workers a little before it answers this process.
        figures.start_to_next = max(0.0, next_holder.at - started.at)

    holds = holds_in(events)
    known = events[-1].at if events else 0.0  # the time up to which the events are known; an overlap counts up to here
    figures.holds = len(holds)
    figures.overlap = overlap((hold.who, hold.start, min(hold.rightful_end, known)) for hold in holds)
    figures.overlap_after_delete = overlap((hold.who, hold.start, min(hold.end, known)) for hold in holds)
    return figures


def surprises(events: Iterable[Event]) -> list[str]:
    """Locks that were lost without a fault, a sentence each."""
    found: list[str] = []
    doomed: set[str] = set()
    for event in events:
        if event.what is What.DELETED:
            doomed = {event.who}
        elif event.what is What.KILLED and event.who == SERVER:
            doomed = set(WORKERS)
        elif event.what is What.STARTED:
            doomed = set()
        elif event.what is What.CANCELLED and event.text != STOPPED:
            if event.who not in doomed:
                found.append(f"{event.who} lost its lock without a fault: {event.text}.")
            doomed.discard(event.who)
    return found


def holds_in(events: Iterable[Event]) -> list[Hold]:
    """Every worker's holds, from events in the order of their times."""
    forever = float("inf")
    holds: list[Hold] = []
    began: dict[str, float] = {}
    deleted: dict[str, float] = {}
    for event in events:
        if event.what is What.ACQUIRED:
            began[event.who] = event.at
        elif event.what is What.DELETED:
            deleted[event.who] = event.at
        elif event.what in (What.RELEASED, What.CANCELLED, What.DIED, What.KILLED) and event.who in began:
            rightful_end = min(event.at, deleted.pop(event.who, forever))
            holds.append(Hold(event.who, began.pop(event.who), event.at, rightful_end))
    holds += [Hold(who, start, forever, deleted.get(who, forever)) for who, start in began.items()]
    return holds


def overlap(spans: Iterable[tuple[str, float, float]]) -> float:
    """The longest time in which the spans of two different workers overlap."""
    return max(
        (
            min(end, other_end) - max(start, other_start)
            for (who, start, end), (other, other_start, other_end) in itertools.combinations(spans, 2)
            if who != other and start < other_end and other_start < end
        ),
        default=0.0,
    )


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: a figure, and whether it is within its limit."""

    number: int
    name: str
    done: str
    measured: str  # empty: not yet
    expected: str
    ok: bool

    @property
    def mark(self) -> str:
        return "✓" if self.ok else "✗"


def judge(figures: Figures) -> list[Row]:
    """Compare the figures with their limits. A figure that was not measured fails."""
    handover = statistics.median(figures.handovers) if figures.handovers else None
    late = figures.expiry_to_next
    measured = [
        None
        if handover is None
        else f"median {ms(handover)}, longest {ms(max(figures.handovers))}, of {len(figures.handovers)}",
        None
        if figures.kill_to_next is None or late is None
        else f"next holder {ms(figures.kill_to_next)} after kill, {ms(late)} after expiry",
        None
        if figures.delete_to_cancelled is None or figures.delete_to_next is None
        else f"work stopped after {ms(figures.delete_to_cancelled)}, next holder after {ms(figures.delete_to_next)}",
        None if figures.crash_to_cancelled is None else f"work stopped after {ms(figures.crash_to_cancelled)}",
        None if figures.start_to_next is None else f"next holder {ms(figures.start_to_next)} after the start",
        None if not figures.holds else _one_at_a_time(figures),
    ]
    ok = [
        handover is not None and handover <= MOST_HANDOVER,
        late is not None and -EARLY <= late <= MOST_AFTER_EXPIRY,
        figures.delete_to_next is not None and _within(figures.delete_to_cancelled, MOST_AFTER_DELETE),
        _within(figures.crash_to_cancelled, MOST_AFTER_CRASH),
        _within(figures.start_to_next, MOST_AFTER_START),
        figures.holds > 0 and not figures.overlap and figures.overlap_after_delete <= MOST_AFTER_DELETE,
    ]
    words = [
        ("hand-over", "workers take turns", f"median <= {ms(MOST_HANDOVER)}"),
        ("holder killed", "SIGKILL to the holder", f"<= {ms(MOST_AFTER_EXPIRY)} after expiry"),
        ("key deleted", "DEL while it is held", f"stopped <= {ms(MOST_AFTER_DELETE)}"),
        ("server killed", "SIGKILL to the server", f"stopped <= {ms(MOST_AFTER_CRASH)}"),
        ("server back", "started again, empty", f"next <= {ms(MOST_AFTER_START)}"),
        ("one at a time", "all holds compared", "never, while the key exists"),
    ]
    return [
        Row(number, name, done, text or "", expected, good)
        for number, ((name, done, expected), text, good) in enumerate(zip(words, measured, ok, strict=True), 1)
    ]


def verdict(rows: Sequence[Row], problems: Sequence[str]) -> tuple[int, list[str]]:
    """The exit status, and the reasons, a sentence each."""
    why = list(problems)
    for row in rows:
        if not row.ok:
            why.append(f"{row.number} {row.name}: {row.measured or NOT_MEASURED}; expected: {row.expected}.")
    return (1, why) if why else (0, [f"All {len(rows)} checks hold."])


def ms(seconds: float) -> str:
    milliseconds = seconds * 1000
    if abs(milliseconds) >= 2000:
        return f"{seconds:g} s" if seconds == int(seconds) else f"{seconds:.1f} s"
    digits = 0 if abs(milliseconds) >= 10 else 1 if abs(milliseconds) >= 0.1 else 2
    return f"{milliseconds:.{digits}f} ms"


def _within(seconds: float | None, most: float) -> bool:
    return seconds is not None and seconds <= most


def _one_at_a_time(figures: Figures) -> str:
    if figures.overlap:
        return f"two at once for {ms(figures.overlap)}"
    text = f"never two in {figures.holds} holds"
    if figures.overlap_after_delete:
        text += f", but for {ms(figures.overlap_after_delete)} after DEL"
    return text
