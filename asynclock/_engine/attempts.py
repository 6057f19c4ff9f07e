"""What is the same for one name and for several: connecting before the first attempt, and how acquiring fails."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import NoReturn

from ..core.lease import Lease
from ..errors import AcquireTimeoutError, ConfigurationError, NotLockedError, ServerError
from .manager import LockManager
from .waiter import Waiter


async def connect(manager: LockManager, name: str, seconds: float | None, began: float) -> None:
    """Connect, if that is still to be done, for a task that wants ``name``.

    :param seconds: its timeout
    :param began: when its wait began
    :raises: as ``Locker.acquire``
    """
    try:
        manager.life.check(manager.label())  # before anything that needs an event loop
        try:
            async with asyncio.timeout(seconds or None):
                await manager.ready()
        except TimeoutError:
            assert seconds is not None
            why = ServerError(manager.where(), "has not answered yet")
            raise AcquireTimeoutError(name, seconds, str(why)) from why
    except ConfigurationError:
        raise  # no attempt was made
    except BaseException as error:
        manager.reports.not_acquired(name, manager.clock() - began, error)
        raise


async def fail(
    manager: LockManager, waiter: Waiter, seconds: float | None, released: Iterable[Lease], began: float
) -> NoReturn:
    """Raise the error of ``waiter``, once everything is given back.

    :param released: leases whose releases have been sent
    """
    failure = waiter.take_error()
    name = waiter.room.name
    if seconds == 0 and isinstance(failure, NotLockedError):
        failure = AcquireTimeoutError(name, 0.0, failure.why)
    cancelled = None
    names_holder = None  # the error, if somebody's having the lock is its reason
    if isinstance(failure, NotLockedError | AcquireTimeoutError) and failure.__cause__ is None:
        names_holder = failure
        reading = manager.read(waiter.room)  # while releases are waited for, if there are any
    try:
        cancelled = await manager.pending_releases.wait_for_all(released)
        if cancelled is not None:
            raise cancelled
        if names_holder is not None:
            names_holder.holder = await reading.wait_for_patience()
        raise failure
    finally:
        manager.reports.not_acquired(name, manager.clock() - began, failure)
        del failure, names_holder, cancelled  # no cycle through its traceback
