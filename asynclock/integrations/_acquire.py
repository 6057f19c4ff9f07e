"""How a web service acquires a lock."""

from __future__ import annotations

import asyncio

from ..errors import AcquireTimeoutError, ServerError
from ..locker import Locker
from ..options import Seconds, check_timeout
from ..scope import LockScope

ANSWER = 2.0  # seconds for the servers to answer one attempt, at most, before they count as unavailable
FAR_AWAY = 0.5  # seconds that one attempt may take on a healthy server, however short the timeout is


async def acquire(locker: Locker, name: str, timeout: Seconds | None) -> LockScope:
    """As ``Locker.acquire``, but servers that are unavailable are never taken for a lock that is busy: they are asked
    once before the wait, so that a caller does not wait for nothing, and once after it, since servers that hang have
    said nothing meanwhile. So it may take up to ``ANSWER`` seconds longer than ``timeout``, while they do not answer.

    :raises AcquireTimeoutError: somebody else has it
    :raises ServerError: the servers are unavailable
    """
    seconds = check_timeout(timeout)
    with locker._one_wait(name):
        return await _acquire(locker, name, seconds)


async def _acquire(locker: Locker, name: str, seconds: float | None) -> LockScope:
    loop = asyncio.get_running_loop()
    since = loop.time()
    patience = max(FAR_AWAY, min(seconds or ANSWER, ANSWER))
    try:
        return await _attempt(locker, name, patience)
    except AcquireTimeoutError:
        if seconds == 0:
            raise
    left = None if seconds is None else max(0.0, seconds - (loop.time() - since))
    try:
        return await locker.acquire(name, timeout=left)
    except AcquireTimeoutError as error:
        if isinstance(error.__cause__, ServerError):
            raise
        busy = AcquireTimeoutError(name, seconds or 0.0, error.why)  # it names the whole timeout
        busy.holder = error.holder
    try:
        return await _attempt(locker, name, patience)
    except AcquireTimeoutError:
        raise busy from None


async def _attempt(locker: Locker, name: str, patience: float) -> LockScope:
    """One attempt. :raises ServerError: there was no answer within ``patience`` seconds"""
    try:
        async with asyncio.timeout(patience):
            return await locker.acquire(name, timeout=0)
    except TimeoutError as error:
        if isinstance(error, AcquireTimeoutError):
            raise
        raise ServerError(repr(locker), f"no answer for {patience:g} s") from None
