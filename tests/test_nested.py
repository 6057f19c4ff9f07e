"""The same name again: who would wait for itself is told, and who waits for others is not."""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from asynclock import (
    AcquireTimeoutError,
    AlreadyHeldError,
    AsyncLockError,
    Locker,
    LockLostError,
    LockScope,
    NotLockedError,
)
from asynclock.testing import Server
from tests.support import internals
from tests.support.helpers import AT_ONCE, key, until

pytestmark = pytest.mark.every_python

SOON = 0.05


async def with_context(locker: Locker, **options: Any) -> None:
    async with locker.with_context("job", **options):
        pass


async def acquire(locker: Locker, **options: Any) -> None:
    await (await locker.acquire("job", **options)).release()


WAYS = [with_context, acquire]


async def heartbeat() -> None:
    await asyncio.sleep(60)


@contextlib.asynccontextmanager
async def held(locker: Locker) -> AsyncIterator[LockScope]:
    async with locker.with_context("job") as scope:
        yield scope


@contextlib.asynccontextmanager
async def bare(locker: Locker) -> AsyncIterator[None]:
    async with locker.with_context("job"):
        yield


@contextlib.asynccontextmanager
async def by_hand(locker: Locker) -> AsyncIterator[None]:
    async with await locker.acquire("job"):
        yield


@contextlib.asynccontextmanager
async def by_force(locker: Locker) -> AsyncIterator[None]:
    async with locker.force_with_context("job"):
        yield


@contextlib.asynccontextmanager
async def in_a_stack(locker: Locker) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        values = {"scope": await stack.enter_async_context(locker.with_context("job"))}
        yield
        del values


@contextlib.asynccontextmanager
async def with_tasks(locker: Locker) -> AsyncIterator[None]:
    async with locker.with_context("job") as scope:
        beating = scope.create_task(heartbeat())
        yield
        beating.cancel()


@pytest.mark.asyncio
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("around", [held, bare, by_hand, by_force, in_a_stack, with_tasks])
@pytest.mark.parametrize("options", [{}, {"timeout": 5}], ids=["no timeout", "timeout"])
async def test_who_would_wait_for_itself_is_told(
    locker: Locker, server: Server, way: Callable[..., Awaitable[None]], around: Any, options: dict[str, Any]
) -> None:
    async with around(locker):
        since = time.monotonic()
        with pytest.raises(AlreadyHeldError, match="'job'") as caught:
            await way(locker, **options)
        assert time.monotonic() - since < AT_ONCE
        assert server.execute("EXISTS", key("job")) == 1  # nothing has changed
        assert not internals.rooms(locker)["job"].queue
    assert isinstance(caught.value, AsyncLockError)
    assert isinstance(caught.value, RuntimeError)
    assert caught.value.name == "job"
    await way(locker, timeout=5)


@pytest.mark.asyncio
async def test_it_ends_the_block_as_any_error_does(locker: Locker, server: Server) -> None:
    with pytest.raises(AlreadyHeldError):
        async with locker.with_context("job"), locker.with_context("other"), locker.with_context("job"):
            pytest.fail("entered twice")
    assert server.execute("KEYS", "*") == []


@pytest.mark.asyncio
async def test_what_does_not_wait_is_as_ever(locker: Locker) -> None:
    with pytest.raises(LockLostError, match="force"):
        async with locker.with_context("job") as scope:
            with pytest.raises(NotLockedError):
                await locker.try_acquire("job")
            with pytest.raises(AcquireTimeoutError):
                await locker.acquire("job", timeout=0)
            assert scope.held
            async with locker.force_with_context("job") as forced:
                assert forced.held
                await asyncio.sleep(60)


@pytest.mark.asyncio
async def test_another_locker_is_somebody_else(locker: Locker, other: Locker) -> None:
    async with locker.with_context("job"):
        with pytest.raises(AcquireTimeoutError):
            await other.acquire("job", timeout=SOON)


# Where somebody else could release it


async def released_by_a_task(scope: LockScope) -> None:
    await asyncio.sleep(SOON)
    await scope.release()


@pytest.mark.asyncio
@pytest.mark.parametrize("way", WAYS)
async def test_a_scope_that_is_not_entered_is_waited_for(locker: Locker, way: Callable[..., Awaitable[None]]) -> None:
    scope = await locker.acquire("job")
    with pytest.raises(AcquireTimeoutError):
        await way(locker, timeout=SOON)
    releasing = asyncio.create_task(released_by_a_task(scope))
    await way(locker, timeout=5)
    await releasing


@pytest.mark.asyncio
@pytest.mark.parametrize("way", WAYS)
async def test_a_block_of_another_task_is_waited_for(locker: Locker, way: Callable[..., Awaitable[None]]) -> None:
    inside = asyncio.Event()

    async def hold() -> None:
        async with locker.with_context("job"):
            inside.set()
            await asyncio.sleep(SOON)

    holding = asyncio.create_task(hold())
    await inside.wait()
    await way(locker, timeout=5)
    await holding
    async with locker.with_context("job") as scope:  # the other way round: this task's is waited for by another
        waiting = asyncio.create_task(way(locker))
        also = scope.create_task(asyncio.sleep(0))
        await asyncio.sleep(SOON)
        assert not waiting.done()
        assert also.done()
    await asyncio.wait_for(waiting, 5)


@pytest.mark.asyncio
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("who", ["a task of the scope", "another task", "a timer", "an object", "a closure"])
async def test_a_scope_that_others_know_is_waited_for(
    locker: Locker, way: Callable[..., Awaitable[None]], who: str
) -> None:
    loop = asyncio.get_running_loop()
    kept: list[asyncio.Task[None]] = []

    class Service:
        scope: LockScope | None = None

        async def stop(self) -> None:
            await asyncio.sleep(SOON)
            assert self.scope is not None
            await self.scope.release()

    async with locker.with_context("job") as scope:
        if who == "a task of the scope":
            scope.create_task(released_by_a_task(scope))
        elif who == "another task":
            kept.append(asyncio.create_task(released_by_a_task(scope)))
        elif who == "a timer":
            loop.call_later(SOON, lambda scope=scope: kept.append(asyncio.ensure_future(scope.release())))
        elif who == "an object":
            service = Service()
            stopping = service.stop()
            service.scope = scope
            kept.append(asyncio.create_task(stopping))
        else:

            async def release(scope: LockScope = scope) -> None:
                await scope.release()

            loop.call_later(SOON, lambda: kept.append(asyncio.ensure_future(release())))
        await way(locker, timeout=5)
    await asyncio.gather(*kept)


@pytest.mark.asyncio
async def test_one_that_is_over_is_not_in_the_way(locker: Locker, server: Server) -> None:
    async with locker.with_context("job") as scope:
        await scope.release()
        async with locker.with_context("job") as again:
            assert again.held
    with pytest.raises(LockLostError):
        async with locker.with_context("job") as scope:
            server.execute("DEL", key("job"))
            try:
                await asyncio.sleep(60)
            finally:  # it is this task's no more
                async with locker.with_context("job") as again:
                    assert again.held
    await until(lambda: not internals.busy(locker))


@pytest.mark.asyncio
async def test_one_that_is_being_stopped_is_waited_for(locker: Locker, server: Server) -> None:
    """A cancellation is on its way, which ends the wait."""
    async with locker.with_context("job") as scope:
        scope.cancel()
        async with locker.with_context("job"):
            pytest.fail("not cancelled")
    assert server.execute("EXISTS", key("job")) == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("way", [acquire, with_context])
async def test_clean_up_code_is_not_cancelled_again_so_it_is_told(
    locker: Locker, server: Server, way: Callable[..., Awaitable[None]]
) -> None:
    """The block keeps the lock until the clean-up is over."""
    for name in ("job", "another"):
        with pytest.raises(AlreadyHeldError):
            async with locker.with_context("job", "another") as scope:
                asyncio.get_running_loop().call_soon(scope.cancel)
                try:
                    await asyncio.sleep(60)
                finally:
                    await locker.acquire(name, timeout=5)
    with pytest.raises(AlreadyHeldError):
        async with locker.with_context("job") as scope:
            asyncio.get_running_loop().call_soon(scope.cancel)
            del scope
            try:
                await asyncio.sleep(60)
            finally:
                try:
                    raise ValueError
                except ValueError:
                    await way(locker, timeout=5)
    await until(lambda: not internals.busy(locker))
    assert server.execute("EXISTS", key("job")) == 0


@pytest.mark.asyncio
async def test_who_handles_an_earlier_cancellation_is_cancelled_all_the_same(locker: Locker) -> None:
    async def clean_up() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            async with locker.with_context("job") as scope:
                scope.cancel()
                async with locker.with_context("job"):
                    pytest.fail("not cancelled")

    task = asyncio.create_task(clean_up())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)


@pytest.mark.asyncio
async def test_tasks_that_wait_for_the_body_are_no_business_of_this(locker: Locker) -> None:
    """A task of the scope that wants the lock itself waits for the end of the block, which waits for the task. It is
    another task, and that it may be stopped by others is all that is known."""
    async with locker.with_context("job") as scope:
        waiting = scope.create_task(acquire(locker))
        await asyncio.sleep(SOON)
        assert not waiting.done()
        waiting.cancel()


@pytest.mark.asyncio
async def test_who_has_hold_of_the_scope_in_another_thread_or_weakly_may_release_it(locker: Locker) -> None:
    """A thread that was given the scope; a set or a reference that does not keep it."""

    async def outer(give: Callable[[LockScope], object]) -> None:
        async with locker.with_context("job") as scope:
            kept = give(scope)
            async with asyncio.timeout(5), locker.with_context("job"):
                pass
            del kept

    def in_a_thread(scope: LockScope) -> object:
        loop = asyncio.get_running_loop()

        def release(scope: LockScope) -> None:
            time.sleep(0.2)
            asyncio.run_coroutine_threadsafe(scope.release(), loop).result(5)

        return loop.run_in_executor(None, release, scope)

    def later(active: Callable[[], LockScope | None]) -> None:
        if (scope := active()) is not None:
            scope.cancel()

    def weakly(scope: LockScope) -> object:
        reference = weakref.ref(scope)
        asyncio.get_running_loop().call_later(0.2, later, reference)
        return reference

    def in_a_set(scope: LockScope) -> object:
        active = weakref.WeakSet([scope])
        asyncio.get_running_loop().call_later(0.2, later, lambda: next(iter(active), None))
        return active

    for give in (in_a_thread, weakly, in_a_set):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.create_task(outer(give))
