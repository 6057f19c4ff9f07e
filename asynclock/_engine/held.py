"""Held: what a scope holds, and how that ends. ``LockScope`` is its public face."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Coroutine
from typing import Any, Final, NamedTuple

from ..core.lease import Lease
from ..core.native import mypyc_attr
from ..core.reasons import LossReason
from ..core.room import Room
from ..errors import ConfigurationError, LockLostError
from .block import Block, being_left
from .diagnosis import NOTICED_LATE
from .manager import LockManager
from .reports import Hold
from .whereabouts import Whereabouts

_running_loop: Final = asyncio._get_running_loop  # returns None where none runs


class Loss(NamedTuple):
    """What is known of a loss."""

    reason: LossReason
    detail: str


@mypyc_attr(allow_interpreted_subclasses=True)
class Held:
    """A held lock, and the block in which it is held.

    It is compiled where that is wanted. What a compiled class cannot have is in ``LockScope``, which inherits from it:
    weak references, ``__del__``, docstrings and signatures.

    Invariants: ``_lease`` is set while the lock is held, as far as is known here. Three things end that: ``_on_lost``,
    ``_end`` (by a release or the end of the block), and ``LockScope.__del__``. ``_loss`` is set before ``_lease`` is
    unset: a thread that finds no lease may ask why. There is a ``_block`` as soon as there is something to stop or to
    wait for.
    """

    __slots__ = (
        "_awaited_release",
        "_baseline",
        "_block",
        "_exiting",
        "_hold",
        "_lease",
        "_locker",
        "_loss",
        "_manager",
        "_parent",
        "_release_at_exit",
        "_room",
        "_wait_release",
        "_waiting",
        "name",
    )

    def __init__(
        self,
        locker: object,
        manager: LockManager,
        room: Room[Any],
        lease: Lease,
        wait_release: bool,
        task: asyncio.Task[Any] | None,
    ) -> None:
        """
        :param wait_release: whether leaving the block waits for the answer to the release
        :param task: has entered the block
        """
        self.name = room.name
        self._locker = locker  # kept as long as this is: a locker that nobody has is closed
        self._manager = manager
        self._room = room
        self._lease: Lease | None = lease
        self._loss: Loss | None = None
        self._wait_release = wait_release
        self._awaited_release: Lease | None = None  # whose answer ``__aexit__`` waits for
        self._release_at_exit: Lease | None = None  # lost because the locker closes: given back when the block is left
        self._waiting: list[asyncio.Future[None]] | None = None  # in wait_lost
        self._parent = task
        self._baseline = 0 if task is None else task.cancelling()  # when it entered the block
        self._exiting = False
        self._hold: Hold | None = None  # for its events; None: nobody had subscribed when it began
        self._block: Block | None = None

    def _stay(self, seconds: float) -> None:
        """The lock stays for that long from now, even if it is released earlier; 0: it goes with the release."""
        if self._lease is not None:
            self._lease.keep(self._manager.clock() + seconds if seconds else 0.0)

    # Leaving the block

    def _leave_at_once(self) -> asyncio.Future[int] | bool:
        """Release the lock without a Block. False: there are tasks, or a loss, so leave by the Block. True: done. A
        future: await it. If its result is not 0, a key was missing: call ``_raise_if_lost``."""
        lease, manager = self._lease, self._manager
        if lease is None or self._block is not None:
            return False
        life, now = manager.life, manager.clock()
        serving = life.serving
        if serving is None or _running_loop() is not serving or now >= lease.deadline:
            return False
        self._exiting = True
        self._end()
        self._room.release(lease, now)
        if not lease.unreleased:
            return True
        pending_releases = manager.pending_releases
        if not self._wait_release and pending_releases.may_leave_unattended(lease, now):
            pending_releases.leave_unattended(lease, self._hold)
            return True
        self._awaited_release = lease
        return pending_releases.begin(lease, now + pending_releases.patience)

    def _raise_if_lost(self) -> None:
        """A key was missing. :raises LockLostError: so many were that the lock had been lost before its release"""
        assert self._awaited_release is not None
        self._find_out(self._awaited_release)
        if self._loss is not None:
            raise self._error()

    def _close(self) -> bool:
        """The coroutine or generator that the block is in is being closed: nothing can be awaited any more."""
        self._exiting = True
        if not self._can_send():
            self._end()
        elif self._here():
            self._get_block().close(HeldByScope(self))
        elif self._block is not None:
            self._manager.life.call_soon(functools.partial(self._block.close, HeldByScope(self)))
        else:
            self._give_back_soon()
        return False

    def _give_back_soon(self) -> None:
        """Give the lock back, from whatever thread."""
        if (lease := self._end()) is not None:
            self._manager.give_back_soon(self._room, lease)

    def _send_release(self) -> None:
        """Give the lock back, without waiting for the answer."""
        lease = self._end_and_release()
        if lease is not None:
            self._manager.pending_releases.leave_unattended(lease, self._hold)

    async def _give_back(self) -> asyncio.CancelledError | None:
        """Give the lock back, and find out whether it had been lost. Returns a cancellation that came meanwhile."""
        self._check()
        lease = self._end_and_release()
        if lease is None:
            return None
        manager = self._manager
        if not self._wait_release and manager.pending_releases.may_leave_unattended(lease, manager.clock()):
            manager.pending_releases.leave_unattended(lease, self._hold)
            return None
        cancelled = await manager.pending_releases.wait(lease)
        self._find_out(lease)
        return cancelled

    def _end_and_release(self) -> Lease | None:
        """Returns the lease whose answer shows whether the lock had been lost."""
        lease = self._end()
        to_release = lease or self._release_at_exit
        if to_release is not None and self._can_send():
            self._manager.give_back(self._room, to_release, self._manager.clock())
        return lease

    # State: see the invariants above

    def _on_lost(self, reason: LossReason, detail: str) -> None:
        """The lock is no longer this scope's: stop everything, and send nothing about it any more."""
        if reason is LossReason.CLOSED:
            self._release_at_exit = self._lease
        self._loss = loss = Loss(reason, detail)
        lease, self._lease = self._lease, None
        assert lease is not None
        self._manager.reports.lost(lease, self._hold, loss.reason, loss.detail, held=True)
        self._wake()
        if self._parent is not None:
            self._get_block().abort(self._why_stopped())

    def _check(self) -> None:
        """Find out whether the lock has expired while the loop could not (it was blocked, the machine suspended)."""
        lease = self._lease
        if lease is not None and self._manager.clock() >= lease.deadline and self._here():
            self._manager.time_is_over(self._room)

    def _over(self) -> bool:
        """Lost, released, expired, or the parent's (this is the child of a fork)."""
        lease = self._lease
        return lease is None or self._manager.life.forked or self._manager.clock() >= lease.deadline

    def _here(self) -> bool:
        """Does this run in the locker's event loop?"""
        try:
            return asyncio.get_running_loop() is self._manager.life.loop
        except RuntimeError:
            return False

    def _check_here(self) -> None:
        if not self._here():
            raise self._elsewhere()

    def _elsewhere(self) -> ConfigurationError:
        return ConfigurationError(
            f"lock {self.name!r}: its scope belongs to the event loop of its locker, which does not run here; "
            "ask that loop to call it, with loop.call_soon_threadsafe or asyncio.run_coroutine_threadsafe"
        )

    def _can_send(self) -> bool:
        """Can the lock still be given back? Not if the loop is closed, or this is the child of a fork."""
        return self._manager.life.can_send

    def _find_out(self, lease: Lease) -> None:
        """Had the lock been lost before it was released, as the answer shows?"""
        reason = lease.loss_found_by_release()
        if reason is not None:
            self._loss = Loss(reason, NOTICED_LATE)
            self._manager.reports.lost(lease, self._hold, reason, NOTICED_LATE, held=False)

    def _end(self) -> Lease | None:
        """The scope gives the lock up. Returns the lease, to be released."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.scope_ref = None
            if self._waiting is not None:
                self._wake()
            if self._hold is not None:
                self._manager.reports.released(self.name, self._hold)
        return lease

    def _get_block(self) -> Block:
        """The block, now that there is something to stop or to wait for."""
        if self._block is None:
            assert self._parent is not None
            self._block = Block(self.name, self._parent, self._baseline, Whereabouts(self, Held))
        return self._block

    def _wake(self) -> None:
        for future in self._waiting or ():
            if not future.done():
                future.set_result(None)
        self._waiting = None

    def _why_stopped(self) -> str:
        return being_left(self.name) if self._loss is None else f"lock {self.name!r} was lost: {self._loss.reason}"

    def _error(self) -> LockLostError:
        if self._loss is not None:
            return LockLostError(self.name, *self._loss)
        return LockLostError(self.name, LossReason.RELEASED if self._lease is None else LossReason.EXPIRED, "")


class HeldByScope:
    """What the block may do with the lock of its scope: ``_engine.block.HeldLock``."""

    __slots__ = ("_scope",)

    def __init__(self, scope: Held) -> None:
        self._scope = scope

    @property
    def lost(self) -> bool:
        return self._scope._loss is not None

    def error(self) -> LockLostError:
        return self._scope._error()

    def why_stopped(self) -> str:
        return self._scope._why_stopped()

    def send_release(self) -> None:
        self._scope._send_release()

    def give_back(self) -> Coroutine[Any, Any, asyncio.CancelledError | None]:
        return self._scope._give_back()
