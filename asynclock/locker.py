"""Locker: the public face. Checks what comes in, connects, and turns granted leases into scopes."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Never

import redis.asyncio as redis
from redis.asyncio.cluster import RedisCluster

from ._engine.manager import LockManager
from .acquisition import Acquisition
from .core.room import Room
from .errors import ConfigurationError, LockerClosedError, ServerError
from .options import Seconds, check_options
from .scope import LockScope
from .topology import Cluster, Servers, cluster_client


class Locker:
    """Distributed locks on Redis or Valkey: one server, independent servers, a cluster, or Sentinel.

    :param servers: a URL (``redis://``, ``rediss://``, ``unix://``, ``valkey://``, ``valkeys://``) of a server or of
        any node of a cluster; a list of them: an odd number of independent servers, each with one key of
        every lock, or any number of nodes of one cluster; ``redis+sentinel://s1:26379,s2:26379/NAME/0`` (with
        TLS ``rediss+sentinel://``) for the primary of that name; or a client of ``redis.asyncio``
        (``Redis``, from ``Sentinel.master_for`` too, ``RedisCluster``), whose connection settings
        are used (its pool is not)
    :param key_prefix: keys are ``{key_prefix}:{i}:{name}``; lockers that share locks share it
    :param key_validity: seconds for which a key lives after it was acquired or extended
    :param extend_interval: seconds between extensions of a held lock; default ``key_validity / 2``
    :param try_next_after: seconds after which a silent server is not waited for where that can be helped
    :param key_majority: a lock holds ``key_majority`` of ``2 * key_majority - 1`` keys; default 1 on
        one server, 2 on a cluster, ``(n + 1) / 2`` on n independent servers (where it cannot be
        chosen); lockers that share locks share it
    :param no_loop_tracking: ``CLIENT TRACKING ... NOLOOP``; default: where the server is Valkey, or Redis 7.0.5 or
        later, unless it may evict keys or its tracking table is full
    :param fallback_setpx: ``PX`` instead of ``PXAT``; default: where the server is before 6.2
    :param client_side_caching: ``False``: no tracking; a loss is found at the next extension, and
        waiters ask again at least every ``extend_interval``
    :param disconnect_grace: seconds for which a held lock survives a server that refuses connections
    :param local_handoffs: how often in a row a released lock may pass to a task of this process that
        waits for it, before others have a chance to get it; 50 ms is the most in any case; 0: never
    :param min_replicas: on one server, behind Sentinels and in a cluster: so many replicas must have
        the key (``WAIT``, for ``try_next_after``) for acquiring and extending to count
    :param restart_quarantine: on three or more independent servers, one that was started less than
        ``key_validity`` ago gives no votes yet, since it may have forgotten some that still count;
        default: yes, where ``INFO`` is allowed; without meaning elsewhere
    :raises ConfigurationError: naming the option, its value and the rule
    :raises ServerError: a client cannot be made just now (no file descriptor is left)

    ``async with Locker(...)`` connects and closes; without it, the first acquisition connects, and
    :meth:`aclose` closes. A locker belongs to one event loop and one process, those in which it is connected;
    elsewhere, what would change something or wait raises :class:`ConfigurationError`. When it is forgotten,
    and no scope or task of it is left, it is closed with a ``ResourceWarning``.
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
        **unknown: Never,
    ) -> None:
        self._options = check_options(
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
            unknown=unknown,
        )
        # Tasks, timers and connections know the keeper, and not this. So this is forgotten when nobody has it
        # any more: no program, no scope, and nobody who waits for a lock.
        self._manager = LockManager(self._options, servers)
        # State, besides the keeper's: "new" until that is connected, then "open" until _closing is set.
        self._closing: asyncio.Task[None] | None = None  # set by aclose, done when it is through
        self._hurry: asyncio.Future[None]  # done: do not wait for blocks to be left

    def __repr__(self) -> str:
        state = "closed" if self._closing else "open" if self._manager.connected else "new"
        return f"<Locker {self._manager.where()} {state}>"

    @property
    def _servers(self) -> Servers:
        return self._manager.servers

    @property
    def client(self) -> redis.Redis | RedisCluster:
        """The redis-py client behind it, for other commands: of the first server, if there are
        several, or of the cluster, once the servers have said that they are one."""
        servers, manager = self._servers, self._manager
        manager.lent = True
        if servers.url is None or not manager.connected or not isinstance(manager.topology, Cluster):
            return servers.client
        if manager.cluster_client is None:
            addresses = [(node.connector.host, node.connector.port) for node in manager.topology.nodes]
            manager.cluster_client = cluster_client(servers.url, addresses)
        return manager.cluster_client

    # Acquiring

    async def acquire(self, name: str, *, timeout: Seconds | None = None) -> LockScope:
        """Wait for the lock and hold it.

        :param timeout: seconds to wait at most; ``None``: as long as it takes; 0: one attempt
        :raises AcquireTimeoutError: the lock was not to be had in that time
        :raises ServerError: the server cannot be reached to begin with, or refuses
        :raises AlreadyHeldError: the task is inside a block that holds it, and would wait for itself
        :raises LockerClosedError: the locker is closed, or closes meanwhile
        :raises ConfigurationError: the name is empty or not a string, or the locker is used in
            another event loop or process than it is connected in
        """
        return await Acquisition(self, name, Room.join, timeout).acquire()

    async def try_acquire(self, name: str) -> LockScope:
        """Hold the lock if it is free. :raises NotLockedError: it is not; else as :meth:`acquire`"""
        return await Acquisition(self, name, Room.try_join).acquire()

    async def force_acquire(self, name: str) -> LockScope:
        """Take the lock over: whoever holds it loses it. Raises as :meth:`acquire`."""
        return await Acquisition(self, name, Room.force).acquire()

    def with_context(self, name: str, *, timeout: Seconds | None = None) -> Acquisition:
        """``async with locker.with_context(name) as scope:`` - :meth:`acquire`, hold, release."""
        return Acquisition(self, name, Room.join, timeout)

    def try_with_context(self, name: str) -> Acquisition:
        """``async with`` around :meth:`try_acquire`."""
        return Acquisition(self, name, Room.try_join)

    def force_with_context(self, name: str) -> Acquisition:
        """``async with`` around :meth:`force_acquire`."""
        return Acquisition(self, name, Room.force)

    # Opening and closing

    async def __aenter__(self) -> Locker:
        try:
            await self._ready()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _ready(self) -> None:
        """Connect, once for however many ask."""
        manager = self._manager
        loop = asyncio.get_running_loop()
        if manager.forked:
            raise ConfigurationError(f"{self!r} was connected before a fork; make a new Locker in the child process")
        if self._closing is not None:
            raise self._closed_error()
        if manager.loop is not None and manager.loop is not loop:
            raise ConfigurationError(f"{self!r} belongs to another event loop; make a Locker for each")
        if manager.connected:
            return
        opening = manager.open()
        try:
            await asyncio.shield(opening)
        except ServerError as error:
            raise error.copy() from error.__cause__  # each caller raises one of its own
        except asyncio.CancelledError:
            if opening.cancelled():  # by aclose, not from outside
                raise self._closed_error() from None
            raise

    async def aclose(self) -> None:
        """Close: every scope is lost with reason ``closed``, every waiter raises
        :class:`LockerClosedError`, keys are given back, connections are closed.

        Waits for the blocks of the scopes to be left, as long as their locks would have lasted, so
        that nobody else gets a lock while its work is still being stopped; not for the block that
        it is called in. Cancelled, it hurries, and still closes. Does nothing on a closed locker.
        """
        manager = self._manager
        if manager.forked:
            return
        loop = asyncio.get_running_loop()
        if manager.loop is not None and manager.loop is not loop:
            raise ConfigurationError(f"{self!r} belongs to another event loop; close it there")
        if self._closing is None:
            self._hurry = loop.create_future()
            self._closing = manager.end(asyncio.current_task(), self._hurry, str(self._closed_error()))
        else:
            manager.excuse(asyncio.current_task())
        cancelled = None
        while not self._closing.done():
            try:
                await asyncio.wait([self._closing])
            except asyncio.CancelledError as error:
                cancelled = error
                if not self._hurry.done():
                    self._hurry.set_result(None)
        if cancelled is not None:
            raise cancelled
        self._closing.result()

    def _closed_error(self) -> LockerClosedError:
        # Not its repr: an eager task that closes it tells the waiters before it is known to be there.
        return LockerClosedError(f"<Locker {self._manager.where()} closed>: make a new Locker")

    def __del__(self) -> None:
        # In any thread, when its loop is closed, in a forked child, or at the end of the interpreter.
        manager = getattr(self, "_manager", None)  # None: what it was to be made of was refused
        if manager is not None and self._closing is None and manager.forget():
            warnings.warn(
                f"{self!r} was forgotten without aclose(); use 'async with', or call aclose()",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )
