"""Plays many schedules, and adds up what happened."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field

from .story import Story, outcome, play, shortened
from .world import World
from .worlds import Schedule, schedule

SLICE = 250  # schedules that a process plays in a row
LINES = 150  # lines that are shown from the beginning and from the end of a long history


@dataclass
class Tally:
    """What happened in some schedules. (That they pass says little if nothing happens in them.)"""

    schedules: int = 0
    events: int = 0
    granted: int = 0
    tokens: int = 0  # fencing tokens
    kept: int = 0  # requests to keep a key for the least time of its lock
    groups: int = 0  # times that a task got several names
    failovers: int = 0
    unconfirmed: int = 0  # writes that no replica confirmed in time
    losses: Counter[str] = field(default_factory=Counter)
    overlaps: int = 0  # a lock had two holders, after a server had lost keys of one of them
    told: float = 0.0  # packet delays from the loss of a majority until the holder was notified: the maximum
    failed: int | None = None  # the first seed that broke a guarantee

    def __iadd__(self, other: Tally) -> Tally:
        self.schedules += other.schedules
        self.events += other.events
        self.granted += other.granted
        self.tokens += other.tokens
        self.kept += other.kept
        self.groups += other.groups
        self.failovers += other.failovers
        self.unconfirmed += other.unconfirmed
        self.losses += other.losses
        self.overlaps += other.overlaps
        self.told = max(self.told, other.told)
        if self.failed is None or (other.failed is not None and other.failed < self.failed):
            self.failed = other.failed
        return self


def play_slice(
    start: int,
    count: int,
    which: str | None = None,
    tracking: bool | None = None,
    fencing: bool | None = None,
    at_least: bool | None = None,
    permits: bool | None = None,
) -> Tally:
    """Play ``count`` schedules, or up to the first that fails."""
    tally = Tally()
    gc.disable()  # a world is full of reference cycles: it is cheaper to collect hundreds of worlds at once
    try:
        for seed in range(start, start + count):
            chosen = schedule(seed, which, tracking, fencing, at_least, permits)
            world = chosen.world()
            tally.schedules += 1
            try:
                check = play(chosen.story, world)
            except Exception:  # ``tell`` plays it once more, and reports it
                tally.failed = seed
                break
            tally.events += world.events
            tally.granted += world.granted
            tally.tokens += check.tokens
            tally.kept += check.keeps
            tally.groups += world.groups
            tally.failovers += world.failovers
            tally.unconfirmed += world.unconfirmed
            tally.losses += check.count_losses()
            tally.overlaps += check.overlaps
            tally.told = max(tally.told, *check.told, 0.0)
    finally:
        gc.enable()
        gc.collect()
    return tally


def play_all(
    start: int,
    count: int,
    which: str | None = None,
    tracking: bool | None = None,
    fencing: bool | None = None,
    at_least: bool | None = None,
    permits: bool | None = None,
    jobs: int = 1,
) -> Iterator[Tally]:
    """Yield the tally so far after every slice. Ends after a slice that fails."""
    total = Tally()
    slices = ((first, min(SLICE, start + count - first)) for first in range(start, start + count, SLICE))
    if jobs == 1:
        for first, size in slices:
            total += play_slice(first, size, which, tracking, fencing, at_least, permits)
            yield total
            if total.failed is not None:
                return
        return
    with ProcessPoolExecutor(jobs) as pool:
        under_way: set[Future[Tally]] = set()
        for first, size in slices:
            under_way.add(pool.submit(play_slice, first, size, which, tracking, fencing, at_least, permits))
            if len(under_way) == jobs + 1:  # one slice waits for the first process that is done
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    total += future.result()
                yield total
                if total.failed is not None:
                    break
        for future in under_way:
            total += future.result()
        yield total


def tell(failed: Schedule) -> str:
    """The shortest story that breaks the same guarantee, and its history, event by event."""
    story = shortened(failed.story, failed.world)
    return f"{failed}\n\nwith as few steps as will do:\n{story}\n\nvirtual ms  what happened\n{history(failed, story)}"


def history(chosen: Schedule, story: Story | None = None) -> str:
    world: World = chosen.world(recording=True)
    error = outcome(chosen.story if story is None else story, world)
    lines = [f"{world.ms(when):10.3f}  {what}" for when, what in world.history]
    if error is not None:
        lines.append(f"{world.ms(world.now):10.3f}  {type(error).__name__}: {error}")
    if len(lines) > 2 * LINES:
        lines[LINES:-LINES] = ["       ...  and so on ..."]
    return "\n".join(lines)
