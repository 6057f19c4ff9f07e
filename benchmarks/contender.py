"""A process whose tasks contend for one name: ``contender.py URL LOOP TASKS HANDOFFS``, with ``START END`` on stdin for
each round.

From START to END (``time.monotonic()``, the same in every process) each task acquires and releases. The answer is a
line with the number of acquisitions, and three doubles for each: when it was requested, acquired, about to be released.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from array import array

from asynclock import Locker

from .crew import loop_name
from .run import loop_factory

NAME = "job"


async def main(url: str, tasks: int, handoffs: int) -> None:
    loop = asyncio.get_running_loop()
    async with Locker(url, local_handoffs=handoffs) as locker:
        await (await locker.acquire(f"{NAME} of {id(locker)}")).release()  # warm up: connect, load scripts
        print("ready", flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            start, end = map(float, line.split())
            log = array("d")
            await asyncio.sleep(start - time.monotonic())
            await asyncio.gather(*(contend(locker, end, log) for _ in range(tasks)))
            sys.stdout.buffer.write(b"%d\n" % (len(log) // 3) + log.tobytes())
            sys.stdout.buffer.flush()


async def contend(locker: Locker, end: float, log: array[float]) -> None:
    clock = time.monotonic
    while (asked := clock()) < end:
        scope = await locker.acquire(NAME)
        acquired = clock()
        log.extend((asked, acquired, clock()))
        await scope.release()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    with asyncio.Runner(loop_factory=loop_factory(loop_name(sys.argv[2]))) as runner:
        runner.run(main(sys.argv[1], int(sys.argv[3]), int(sys.argv[4])))
