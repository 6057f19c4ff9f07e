"""``python -m benchmarks``: measure, show, and save."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from asynclock.testing import KINDS

from .display import Display
from .machine import describe
from .report import refresh
from .results import CHARTS, RESULTS, Results
from .run import LIMIT, LOOPS, BrokenError, LoopName, Run, Scenario, measure
from .scenarios import ONE_LOOP, SCENARIOS

SERVER = "valkey-9.1"


def parse(arguments: Sequence[str] | None, names: Sequence[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure asynclock's figures.")
    parser.add_argument("--loop", choices=[*LOOPS, "both"], default="both", help="which event loop (default: both)")
    parser.add_argument(
        "--server",
        default=SERVER,
        metavar="KIND",
        help=f"{', '.join(KINDS)}, or the path of a redis-server (default: {SERVER})",
    )
    parser.add_argument("--quick", action="store_true", help="few repetitions: shows that it works, not how fast it is")
    parser.add_argument("--only", choices=names, action="append", help="this scenario; may be repeated")
    parser.add_argument(
        "--save",
        type=Path,
        metavar="DIR",
        help="write results.json and the charts there (default: if everything is measured, "
        "benchmarks/results.json and docs/charts)",
    )
    parser.add_argument("--charts", action="store_true", help="measure nothing: draw the last results' charts again")
    parser.add_argument("--readme", action="store_true", help="measure nothing: put the last results into the tables")
    return parser, parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, scenarios: Mapping[str, Scenario] = SCENARIOS) -> int:
    """Returns the number of scenarios that failed."""
    parser, options = parse(arguments, list(scenarios))
    headings = {name: (each.__doc__ or name).splitlines()[0] for name, each in scenarios.items()}
    if options.charts or options.readme:
        return again(parser, options, headings)
    loops: list[LoopName] = [loop for loop in ("asyncio", "uvloop") if options.loop in (loop, "both")]
    turns = [
        (name, loop)
        for name in scenarios
        if not options.only or name in options.only
        for loop in (loops[-1:] if name in ONE_LOOP else loops)
    ]
    whole = not (options.quick or options.only) and options.loop == "both" and options.server == SERVER

    try:
        results = Results(describe(options.server, options.quick))
    except (OSError, RuntimeError, ValueError) as error:
        parser.error(f"--server {options.server}: {error}")
    since = time.monotonic()
    display = Display(len(turns))
    with display:
        for name, loop in turns:
            display.begin(name, loop)
            begun = time.monotonic()
            try:
                outcome = measure(scenarios[name], Run(name, options.server, loop, options.quick), LIMIT, display.step)
            except BrokenError as error:
                results.broken[f"{name}, {loop}"] = str(error)
                display.broken(str(error))
            else:
                results.figures += outcome.figures
                results.absent |= outcome.absent
                display.figures(outcome.figures)
            results.seconds[f"{name}, {loop}"] = round(time.monotonic() - begun, 1)
    results.machine["took"] = f"{(time.monotonic() - since) / 60:.1f} minutes"
    display.table(results, headings)
    if options.save is not None:
        options.save.mkdir(parents=True, exist_ok=True)
        save(results, options.save / RESULTS.name, options.save, display)
    elif whole:
        save(results, RESULTS, CHARTS, display)
    return len(results.broken)


def save(results: Results, path: Path, charts: Path, display: Display) -> None:
    results.write(path)
    display.note(f"written: {path}")
    try:
        from .charts import draw
    except ModuleNotFoundError as error:
        display.note(f"no charts, without {error.name}: pip install -e '.[bench]'")
    else:
        for chart in draw(results, charts):
            display.note(f"written: {chart}")


def again(parser: argparse.ArgumentParser, options: argparse.Namespace, headings: Mapping[str, str]) -> int:
    path = RESULTS if options.save is None else options.save / RESULTS.name
    try:
        results = Results.read(path)
    except OSError as error:
        parser.error(f"no results: {error}")
    if options.charts:
        from .charts import draw

        for chart in draw(results, CHARTS if options.save is None else options.save):
            print(f"written: {chart}")
    if options.readme:
        for page in refresh(results, headings):
            print(f"written: {page}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(min(main(), 100))
    except KeyboardInterrupt:
        sys.exit(130)
