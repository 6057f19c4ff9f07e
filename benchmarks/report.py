"""The results as Markdown: three numbers for README.md, a short table for docs/speed.md, all for benchmarks/README.md.

``python -m benchmarks --readme`` writes each between two comments, such as ``<!-- short -->`` and ``<!-- /short -->``,
and leaves the rest of the page alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .figures import OURS, Figure, number
from .machine import in_a_line
from .results import ROOT, Results

LOOPS = ("asyncio", "uvloop")
PAGES = {
    ROOT / "README.md": "three",
    ROOT / "docs" / "speed.md": "short",
    Path(__file__).with_name("README.md"): "long",
}

CYCLES = ("1 task", "10 tasks", "64 tasks", "512 tasks")


def refresh(results: Results, headings: Mapping[str, str], pages: Mapping[Path, str] = PAGES) -> list[Path]:
    """Put the tables into the pages. :returns: the pages"""
    tables = {"three": three(results), "short": short(results), "long": long(results, headings)}
    for page, which in pages.items():
        page.write_text(between(page.read_text(), which, tables[which]))
    return list(pages)


def between(text: str, which: str, table: str) -> str:
    """:raises ValueError: the page does not have the two comments"""
    pattern = rf"(<!-- {which} -->\n).*?(<!-- /{which} -->)"
    if not re.search(pattern, text, re.DOTALL):
        raise ValueError(f"the page has no <!-- {which} --> and <!-- /{which} -->")
    return re.sub(pattern, lambda match: f"{match[1]}\n{table}\n\n{match[2]}", text, flags=re.DOTALL)


def three(results: Results) -> str:
    """Three numbers, measured on asyncio's own event loop."""

    def ms(what: str, figure: Figure | None) -> str:
        return (
            f"- {what}: **{number(figure.median)} ms** (at most {number(figure.max)} ms)" if figure else f"- {what}: -"
        )

    faster = results.find("cycle", lambda what: what.startswith("64 tasks: faster than "), "asyncio")
    return "\n".join(
        [
            ms("From `DEL` of the key to the cancelled body", results.find("loss", "DEL", "asyncio")),
            ms(
                "From the release in one process to the lock in another",
                results.find("waiting", "release to acquired", "asyncio"),
            ),
            "- Acquire and release by 64 tasks, each with its own lock: "
            + (f"**{number(faster.median)} times** as fast as the fastest other library measured" if faster else "-"),
            "",
            f"Medians, on {in_a_line(results.machine)}.",
        ]
    )


def short(results: Results) -> str:
    """Ratios, which are also meaningful on other machines, and the few times that users ask for."""

    def row(
        what: str, scenario: str, names: Sequence[str | Callable[[str], bool]], unit: str = "", by: str = OURS
    ) -> str:
        cells = []
        for loop in LOOPS:
            found = [results.find(scenario, name, loop, by) for name in names]
            values = " / ".join("-" if each is None else number(each.median) for each in found)
            cells.append(f"{values} {unit}" if any(found) else values)
        return f"| {what} | {cells[0]} | {cells[1]} |"

    def with_maximum(what: str, scenario: str, name: str) -> str:
        found = [results.find(scenario, name, loop) for loop in LOOPS]
        cells = [f"{number(each.median)} {each.unit} (at most {number(each.max)})" if each else "-" for each in found]
        return f"| {what} | {cells[0]} | {cells[1]} |"

    ways = [each.by for each in results.figures if each.what == "1 task: ratio to the floor" and each.loop == "uvloop"]
    ways = [way for way in ways if way != OURS]

    def faster(tasks: str) -> Callable[[str], bool]:
        return lambda what: what.startswith(f"{tasks}: faster than ")

    return "\n".join(
        [
            f"On {in_a_line(results.machine)}; medians.",
            "",
            "| | asyncio | uvloop |",
            "|---|---|---|",
            row(
                "acquire + release by 1 / 10 / 64 / 512 tasks: time relative to a bare protocol (1.0 = equal)",
                "cycle",
                [f"{tasks}: ratio to the floor" for tasks in CYCLES],
                "times",
            ),
            *(
                row(
                    f"the same: {what.removeprefix(OURS + ', ')}",
                    "cycle",
                    [f"{tasks}: ratio to the floor" for tasks in CYCLES],
                    "times",
                    by=what,
                )
                for what in ways
            ),
            *(
                row(
                    f"the same: CPU time{what.removeprefix(OURS)}",
                    "cycle",
                    [f"{tasks}: CPU ratio to the floor" for tasks in CYCLES],
                    "times",
                    by=what,
                )
                for what in (OURS, *ways)
                if results.find("cycle", "1 task: CPU ratio to the floor", "uvloop", what)
            ),
            row(
                "acquire + release: speed relative to the fastest other library measured (2.0 = twice as fast)",
                "cycle",
                [faster(tasks) for tasks in CYCLES],
                "times",
            ),
            row(
                "10 / 64 tasks share one name: an acquisition, in % of a bare protocol's acquire + release by 1 task",
                "one name",
                [f"{tasks}: of the floor's cycle at 1 task" for tasks in CYCLES[1:3]],
                "%",
            ),
            row(
                "2 / 4 processes share one name: from release to acquired in another, relative to the same",
                "processes",
                [f"{count} processes: its median, of a floor cycle at 1 task" for count in (2, 4)],
                "times",
            ),
            row(
                "3 / 5 independent servers: acquire + release, time relative to one server",
                "quorum",
                [f"{count} servers: ratio to majority 1 on 1 server" for count in (3, 5)],
                "times",
            ),
            with_maximum("key deleted: time until the body is cancelled", "loss", "DEL"),
            with_maximum(
                "holder killed: time from the key's expiry until another process has the lock",
                "killed",
                "after its key's expiry",
            ),
        ]
    )


def long(results: Results, headings: Mapping[str, str]) -> str:
    """All figures: the median, and in parentheses p99 and maximum if n ≥ 100, otherwise minimum to maximum."""
    lines = [f"On {in_a_line(results.machine)}.", "", "| | asyncio | uvloop | | must reach |", "|---|---|---|---|---|"]
    for scenario, heading in headings.items():
        its = [each for each in results.figures if each.scenario == scenario]
        if its:
            lines.append(f"| **{scenario}**: {heading} | | | | |")
        for label in dict.fromkeys(each.label for each in its):
            of = {each.loop: each for each in its if each.label == label}
            some = next(iter(of.values()))
            cells = [_cell(of.get(loop)) for loop in LOOPS]
            targets = "; ".join(
                dict.fromkeys(", ".join(map(str, each.targets)) for each in of.values() if each.targets)
            )
            lines.append(f"| {label} | {cells[0]} | {cells[1]} | {some.unit} | {targets} |")
    lines += [f"\n{library} was not measured: {why}" for library, why in results.absent.items()]
    return "\n".join(lines)


def _cell(each: Figure | None) -> str:
    if each is None:
        return ""
    spread = ""
    if each.n >= 100:
        spread = f" ({number(each.p99)}, {number(each.max)})"
    elif each.n > 1:
        spread = f" ({number(each.min)} to {number(each.max)})"
    mark = {None: "", True: " ✓", False: " ✗"}[each.reached]
    return f"{number(each.median)}{spread}{mark}"
