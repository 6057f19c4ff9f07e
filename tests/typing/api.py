"""What users write, and the types that checkers see in it: read by mypy and pyright (test_typing.py), never run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import date, datetime, timedelta
from typing import Protocol, assert_never, assert_type

import redis.asyncio as redis
from redis.asyncio.cluster import RedisCluster

from asynclock import (
    AcquireTimeoutError,
    Acquisition,
    AlreadyHeldError,
    AsyncLockError,
    ConfigurationError,
    Holder,
    KeyState,
    Locker,
    LockerClosedError,
    LockLostError,
    LockScope,
    LossReason,
    NotLockedError,
    PermitAcquisition,
    Semaphore,
    ServerError,
    Statistics,
)
from asynclock.events import (
    Acquired,
    Disconnected,
    Event,
    ExtensionLate,
    GaveUp,
    Lost,
    Reconnected,
    Released,
    TimedOut,
)


async def making(client: redis.Redis, cluster: RedisCluster, urls: list[str]) -> None:
    Locker("redis://127.0.0.1:6379")
    Locker(urls)
    Locker(client)
    Locker([client, client, client])
    Locker(cluster)
    Locker(
        "redis://127.0.0.1:6379",
        key_prefix="locks",
        key_validity=timedelta(seconds=10),
        extend_interval=2,
        try_next_after=0.05,
        key_majority=2,
        no_loop_tracking=False,
        fallback_setpx=True,
        client_side_caching=False,
        disconnect_grace=timedelta(seconds=1),
        local_handoffs=0,
        min_replicas=1,
        restart_quarantine=True,
        spread_keys=True,
        wait_release=False,
        owner="web-3:812",
        warn_after=timedelta(minutes=1),
    )
    Locker("redis://127.0.0.1:6379", key_vality=10)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Locker(6379)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async with Locker("redis://127.0.0.1:6379") as locker:
        assert_type(locker, Locker)
    assert_type(locker.client, redis.Redis | RedisCluster)
    assert_type(await locker.aclose(), None)


async def acquiring(locker: Locker) -> None:
    assert_type(await locker.acquire("x"), LockScope)
    assert_type(await locker.acquire("x", timeout=1), LockScope)
    assert_type(await locker.acquire("x", timeout=timedelta(seconds=1)), LockScope)
    assert_type(await locker.acquire("x", timeout=None), LockScope)
    assert_type(await locker.try_acquire("x"), LockScope)
    assert_type(await locker.force_acquire("x"), LockScope)
    assert_type(await locker.acquire("x", "y", timeout=1), LockScope)
    assert_type(await locker.try_acquire("x", "y"), LockScope)
    assert_type(await locker.force_acquire("x", "y"), LockScope)
    await locker.acquire("x", 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(await locker.acquire("x", at_least=60), LockScope)
    assert_type(await locker.try_acquire("x", at_least=timedelta(minutes=1)), LockScope)
    assert_type(await locker.force_acquire("x", at_least=None), LockScope)
    await locker.acquire("x", at_least="60")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await locker.try_acquire("x", timeout=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await locker.acquire(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def contexts(locker: Locker) -> None:
    assert_type(locker.with_context("x"), Acquisition)
    assert_type(locker.try_with_context("x"), Acquisition)
    assert_type(locker.force_with_context("x"), Acquisition)
    assert_type(locker.with_context("x", "y", "z", timeout=2), Acquisition)
    assert_type(locker.try_with_context("x", "y"), Acquisition)
    assert_type(locker.force_with_context(*["x", "y"], wait_release=False), Acquisition)
    async with locker.with_context("x", timeout=1.5) as scope:
        assert_type(scope, LockScope)
    async with locker.try_with_context("x") as scope, locker.force_with_context("y") as other:
        assert_type(scope, LockScope)
        assert_type(other, LockScope)
    async with locker.with_context("x", at_least=60) as scope, locker.try_with_context("y", at_least=60.0) as other:
        assert_type(scope, LockScope)
    assert_type(locker.force_with_context("x", at_least=timedelta(minutes=1)), Acquisition)
    async with await locker.acquire("x") as scope:
        assert_type(scope, LockScope)
    print(locker.with_context("x").future)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]


async def permits(locker: Locker) -> None:
    semaphore = locker.semaphore("x", 3)
    assert_type(semaphore, Semaphore)
    assert_type(semaphore.name, str)
    assert_type(semaphore.permits, int)
    assert_type(await semaphore.acquire(), LockScope)
    assert_type(await semaphore.acquire(timeout=timedelta(seconds=1)), LockScope)
    assert_type(await semaphore.try_acquire(), LockScope)
    assert_type(semaphore.with_context(), PermitAcquisition)
    assert_type(semaphore.try_with_context(wait_release=False), PermitAcquisition)
    async with semaphore.with_context(timeout=1.5, wait_release=None) as scope, semaphore.try_with_context() as other:
        assert_type(scope, LockScope)
        assert_type(other, LockScope)
    locker.semaphore("x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    locker.semaphore("x", "3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await semaphore.acquire(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await semaphore.try_acquire(timeout=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def stacks(locker: Locker) -> None:
    async with AsyncExitStack() as stack:
        assert_type(await stack.enter_async_context(locker), Locker)
        assert_type(await stack.enter_async_context(locker.with_context("x")), LockScope)
        assert_type(await stack.enter_async_context(locker.try_with_context("x")), LockScope)
        assert_type(await stack.enter_async_context(locker.force_with_context("x")), LockScope)
        assert_type(await stack.enter_async_context(await locker.acquire("x")), LockScope)
        assert_type(await stack.enter_async_context(held(locker)), LockScope)
        stack.push_async_exit(locker.with_context("x"))


def returned(locker: Locker, *, wait: bool) -> AbstractAsyncContextManager[LockScope]:
    return locker.with_context("x") if wait else locker.try_with_context("x")


def named(locker: Locker) -> Acquisition:
    return locker.with_context("x")


async def passed_on(locker: Locker) -> None:
    context: AbstractAsyncContextManager[LockScope] = locker.with_context("x")
    async with context as scope:
        assert_type(scope, LockScope)
    contexts: list[AbstractAsyncContextManager[LockScope]] = [locker.with_context(name) for name in "abc"]
    contexts.append(await locker.acquire("x"))
    of_the_locker: AbstractAsyncContextManager[Locker] = locker
    del of_the_locker
    entering: Awaitable[LockScope] = locker.with_context("x").__aenter__()
    assert_type(await entering, LockScope)
    assert_type(await asyncio.wait_for(locker.acquire("x"), 1), LockScope)
    assert_type(await asyncio.create_task(locker.acquire("x")), LockScope)
    assert_type(await asyncio.gather(locker.acquire("x"), locker.acquire("y")), tuple[LockScope, LockScope])


@asynccontextmanager
async def held(locker: Locker) -> AsyncIterator[LockScope]:
    async with locker.with_context("x") as scope:
        yield scope


async def dependency(locker: Locker) -> AsyncIterator[LockScope]:
    async with locker.with_context("x") as scope:
        yield scope


def value_from_a_block(locker: Locker) -> Awaitable[int]:
    async def work() -> int:
        async with locker.with_context("x"):
            return 1

    return work()


def synchronizing(locker: Locker) -> None:
    @locker.synchronized("report:{day}", timeout=timedelta(seconds=1))
    async def report(day: date, *, draft: bool = False) -> int:
        return 1

    class Account:
        number = 1

        @locker.synchronized("account:{self.number}")
        async def pay(self, amount: int) -> str:
            return ""

        @classmethod
        @locker.synchronized("accounts")
        async def all(cls) -> list[int]:
            return []

    async def using() -> None:
        assert_type(await report(date.today(), draft=True), int)
        assert_type(await Account().pay(5), str)
        assert_type(await Account.all(), list[int])
        assert_type(await asyncio.create_task(report(date.today())), int)
        await report()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        await report("today")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await Account().pay("5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    @locker.synchronized("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    def not_a_coroutine_function() -> int:
        return 1

    @locker.synchronized("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async def a_generator() -> AsyncIterator[int]:
        yield 1

    del using, not_a_coroutine_function, a_generator


async def leading(locker: Locker) -> None:
    async def run(scope: LockScope) -> int:
        return 1

    class Scheduler:
        async def run(self, scope: LockScope) -> None: ...

    assert_type(await locker.lead("x", run), int)
    assert_type(await locker.lead("x", lambda scope: run(scope)), int)
    assert_type(await locker.lead("x", Scheduler().run), None)
    await locker.lead("x", run(await locker.acquire("x")))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await locker.lead("x", lambda: run)  # type: ignore[arg-type, misc]  # pyright: ignore[reportArgumentType]


async def looking(locker: Locker) -> None:
    holder = await locker.holder("x")
    assert_type(holder, Holder | None)
    if holder is not None:
        assert_type(holder.owner, str | None)
        assert_type(holder.host, str | None)
        assert_type(holder.pid, int | None)
        assert_type(holder.since, datetime | None)
        assert_type(holder.remaining, float | None)
        assert_type(holder.keys, tuple[KeyState, ...])
        holder.name = "y"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    assert_type(locker.watch("x"), AsyncGenerator[Holder | None])
    async for each in locker.watch("x"):
        assert_type(each, Holder | None)
    assert_type(await locker.names(), list[str])
    assert_type(locker.statistics(), Statistics)
    assert_type(locker.statistics().lost, Mapping[LossReason, int])


def subscribing(locker: Locker) -> None:
    def told(event: Event) -> str:
        assert_type(event.at, float)
        match event:
            case Acquired(name=name, hold=hold, waited=waited):
                return f"{name} {hold + 1} {waited:.1f}"
            case Released(held=seconds) | Reconnected(after=seconds) | ExtensionLate(remaining=seconds):
                return f"{seconds:.1f}"
            case Lost():
                assert_type(event.reason, LossReason)
                return event.detail
            case TimedOut():
                assert_type(event.holder, Holder | None)
                return event.name
            case GaveUp(error=text) | Disconnected(why=text):
                return text
            case _:
                assert_never(event)

    assert_type(locker.subscribe(told), Callable[[], None])
    locker.subscribe(print)
    locker.subscribe(lambda: None)  # type: ignore[arg-type, misc]  # pyright: ignore[reportArgumentType]


class Locks(Protocol):
    """What a service may ask for, to be given something else in its tests."""

    def with_context(self, name: str, /) -> AbstractAsyncContextManager[LockScope]: ...
    async def acquire(self, name: str, /) -> LockScope: ...


def given(locker: Locker) -> Locks:
    return locker


async def scopes(scope: LockScope) -> None:
    async def number() -> int:
        return 1

    assert_type(scope.name, str)
    assert_type(scope.names, tuple[str, ...])
    assert_type(scope.held, bool)
    assert_type(scope.lost_reason, LossReason | None)
    assert_type(scope.remaining(), float)
    assert_type(scope.check(), None)
    assert_type(scope.cancel(), None)
    assert_type(await scope.release(), None)
    assert_type(await scope.wait_lost(), LossReason | None)
    assert_type(await scope.fencing_token(), int)
    assert_type(await scope.fencing_token("x"), int)
    task = scope.create_task(number(), name="n")
    assert_type(task, asyncio.Task[int])
    assert_type(await task, int)
    assert_type(await asyncio.to_thread(scope.check), None)
    scope.held = True  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    scope.create_task(number)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def errors(locker: Locker) -> None:
    try:
        await locker.acquire("x", timeout=1)
    except AcquireTimeoutError as error:
        assert_type(error.name, str)
        assert_type(error.timeout, float)
        as_timeout: TimeoutError = error
        del as_timeout
    except NotLockedError as error:
        assert_type(error.why, str)
    except AlreadyHeldError as error:
        as_runtime: RuntimeError = error
        assert_type(error.name, str)
        del as_runtime
    except LockLostError as error:
        assert_type(error.reason, LossReason)
        assert_type(error.reason == "deleted", bool)
        assert_type(error.detail, str)
    except ServerError as error:
        assert_type(error.lasting, bool)
        assert_type(error.server, str)
    except ConfigurationError as error:
        as_value: ValueError = error
        del as_value
    except (LockerClosedError, AsyncLockError):
        pass
