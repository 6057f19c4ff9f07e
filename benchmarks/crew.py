"""The second process: ``python crew.py URL LOOP VALIDITY``, and a word a line: acquire NAME, force NAME, release.

Each is answered by the ``time.monotonic()`` at which it was begun.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time

from asynclock import Locker, LockScope

CALM = 0.005  # seconds: the answer stays out of what it is the answer about


async def main(url: str, validity: str) -> None:
    loop = asyncio.get_running_loop()
    scope: LockScope | None = None
    async with Locker(url, key_validity=float(validity)) as locker:
        print(time.monotonic(), flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            word, _, name = line.strip().partition(" ")
            since = time.monotonic()
            if word == "release":
                assert scope is not None
                await scope.release()
            else:
                scope = await (locker.force_acquire if word == "force" else locker.acquire)(name)
            await asyncio.sleep(CALM)
            print(since, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    url, loop_name, validity = sys.argv[1:]
    if loop_name == "uvloop":
        import uvloop

        uvloop.run(main(url, validity))
    else:
        asyncio.run(main(url, validity))
