"""Eager tasks (Python 3.12): one runs inside the call that makes it, while the task that calls is not suspended."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from asynclock import ConfigurationError, Locker, LockLostError
from asynclock.testing import Server
from tests.support import internals
from tests.support.helpers import AT_ONCE, eager_task, key, until

pytestmark = [
    pytest.mark.every_python,
    pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12"),
]


class OwnError(Exception):
    """A task's own."""


@pytest_asyncio.fixture(autouse=True)
async def eager() -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(eager_task)
    yield
    loop.set_task_factory(None)


def cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def nothing_comes() -> None:
    """No cancellation strikes after the block."""
    assert cancelling() == 0
    for _ in range(3):
        await asyncio.sleep(0)


class Lost:
    """A lock whose time runs out while the loop is blocked, so that whoever looks first finds it lost."""

    def __init__(self, server: Server) -> None:
        self.locker = Locker(server.url, key_validity=0.2)

    async def __aenter__(self) -> Locker:
        return await self.locker.__aenter__()

    async def __aexit__(self, *error: object) -> None:
        await self.locker.aclose()


@pytest.mark.asyncio
@pytest.mark.parametrize("awaits", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
async def test_a_loss_found_by_a_child(server: Server, awaits: bool, depth: int) -> None:
    async def find(scope: object, depth: int) -> None:
        if depth > 1:
            await asyncio.create_task(find(scope, depth - 1))
        else:
            assert not scope.held  # type: ignore[attr-defined]

    async with Lost(server) as locker:
        with pytest.raises(LockLostError, match="validity"):
            async with locker.with_context("job") as scope:
                time.sleep(0.3)  # noqa: ASYNC251 - the loop is to be blocked
                child = asyncio.create_task(find(scope, depth))
                if awaits:
                    await asyncio.sleep(5)
        await nothing_comes()
        await child


@pytest.mark.asyncio
async def test_a_loss_found_by_a_task_of_the_scope(server: Server) -> None:
    async def find(scope: object) -> None:
        assert not scope.held  # type: ignore[attr-defined]

    async with Lost(server) as locker:
        with pytest.raises(LockLostError):
            async with locker.with_context("outer") as outer, locker.with_context("inner"):
                time.sleep(0.3)  # noqa: ASYNC251 - as above
                # It is not known to the scope yet when it ends it, and has no await in which it could be stopped.
                with pytest.raises(LockLostError):
                    outer.check()
                with pytest.raises(LockLostError):
                    outer.create_task(find(outer))
        await nothing_comes()


@pytest.mark.asyncio
async def test_a_scope_that_is_cancelled_by_a_child(locker: Locker) -> None:
    stopped = []

    async def stop(scope: object, then: float = 0.0) -> None:
        scope.cancel()  # type: ignore[attr-defined]
        try:
            await asyncio.sleep(then)
        except asyncio.CancelledError:
            stopped.append(then)
            raise

    async with locker.with_context("job") as scope:
        scope.create_task(stop(scope, 5))
    assert stopped == [5]  # of the scope: stopped, though it was no task of it yet when it said so
    await nothing_comes()
    async with locker.with_context("job") as scope:
        child = asyncio.create_task(stop(scope))
    await nothing_comes()
    await child
    async with locker.with_context("job") as scope:
        child = asyncio.create_task(stop(scope))
        await asyncio.sleep(5)
        pytest.fail("not stopped")
    await nothing_comes()
    await child


@pytest.mark.asyncio
async def test_tasks_that_end_at_once(locker: Locker, server: Server) -> None:
    async def at_once() -> str:
        return "done"

    async def fail() -> None:
        raise OwnError

    async with locker.with_context("job") as scope:
        task = scope.create_task(at_once())
        assert task.done()
        assert await task == "done"
    for awaits in (False, True):
        with pytest.raises(ExceptionGroup) as caught:
            async with locker.with_context("job") as scope:
                scope.create_task(fail())
                if awaits:
                    await asyncio.sleep(5)
        assert [type(error) for error in caught.value.exceptions] == [OwnError]
        await nothing_comes()
    assert server.execute("EXISTS", key("job")) == 0


@pytest.mark.asyncio
async def test_a_body_that_swallows_while_it_waits_for_tasks_that_have_ended_at_once(
    locker: Locker, server: Server
) -> None:
    """Whether somebody handles the cancellation is asked of those that are not done (3.12.1 crashes otherwise)."""

    async def at_once() -> None:
        pass

    tasks = [asyncio.create_task(at_once()) for _ in range(3)]
    told = 0
    with pytest.raises(LockLostError):
        async with locker.with_context("job"):
            server.execute("DEL", key("job"))
            for _ in range(3):
                try:
                    await asyncio.gather(*tasks, asyncio.sleep(5))
                except asyncio.CancelledError:
                    told += 1
            await asyncio.sleep(5)
            pytest.fail("went on")
    assert told == 3
    await nothing_comes()


@pytest.mark.asyncio
async def test_closing(server: Server) -> None:
    """By a child, and inside the block: the block is stopped, nobody waits for himself."""
    for inside in (True, False):
        locker = Locker(server.url)
        since = time.monotonic()
        closing = None
        with pytest.raises(LockLostError, match="closed"):
            async with locker.with_context("job"):
                if inside:
                    await locker.aclose()
                else:
                    closing = asyncio.create_task(locker.aclose())
        await nothing_comes()
        if closing is not None:
            await closing
        assert time.monotonic() - since < AT_ONCE
        assert server.execute("EXISTS", key("job")) == 0


@pytest.mark.asyncio
async def test_waiters_are_told_that_the_locker_is_closed(server: Server) -> None:
    locker = Locker(server.url)
    scope = await locker.acquire("job")
    waiting = asyncio.create_task(locker.acquire("job"))
    await locker.aclose()
    with pytest.raises(Exception, match=r"closed>: make a new Locker"):
        await waiting
    assert scope.lost_reason == "closed"


@pytest.mark.asyncio
async def test_a_child_that_holds_a_lock_of_its_own(locker: Locker, server: Server) -> None:
    async def hold() -> None:
        async with locker.with_context("inner"):
            server.execute("DEL", key("inner"))
            await asyncio.sleep(5)

    async with locker.with_context("outer") as outer:
        child = asyncio.create_task(hold())
        with pytest.raises(LockLostError):
            await child
        assert outer.held
    await nothing_comes()


@pytest.mark.asyncio
async def test_acquiring_in_children(locker: Locker) -> None:
    held = 0

    async def hold() -> None:
        nonlocal held
        async with locker.with_context("job"):
            held += 1

    await asyncio.gather(*(asyncio.create_task(hold()) for _ in range(20)))
    assert held == 20
    await until(lambda: not internals.busy(locker))


def test_connecting_fails_before_anything_is_awaited() -> None:
    """Each use tries anew, in each loop, and gets an error of its own."""
    locker = Locker("redis://127.0.0.1:1")

    async def refuse() -> None:
        raise ConfigurationError("at once")

    internals.manager(locker).connect = refuse  # whatever there may be that does so
    errors = []
    for _ in range(2):
        with asyncio.Runner() as runner:
            runner.get_loop().set_task_factory(eager_task)
            for _ in range(2):
                with pytest.raises(ConfigurationError, match="at once") as caught:
                    runner.run(locker.acquire("job"))
                errors.append(caught.value)
    assert len({id(error) for error in errors}) == 4
