"""The cost of several names at once instead of one: requests for all of them leave together."""

from __future__ import annotations

from asynclock import Locker
from asynclock.testing import Server

from .figures import at_most
from .floor import Floor
from .run import Run
from .turns import Cycle, beside

NAMES = 3
RATIO = 1.5  # to the cycle of one name


async def several(run: Run) -> None:
    """Acquire and release three names at once, beside one name; each task its own names"""
    with Server(run.kind) as server:
        async with Locker(server.url) as locker:
            ways = {"1 name": _locks(locker, 1), f"{NAMES} names": _locks(locker, NAMES)}
            await beside(run, ways, at_most(RATIO))
        floor = await Floor.open(server.port)
        try:
            bare = {"1 name": _bare(floor, 1), f"{NAMES} names": _bare(floor, NAMES)}
            await beside(run, bare, by="a bare protocol")
        finally:
            floor.close()


def _locks(locker: Locker, count: int) -> Cycle:
    async def cycle(name: str) -> None:
        async with locker.with_context(*_names(name, count)):
            pass

    return cycle


def _bare(floor: Floor, count: int) -> Cycle:
    """``SET`` to all, wait for the answers, then ``DEL`` to all: what the server and asyncio take for that."""

    async def cycle(name: str) -> None:
        names = _names(name, count)
        for command in (floor.set, floor.delete):
            for answer in [command(each) for each in names]:
                await answer

    return cycle


def _names(name: str, count: int) -> list[str]:
    return [f"{name} {number}" for number in range(count)]
