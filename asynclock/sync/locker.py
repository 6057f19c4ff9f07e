"""Locker: locks for threads and scripts."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Never, TypeVar

import redis
from redis.cluster import RedisCluster

from .._engine import forks
from .._engine.lifecycle import closed_error
from ..core.holders import Holder
from ..errors import LockerClosedError
from ..events import Event
from ..locker import Locker as AsyncLocker
from ..options import Seconds, check_timeout
from ..scope import LockScope as AsyncScope
from ..statistics import Statistics
from .acquisition import Acquisition
from .clients import asynchronous, synchronous
from .loop_thread import Call, LoopThread, enlist, refuse_in_event_loop
from .scope import LockScope, excuse_own, refuse_own
from .semaphore import Semaphore

T = TypeVar("T")


class Locker:
    """:class:`asynclock.Locker` for threads and scripts: the same options, locks and guarantees, without ``async``.

    :param servers: as for :class:`asynclock.Locker`; clients are those of ``redis``, not of ``redis.asyncio``:
        ``Redis``, also from ``Sentinel.master_for``, or ``RedisCluster``, whose connection settings are used, but not
        its pool

    The other parameters are explained at :class:`asynclock.Locker`.

    :raises ConfigurationError: an option is wrong; the message names it, its value and the rule
    :raises ServerError: a client cannot be made just now (no file descriptor is left)

    Make one, where you like, and use it in any number of threads, and in the children of a fork: each process connects
    at its first use, and a lock that was held before a fork stays the parent's. All lockers of a process share one
    thread, ``asynclock``, whose event loop extends the locks and hears of losses.

    ``with Locker(...)`` connects and closes. Without it, the first acquisition connects, and :meth:`close` closes; the
    end of the process closes what is still open, once every thread that is not a daemon has ended. A locker that the
    program has forgotten, with all its scopes, is closed with a ``ResourceWarning``.

    Whatever waits raises :class:`ConfigurationError` in a thread in which an event loop runs, and ends at once with
    ``KeyboardInterrupt``, and with whatever else a signal's handler raises; then nothing is left behind.
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
        self._servers = servers
        self._make = partial(
            AsyncLocker,
            asynchronous(servers),
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
            **unknown,
        )
        self._here = InProcess(self._make)
        self._clients: dict[object, redis.Redis | RedisCluster] = {}  # made here, by what from, and closed here

    def __repr__(self) -> str:
        return f"<asynclock.sync.Locker {self._here}>"

    def __reduce__(self) -> tuple[object, ...]:
        """For a process that ``multiprocessing`` spawns: it makes a locker of its own, of the same servers and options.
        The copy holds no lock."""
        return _made, (self._servers, self._make.keywords)

    @property
    def client(self) -> redis.Redis | RedisCluster:
        """A redis-py client for other commands, closed with the locker if it was made from a URL.

        It is a client of the first server, if there are several. If the servers turn out to be a cluster once the
        locker is connected, it is a client of the cluster, which connects when it is made.
        """
        first = self._servers[0] if isinstance(self._servers, list | tuple) else self._servers
        if isinstance(first, redis.Redis | RedisCluster):
            return first
        with self._here.lock:
            source = self._here.locker.client
            client = self._clients.get(source)
        if client is None:
            made = synchronous(source)  # not under the lock: a cluster's connects, and its nodes may hang
            with self._here.lock:
                client = self._clients.setdefault(source, made)
            if client is not made:  # another thread was faster
                made.close()
        return client

    # Acquiring

    def acquire(
        self, name: str, *more: str, timeout: Seconds | None = None, at_least: Seconds | None = None
    ) -> LockScope:
        """Wait for the lock, and hold it until the scope is released or its block is left.

        :param more: further names: the scope holds all of these locks or none, as in :meth:`asynclock.Locker.acquire`
        :param timeout: seconds to wait, as in :meth:`asynclock.Locker.acquire`; ``None``: without a limit; 0: one
            attempt
        :param at_least: seconds for which nobody else gets the lock, as in :meth:`asynclock.Locker.acquire`
        :raises AcquireTimeoutError: not acquired within that time
        :raises ServerError: the servers cannot be reached when the locker connects, or they refuse
        :raises AlreadyHeldError: this thread is inside a block that holds the lock, and would wait for itself
        :raises LockerClosedError: the locker is closed, or is closed during the wait
        :raises ConfigurationError: a name is empty, too long, not a string, or given twice, the timeout is negative or
            not a number, ``at_least`` is not a number of seconds up to 366 days, or an event loop runs in this thread
        """
        waits = check_timeout(timeout) != 0
        names = name, *more
        return self._acquire(
            lambda locker: locker.acquire(*names, timeout=timeout, at_least=at_least), names if waits else ()
        )

    def try_acquire(self, name: str, *more: str, at_least: Seconds | None = None) -> LockScope:
        """Hold the lock if it is free; one attempt, without waiting for its holder.

        :raises NotLockedError: it is not free

        Otherwise as :meth:`acquire`.
        """
        return self._acquire(lambda locker: locker.try_acquire(name, *more, at_least=at_least))

    def force_acquire(self, name: str, *more: str, at_least: Seconds | None = None) -> LockScope:
        """Take the lock over. Whoever holds it loses it, with reason ``taken over``. Raises as :meth:`acquire`."""
        return self._acquire(lambda locker: locker.force_acquire(name, *more, at_least=at_least))

    def with_context(
        self,
        name: str,
        *more: str,
        timeout: Seconds | None = None,
        wait_release: bool | None = None,
        at_least: Seconds | None = None,
    ) -> Acquisition:
        """``with locker.with_context(name) as scope:`` acquires the lock as :meth:`acquire`, holds it in the block, and
        releases it at the end.

        :param wait_release: whether the end of the block waits for the answer to the release; ``None``: as the option
            of the locker
        :param at_least: as for :meth:`acquire`: whatever ends the block
        """
        return Acquisition(partial(self.acquire, name, *more, timeout=timeout, at_least=at_least), wait_release)

    def try_with_context(
        self, name: str, *more: str, wait_release: bool | None = None, at_least: Seconds | None = None
    ) -> Acquisition:
        """As :meth:`with_context`, with :meth:`try_acquire`."""
        return Acquisition(partial(self.try_acquire, name, *more, at_least=at_least), wait_release)

    def force_with_context(
        self, name: str, *more: str, wait_release: bool | None = None, at_least: Seconds | None = None
    ) -> Acquisition:
        """As :meth:`with_context`, with :meth:`force_acquire`."""
        return Acquisition(partial(self.force_acquire, name, *more, at_least=at_least), wait_release)

    def semaphore(self, name: str, permits: int) -> Semaphore:
        """A semaphore: at most ``permits`` scopes of this name at once, in all threads and processes together. Sends
        nothing.

        :param permits: from 1 to 1,000; must be the same wherever this name is used
        :raises ConfigurationError: as :meth:`asynclock.Locker.semaphore`
        """
        self._here.ask(lambda locker: locker.semaphore(name, permits))
        return Semaphore(self, name, permits)

    def _acquire(
        self, how: Callable[[AsyncLocker], Coroutine[Any, Any, AsyncScope]], waited_for: tuple[str, ...] = ()
    ) -> LockScope:
        thread, locker = self._here.open()
        for name in waited_for:
            refuse_own(locker, name)
        return LockScope(self, thread, Call(thread, partial(how, locker), _give_back).result())

    # Looking

    def holder(self, name: str) -> Holder | None:
        """Read who holds the lock now, in whatever process; ``None``: nobody. As :meth:`asynclock.Locker.holder`."""
        thread, locker = self._here.open()
        return Call(thread, lambda: locker.holder(name)).result()

    def names(self) -> list[str]:
        """The names of all locks that have a key on any server now. As :meth:`asynclock.Locker.names`."""
        thread, locker = self._here.open()
        return Call(thread, locker.names).result()

    def statistics(self) -> Statistics:
        """Figures of this locker, in this process. As :meth:`asynclock.Locker.statistics`."""
        return self._here.ask(AsyncLocker.statistics)

    def subscribe(self, callback: Callable[[Event], object]) -> Callable[[], None]:
        """Call ``callback`` with everything that happens to this locker's locks and servers, as
        :meth:`asynclock.Locker.subscribe`, in the thread ``asynclock``, which must not be blocked. In the child of a
        fork, subscribe again."""
        unsubscribe = self._here.ask(lambda locker: locker.subscribe(callback))
        return lambda: self._here.ask(lambda _: unsubscribe())

    # Opening and closing

    def __enter__(self) -> Locker:
        """Connect. Raises as :meth:`acquire`."""
        thread, locker = self._here.open()
        try:
            Call(thread, locker.__aenter__).result()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close: every scope loses its lock with reason ``closed``, every waiting thread raises
        :class:`LockerClosedError`, keys are released, and connections closed.

        Waits until other threads have left their blocks, at most until their locks would have expired, so that nobody
        else gets a lock while the work under it goes on. Does nothing on a closed locker.

        :raises ConfigurationError: an event loop runs in this thread
        """
        refuse_in_event_loop()
        for client in self._clients.values():
            client.close()
        self._here.close()

    def __del__(self) -> None:
        # In any thread, also that of the loop; in a forked child; at the end of the interpreter.
        here = getattr(self, "_here", None)  # None: the arguments were refused
        if here is not None and here.forget():
            warnings.warn(
                f"{self!r} was forgotten without close(); use 'with', or call close()",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )


class InProcess:
    """A locker in this process: its asynchronous one, and the thread that runs that one's event loop.

    Invariants: ``thread`` is set at the first use, for good. ``locker`` is used in that thread only, and in no other
    process. In the child of a fork, both are replaced at the first use there. All of that changes under ``lock``.
    """

    def __init__(self, make: Callable[[], AsyncLocker]) -> None:
        self._make = make
        self.locker = make()
        self.thread: LoopThread | None = None
        self.lock = threading.RLock()  # a signal's handler may close what it has interrupted
        self._closed = False
        self._copied = False  # the locker is the parent's
        forks.register(self)

    def __str__(self) -> str:
        state = "closed" if self._closed else "open" if self.thread is not None else "new"
        return f"{self.locker._manager.where()} {state}"

    def fork(self) -> None:
        self.lock = threading.RLock()  # it may be held by a thread that is not here
        if self.thread is not None:
            forks.keep(self.locker)
            self.thread, self._copied = None, True

    def open(self) -> tuple[LoopThread, AsyncLocker]:
        refuse_in_event_loop()
        with self.lock:
            if self._closed:
                raise closed_error(f"<asynclock.sync.Locker {self}>")
            if self._copied:
                self.locker, self._copied = self._make(), False
            if self.thread is None:
                self.thread = enlist(self.locker)
            return self.thread, self.locker

    def ask(self, question: Callable[[AsyncLocker], T]) -> T:
        """Ask the locker something that waits for nothing: in its event loop, if that runs."""
        with self.lock:
            if self._copied and not self._closed:
                self.locker, self._copied = self._make(), False
            thread, locker = self.thread, self.locker
        if thread is None or thread.gone or thread.is_this():
            return question(locker)

        async def answer() -> T:
            return question(locker)

        try:
            return Call(thread, answer).result()
        except LockerClosedError:  # the loop has just ended
            return question(locker)

    def close(self) -> None:
        with self.lock:
            self._closed = True
            thread, locker = self.thread, self.locker
        if thread is None or thread.gone:
            return
        excuse_own(locker)
        try:
            with contextlib.suppress(LockerClosedError):  # another thread was faster, or the process ends
                Call(thread, locker.aclose).result()
        finally:
            if thread.dismiss(locker):
                thread.join()

    def forget(self) -> bool:
        """Nobody can close the locker any more, so close it. False: there is nothing to close."""
        thread = self.thread
        if thread is None or self._closed or thread.gone:
            return False
        return thread.post(partial(thread.forget, self.locker))


async def _give_back(scope: AsyncScope | None) -> None:
    """Nobody waits any more for the scope that was acquired."""
    if scope is not None:
        scope._stay(0.0)  # the caller has never had it
        await scope.release()


def _made(servers: Any, options: dict[str, Any]) -> Locker:
    return Locker(servers, **options)
