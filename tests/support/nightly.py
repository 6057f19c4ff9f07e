"""A host with a job that is due at a time by its own clock: ``python -m tests.support.nightly URLS AT_LEAST``.

It prints ``ready``, reads the time from stdin (Unix seconds), and prints ``ran`` or ``did not run``. ``AT_LEAST`` is in
seconds; 0: without. The job itself takes no time.
"""

from __future__ import annotations

import asyncio
import sys
import time

from asynclock import Locker, NotLockedError


async def main(urls: list[str], at_least: float) -> None:
    # Without a quarantine: the servers have just been started.
    async with Locker(urls if len(urls) > 1 else urls[0], restart_quarantine=False) as locker:
        print("ready", flush=True)
        due = float(await asyncio.to_thread(sys.stdin.readline))
        while (left := due - time.time()) > 0:
            await asyncio.sleep(left)
        try:
            async with locker.try_with_context("nightly", at_least=at_least or None):
                print("ran", flush=True)
        except NotLockedError:
            print("did not run", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1].split(","), float(sys.argv[2])))
