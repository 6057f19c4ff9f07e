"""Workers that take turns at a few locks. Each has a locker of its own, as if it were on another machine."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing

from asynclock import Acquisition, Locker, LockLostError, ServerError

from .board import Board

KEY_PREFIX = "asynclock-board"  # keeps out of the way of other locks on the same server
WORK = (3.0, 8.0)  # seconds, at least and at most
REST = (0.5, 2.0)
STOLEN = 4.0  # seconds that a thief keeps a lock


async def take_turns(url: str, board: Board, who: str) -> None:
    """A worker: takes one of the locks, works, rests, and so on for ever."""
    async with aclosing(Locker(url, key_prefix=KEY_PREFIX)) as locker:  # connects when it first needs a lock
        while True:
            name = random.choice(board.names)
            await hold(locker.with_context(name), board, name, who, random.uniform(*WORK))
            await asyncio.sleep(random.uniform(*REST))


async def steal(locker: Locker, board: Board, name: str, who: str) -> None:
    """The thief: takes a lock from whoever holds it, and gives it back after a while."""
    await hold(locker.force_with_context(name), board, name, who, STOLEN)


async def hold(lock: Acquisition, board: Board, name: str, who: str, seconds: float) -> None:
    board.waits(name, who)
    try:
        async with lock:
            board.holds(name, who)
            await asyncio.sleep(seconds)  # the work: cancelled if the lock is lost
    except LockLostError as error:
        board.has_trouble(name, who, f"lost {name}: {error.reason}")
    except ServerError as error:
        board.has_trouble(name, who, f"did not get {name}: {error.problem}")
    finally:
        board.leaves(name, who)
