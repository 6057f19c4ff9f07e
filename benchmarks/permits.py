"""The cost of a cycle of acquire and release of a permit, beside that of a lock."""

from __future__ import annotations

from asynclock import Locker
from asynclock.testing import Server

from .contestants import VALIDITY
from .figures import at_most
from .run import Run
from .turns import beside

PERMITS = 100  # so that some are always free
RATIO = 1.5  # to the cycle of a lock


async def permits(run: Run) -> None:
    """Acquire and release a permit of a semaphore that has free ones, beside a lock of one's own"""
    with Server(run.kind) as server:
        async with Locker(server.url, key_validity=VALIDITY) as locker:
            semaphore = locker.semaphore("job", PERMITS)

            async def lock(name: str) -> None:
                async with locker.with_context(name):
                    pass

            async def permit(name: str) -> None:
                async with semaphore.with_context():
                    pass

            await beside(run, {"lock": lock, "permit": permit}, at_most(RATIO))
