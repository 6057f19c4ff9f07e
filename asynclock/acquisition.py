"""Acquisition: a lock that is acquired and released by ``async with``."""

from __future__ import annotations

from types import CoroutineType, TracebackType
from typing import Any

from .acquiring import Entry, acquire
from .scope import LockScope


class Acquisition(Entry):
    """A lock that ``async with`` acquires on entry and releases on exit: returned by :meth:`Locker.with_context`,
    :meth:`Locker.try_with_context` and :meth:`Locker.force_with_context`.

    ``async with locker.with_context("my_lock") as scope:`` is all that it is for; ``scope`` is the held lock, a
    :class:`LockScope`. Until then nothing is sent to a server. It is for one block: call ``with_context`` again for
    the next.

    Entering raises as :meth:`Locker.acquire`, and ``RuntimeError`` the second time. Leaving raises as
    :class:`LockScope`.
    """

    __slots__ = ()

    # Not coroutines themselves, which saves one to be resumed through. Pyright wants a context manager to return
    # CoroutineType, as an async def does; to mypy that is any Coroutine.

    def __aenter__(self) -> CoroutineType[Any, Any, LockScope]:
        return acquire(self._locker, self._manager, self._name, self._enter, self._timeout, self)  # type: ignore[return-value]  # as above

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> CoroutineType[Any, Any, bool | None]:
        return self._scope._leave(error)  # type: ignore[return-value]  # as above
