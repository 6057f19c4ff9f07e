"""Semaphore: permits for threads and scripts."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..options import Seconds
from .acquisition import Acquisition
from .scope import LockScope

if TYPE_CHECKING:
    from .locker import Locker


class Semaphore:
    """:class:`asynclock.Semaphore` for threads and scripts: at most ``permits`` scopes at once, in all threads and
    processes together. Returned by :meth:`Locker.semaphore`."""

    __slots__ = ("_locker", "_name", "_permits")

    def __init__(self, locker: Locker, name: str, permits: int) -> None:
        self._locker = locker
        self._name = name
        self._permits = permits

    def __repr__(self) -> str:
        return f"<asynclock.sync.Semaphore {self.name!r} with {self.permits} permits>"

    @property
    def name(self) -> str:
        """What it is called."""
        return self._name

    @property
    def permits(self) -> int:
        """How many scopes there may be at once."""
        return self._permits

    def acquire(self, *, timeout: Seconds | None = None) -> LockScope:
        """Wait for a permit, and hold it until the scope is released or its block is left.

        :param timeout: seconds to wait, as in :meth:`Locker.acquire`; ``None``: without a limit; 0: do not wait
        :raises AcquireTimeoutError: no permit was free within that time
        :raises ServerError: the servers cannot be reached when the locker connects, or they refuse
        :raises LockerClosedError: the locker is closed, or is closed during the wait
        :raises ConfigurationError: the timeout is negative or not a number, or an event loop runs in this thread
        """
        name, permits = self._name, self._permits
        return self._locker._acquire(lambda locker: locker.semaphore(name, permits).acquire(timeout=timeout))

    def try_acquire(self) -> LockScope:
        """Hold a permit if one is free, without waiting for one.

        :raises NotLockedError: none is free

        Otherwise as :meth:`acquire`.
        """
        name, permits = self._name, self._permits
        return self._locker._acquire(lambda locker: locker.semaphore(name, permits).try_acquire())

    def with_context(self, *, timeout: Seconds | None = None, wait_release: bool | None = None) -> Acquisition:
        """``with semaphore.with_context() as scope:`` acquires a permit as :meth:`acquire`, holds it in the block, and
        releases it at the end.

        :param wait_release: whether the end of the block waits for the answer to the release; ``None``: as the option
            of the locker
        """
        return Acquisition(partial(self.acquire, timeout=timeout), wait_release)

    def try_with_context(self, *, wait_release: bool | None = None) -> Acquisition:
        """As :meth:`with_context`, with :meth:`try_acquire`."""
        return Acquisition(self.try_acquire, wait_release)
