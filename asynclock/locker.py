"""Locker: connects to the servers, and acquires locks there."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Never, ParamSpec, TypeVar

import redis.asyncio as redis
from redis.asyncio.cluster import RedisCluster

from ._engine.attempts import Enter
from ._engine.manager import LockManager
from .acquisition import Acquisition, AcquisitionThatStays, acquire, that_stays
from .core.holders import Holder
from .core.room import Room
from .errors import ConfigurationError
from .events import Event
from .leader import lead
from .options import Seconds, check_at_least, check_options, check_semaphore
from .scope import LockScope
from .semaphore import Semaphore
from .several import acquire_several
from .statistics import Statistics
from .synchronized import synchronized

P = ParamSpec("P")
T = TypeVar("T")


class Locker:
    """Distributed locks on Redis or Valkey: one server, independent servers, a cluster, or Sentinel.

    All times are seconds, as a number or a ``timedelta``. ``None`` stands for the default.

    :param servers: a URL (``redis://``, ``rediss://``, ``unix://``, ``valkey://``, ``valkeys://``) of a server or of
        any node of a cluster; a list of URLs: an odd number of independent servers, of which each has one key of
        every lock, or any number of nodes of one cluster; ``redis+sentinel://s1:26379,s2:26379/NAME/0`` (with
        TLS ``rediss+sentinel://``) for the primary of that name; or a client of ``redis.asyncio``
        (``Redis``, also from ``Sentinel.master_for``, or ``RedisCluster``), whose connection settings
        are used, but not its pool
    :param key_prefix: keys are ``{key_prefix}:{i}:{name}``, with ``spread_keys`` ``{key_prefix}:s{i}:{tag}:{name}``;
        must be the same for all lockers that share locks
    :param key_validity: seconds that a key lives after the lock was acquired or extended
    :param extend_interval: seconds between two extensions of a held lock; default: ``key_validity / 2``
    :param try_next_after: seconds to wait for a silent server before going on without it, also when releasing
    :param key_majority: a lock is held with ``key_majority`` of ``2 * key_majority - 1`` keys; default: 1 on
        one server, 2 on a cluster, ``(n + 1) / 2`` on n independent servers (where no other value is
        allowed); must be the same for all lockers that share locks
    :param no_loop_tracking: use ``NOLOOP`` with ``CLIENT TRACKING``; default: yes on Valkey and on Redis 7.0.5 or
        later, unless the server may evict keys or its tracking table is full
    :param fallback_setpx: set keys with ``PX`` instead of ``PXAT``; default: yes on servers older than 6.2
    :param client_side_caching: ``False`` turns tracking off: a loss is found at the next extension, and
        waiters retry at least every ``extend_interval``
    :param disconnect_grace: seconds that a held lock survives a server that refuses connections
    :param local_handoffs: how many times in a row a released lock may pass to another task of this process
        before other processes get a chance, within 50 ms at most; 0: never
    :param min_replicas: how many replicas must have the key (``WAIT``, for up to ``try_next_after``) for acquiring and
        extending to count; on one server, behind Sentinels and in a cluster
    :param restart_quarantine: with three or more independent servers, do not count the vote of a server that was
        started less than ``key_validity`` ago: it may have forgotten keys that are still held; default: yes, if the
        server allows ``INFO``
    :param spread_keys: in a cluster, put each key of a lock into another of ``2 * key_majority - 1`` equal parts of the
        slots, so that a shard's death costs a lock one key at most; must be the same for all lockers that share locks,
        and is not how the Go libraries do it
    :param wait_release: ``False``: leaving a block sends the release and does not wait for the answer. That saves a
        round trip. A loss that only the answer would show is logged, and not raised
    :param owner: who holds the locks, for people who look at keys and connections: at most 64 bytes of printable text;
        default: ``host:pid``; ``""``: nothing
    :param warn_after: log a warning, with the holder, when a task has waited for that long, and again after the same
        time; ``None``: never
    :raises ConfigurationError: an option is wrong; the message names it, its value and the rule
    :raises ServerError: a client cannot be made just now (no file descriptor is left)

    ``async with Locker(...)`` connects and closes. Without it, the first acquisition connects, and
    :meth:`aclose` closes. A locker belongs to the event loop and the process in which it is connected; anywhere
    else, what would change something or wait raises :class:`ConfigurationError`. If the program keeps no
    reference to a locker, its scopes, semaphores and tasks that wait for it, the locker is closed with a
    ``ResourceWarning``.
    """

    def __init__(
        self,
        servers: str | redis.Redis | RedisCluster | Sequence[str | redis.Redis],
        *,
        key_prefix: str = "asynclock",
        key_validity: Seconds = 5.0,
        extend_interval: Seconds | None = None,
        try_next_after: Seconds = 0.02,
        key_majority: int | None = None,
        no_loop_tracking: bool | None = None,
        fallback_setpx: bool | None = None,
        client_side_caching: bool = True,
        disconnect_grace: Seconds = 0.0,
        local_handoffs: int = 64,
        min_replicas: int = 0,
        restart_quarantine: bool | None = None,
        spread_keys: bool = False,
        wait_release: bool = True,
        owner: str | None = None,
        warn_after: Seconds | None = 30.0,
        **unknown: Never,
    ) -> None:
        options = check_options(
            key_prefix=key_prefix,
            key_validity=key_validity,
            extend_interval=extend_interval,
            try_next_after=try_next_after,
            key_majority=key_majority,
            no_loop_tracking=no_loop_tracking,
            fallback_setpx=fallback_setpx,
            client_side_caching=client_side_caching,
            disconnect_grace=disconnect_grace,
            local_handoffs=local_handoffs,
            min_replicas=min_replicas,
            restart_quarantine=restart_quarantine,
            spread_keys=spread_keys,
            wait_release=wait_release,
            owner=owner,
            warn_after=warn_after,
            unknown=unknown,
        )
        self._manager = LockManager(options, servers)

    def __repr__(self) -> str:
        return self._manager.label()

    @property
    def client(self) -> redis.Redis | RedisCluster:
        """A redis-py client for other commands, closed with the locker if it was made from a URL.

        It is a client of the first server, if there are several. If the servers turn out to be a cluster once the
        locker is connected, it is a client of the cluster.
        """
        return self._manager.client()

    # Acquiring

    async def acquire(
        self, name: str, *more: str, timeout: Seconds | None = None, at_least: Seconds | None = None
    ) -> LockScope:
        """Wait for the lock, and hold it until the scope is released or left.

        :param more: further names: the scope holds all of these locks or none, and ends when one is lost. Give them in
            any order: everybody waits for them in the order of their bytes in UTF-8, so nobody deadlocks
        :param timeout: seconds to wait, and up to about 1.3 times ``try_next_after`` more if a server is silent;
            ``None``: without a limit; 0: one attempt
        :param at_least: seconds for which nobody else gets the lock after it was acquired, not even if it is released
            earlier; releasing does not wait for that. ``None``: a release frees the lock at once. A loss ends it; after
            a crash of this process, the lock is free within ``key_validity``
        :raises AcquireTimeoutError: not acquired within that time
        :raises ServerError: the servers cannot be reached when the locker connects, or they refuse
        :raises AlreadyHeldError: the task is inside a block that holds this lock, and would wait for itself
        :raises LockerClosedError: the locker is closed, or is closed during the wait
        :raises ConfigurationError: a name is empty, too long, not a string, or given twice, the timeout is negative or
            not a number, ``at_least`` is not a number of seconds up to 366 days, or the locker is connected in another
            event loop or process
        """
        return await self._acquire((name, *more), Room.join, timeout, at_least)

    async def try_acquire(self, name: str, *more: str, at_least: Seconds | None = None) -> LockScope:
        """Hold the lock if it is free; one attempt, without waiting for its holder.

        :param at_least: as for :meth:`acquire`
        :raises NotLockedError: it is not free
        :raises ServerError: as :meth:`acquire`, and where that would wait until a server is available again
        :raises LockerClosedError: as :meth:`acquire`
        :raises ConfigurationError: as :meth:`acquire`
        """
        return await self._acquire((name, *more), Room.try_join, None, at_least)

    async def force_acquire(self, name: str, *more: str, at_least: Seconds | None = None) -> LockScope:
        """Take the lock over, without waiting for its holder, who loses it with reason ``taken over``. It also takes a
        lock that nobody holds any more and that is kept for its ``at_least``.

        :param at_least: as for :meth:`acquire`
        :raises ServerError: as :meth:`try_acquire`
        :raises LockerClosedError: as :meth:`acquire`
        :raises ConfigurationError: as :meth:`acquire`
        """
        return await self._acquire((name, *more), Room.force, None, at_least)

    def _acquire(
        self, names: tuple[str, ...], enter: Enter, timeout: Seconds | None, at_least: Seconds | None
    ) -> Coroutine[Any, Any, LockScope]:
        stays = None if at_least is None else check_at_least(at_least)
        if len(names) > 1:
            acquiring = acquire_several(self, self._manager, names, enter, timeout)
        else:
            acquiring = acquire(self, self._manager, names[0], enter, timeout)
        return acquiring if stays is None else that_stays(stays, acquiring)

    def with_context(
        self,
        name: str,
        *more: str,
        timeout: Seconds | None = None,
        wait_release: bool | None = None,
        at_least: Seconds | None = None,
    ) -> Acquisition:
        """``async with locker.with_context(name) as scope:`` acquires the lock as :meth:`acquire`, holds it in the
        block, and releases it at the end. ``with_context("a", "b")`` does so with several.

        :param wait_release: whether the end of the block waits for the answer to the release; ``None``: as the option
            of the locker
        :param at_least: as for :meth:`acquire`: whatever ends the block
        """
        if at_least is not None:
            return AcquisitionThatStays(self, self._manager, name, more, Room.join, timeout, wait_release, at_least)
        return Acquisition(self, self._manager, name, more, Room.join, timeout, wait_release)

    def try_with_context(
        self, name: str, *more: str, wait_release: bool | None = None, at_least: Seconds | None = None
    ) -> Acquisition:
        """As :meth:`with_context`, with :meth:`try_acquire`."""
        if at_least is not None:
            return AcquisitionThatStays(self, self._manager, name, more, Room.try_join, None, wait_release, at_least)
        return Acquisition(self, self._manager, name, more, Room.try_join, None, wait_release)

    def force_with_context(
        self, name: str, *more: str, wait_release: bool | None = None, at_least: Seconds | None = None
    ) -> Acquisition:
        """As :meth:`with_context`, with :meth:`force_acquire`."""
        if at_least is not None:
            return AcquisitionThatStays(self, self._manager, name, more, Room.force, None, wait_release, at_least)
        return Acquisition(self, self._manager, name, more, Room.force, None, wait_release)

    # Semaphores

    def semaphore(self, name: str, permits: int) -> Semaphore:
        """A semaphore: at most ``permits`` scopes of this name at once, in all processes together. Sends nothing.

            uploads = locker.semaphore("uploads", 10)
            async with uploads.with_context() as scope:
                ...

        It has nothing to do with a lock of the same name.

        :param permits: from 1 to 1,000; must be the same wherever this name is used
        :raises ConfigurationError: the name is not valid, or longer than 1,024 bytes; ``permits`` is not valid, or
            another number than this locker has for that name
        """
        check_semaphore(name, permits)
        return Semaphore(self, self._manager, self._manager.semaphores.get(name, permits))

    # Around functions

    def synchronized(
        self, name: str, *, timeout: Seconds | None = None
    ) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Callable[P, Coroutine[Any, Any, T]]]:
        """Decorate a coroutine function or method: each call of it acquires the lock as :meth:`with_context`, runs, and
        releases it::

            @locker.synchronized("report:{day}", timeout=10)
            async def write_report(day: date, *, draft: bool = False) -> Path: ...

        A lost lock cancels the call, which then raises :class:`LockLostError`. A call from inside of another one with
        the same name raises :class:`AlreadyHeldError`.

        :param name: of the lock; arguments of the function in braces are filled in as by ``str.format``
            (``{day:%Y-%m-%d}``, ``{self.id}``), with defaults applied
        :param timeout: seconds to wait, as in :meth:`acquire`
        :raises ConfigurationError: at decoration: the name needs a value that is not an argument of the function, or
            this is not a coroutine function

        A call raises as :meth:`acquire`, and as leaving a :class:`LockScope`.
        """
        return synchronized(self, name, timeout)

    # Leading

    async def lead(self, name: str, run: Callable[[LockScope], Awaitable[T]]) -> T:
        """Run ``run(scope)`` while this process holds the lock, and return what it returns. Of all processes that lead
        with one name, one works and the others wait to take over.

        A loss cancels ``run``; then this contends again, after a pause of up to 5 s that grows from 0.1 s if losses
        come one after the other. If the servers are away, it tries again in the same way, also when it connects for
        the first time. If ``run`` calls :meth:`LockScope.cancel`, it steps down, and this contends again.

        Cancelled, it cancels ``run``, and gives the lock back as soon as ``run`` has ended.

        :param run: a coroutine function; it may be called many times
        :raises LockerClosedError: the locker is closed
        :raises ServerError: a server refuses for good: the error is ``lasting``
        :raises ConfigurationError: as :meth:`acquire`, and ``run`` cannot be called

        An exception of ``run``, or of a task of its scope, comes out as from the block of a :class:`LockScope`, and
        nothing is run again.
        """
        return await lead(self, name, run)

    # Looking

    async def holder(self, name: str) -> Holder | None:
        """Read who holds the lock now, in whatever process; ``None``: nobody. One round trip.

        With several keys, it is who has a majority of them. If some cannot be read, it is who may have one.

        :raises ServerError: too few servers have answered
        :raises LockerClosedError: as :meth:`acquire`
        :raises ConfigurationError: as :meth:`acquire`
        """
        return await self._manager.holder(name)

    async def watch(self, name: str) -> AsyncGenerator[Holder | None]:
        """Watch who holds the lock: ``async for holder in locker.watch(name):`` gets the holder now, or ``None``, and
        then each other one as soon as a server tells of the change (without ``client_side_caching``: within
        ``extend_interval``).

        What comes and goes while the loop's body runs, or faster than the servers tell, is left out: the newest counts.
        A server that is away is no change; what has happened meanwhile is told when it is back.

        Raises as :meth:`holder`, and :class:`LockerClosedError` when the locker closes.
        """
        async with contextlib.aclosing(self._manager.watch(name)) as holders:
            async for holder in holders:  # here, and not there, which would not keep this locker
                yield holder

    async def names(self) -> list[str]:
        """The names of all locks with this ``key_prefix`` that have a key on any server now, sorted. It uses ``SCAN``,
        which goes through all keys of the servers bit by bit: for people and tools, not for services.

        Raises as :meth:`holder`.
        """
        return await self._manager.names()

    def statistics(self) -> Statistics:
        """Figures of this locker: what it holds, what it has done, and what went wrong. Any thread may ask."""
        return self._manager.statistics()

    def subscribe(self, callback: Callable[[Event], object]) -> Callable[[], None]:
        """Call ``callback`` with everything that happens to this locker's locks and servers: the events of
        :mod:`asynclock.events`. Returns a function that ends that.

        It is called in the event loop, right after what has happened, in the context (``contextvars``) of the task that
        it has happened to. It must not block. What it raises is logged, which shows nothing until logging is set up.
        """
        return self._manager.reports.subscribe(callback)

    def _one_wait(self, name: str) -> AbstractContextManager[None]:
        """For integrations, which try several times for one wait: ``Reports.one_wait``."""
        return self._manager.reports.one_wait(name)

    # Opening and closing

    async def __aenter__(self) -> Locker:
        """Connect. Raises as :meth:`acquire`."""
        try:
            await self._manager.ready()
        except BaseException:
            with contextlib.suppress(ConfigurationError):  # it is another event loop's: the first error says so
                await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close: every scope loses its lock with reason ``closed``, every waiting task raises
        :class:`LockerClosedError`, keys are released, and connections closed.

        Waits until the blocks of the scopes have been left, at most until their locks would have expired, so
        that nobody else gets a lock while the work under it is still being stopped. Does not wait for the block that
        it is called in. Cancelled, it stops waiting for blocks, and still closes. Does nothing on a closed locker.

        :raises ConfigurationError: the locker is connected in another event loop
        """
        await self._manager.aclose()

    def __del__(self) -> None:
        # In any thread, when its loop is closed, in a forked child, or at the end of the interpreter.
        manager = getattr(self, "_manager", None)  # None: the arguments were refused
        if manager is not None and manager.forget():
            warnings.warn(
                f"{self!r} was forgotten without aclose(); use 'async with', or call aclose()",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )
