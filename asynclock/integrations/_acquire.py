"""How a web service acquires a lock."""

from __future__ import annotations

import asyncio

from ..errors import AcquireTimeoutError, AsyncLockError, NotLockedError, ServerError
from ..locker import Locker
from ..options import Seconds, check_timeout
from ..scope import LockScope


async def acquire(locker: Locker, name: str, timeout: Seconds | None) -> LockScope:
    """As ``Locker.acquire``, but a server that is down is told at once, and not after ``timeout``."""
    seconds = check_timeout(timeout)
    if seconds == 0:
        return await locker.acquire(name, timeout=0)
    loop = asyncio.get_running_loop()
    until = None if seconds is None else loop.time() + seconds
    try:
        async with asyncio.timeout_at(until) as limit:
            return await locker.try_acquire(name)
    except NotLockedError:
        left = None if until is None else max(0.0, round(until - loop.time(), 3))
        return await locker.acquire(name, timeout=left)
    except TimeoutError as error:
        if isinstance(error, AsyncLockError) or not limit.expired():
            raise
        assert seconds is not None
        why = ServerError(repr(locker), "has not answered yet")
        raise AcquireTimeoutError(name, seconds, str(why)) from why
