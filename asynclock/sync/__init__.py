"""asynclock for threads and scripts: the same locks, without ``async``.

with Locker("redis://127.0.0.1:6379") as locker:
    with locker.with_context("my_lock") as scope:
        for item in work:
            scope.check()
            do_something(item)
"""

from .acquisition import Acquisition
from .locker import Locker
from .scope import LockScope
from .semaphore import Semaphore

__all__ = ["Acquisition", "LockScope", "Locker", "Semaphore"]
