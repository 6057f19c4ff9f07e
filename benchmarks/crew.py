"""The second process: ``crew.py URL LOOP VALIDITY CONTESTANT``, with commands on stdin, one a line: acquire NAME, force
NAME, release.

The answer to each is the ``time.monotonic()`` at which it began. ``force`` and VALIDITY are for asynclock only.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from contextlib import AbstractAsyncContextManager
from typing import Any

from asynclock import Locker

from .contestants import CONTESTANTS, Enter
from .figures import OURS
from .run import LoopName, loop_factory

CALM = 0.005  # seconds until the answer is written, so that this does not disturb the measurement


async def main(url: str, validity: str, contestant: str) -> None:
    loop = asyncio.get_running_loop()
    held: AbstractAsyncContextManager[Any] | None = None
    async with contextlib.AsyncExitStack() as stack:
        ways: dict[str, Enter]
        if contestant == OURS:
            locker = await stack.enter_async_context(Locker(url, key_validity=float(validity)))
            ways = {"acquire": locker.with_context, "force": locker.force_with_context}
        else:
            ways = {"acquire": await stack.enter_async_context(CONTESTANTS[contestant].open(url, 1))}
        print(time.monotonic(), flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            word, _, name = line.strip().partition(" ")
            since = time.monotonic()
            if word == "release":
                assert held is not None
                await held.__aexit__(None, None, None)
            else:
                held = ways[word](name)
                await held.__aenter__()
            await asyncio.sleep(CALM)
            print(since, flush=True)


def loop_name(word: str) -> LoopName:
    return "uvloop" if word == "uvloop" else "asyncio"


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    with asyncio.Runner(loop_factory=loop_factory(loop_name(sys.argv[2]))) as runner:
        runner.run(main(sys.argv[1], sys.argv[3], sys.argv[4]))
