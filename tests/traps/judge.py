"""Judges what came out of a scope's block, given what happened inside and around it: guarantee by guarantee.

It sees one block at a time, so that it can judge programs of any shape. If asyncio or anyio leave the fate of a
cancellation open (the body swallowed it, or an ``anyio`` scope took it for its own), any outcome is accepted.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from asynclock import AcquireTimeoutError, AlreadyHeldError, LockLostError, LockScope, NotLockedError


class Wrong(AssertionError):
    """A guarantee does not hold."""


@dataclass(slots=True)
class Record:
    """What happened in one block."""

    name: str
    cancelling: int  # ``Task.cancelling()`` before the block
    inside: bool = False  # the task was already inside a block that held that name
    scope: LockScope | None = None  # set once it is entered
    ended: bool = False  # the body has ended
    error: BaseException | None = None  # with this exception
    error_was: tuple[object, bool] = (None, False)  # its __cause__ and __suppress_context__ then
    cancelling_at_error: int = 0
    failures: list[BaseException] = field(default_factory=list)  # of its tasks
    tasks: list[asyncio.Task[object]] = field(default_factory=list)
    stopped: bool = False  # scope.cancel() was called before a loss was known
    released: bool = False  # by hand, in the body or a task
    swallowed: bool = False  # a cancellation of its task was lost in the body
    excused: bool = False  # ... by asyncio or anyio, not by the program or the library
    stray: bool = False  # a pending cancellation arrives although it was taken back (before Python 3.13)
    out: BaseException | None = None
    overtaken_by: BaseException | None = None  # the exception for which its generator was closed
    cancelling_after: int = 0
    still_pending: bool = False  # an outside cancellation arrives at the next await

    @property
    def closed(self) -> bool:
        """Was it in a generator that was closed at its yield?"""
        return isinstance(self.error, GeneratorExit)


def judge(block: Record) -> None:
    """:raises Wrong: with the guarantee that does not hold"""
    if block.cancelling_after < block.cancelling and not block.swallowed:
        raise Wrong(f"{block.name}: a cancellation from outside was taken back: {_counts(block)}")
    if block.scope is None:
        _judge_acquiring(block)
        return
    if block.closed:
        _judge_closed(block)
        return
    if any(not task.done() for task in block.tasks):
        raise Wrong(f"{block.name}: a task of the scope runs on after its block")
    if block.scope.held:
        raise Wrong(f"{block.name}: still held after its block")
    own = block.error is not None and not isinstance(block.error, asyncio.CancelledError)
    if block.failures:
        _judge_failures(block, [*block.failures, *([block.error] if own and block.error is not None else [])])
    elif own:
        if block.out is not block.error:
            raise Wrong(f"{block.name}: the body raised {block.error!r}, and {block.out!r} came out")
        assert block.error is not None
        if (block.error.__cause__, block.error.__suppress_context__) != block.error_was:
            raise Wrong(f"{block.name}: the body's own exception was changed")
    else:
        _judge_quiet(block)


def _judge_acquiring(block: Record) -> None:
    """The lock was not held, or not long enough to enter the block."""
    if isinstance(block.out, asyncio.CancelledError):
        if not block.cancelling_after and not block.stray:
            raise Wrong(f"{block.name}: acquiring was cancelled by nobody")
    elif isinstance(block.out, AlreadyHeldError):
        if not block.inside:
            raise Wrong(f"{block.name}: {block.out}, and it is not")
    elif not isinstance(block.out, AcquireTimeoutError | NotLockedError | LockLostError):
        raise Wrong(f"{block.name}: acquiring ended with {block.out!r}")


def _judge_closed(block: Record) -> None:
    """The generator was closed, so the block could not await anything."""
    assert block.scope is not None
    reason, out = block.scope.lost_reason, block.out
    if block.scope.held and not block.tasks:  # tasks of the scope hold it until they are done
        raise Wrong(f"{block.name}: still held after its generator was closed")
    lost = reason is not None and not block.stopped
    if isinstance(out, LockLostError) and isinstance(out.__cause__, BaseExceptionGroup):
        out = out.__cause__
    if isinstance(out, BaseExceptionGroup):
        own = {id(error) for error in (*block.failures, block.overtaken_by)}
        if not {id(error) for error in out.exceptions} <= own:
            raise Wrong(f"{block.name}: {block.failures!r} failed, and {block.out!r} came out when it was closed")
    elif isinstance(out, LockLostError):
        if not lost or out.name not in block.scope.names or out.reason != reason or out.__cause__ is not None:
            raise Wrong(f"{block.name}: {out!r} came out when it was closed, and the reason is {reason!r}")
        if block.overtaken_by is not None:
            raise Wrong(f"{block.name}: {out!r} hides {block.overtaken_by!r}")
    elif out is not block.error:
        raise Wrong(f"{block.name}: {out!r} came out when it was closed")
    elif lost and block.overtaken_by is None and block.cancelling_after <= block.cancelling and not block.swallowed:
        raise Wrong(f"{block.name}: lost ({reason}), and nothing came out when it was closed")


def _judge_failures(block: Record, expected: list[BaseException]) -> None:
    assert block.scope is not None
    group = block.out
    if isinstance(group, LockLostError) and block.scope.lost_reason is not None:
        group = group.__cause__  # the lock was lost, and then tasks failed while they were stopped
    if not isinstance(group, BaseExceptionGroup) or {id(e) for e in group.exceptions} != {id(e) for e in expected}:
        raise Wrong(f"{block.name}: {expected!r} failed, and {block.out!r} came out")


def _judge_quiet(block: Record) -> None:
    """Neither the body nor a task raised anything of its own."""
    assert block.scope is not None
    reason, out = block.scope.lost_reason, block.out
    outside = block.cancelling_after > block.cancelling
    if isinstance(out, asyncio.CancelledError):
        # Cancelled from outside, or the body awaited something that was cancelled.
        own = block.error is out and not block.cancelling_at_error
        if not block.cancelling_after and not own and not block.stray:
            raise Wrong(f"{block.name}: CancelledError came out, and nobody outside had cancelled it")
        return
    if outside and not block.swallowed and not block.still_pending:
        raise Wrong(f"{block.name}: a cancellation from outside was lost: {out!r} came out, {_counts(block)}")
    if isinstance(out, LockLostError):
        if reason is None or out.name not in block.scope.names or out.reason != reason:
            raise Wrong(f"{block.name}: {out!r} came out, and the reason is {reason!r}")
        if out.__cause__ is not None:
            raise Wrong(f"{block.name}: the loss does not come bare: {out.__cause__!r}")
    elif out is not None:
        raise Wrong(f"{block.name}: nobody raised it, and {out!r} came out")
    elif reason is not None and not block.stopped:
        raise Wrong(f"{block.name}: lost ({reason}), and nothing came out")
    elif isinstance(block.error, asyncio.CancelledError) and not (block.stopped or block.swallowed or outside):
        raise Wrong(f"{block.name}: a cancellation from somewhere else was swallowed")


def _counts(block: Record) -> str:
    return f"cancelling() {block.cancelling} before and {block.cancelling_after} after"
