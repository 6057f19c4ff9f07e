"""Shows the results: progress and a table on a terminal, otherwise a line for each figure."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .figures import Figure, number
from .results import Results


class Display:
    """Use ``with`` around the measurements; call ``begin`` and ``step`` during them, and ``table`` at the end."""

    def __init__(self, total: int) -> None:
        self._console = Console(highlight=False)
        self._live = self._console.is_terminal and not self._console.is_dumb_terminal
        # Only two frames a second, so that drawing does not disturb the measurements.
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
            target = f"; {each.judged()}" if each.targets else ""
            value = f"{number(each.median)} {each.unit}".rstrip()
            print(f"{self._prefix}: {each.label}: {value} (n={each.n}{spread}){target}", flush=True)

    def broken(self, problem: str) -> None:
        self._progress.advance(self._all)
        self._progress.stop()
        print(f"{self._prefix}: BROKEN: {problem}", file=sys.stderr, flush=True)
        self._progress.start()

    def note(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def table(self, results: Results, headings: Mapping[str, str]) -> None:
        if self._live and results.figures:
            self._console.print(rows(results.figures, headings))
        for library, why in results.absent.items():
            self.note(f"absent: {library}: {why}")
        wanted = sum(each.reached is not None for each in results.figures)
        missed = results.missed()
        if wanted and "quick" not in results.machine:
            self.note(
                f"{wanted - len(missed)} of {wanted} figures reach their targets" + (", except:" if missed else "")
            )
            for line in missed:
                self.note(f"  {line}")
        self.note(" · ".join(f"{key} {value}" for key, value in results.machine.items()))


def rows(figures: Sequence[Figure], headings: Mapping[str, str]) -> Table:
    """The rows of the table, with a figure's values for both event loops below each other."""
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("loop", style="dim")
    for column in ("n", "min", "median", "p99", "max"):
        style = {"median": "bold", "n": "dim"}.get(column, "")
        table.add_column(column, justify="right", style=style, no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("must reach")
    for scenario, heading in headings.items():
        its = [each for each in figures if each.scenario == scenario]
        if its:
            table.add_row(Text(f"{scenario}: {heading}", style="cyan"))
        for label in dict.fromkeys(each.label for each in its):
            shown = f"  {label}"
            for each in (each for each in its if each.label == label):
                n, low, median, p99, high = str(each.n), *map(number, (each.min, each.median, each.p99, each.max))
                if each.n == 1:
                    n = low = p99 = high = ""
                style = {None: "", True: "green", False: "red"}[each.reached]
                said = Text(each.judged(), style=style)
                table.add_row(Text(shown), each.loop, n, low, median, p99, high, each.unit, said)
                shown = ""
    return table
