"""What users of asynclock.sync write: read by mypy and pyright (test_typing.py), never run."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from datetime import timedelta
from subprocess import Popen
from threading import Event
from typing import assert_type

import redis
import redis.asyncio
from redis.cluster import RedisCluster

from asynclock import Holder, LockLostError, LossReason, Statistics
from asynclock.sync import Acquisition, Locker, LockScope, Semaphore


def making(client: redis.Redis, cluster: RedisCluster, urls: list[str], other: redis.asyncio.Redis) -> None:
    Locker("redis://127.0.0.1:6379")
    Locker(urls)
    Locker(client)
    Locker([client, client, client])
    Locker(cluster)
    Locker("redis://127.0.0.1:6379", key_validity=timedelta(seconds=10), extend_interval=2, local_handoffs=0)
    Locker("redis://127.0.0.1:6379", key_vality=10)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Locker(other)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with Locker("redis://127.0.0.1:6379") as locker:
        assert_type(locker, Locker)
    assert_type(locker.client, redis.Redis | RedisCluster)
    assert_type(locker.close(), None)


def acquiring(locker: Locker) -> None:
    assert_type(locker.acquire("x"), LockScope)
    assert_type(locker.acquire("x", timeout=1), LockScope)
    assert_type(locker.acquire("x", timeout=timedelta(seconds=1)), LockScope)
    assert_type(locker.try_acquire("x"), LockScope)
    assert_type(locker.force_acquire("x"), LockScope)
    assert_type(locker.acquire("x", at_least=60), LockScope)
    assert_type(locker.try_acquire("x", at_least=timedelta(minutes=1)), LockScope)
    assert_type(locker.force_acquire("x", at_least=None), LockScope)
    locker.acquire("x", at_least="60")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    locker.try_acquire("x", timeout=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    locker.acquire(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def permits(locker: Locker) -> None:
    semaphore = locker.semaphore("x", 3)
    assert_type(semaphore, Semaphore)
    assert_type(semaphore.acquire(timeout=1), LockScope)
    assert_type(semaphore.try_acquire(), LockScope)
    assert_type(semaphore.with_context(timeout=1, wait_release=True), Acquisition)
    with semaphore.with_context() as scope, semaphore.try_with_context() as other:
        assert_type(scope, LockScope)
        assert_type(other, LockScope)


def looking(locker: Locker) -> None:
    assert_type(locker.holder("x"), Holder | None)
    assert_type(locker.names(), list[str])
    assert_type(locker.statistics(), Statistics)
    assert_type(locker.subscribe(print), Callable[[], None])


def contexts(locker: Locker) -> None:
    assert_type(locker.with_context("x"), Acquisition)
    assert_type(locker.with_context("x", "y", timeout=2), Acquisition)
    assert_type(locker.acquire("x", "y"), LockScope)
    with locker.with_context("x", timeout=1.5) as scope:
        assert_type(scope, LockScope)
    with locker.try_with_context("x") as scope, locker.force_with_context("y") as other:
        assert_type(scope, LockScope)
        assert_type(other, LockScope)
    with locker.with_context("x", at_least=60) as scope, locker.try_with_context("y", at_least=60.0) as other:
        assert_type(scope, LockScope)
    assert_type(locker.force_with_context("x", at_least=timedelta(minutes=1)), Acquisition)
    with locker.acquire("x") as scope:
        assert_type(scope, LockScope)
    with ExitStack() as stack:
        assert_type(stack.enter_context(locker), Locker)
        assert_type(stack.enter_context(locker.with_context("x")), LockScope)
    context: AbstractContextManager[LockScope] = locker.with_context("x")
    del context
    with ThreadPoolExecutor() as threads:
        assert_type(threads.submit(locker.acquire, "x", timeout=1).result(), LockScope)


def value_from_a_block(locker: Locker) -> int | None:
    with locker.with_context("x"):
        return 1
    return None  # after scope.cancel(), which ends the block silently


def scopes(scope: LockScope, process: Popen[bytes], told: Callable[[LossReason], None]) -> None:
    assert_type(scope.name, str)
    assert_type(scope.held, bool)
    assert_type(scope.lost_reason, LossReason | None)
    assert_type(scope.remaining(), float)
    assert_type(scope.check(), None)
    assert_type(scope.cancel(), None)
    assert_type(scope.release(), None)
    assert_type(scope.wait_lost(), LossReason | None)
    assert_type(scope.names, tuple[str, ...])
    assert_type(scope.fencing_token(), int)
    assert_type(scope.fencing_token("x"), int)
    assert_type(scope.wait_lost(timeout=1), LossReason | None)
    assert_type(scope.on_lost(told), None)
    scope.on_lost(process.kill)
    scope.on_lost(Event().set)
    scope.on_lost(lambda reason: print(reason))
    scope.on_lost(lambda: None)
    scope.on_lost(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    scope.held = True  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def errors(scope: LockScope) -> None:
    try:
        scope.check()
    except LockLostError as error:
        assert_type(error.reason, LossReason)
