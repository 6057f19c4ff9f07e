"""Acquisition: a lock or a permit that ``with`` acquires, for threads and scripts."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from ..options import check_wait_release
from .scope import LockScope


class Acquisition:
    """A lock or a permit that ``with`` acquires on entry and releases on exit: returned by :meth:`Locker.with_context`,
    :meth:`Semaphore.with_context`, and the same with ``try_`` and ``force_``.

    ``with locker.with_context("my_lock") as scope:`` is all that it is for; ``scope`` is the held lock, a
    :class:`LockScope`. Until then nothing is sent to a server. It is for one block: call ``with_context`` again for
    the next.

    Entering raises as ``acquire`` of the locker or semaphore, and :class:`RuntimeError` the second time. Leaving raises
    as :class:`LockScope`.
    """

    __slots__ = ("_acquire", "_scope", "_wait_release")

    def __init__(self, acquire: Callable[[], LockScope], wait_release: bool | None) -> None:
        self._acquire = acquire
        self._wait_release = None if wait_release is None else check_wait_release(wait_release)
        self._scope: LockScope | None = None

    def __enter__(self) -> LockScope:
        if self._scope is not None:
            raise RuntimeError("this context manager was used before; call with_context() again")
        try:
            self._scope = self._acquire()
            return self._scope._enter(self._wait_release)
        except BaseException:  # perhaps interrupted, with the lock held
            if self._scope is not None:
                self._scope._not_entered()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._scope is not None
        return self._scope.__exit__(kind, error, traceback)
