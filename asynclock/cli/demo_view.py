"""Shows the demo: as plain lines, or live on a terminal."""

from __future__ import annotations

import bisect
import io
import os
import sys
from collections.abc import Sequence
from typing import Protocol, Self

from .demo_figures import NOT_MEASURED, SERVER, STOPPED, Event, Log, Row, What, judge, measure, ms

LAG = 0.05  # seconds by which the view is behind, since the workers' events arrive late, through several pipes


class View(Protocol):
    """Shows the log as it grows. ``with view:`` around its use."""

    def __enter__(self) -> object: ...
    def __exit__(self, *exc: object) -> None: ...
    def draw(self, log: Log, now: float) -> None: ...
    def conclude(self, log: Log, rows: Sequence[Row], sentences: Sequence[str], now: float) -> None: ...
    def break_off(self, sentence: str) -> None:
        """Called in another thread, right before the process ends."""


def choose_view(plain: bool) -> View:
    """Live, unless ``plain`` is set or stdout cannot show it."""
    from rich.console import Console

    from .demo_strips import Strips

    console = Console(highlight=False)
    if (
        plain
        or not sys.stdout.isatty()
        or console.is_dumb_terminal
        or not console.encoding.startswith("utf")
        or console.width < 60
        or console.height < 20
    ):
        return Plain()
    return Strips(console)


class Plain:
    """One event a line, with the seconds since the start."""

    def __init__(self) -> None:
        self._taken = 0  # events of the log
        self._pending: list[Event] = []
        self._waiting: set[str] = set()
        self._cause: Event | None = None  # why the lock is free
        self._measured: set[int] = set()  # rows

    def __enter__(self) -> Self:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace", line_buffering=True)
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def draw(self, log: Log, now: float) -> None:
        self._show(log, now - LAG)

    def conclude(self, log: Log, rows: Sequence[Row], sentences: Sequence[str], now: float) -> None:
        self._show(log, now)
        cells = [("", "step", "what was done", "measured", "expected")]
        for row in rows:
            found = row.measured or NOT_MEASURED
            cells.append((row.mark, f"{row.number} {row.name}", row.done, found, row.expected))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        print()
        for line in cells:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        print()
        for sentence in sentences:
            print(sentence)

    def break_off(self, sentence: str) -> None:
        os.write(2, f"{sentence}\n".encode())

    def _show(self, log: Log, until: float) -> None:
        self._pending += log.events[self._taken :]
        self._taken = len(log.events)
        self._pending.sort(key=lambda event: event.at)
        count = bisect.bisect_right(self._pending, until, key=lambda event: event.at)
        ready, self._pending = self._pending[:count], self._pending[count:]
        for event in ready:
            line = self._line(event)
            if line:
                print(f"{event.at - log.start:6.2f} s  {line}")
        if ready:
            for row in judge(measure(log.in_order(until)))[1:5]:
                if row.measured and row.number not in self._measured:
                    self._measured.add(row.number)
                    print(f"{'=':>8}  {row.number} {row.name}: {row.measured}")

    def _line(self, event: Event) -> str:
        """The line for an event. WAITING and RELEASED have none: the next holder's line mentions them."""
        who = event.who
        match event.what:
            case What.TOLD:
                return f"* {event.text}"
            case What.WAITING:
                self._waiting.add(who)
                return ""
            case What.ACQUIRED:
                self._waiting.discard(who)
                return f"{who} holds the lock{self._since(event)}{_listed(self._waiting)}"
            case What.RELEASED:
                self._cause = event
                return ""
            case What.CANCELLED if event.text == STOPPED:
                return f"{who} stops its work and gives the lock back"
            case What.CANCELLED:
                return f"{who} has its work cancelled: lock lost, {event.text}"
            case What.BYE:
                return f"{who} ends"
            case What.DIED:
                self._cause = None
                self._waiting.discard(who)
                return f"{who} has ended by itself"
            case What.KILLED if who == SERVER:
                self._cause = None
                return "the server is killed"
            case What.KILLED:
                self._cause = None
                self._waiting.discard(who)
                return f"{who} is killed; its key has {ms(event.seconds)} to live"
            case What.DELETED:
                self._cause = None
                return f"the key of {who} is deleted"
            case What.STARTED:
                return "the server is up"

    def _since(self, event: Event) -> str:
        cause, self._cause = self._cause, None
        return "" if cause is None else f", {ms(event.at - cause.at)} after {cause.who} gave it back"


def _listed(names: set[str]) -> str:
    if not names:
        return ""
    return "; waiting: " + ", ".join(sorted(name.removeprefix("worker ") for name in names))
