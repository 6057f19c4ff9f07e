"""``Locker.lead``: work that one process does at a time, and another takes over."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from ._engine.clock import clock
from .errors import ConfigurationError, LockLostError, LossReason, ServerError, only_tells_of_loss
from .scope import LockScope
from .wire.backoff import Backoff

if TYPE_CHECKING:
    from .locker import Locker
from .messages import about

log = logging.getLogger("asynclock")
T = TypeVar("T")

# Seconds between a loss, or a server that does not answer, and the next attempt: see Backoff.
FIRST_PAUSE, MAX_PAUSE = 0.1, 5.0


async def lead(locker: Locker, name: str, run: Callable[[LockScope], Awaitable[T]]) -> T:
    """As ``Locker.lead``.

    The lock may be lost just as ``run`` returns, or ``run`` may swallow the cancellation. If it had returned before the
    loss cancelled it, its work is complete, and its result is returned. If it was cancelled first, its result is
    dropped, and it contends again; unless somebody else has cancelled the task, too.
    """
    _check(run)
    backoff = Backoff(FIRST_PAUSE, MAX_PAUSE)
    told = ""  # the last trouble that was logged
    while True:
        try:
            scope = await locker.acquire(name)
        except ServerError as error:
            if error.lasting:
                raise
            if str(error) != told:
                log.warning(
                    "asynclock: cannot contend for lock %r, still trying: %s",
                    name,
                    error,
                    extra=about("cannot_contend", lock=name, server=error.server, error=error.problem),
                )
                told = str(error)
            await asyncio.sleep(backoff.next())
            continue
        task = asyncio.current_task()
        assert task is not None
        cancelled_before = task.cancelling()
        told = ""
        log.info("asynclock: leading, with lock %r", name, extra=about("leading", lock=name))
        since = clock()
        result: list[T] = []  # empty, or what run has returned
        stopped = False  # cancelled before it returned, by a loss or by others
        try:
            async with scope:
                result.append(await run(scope))
                stopped = task.cancelling() > cancelled_before
        except (LockLostError, BaseExceptionGroup) as error:
            if scope.lost_reason is None or not only_tells_of_loss(error, name):
                raise
            if not result and task.cancelling() > cancelled_before:  # by others: the block has taken back its own
                raise asyncio.CancelledError from error
        if result and (not stopped or task.cancelling() > cancelled_before):
            if scope.lost_reason is not None:
                log.info(
                    "asynclock: lock %r was lost (%s) when its leader had done its work",
                    name,
                    scope.lost_reason,
                    extra=about("leader_done", lock=name, reason=str(scope.lost_reason)),
                )
            return result[0]
        if scope.lost_reason is not None:
            log.info(
                "asynclock: lock %r was lost (%s), its leader was stopped, and contends again",
                name,
                scope.lost_reason,
                extra=about("leader_stopped", lock=name, reason=str(scope.lost_reason)),
            )
        if clock() - since > MAX_PAUSE:
            backoff.reset()
        if scope.lost_reason is not LossReason.CLOSED:  # then the next attempt says so
            await asyncio.sleep(backoff.next())


def _check(run: object) -> None:
    """:raises ConfigurationError: it cannot be called"""
    if inspect.iscoroutine(run):
        run.close()
        raise ConfigurationError(
            f"lead() was given the coroutine of {run.__qualname__}(), which can run only once; "
            f"give {run.__qualname__} itself"
        )
    if not callable(run):
        raise ConfigurationError(f"lead() needs a coroutine function that takes a LockScope, not {run!r:.80}")
