"""``python -m tests.traps --programs 5000`` runs random programs against a real server, on each event loop; from Python
3.12 on with eager tasks, too.

A failing program is reported with its seed and as text; ``--seed N --repeat 100`` repeats it.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import sys
from collections.abc import Callable

from asynclock.testing import Server
from tests.support.helpers import eager_task

from .programs import Program, make, text
from .runner import AT_ONCE, Report, run_all
from .shrink import shrink


def loops() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    found: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    try:
        import uvloop
    except ImportError:
        pass
    else:
        found["uvloop"] = uvloop.new_event_loop
    if sys.version_info >= (3, 12):
        found |= {f"{name}-eager": functools.partial(_eager, new) for name, new in found.items()}
    return found


def _eager(new: Callable[[], asyncio.AbstractEventLoop]) -> asyncio.AbstractEventLoop:
    loop = new()
    loop.set_task_factory(eager_task)
    return loop


def told(name: str, report: Report) -> str:
    """The report as text."""
    seen = ", ".join(f"{kind} {count}" for kind, count in report.seen.most_common())
    lines = [
        f"{name}: {report.programs} programs in {report.seconds:.1f} s, {sum(report.seen.values())} blocks of scopes; "
        f"what came out: {seen}"
    ]
    for seed, wrong in report.failed.items():
        lines += ["", f"seed {seed}:", *(f"  {what}" for what in wrong), text(make(seed))]
    return "\n".join([*lines, *report.left])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.traps", description=__doc__)
    parser.add_argument("--programs", type=int, default=5000, help="over all event loops")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--repeat", type=int, default=100, help="with --seed: how often to run it")
    parser.add_argument(
        "--shrink", action="store_true", help="with --seed: shorten the program as long as it still fails"
    )
    parser.add_argument("--at-once", type=int, default=AT_ONCE)
    parser.add_argument("--loop", choices=loops())
    arguments = parser.parse_args()
    chosen = {name: new for name, new in loops().items() if arguments.loop in (None, name)}
    well = True
    with Server() as server:
        first = arguments.first
        for name, new in chosen.items():
            if arguments.seed is not None:
                seeds = [arguments.seed] * arguments.repeat
            else:
                seeds = list(range(first, first + arguments.programs // len(chosen)))
                first += len(seeds)
            with asyncio.Runner(loop_factory=new) as runner:
                report = runner.run(run_all(server, map(make, seeds), arguments.at_once))
                if arguments.shrink and report.failed:

                    def fails(program: Program, runner: asyncio.Runner = runner) -> bool:
                        programs = [program] * arguments.repeat
                        return bool(runner.run(run_all(server, programs, arguments.at_once)).failed)

                    print("shrunk:\n" + text(shrink(make(arguments.seed), fails)))
            print(told(name, report), flush=True)
            well = well and not report.failed and not report.left
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
