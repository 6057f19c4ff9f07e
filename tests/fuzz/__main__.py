"""``python -m tests.fuzz --minutes M`` sends lockers replies that were recorded from a real server and mutated at
random; with ``--sentinels``, those of Sentinels.

A failing case is reported with its seed and its last commands and replies; ``--seed N`` repeats it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

from asynclock.testing import Sentinels, Server
from asynclock.topology import sentinel as topology

from .recording import Recording, record, record_sentinels
from .sentinels import SentinelCase
from .target import Case

# Cases at the same time. They share an event loop: with 100 of them, in asyncio's debug mode on a busy machine,
# connecting took so long that it timed out and started again, for seconds.
AT_ONCE = 20
TOLD = 30  # last commands, with their replies, in a report
_VARYING = re.compile(r"'[0-9a-z]+'|\d+(\.\d+)*")


class Report:
    def __init__(self) -> None:
        self.cases = 0
        self.replies = 0
        self.seconds = 0.0
        self.failed: dict[int, list[str]] = {}
        self.left: list[str] = []
        self.late = 0.0  # longest delay of the event loop, in seconds

    def __str__(self) -> str:
        kinds = Counter(_VARYING.sub("N", wrong) for each in self.failed.values() for wrong in each)
        first = {_VARYING.sub("N", wrong): seed for seed, each in [*self.failed.items()][::-1] for wrong in each}
        lines = [
            f"{self.cases} cases, {self.replies} replies in {self.seconds:.0f} s: {len(self.failed)} failed",
            f"the event loop was {self.late:.2f} s late at most (a busy machine alone makes cases fail at seconds)",
            *(f"{count:6} x {kind} (first: {first[kind]})" for kind, count in kinds.most_common(20)),
            f"seeds: {list(self.failed)[:20]}" if self.failed else "",
            *self.left,
        ]
        return "\n".join(line for line in lines if line)


async def fuzz(
    server: Server | Sentinels, seeds: Iterator[int], seconds: float, show: bool = False, at_once: int = AT_ONCE
) -> Report:
    """Run cases until the time is up, or the seeds are exhausted."""
    report = Report()
    loop = asyncio.get_running_loop()
    before = asyncio.all_tasks()
    handler = loop.get_exception_handler()
    since = time.monotonic()
    check_every = topology.CHECK_EVERY
    case: Callable[[int], Case | SentinelCase]
    try:
        if isinstance(server, Sentinels):
            topology.CHECK_EVERY = 0.02
            case, keys_on = partial(_sentinel_case, await record_sentinels(server), server), server.servers[0]
        else:
            case, keys_on = partial(_case, await record(server), server), server
        loop.set_exception_handler(lambda _, context: report.left.append(f"the event loop complained: {context}"))

        async def work() -> None:
            for seed in seeds:
                if time.monotonic() - since > seconds:
                    return
                await _one(seed, case(seed), report, show)

        async def look() -> None:
            while True:
                before = time.monotonic()
                await asyncio.sleep(0.01)
                report.late = max(report.late, time.monotonic() - before - 0.01)

        looking = asyncio.create_task(look())
        await asyncio.gather(*(work() for _ in range(at_once)))
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking
    finally:
        topology.CHECK_EVERY = check_every
        loop.set_exception_handler(handler)
    await asyncio.sleep(0)
    report.left += [f"left running: {task}" for task in asyncio.all_tasks() - before]
    if keys := keys_on.execute("KEYS", "asynclock:[^f]*"):  # the counters of fencing tokens stay
        report.left.append(f"left: {keys}")
    report.seconds = time.monotonic() - since
    return report


def _case(recording: Recording, server: Server, seed: int) -> Case:
    return Case(seed, recording, server.url)


def _sentinel_case(recording: Recording, group: Sentinels, seed: int) -> SentinelCase:
    return SentinelCase(seed, recording, group)


async def _one(seed: int, case: Case | SentinelCase, report: Report, show: bool) -> None:
    wrong = await case.run()
    report.cases += 1
    report.replies += len(case.told)
    if wrong:
        report.failed[seed] = wrong
        if show:
            for command, said in case.told[-TOLD:]:
                print(f"{command!r:.160}\n    {said!r:.200}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument(
        "--sentinels", action="store_true", help="mutate the replies of the Sentinels, not of the server"
    )
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="cases; fewer on a busy machine")
    parser.add_argument("--seed", type=int, help="only this case, with its commands and replies")
    arguments = parser.parse_args()
    seeds = itertools.count(arguments.first) if arguments.seed is None else iter([arguments.seed])
    with Sentinels(replicas=0) if arguments.sentinels else Server() as server:
        told = arguments.seed is not None
        report = asyncio.run(fuzz(server, seeds, arguments.minutes * 60, told, arguments.at_once))
    print(report)
    return 1 if report.failed or report.left else 0


if __name__ == "__main__":
    sys.exit(main())
