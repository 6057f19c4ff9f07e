"""A block in an async generator: left at a yield, closed by whoever, and the task beside it in other code."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from asynclock import Locker, LockLostError, LockScope
from asynclock.testing import Server
from tests.support import internals
from tests.support.helpers import key, until

pytestmark = pytest.mark.every_python


class OwnError(Exception):
    """A body's or a task's own."""


def cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


def free(server: Server, name: str = "job") -> bool:
    return server.execute("EXISTS", key(name)) == 0


def lose(server: Server) -> None:
    server.execute("DEL", key("job"))


async def numbers(locker: Locker, work: Callable[[LockScope], object] = lambda scope: None) -> AsyncIterator[int]:
    async with locker.with_context("job") as scope:
        work(scope)
        for number in range(5):
            yield number
            await asyncio.sleep(0)


async def slow_numbers(locker: Locker) -> AsyncIterator[int]:
    async with held(locker), locker.with_context("another"):
        for number in range(5):
            yield number
            await asyncio.sleep(5)


async def stacked(locker: Locker) -> AsyncIterator[int]:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(held(locker))
        yield 1
        await asyncio.sleep(5)


async def by_hand(locker: Locker) -> AsyncIterator[int]:
    scope = await locker.acquire("job")
    async with scope:
        yield 1
        await asyncio.sleep(5)


@contextlib.asynccontextmanager
async def held(locker: Locker) -> AsyncIterator[LockScope]:
    async with locker.with_context("job") as scope:
        yield scope


async def heard(seconds: float = 5.0) -> bool:
    """Sleep. Was that cancelled, and is there nobody who had asked for it?"""
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError as error:
        assert "lock 'job' was lost" in str(error)  # so says the cancellation itself
        return True
    return False


@pytest.mark.asyncio
async def test_a_loss_and_then_the_generator_is_closed(locker: Locker, server: Server) -> None:
    generator = numbers(locker)
    await anext(generator)
    lose(server)
    assert await heard()
    with pytest.raises(LockLostError, match="deleted") as caught:
        await generator.aclose()  # type: ignore[attr-defined]
    assert caught.value.__cause__ is None
    assert cancelling() == 0
    await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_closed_without_a_loss(locker: Locker, server: Server) -> None:
    async with contextlib.aclosing(numbers(locker)) as generator:  # type: ignore[type-var]
        async for number in generator:
            if number == 2:
                break
    assert cancelling() == 0
    await until(lambda: free(server))


@pytest.mark.asyncio
async def test_aclosing_is_told(locker: Locker, server: Server) -> None:
    with pytest.raises(LockLostError):
        async with contextlib.aclosing(numbers(locker)) as generator:  # type: ignore[type-var]
            async for number in generator:
                if number == 2:
                    lose(server)
                    await asyncio.sleep(5)
    assert cancelling() == 0


async def through(generator: AsyncIterator[int]) -> AsyncIterator[int]:
    async for each in generator:
        yield each


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["bare", "from a variable", "from a closure", "through another", "aclosing"])
async def test_the_body_of_a_loop_over_it_is_the_blocks(locker: Locker, server: Server, how: str) -> None:
    """Who swallows it in there is cancelled again."""
    times = 0

    async def body(number: int) -> None:
        nonlocal times
        if number == 0:
            lose(server)
        elif number > 2:
            return
        for _ in range(2):
            times += await heard()

    generator: Any = numbers(locker)
    captured: Any = numbers(locker)
    with pytest.raises(LockLostError):
        if how == "bare":
            async for number in numbers(locker):
                await body(number)
        elif how == "from a variable":
            async for number in generator:
                await body(number)
        elif how == "from a closure":
            async for number in captured:
                await body(number)
        elif how == "through another":
            async for number in through(generator):
                await body(number)
        else:
            async with contextlib.aclosing(generator):
                await anext(generator)
                for number in range(3):
                    await body(number)
    assert times == 6
    assert cancelling() == 0
    assert (lambda: captured)() is not None  # this makes it one that is captured


@pytest.mark.asyncio
async def test_one_that_the_garbage_collector_closes(locker: Locker, server: Server) -> None:
    with pytest.raises(asyncio.CancelledError, match="lock 'job' was lost"):
        async for _ in numbers(locker):
            lose(server)
            await asyncio.sleep(5)
    gc.collect()
    await until(lambda: not internals.busy(locker))
    await until(lambda: cancelling() == 0)


@pytest.mark.asyncio
@pytest.mark.parametrize("make", [slow_numbers, stacked, by_hand])
@pytest.mark.parametrize("where", ["variable", "elsewhere"])
async def test_other_code_is_cancelled_once(
    locker: Locker, server: Server, make: Callable[[Locker], AsyncIterator[int]], where: str
) -> None:
    generator = make(locker)
    await anext(generator)
    if where == "elsewhere":
        kept.append(generator)
        del generator
    lose(server)
    assert await heard()
    for _ in range(10):
        assert not await heard(0.1)  # a second: ten times as long as the pause in which a cancellation insists
    if where == "elsewhere":
        generator = kept.pop()
    with pytest.raises(LockLostError):
        await anext(generator)  # in there it is cancelled again
    assert cancelling() == 0


kept: list[AsyncIterator[int]] = []


@contextlib.asynccontextmanager
async def stacked_twice(locker: Locker) -> AsyncIterator[LockScope]:
    async with contextlib.AsyncExitStack() as stack:
        yield await stack.enter_async_context(held(locker))


class Wrapped:
    """As applications have it: something with a lock in it."""

    def __init__(self, locker: Locker) -> None:
        self.lock = locker.with_context("job")

    async def __aenter__(self) -> LockScope:
        return await self.lock.__aenter__()

    async def __aexit__(self, *error: Any) -> bool | None:
        return await self.lock.__aexit__(*error)


@pytest.mark.asyncio
@pytest.mark.parametrize("manager", [held, stacked_twice, Wrapped])
async def test_the_body_of_a_context_manager_is_the_blocks(
    locker: Locker, server: Server, manager: Callable[[Locker], Any]
) -> None:
    times = 0
    with pytest.raises(LockLostError):
        async with manager(locker):
            lose(server)
            for _ in range(5):
                times += await heard()
            await asyncio.sleep(5)
            pytest.fail("went on")
    assert times == 5
    assert cancelling() == 0


@pytest.mark.asyncio
async def test_entered_by_hand_is_cancelled_again(locker: Locker, server: Server) -> None:
    """Where the block is cannot be known; no generator is around it."""
    for context in (held(locker), locker.with_context("job")):
        await context.__aenter__()
        lose(server)
        for _ in range(5):
            assert await heard()
        with pytest.raises(LockLostError):
            await context.__aexit__(None, None, None)
        assert cancelling() == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("lost", [True, False])
async def test_another_task_closes_it(locker: Locker, server: Server, lost: bool) -> None:
    generator = numbers(locker)
    await anext(generator)
    if lost:
        lose(server)
        assert await heard()
        assert cancelling() == 1
    await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]
    assert cancelling() == 0
    await until(lambda: free(server) and not internals.busy(locker))
    for _ in range(3):
        await asyncio.sleep(0.05)


@pytest.mark.asyncio
async def test_a_task_that_is_about_to_close_it_does_not_run_it_yet(locker: Locker, server: Server) -> None:
    """It is time to look whether this task has stopped, while it waits for the closing to begin. (uvloop looks first,
    and a task of asyncio's begins first.)"""
    generator = numbers(locker)
    await anext(generator)
    lose(server)
    assert await heard()
    time.sleep(0.01)  # noqa: ASYNC251 - so that it is time
    await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]  # it is an async generator
    assert cancelling() == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("alive", [True, False])
async def test_another_task_leaves_it(locker: Locker, server: Server, alive: bool) -> None:
    """As fixtures do: what sets them up may have ended, or have gone on to something else."""
    left = asyncio.Event()
    told = 0

    async def enter(context: Any) -> None:
        nonlocal told
        await context.__aenter__()
        entered.set()
        while alive and not left.is_set():
            try:
                await left.wait()
            except asyncio.CancelledError:
                told += 1

    for error in (None, OwnError(), asyncio.CancelledError()):
        entered = asyncio.Event()
        left.clear()
        context = locker.with_context("job")
        entering = asyncio.create_task(enter(context))
        await entered.wait()
        if not alive:
            await entering
        lose(server)
        await until(lambda: not internals.busy(locker))
        await asyncio.sleep(0.01)
        kind = None if error is None else type(error)
        if isinstance(error, OwnError):
            assert not await context.__aexit__(kind, error, None)
        elif error is None or alive:  # a cancellation that comes from the task that was cancelled
            with pytest.raises(LockLostError):
                await context.__aexit__(kind, error, None)
        else:  # nobody's of this library
            with contextlib.suppress(LockLostError):
                assert not await context.__aexit__(kind, error, None)
        assert cancelling() == 0
        assert entering.cancelling() == 0
        left.set()
        await entering
        assert bool(told) is alive


@pytest.mark.asyncio
async def test_another_task_is_cancelled_while_it_leaves(locker: Locker, server: Server) -> None:
    context = locker.with_context("job")
    scope = await asyncio.create_task(context.__aenter__())
    cleaning = asyncio.Event()

    async def slow() -> None:
        try:
            await asyncio.sleep(5)
        finally:
            cleaning.set()
            await asyncio.sleep(0.05)

    async def leave() -> None:
        scope.create_task(slow())
        await asyncio.sleep(0)
        scope.cancel()
        await context.__aexit__(None, None, None)

    leaving = asyncio.create_task(leave())
    await cleaning.wait()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert leaving.cancelled()
    assert leaving.cancelling() == 1
    assert cancelling() == 0
    assert free(server)


@pytest.mark.asyncio
async def test_a_task_fails_when_the_one_that_entered_has_ended(locker: Locker) -> None:
    context = locker.with_context("job")
    scope = await asyncio.create_task(context.__aenter__())

    async def fail() -> None:
        raise OwnError

    sibling = scope.create_task(asyncio.sleep(5))
    scope.create_task(fail())
    await asyncio.sleep(0.01)
    with pytest.raises(ExceptionGroup) as caught:
        await context.__aexit__(None, None, None)
    assert [type(error) for error in caught.value.exceptions] == [OwnError]
    assert sibling.cancelled()


# Closed while tasks of the scope run: they are cancelled, and the lock is theirs until they are done


class Stubborn:
    """A task that swallows twice what stops it, and then takes its time to clean up."""

    def __init__(self, fails: bool = False) -> None:
        self.told = 0
        self.fails = fails
        self.may_end = asyncio.Event()

    def start(self, scope: LockScope) -> None:
        scope.create_task(self.run())

    async def run(self) -> None:
        for _ in range(2):
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                self.told += 1
        try:
            await asyncio.sleep(5)
        finally:
            self.told += 1
            await self.may_end.wait()
            if self.fails:
                raise OwnError


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["own task", "other task", "garbage"])
async def test_closed_while_tasks_run(locker: Locker, server: Server, how: str) -> None:
    stubborn = Stubborn()
    generator: Any = numbers(locker, stubborn.start)
    await anext(generator)
    await asyncio.sleep(0)
    if how == "own task":
        await generator.aclose()
    elif how == "other task":
        await asyncio.create_task(generator.aclose())
    else:
        del generator
        gc.collect()
    await until(lambda: stubborn.told == 3)
    assert not free(server)  # who else had it would have it beside that task
    with pytest.raises(TimeoutError):
        await locker.acquire("job", timeout=0.05)
    stubborn.may_end.set()
    await until(lambda: free(server) and not internals.busy(locker))
    assert cancelling() == 0


@pytest.mark.asyncio
async def test_the_locker_waits_for_the_tasks_of_a_closed_block(server: Server) -> None:
    locker = Locker(server.url)
    stubborn = Stubborn()
    generator: Any = numbers(locker, stubborn.start)
    await anext(generator)
    await asyncio.sleep(0)
    await generator.aclose()
    closing = asyncio.create_task(locker.aclose())
    await until(lambda: stubborn.told == 3)
    assert not free(server)
    assert not closing.done()
    stubborn.may_end.set()
    await closing
    assert free(server)


@pytest.mark.asyncio
async def test_a_task_that_fails_after_its_block_was_closed(locker: Locker) -> None:
    """There is nobody to raise it to: the event loop is told."""
    loop = asyncio.get_running_loop()
    told: list[dict[str, Any]] = []
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: told.append(context))
    try:
        stubborn = Stubborn(fails=True)
        generator: Any = numbers(locker, stubborn.start)
        await anext(generator)
        await asyncio.sleep(0)
        await generator.aclose()
        stubborn.may_end.set()
        await until(lambda: not internals.busy(locker))
    finally:
        loop.set_exception_handler(handler)
    assert [type(context["exception"]) for context in told] == [OwnError]
    assert "lock 'job'" in told[0]["message"]


@pytest.mark.asyncio
async def test_tasks_that_failed_are_told_when_it_is_closed(locker: Locker, server: Server) -> None:
    async def fail() -> None:
        raise OwnError

    with pytest.raises(ExceptionGroup) as caught:
        generator = numbers(locker, lambda scope: scope.create_task(fail()))
        async with contextlib.aclosing(generator) as generator:  # type: ignore[type-var]
            async for _ in generator:
                await asyncio.sleep(5)
    assert [type(error) for error in caught.value.exceptions] == [OwnError]
    assert cancelling() == 0
    await until(lambda: free(server))


@contextlib.asynccontextmanager
async def in_a_stack(generator: Any) -> AsyncIterator[Any]:
    async with contextlib.AsyncExitStack() as stack:
        yield await stack.enter_async_context(contextlib.aclosing(generator))


class OwnClosing:
    def __init__(self, generator: Any) -> None:
        self.generator = generator

    async def __aenter__(self) -> Any:
        return self.generator

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        await self.generator.aclose()


async def nested_numbers(
    locker: Locker, work: Callable[[LockScope], object] = lambda scope: None
) -> AsyncIterator[int]:
    async with held(locker) as scope:
        work(scope)
        yield 0
        yield 1


@pytest.mark.asyncio
@pytest.mark.parametrize("closing", [contextlib.aclosing, in_a_stack, OwnClosing])
@pytest.mark.parametrize("make", [numbers, nested_numbers])
async def test_an_error_of_the_loops_body_goes_first(
    locker: Locker, server: Server, closing: Callable[[Any], Any], make: Callable[..., AsyncIterator[int]]
) -> None:
    """As that of a block's."""

    for when in ("held", "lost", "heard"):
        with pytest.raises(OwnError, match="body"):
            async with closing(make(locker)) as generator:
                async for _ in generator:
                    if when != "held":
                        lose(server)
                        if when == "heard":
                            await heard()
                        else:  # by a look, which this task has: it is not suspended, and so not cancelled yet
                            internals.lose(locker, "job")
                    raise OwnError("body")
        assert cancelling() == 0
        await until(lambda: free(server) and not internals.busy(locker))

    async def fail_at_once() -> None:
        raise OwnError("task")

    with pytest.raises(ExceptionGroup) as caught:
        async with closing(make(locker, lambda scope: scope.create_task(fail_at_once()))) as generator:
            async for _ in generator:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(5)
                raise OwnError("body")
    assert [str(error) for error in caught.value.exceptions] == ["task", "body"]
    assert cancelling() == 0


@pytest.mark.asyncio
async def test_cancelled_by_others_too(locker: Locker, server: Server) -> None:
    """A cancellation from outside stays one."""

    async def run() -> None:
        async with contextlib.aclosing(numbers(locker)) as generator:  # type: ignore[type-var]
            async for _ in generator:
                lose(server)
                try:
                    await asyncio.sleep(5)
                finally:
                    task.cancel("outside")

    task = asyncio.create_task(run())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelling() == 1
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02), contextlib.aclosing(numbers(locker)) as generator:  # type: ignore[type-var]
            async for _ in generator:
                await asyncio.sleep(5)
    assert cancelling() == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["deleted", "stopped"])
async def test_closed_by_its_task_after(locker: Locker, server: Server, how: str) -> None:
    """A scope that was stopped by ``cancel`` ends silently."""
    scopes: list[LockScope] = []
    generator: Any = numbers(locker, scopes.append)
    await anext(generator)
    if how == "stopped":
        scopes[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(5)
        await generator.aclose()
    else:
        lose(server)
        assert await heard()
        with pytest.raises(LockLostError):
            await generator.aclose()
    assert cancelling() == 0
    await until(lambda: free(server))


@pytest.mark.asyncio
async def test_a_coroutine_that_is_closed_while_its_exit_waits(locker: Locker, server: Server) -> None:
    stubborn = Stubborn()

    async def hold() -> None:
        async with locker.with_context("job") as scope:
            stubborn.start(scope)

    coroutine = hold()
    future = coroutine.send(None)
    assert future is not None
    await until(future.done)
    coroutine.send(None)  # waits for the task now
    await asyncio.sleep(0)
    coroutine.close()
    await until(lambda: stubborn.told == 3)
    assert not free(server)
    stubborn.may_end.set()
    await until(lambda: free(server) and not internals.busy(locker))


def test_closed_while_the_loop_does_not_run(server: Server) -> None:
    """Then what there is to do is done when it runs again."""
    stubborn = Stubborn()

    async def hold(locker: Locker) -> None:
        async with locker.with_context("job") as scope:
            stubborn.start(scope)
            await asyncio.sleep(5)

    async def start(locker: Locker) -> Any:
        async with locker.with_context("other"):
            pass  # it is connected
        coroutine = hold(locker)
        acquired = coroutine.send(None)
        assert acquired is not None
        await until(acquired.done)
        coroutine.send(None)
        await asyncio.sleep(0)
        return coroutine

    async def end(locker: Locker) -> None:
        await until(lambda: stubborn.told == 3)
        assert not free(server)
        stubborn.may_end.set()
        await until(lambda: free(server) and not internals.busy(locker))
        await locker.aclose()

    with asyncio.Runner() as runner:
        locker = Locker(server.url)
        coroutine = runner.run(start(locker))
        coroutine.close()
        runner.run(end(locker))
