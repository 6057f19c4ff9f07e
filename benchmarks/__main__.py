"""``python -m benchmarks``: measure, show, and save if asked to."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import asynclock
from asynclock.testing import KINDS, Server

from .display import Display
from .others import Outsider
from .run import LIMIT, LOOPS, BrokenError, Figure, LoopName, Run, Scenario, measure
from .scenarios import SCENARIOS

RESULTS = Path(__file__).with_name("results.json")


def main(arguments: Sequence[str] | None = None, scenarios: Mapping[str, Scenario] = SCENARIOS) -> int:
    """Returns how many scenarios broke."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure asynclock's figures.")
    parser.add_argument("--loop", choices=[*LOOPS, "both"], default="both", help="which event loop (default: both)")
    parser.add_argument(
        "--server",
        default="valkey-9.1",
        metavar="KIND",
        help=f"{', '.join(KINDS)}, or the path of a redis-server (default: valkey-9.1)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="everything a few times: to see that it works, not how well"
    )
    parser.add_argument("--only", choices=list(scenarios), action="append", help="this scenario; may be repeated")
    parser.add_argument(
        "--save",
        nargs="?",
        type=Path,
        const=RESULTS,
        metavar="FILE",
        help="write the figures (default: results.json here)",
    )
    options = parser.parse_args(arguments)
    loops: list[LoopName] = [loop for loop in ("asyncio", "uvloop") if options.loop in (loop, "both")]
    chosen = {name: scenarios[name] for name in scenarios if not options.only or name in options.only}

    try:
        machine = describe(options.server, options.quick)
    except (OSError, RuntimeError, ValueError) as error:
        parser.error(f"--server {options.server}: {error}")
    figures: list[Figure] = []
    broken = 0
    display = Display(len(chosen) * len(loops))
    with display:
        for name, scenario in chosen.items():
            for loop in loops:
                display.begin(name, loop)
                try:
                    measured = measure(scenario, Run(name, options.server, loop, options.quick), LIMIT, display.step)
                except BrokenError as error:
                    broken += 1
                    display.broken(str(error))
                else:
                    figures += measured
                    display.figures(measured)
    display.table(figures, {name: (each.__doc__ or name).splitlines()[0] for name, each in chosen.items()}, machine)
    if options.save is not None:
        saved = {"machine": machine, "figures": [asdict(figure) for figure in figures]}
        options.save.write_text(json.dumps(saved, indent=1, ensure_ascii=False) + "\n")
    return broken


def describe(kind: str, quick: bool) -> dict[str, str | int]:
    with Server(kind) as server, Outsider.of(server) as outsider:
        try:
            version = f"Valkey {outsider.info('valkey_version')}"
        except RuntimeError:
            version = f"Redis {outsider.info('redis_version')}"
    return {
        "asynclock": asynclock.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "os": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count() or 0,
        "load before": f"{os.getloadavg()[0]:.1f}",
        "server": version,
        "date": datetime.date.today().isoformat(),
        **({"quick": "yes: these figures say nothing"} if quick else {}),
    }


if __name__ == "__main__":
    try:
        sys.exit(min(main(), 100))
    except KeyboardInterrupt:
        sys.exit(130)
