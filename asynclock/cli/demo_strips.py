"""The demo on a terminal: what each worker does, as coloured strips that move with time."""

from __future__ import annotations

import bisect
import os
from collections.abc import Sequence
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .demo_figures import NOT_MEASURED, SERVER, STOPPED, WORKERS, Event, Log, Row, What, judge, measure
from .demo_view import LAG

CELL = 0.1  # seconds that one cell of a strip stands for
LABEL = 16  # columns


class Strips:
    """The last seconds of each worker and the server as a strip of cells, with the present on the right. At the end,
    the strips show the whole story.

    A cell shows the state at the middle of its time, so two cells of a column hold the lock only if two workers did.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def draw(self, log: Log, now: float) -> None:
        until = now - LAG
        events = log.in_order(until)
        told = [event.text for event in events if event.what is What.TOLD]
        width, count = self._console.width, self._console.width - LABEL
        newest = int((until - log.start) / CELL)  # counting whole cells keeps them from flickering
        oldest = max(0, newest - count)
        start = log.start + oldest * CELL
        self._show(
            Panel(
                Text(told[-1] if told else "Starting a server.", "bold"),
                height=4 if width >= 80 else 5,
                width=width,
                border_style="cyan",
            ),
            strips(events, start, CELL, newest - oldest, labels=states(events)),
            LEGEND,
            Text(),
            _list(judge(measure(events))),
            title=_title(now - log.start, width),
        )

    def conclude(self, log: Log, rows: Sequence[Row], sentences: Sequence[str], now: float) -> None:
        events = log.in_order()
        width, count = self._console.width, self._console.width - LABEL
        working = [event.at for event in events if event.what in (What.ACQUIRED, What.BYE)] or [log.start, now]
        start = working[0] - 3 * CELL
        cell = (working[-1] - start) / count
        self._show(
            strips(events, start, cell, count, labels={}),
            LEGEND,
            title=_title(now - log.start, width),
        )
        self._live.stop()
        self._console.print(_table(rows))
        style = "bold green" if all(row.ok for row in rows) and not log.problems else "bold red"
        for sentence in sentences:
            self._console.print(sentence, style=style)

    def break_off(self, sentence: str) -> None:
        os.write(2, f"\x1b[?25h\n{sentence}\n".encode())  # the cursor back; rich may be stuck

    def _show(self, *parts: RenderableType, title: Text) -> None:
        self._live.update(Group(title, *parts), refresh=True)


GREEN, DIM = "green", "bright_black"
STATES: dict[What, tuple[str, str, str]] = {  # what a worker does from then on: cell, style, word
    What.WAITING: ("░", DIM, "waits"),
    What.ACQUIRED: ("█", GREEN, "holds"),
    What.RELEASED: ("·", DIM, "rests"),
    What.CANCELLED: ("·", DIM, "rests"),
    What.DIED: (" ", "", "died"),
    What.KILLED: (" ", "", "killed"),
    What.BYE: (" ", "", "done"),
    What.STARTED: ("━", "cyan", "up"),
}
LEGEND = Text.assemble(
    ("█", GREEN), " holds  ", ("░", DIM), " waits  ", ("·", DIM), " rests  ", ("!", "bold yellow"),
    " lost: work cancelled  ", ("✗", "bold red"), " killed  ", ("▒", "red"), " its key lives",
    no_wrap=True, overflow="crop", justify="right",
)  # fmt: skip


def states(events: Sequence[Event]) -> dict[str, str]:
    """What each worker and the server does after the last of the events, in a word."""
    return {event.who: STATES[event.what][2] for event in events if event.what in STATES}


def strips(events: Sequence[Event], start: float, cell: float, count: int, labels: dict[str, str]) -> Text:
    """One line of faults, one of the server, and one for each worker; ``count`` cells from ``start`` on."""
    lines = [Text(" " * LABEL) + _faults(events, start, cell, count)]
    for who in (SERVER, *WORKERS):
        word = labels.get(who, "")
        style = {"holds": "bold green", "died": "red", "killed": "red", "up": "cyan"}.get(word, "")
        label = Text(f"{who:<9}{word}".ljust(LABEL), style)
        lines.append(label + _strip([event for event in events if event.who == who], start, cell, count))
    return Text("\n", no_wrap=True, overflow="crop").join(lines)


def _strip(events: Sequence[Event], start: float, cell: float, count: int) -> Text:
    turns: list[tuple[float, str, str]] = []  # from when on, what, how
    marks: dict[int, tuple[str, str]] = {}
    for event in events:
        if event.what not in STATES:
            continue
        number = int((event.at - start) // cell)
        if event.what is What.KILLED:
            marks[number] = ("✗", "bold red")
            if event.seconds:
                turns += [(event.at, "▒", "red"), (event.at + event.seconds, " ", "")]
                continue
        elif event.what is What.DIED:
            marks[number] = ("✗", "bold red")
        elif event.what is What.CANCELLED and event.text != STOPPED:
            marks[number] = ("!", "bold yellow")
        turns.append((event.at, *STATES[event.what][:2]))
    strip = Text()
    for number in range(count):
        index = bisect.bisect_right(turns, start + (number + 0.5) * cell, key=lambda turn: turn[0])
        strip.append(*marks.get(number, turns[index - 1][1:] if index else (" ", "")))
    return strip


def _faults(events: Sequence[Event], start: float, cell: float, count: int) -> Text:
    """The numbers of the faults, where they happened."""
    line = [" "] * count
    number = 1
    for event in events:
        if event.what in (What.KILLED, What.DELETED, What.STARTED):
            at = int((event.at - start) // cell)
            if number > 1 and 0 <= at < count:
                line[at] = str(number)
            number += 1
    return Text("".join(line), "bold yellow")


def _title(seconds: float, width: int) -> Text:
    left, right = "asynclock demo: four processes, one lock", f"{seconds:.1f} s"
    return Text.assemble((left, "bold cyan"), (right.rjust(width - len(left)), DIM))


def _list(rows: Sequence[Row]) -> Table:
    table = Table.grid(padding=(0, 1))
    for row in rows:
        if row.measured:
            table.add_row(Text(f"{row.number}", "bold yellow"), row.name, row.measured, _mark(row))
        else:
            table.add_row(*(Text(text, DIM) for text in (f"{row.number}", row.name, "to come", "")))
    return table


def _table(rows: Sequence[Row]) -> Table:
    """Two lines a row, so that everything fits on a screen of 80 x 24."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="underline")
    for heading in ("", "step, and what was done", "measured, and what is expected", ""):
        table.add_column(heading)
    for row in rows:
        step = Text.assemble((row.name, "bold"), "\n", (row.done, DIM))
        found = Text.assemble(row.measured or NOT_MEASURED, "\n", (row.expected, DIM))
        table.add_row(Text(f"{row.number}", "bold yellow"), step, found, _mark(row))
    return table


def _mark(row: Row) -> Text:
    return Text(row.mark, "bold green" if row.ok else "bold red")
