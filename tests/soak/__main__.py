"""``python -m tests.soak``: many locks for a long time; reports the growth of memory and descriptors, and waits."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.chaos import report
from tests.chaos.deployments import DEPLOYMENTS, PACE
from tests.chaos.progress import Progress
from tests.chaos.run import PLACES, Outcome, run

from .chart import draw
from .growth import ALLOWED, WARM_UP, Growth, growth
from .plan import LONGEST_HOLD, SOAK

LONGEST_FAULT = 2 * PACE
ON = ("one", "three", "cluster", "sentinel")
QUEUE = 12  # tasks that want the same one of 200 locks by chance, at most


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if anything was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Many locks for long, under faults.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--on", choices=ON, default="three", help="which deployment (default: three)")
    parser.add_argument("--seed", type=int, help="seed of the plan of faults (default: a random one, which is shown)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the chart")
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="keep the logs there")
    options = parser.parse_args(arguments)
    report.writable(options.json, options.svg)
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    directory = options.keep or Path(tempfile.mkdtemp(prefix="asynclock-soak-"))
    try:
        logs = directory / f"soak-{options.on}-{seed}-{time.time():.0f}"
        logs.mkdir(parents=True)
        title = DEPLOYMENTS[options.on].title
        with Progress(console, title, options.minutes * 60) as progress:
            outcome = asyncio.run(run(SOAK, options.on, options.minutes * 60, seed, logs, progress.say))
    finally:
        if not options.keep:
            shutil.rmtree(directory, ignore_errors=True)
    grown = [growth(outcome.history, who) for who in sorted(outcome.history.samples)]
    outcome.verdict.violations += judge(outcome, grown, longest_wait(options.on))
    report.show(console, outcome)
    for one in grown:
        console.print(
            f"{one.who}: {one.resident[0] / 2**20:.1f} MB after the warm-up, {one.resident[1] / 2**20:.1f} MB at the "
            f"end ({one.share:+.2%}); {one.files[0]} open files at first, {one.files[1]} at the end"
        )
    console.print(f"No acquisition may take longer than {longest_wait(options.on):.1f} s. Seed {seed}.")
    if options.svg is not None:
        begin = min(samples[0].at for samples in outcome.history.samples.values())
        warm = begin + min(WARM_UP, (outcome.history.until - begin) / 3)
        options.svg.write_text(
            draw(f"{title}: 200 locks, 4 x 50 tasks, {options.minutes:g} min", outcome.history, warm)
        )
    if options.json is not None:
        figures = report.as_json(outcome) | {
            "growth": {one.who: {"resident": one.resident, "files": one.files} for one in grown}
        }
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(bool(outcome.verdict.violations))


def longest_wait(name: str) -> float:
    """Seconds: a fault, the servers' recovery, the validity of a lock that was not released, and a queue."""
    return LONGEST_FAULT + DEPLOYMENTS[name]([]).longest_gap + QUEUE * LONGEST_HOLD


def judge(outcome: Outcome, grown: list[Growth], limit: float) -> list[str]:
    violations = []
    if len(grown) != PLACES:
        violations.append(f"{len(grown)} workers reported their memory, not {PLACES}")
    for one in grown:
        if one.share > ALLOWED:
            violations.append(f"{one.who} grew by {one.share:.1%}")
        if one.files[1] > one.files[0]:
            violations.append(f"{one.who} has {one.files[1] - one.files[0]} more open files than at first")
    if outcome.history.longest_wait > limit:
        violations.append(f"an acquisition took {outcome.history.longest_wait:.1f} s; {limit:.1f} s are the bound")
    return violations


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
