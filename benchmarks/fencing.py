"""The cost of a fencing token: a round trip more on one server, two on several."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence

from asynclock import Locker
from asynclock.testing import Server

from .contestants import VALIDITY
from .figures import OURS
from .floor import Floor, enough
from .run import Run
from .turns import Cycle, beside

Fenced = Callable[[str], Awaitable[float]]  # a cycle that returns how many seconds its token took

BARE = "a bare protocol"
WITHOUT, WITH = "no token", "a token"

# If KEYS[1] still has the holder's value: count, or (ARGV[2] is not 0) raise the counter to ARGV[2].
SCRIPT = b"""if redis.call('GET',KEYS[1])~=ARGV[1] then return 0 end
if ARGV[2]=='0' then return redis.call('INCR',KEYS[2]) end
redis.call('SET',KEYS[2],ARGV[2])
return 1"""


async def fencing(run: Run) -> None:
    """Acquire, take a fencing token and release, beside the same without; and the token, on one server and on three"""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server(run.kind)) for _ in range(3)]
        urls = [server.url for server in servers]
        floors = [await Floor.open(server.port) for server in servers]
        try:
            digests = [await floor.call(b"SCRIPT", b"LOAD", SCRIPT) for floor in floors]
            async with (
                Locker(urls[0], key_validity=VALIDITY) as one,
                Locker(urls, key_validity=VALIDITY, restart_quarantine=False) as three,
            ):
                await beside(run, {WITHOUT: _lock(one), WITH: _fenced(one)})
                await beside(run, {WITHOUT: floors[0].cycle, WITH: _bare(floors[:1], digests[0])}, by=BARE)
                await _alone(run, "1 server", {OURS: _fenced(one), BARE: _bare(floors[:1], digests[0])})
                await _alone(run, "3 servers", {OURS: _fenced(three), BARE: _bare(floors, digests[0])})
        finally:
            for floor in floors:
                floor.close()


async def _alone(run: Run, what: str, ways: dict[str, Fenced]) -> None:
    """The token alone, in cycles of 1 task: µs, the mean of each round."""
    rounds, cycles = run.times(11, 2), run.times(800, 5)
    spent: dict[str, list[float]] = {by: [] for by in ways}
    for done in range(rounds):
        for by, cycle in ways.items():
            run.step(what, done, rounds)
            await cycle("job")  # warm up
            spent[by].append(statistics.fmean([await cycle("job") for _ in range(cycles)]) * 1e6)
    for by, values in spent.items():
        run.record(f"the token, {what}", "µs", values, by=by)
    ratios = [ours / bare for ours, bare in zip(spent[OURS], spent[BARE], strict=True)]
    run.record(f"the token, {what}: ratio to {BARE}", "x", ratios)


def _lock(locker: Locker) -> Cycle:
    async def cycle(name: str) -> None:
        async with locker.with_context(name):
            pass

    return cycle


def _fenced(locker: Locker) -> Fenced:
    async def cycle(name: str) -> float:
        async with locker.with_context(name) as scope:
            since = time.perf_counter()
            await scope.fencing_token()
            return time.perf_counter() - since

    return cycle


def _bare(floors: Sequence[Floor], digest: bytes) -> Fenced:
    """``SET``, the script, ``DEL``. On several servers, each goes to all, and on when a majority has answered; a second
    script raises the counters of those that are not known to have the highest number."""
    majority = len(floors) // 2 + 1

    async def cycle(name: str) -> float:
        def ask(floor: Floor, least: int) -> asyncio.Future[int]:
            return floor.call(b"EVALSHA", digest, b"2", key, counter, b"token", b"%d" % least)

        key, counter = f"floor:0:{name}".encode(), f"floor:fence:{name}".encode()
        await enough([floor.set(name) for floor in floors], majority)
        since = time.perf_counter()
        answers = [ask(floor, 0) for floor in floors]
        await enough(answers, majority)
        numbers = [answer.result() if answer.done() else 0 for answer in answers]
        number = max(numbers)
        if number < 1:  # raises, too, if it is the error of a refused script
            raise RuntimeError(f"{name!r} was lost")
        if majority > 1:
            highest = floors[numbers.index(number)]
            await enough([ask(floor, number) for floor in floors if floor is not highest], majority - 1)
        took = time.perf_counter() - since
        for answer in [floor.delete(name) for floor in floors]:
            await answer
        return took

    return cycle
