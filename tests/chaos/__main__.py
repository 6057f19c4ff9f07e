"""``python -m tests.chaos``: injects faults, and checks whether the locks kept their guarantees."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from . import report
from .deployments import DEPLOYMENTS
from .faults import kinds_for
from .plan import work_for
from .planted import PLANTED
from .progress import Progress
from .run import Outcome, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if anything was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Locks on real servers under faults.")
    parser.add_argument("--minutes", type=float, default=4.0, help="minutes of faults, for all deployments together")
    parser.add_argument("--only", choices=list(DEPLOYMENTS), action="append", help="this deployment; may be repeated")
    parser.add_argument("--fault", metavar="NAME", action="append", help="this fault; may be repeated")
    parser.add_argument("--plant", choices=list(PLANTED), help="plant this fault in the library; the run must find it")
    parser.add_argument("--seed", type=int, help="seed of the plan of faults (default: a random one, which is shown)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write a table of what each fault did")
    parser.add_argument("--svg", type=Path, metavar="DIRECTORY", help="write a picture of each deployment there")
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="keep the logs there")
    options = parser.parse_args(arguments)
    report.writable(options.json, options.markdown, options.svg and options.svg / "chaos.svg")
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    chosen = options.only or [name for name, kind in DEPLOYMENTS.items() if kind.possible()]
    if wanted := set(options.fault or ()):
        possible = {name: wanted & {kind.name for kind in kinds_for(name)} for name in chosen}
        if unknown := wanted.difference(*possible.values()):
            parser.error(f"no such fault on {', '.join(chosen)}: {', '.join(sorted(unknown))}")
        if without := [name for name in chosen if not possible[name]]:
            parser.error(f"none of these faults on {', '.join(without)}")
    if options.only is None and (impossible := [name for name in DEPLOYMENTS if name not in chosen]):
        print(f"Left out, since their server is not installed: {', '.join(impossible)}")
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    outcomes: list[Outcome] = []
    directory = options.keep or Path(tempfile.mkdtemp(prefix="asynclock-chaos-"))
    try:
        for name in chosen:
            seconds = options.minutes * 60 / len(chosen)
            logs = directory / f"{name}-{seed}-{time.time():.0f}"
            logs.mkdir(parents=True)
            work = dataclasses.replace(work_for(name), planted=options.plant or "")
            with Progress(console, DEPLOYMENTS[name].title, seconds) as progress:
                outcome = asyncio.run(run(work, name, seconds, seed, logs, progress.say, options.fault))
            outcomes.append(outcome)
            report.show(console, outcome)
            if options.svg is not None:
                (options.svg / f"chaos-{name}.svg").write_text(report.picture(outcome))
        keep = options.keep or any(outcome.verdict.violations for outcome in outcomes)
        console.print(f"Seed {seed}" + (f", logs in {directory}" if keep else ""))
    finally:
        if not options.keep and not any(outcome.verdict.violations for outcome in outcomes):
            shutil.rmtree(directory, ignore_errors=True)
    if options.json is not None:
        options.json.write_text(json.dumps([report.as_json(outcome) for outcome in outcomes], indent=1) + "\n")
    if options.markdown is not None:
        options.markdown.write_text(report.markdown(outcomes))
    return int(any(outcome.verdict.violations for outcome in outcomes))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
