"""One worker of the demo, in a process of its own: repeatedly acquires the lock, holds it for a while, and releases it.

    python -m asynclock.cli.demo_worker URL NAME

Prints events as JSON lines on stdout, with times on the system's monotonic clock. Reads commands from stdin: ``hold
0.3`` sets the seconds for which it holds the lock from then on. Stops when stdin ends, which also happens when the
parent is gone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time

from asynclock import Locker, LockLostError

LOCK = "demo"
KEY = f"asynclock:0:{LOCK}"  # with the default prefix
KEY_VALIDITY = 1.0  # seconds, as all below
HOLD = 0.3
REST = 0.15
STOP_LIMIT = 2.0


def say(event: str, **details: object) -> None:
    line = json.dumps({"at": time.monotonic(), "event": event, **details})
    os.write(1, f"{line}\n".encode())  # unbuffered, and in one piece


class Tell(logging.Handler):
    """Reports errors that the library logs. Not its warnings that the server is gone: the demo kills it."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            say("error", reason=record.getMessage())


class Worker:
    def __init__(self) -> None:
        self.hold = HOLD

    async def take_turns(self, locker: Locker) -> None:
        while True:
            say("waiting")
            try:
                async with locker.with_context(LOCK) as scope:
                    hold = self.hold
                    say("acquired", hold=hold)
                    try:
                        await asyncio.sleep(hold)  # the work
                    except asyncio.CancelledError:
                        say("cancelled", reason=scope.lost_reason or "stopped")
                        raise
                    say("released")
            except LockLostError:
                pass  # "cancelled" was printed above; go on with the next turn
            await asyncio.sleep(REST)

    async def obey(self, orders: asyncio.StreamReader) -> None:
        """Returns at the end of stdin."""
        while line := await orders.readline():
            word, value = line.split()
            if word == b"hold":
                self.hold = float(value)


async def run(url: str) -> None:
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    worker = Worker()
    async with Locker(url, key_validity=KEY_VALIDITY) as locker, asyncio.TaskGroup() as group:
        turns = group.create_task(worker.take_turns(locker))
        await worker.obey(orders)
        loop.call_later(STOP_LIMIT, os._exit, 1)  # never outlive the parent
        turns.cancel()
    say("bye")


def main() -> int:
    logging.getLogger("asynclock").addHandler(Tell())
    try:
        asyncio.run(run(sys.argv[1]))
    except Exception as error:
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        if not isinstance(error, BrokenPipeError):  # else the parent is gone
            say("error", reason=f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
