"""asynclock: a distributed lock for asyncio services on Redis and Valkey that tells its holder when it is lost.

async with Locker("redis://127.0.0.1:6379") as locker:
    async with locker.with_context("my_lock") as scope:
        scope.create_task(heartbeat())
        await do_something()
"""

from ._build import is_compiled  # first: it chooses the build of the other modules
from ._version import __version__
from .acquisition import Acquisition
from .core import room
from .core.holders import Holder, KeyState
from .errors import (
    AcquireTimeoutError,
    AlreadyHeldError,
    AsyncLockError,
    ConfigurationError,
    LockerClosedError,
    LockLostError,
    LossReason,
    NotLockedError,
    ServerError,
)
from .locker import Locker
from .scope import LockScope
from .semaphore import PermitAcquisition, Semaphore
from .statistics import Statistics

compiled: bool = is_compiled(room)
"""Do the hot modules run as machine code? Not if no compiled wheel is installed, or ``ASYNCLOCK_PURE=1`` is set."""

__all__ = [
    "AcquireTimeoutError",
    "Acquisition",
    "AlreadyHeldError",
    "AsyncLockError",
    "ConfigurationError",
    "Holder",
    "KeyState",
    "LockLostError",
    "LockScope",
    "Locker",
    "LockerClosedError",
    "LossReason",
    "NotLockedError",
    "PermitAcquisition",
    "Semaphore",
    "ServerError",
    "Statistics",
    "__version__",
    "compiled",
]
