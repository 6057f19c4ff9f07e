"""How it is shown: progress and a table where there is a terminal, a line for each figure where there is none."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .run import Figure


def number(value: float) -> str:
    """Three digits that count: 0.123, 1.23, 12.3, 123, 12,345."""
    return f"{value:,.{0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2 if abs(value) >= 0.9995 else 3}f}"


class Display:
    """``with`` around the measuring; ``scenario`` and ``step`` while it goes on, ``table`` at the end."""

    def __init__(self, total: int) -> None:
        self._console = Console(highlight=False)
        self._live = self._console.is_terminal and not self._console.is_dumb_terminal
        # Two frames a second: the machine is being measured.
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            refresh_per_second=2,
            transient=True,
            disable=not self._live,
        )
        self._all = self._progress.add_task("scenarios", total=total)
        self._one = self._progress.add_task("", total=None)

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def begin(self, scenario: str, loop: str) -> None:
        self._prefix = f"{scenario}, {loop}"
        self._progress.remove_task(self._one)
        self._one = self._progress.add_task(self._prefix, total=None)

    def step(self, what: str, done: int, total: int) -> None:
        self._progress.update(self._one, description=f"{self._prefix}: {what}", completed=done, total=total)

    def figures(self, figures: Sequence[Figure]) -> None:
        self._progress.advance(self._all)
        if self._live:
            return
        if not figures:
            print(f"{self._prefix}: cannot be measured on this system", flush=True)
        for each in figures:
            spread = f", min {number(each.min)}, p99 {number(each.p99)}, max {number(each.max)}" if each.n > 1 else ""
            print(f"{self._prefix}: {each.what}: {number(each.median)} {each.unit} (n={each.n}{spread})", flush=True)

    def broken(self, problem: str) -> None:
        self._progress.advance(self._all)
        self._progress.stop()
        print(f"{self._prefix}: BROKEN: {problem}", file=sys.stderr, flush=True)
        self._progress.start()

    def table(self, figures: Sequence[Figure], headings: dict[str, str], machine: dict[str, str | int]) -> None:
        said = " · ".join(f"{key} {value}" for key, value in machine.items())
        if not self._live:
            print(said)
            return
        width = max((len(each.what) for each in figures), default=0) + 2
        for scenario, heading in headings.items():
            its = [each for each in figures if each.scenario == scenario]
            if its:
                self._console.print(f"[cyan]{heading}[/]")
                self._console.print(rows(its, width))
        self._console.print(f"[dim]{said}[/]")


def rows(figures: Sequence[Figure], width: int) -> Table:
    """The figures of one scenario; those of one figure on both loops below each other."""
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    table.add_column("", width=width)
    table.add_column("loop", width=7, style="dim")
    for column in ("n", "min", "median", "p99", "max"):
        style = {"median": "bold", "n": "dim"}.get(column, "")
        table.add_column(column, width=3 if column == "n" else 6, justify="right", style=style)
    table.add_column("", width=5)
    for what in dict.fromkeys(each.what for each in figures):
        label = f"  {what}"
        for each in figures:
            if each.what == what:
                n, low, median, p99, high = str(each.n), *map(number, (each.min, each.median, each.p99, each.max))
                if each.n == 1:
                    n = low = p99 = high = ""
                table.add_row(label, each.loop, n, low, median, p99, high, each.unit)
                label = ""
    return table
