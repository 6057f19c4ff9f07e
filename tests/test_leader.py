"""``locker.lead``: one leads, another takes over, and what becomes of a leader that is stopped, fails or is done."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from asynclock import (
    AlreadyHeldError,
    ConfigurationError,
    Locker,
    LockerClosedError,
    LockLostError,
    LockScope,
    ServerError,
    leader,
)
from asynclock.testing import Server
from tests.support.helpers import AT_ONCE, key, until

pytestmark = [pytest.mark.every_python, pytest.mark.asyncio]


class OwnError(Exception):
    """The leader's own."""


class Leader:
    """Works until it is stopped, the first times; then it returns how often it has begun."""

    def __init__(self, stopped: int = 1) -> None:
        self.left = stopped
        self.begun: list[float] = []
        self.ended: list[float] = []
        self.scope: LockScope

    async def __call__(self, scope: LockScope) -> int:
        assert scope.held
        self.scope = scope
        self.begun.append(time.monotonic())
        try:
            if len(self.begun) <= self.left:
                await asyncio.sleep(60)
            return len(self.begun)
        finally:
            self.ended.append(time.monotonic())

    @property
    def works(self) -> bool:
        return len(self.begun) > len(self.ended)


@contextlib.asynccontextmanager
async def leading(locker: Locker, run: Callable[[LockScope], Awaitable[Any]]) -> AsyncIterator[asyncio.Task[Any]]:
    task = asyncio.create_task(locker.lead("job", run))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


def lose(server: Server) -> float:
    assert server.execute("DEL", key("job")) == 1
    return time.monotonic()


def free(server: Server) -> bool:
    return server.execute("EXISTS", key("job")) == 0


@pytest.mark.fast
async def test_it_returns_what_run_returns_and_gives_the_lock_back(locker: Locker, server: Server) -> None:
    async def run(scope: LockScope) -> str:
        assert scope.name == "job" and scope.held
        assert not free(server)
        await asyncio.sleep(0.01)
        return "done"

    assert await locker.lead("job", run) == "done"
    assert free(server)


@pytest.mark.fast
async def test_one_leads_and_another_takes_over_at_once(locker: Locker, other: Locker, server: Server) -> None:
    one, two = Leader(), Leader()
    async with leading(locker, one) as first, leading(other, two) as second:
        await until(lambda: one.works or two.works)
        await asyncio.sleep(0.1)
        assert one.works != two.works
        now, then = ((first, one), (second, two)) if one.works else ((second, two), (first, one))
        since = time.monotonic()
        now[0].cancel()
        await until(lambda: then[1].works)
        assert then[1].begun[0] - since < AT_ONCE
        assert not now[1].works


@pytest.mark.fast
async def test_a_loss_stops_it_and_it_leads_again(
    locker: Locker, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asynclock")
    run = Leader()
    async with leading(locker, run) as task:
        await until(lambda: run.works)
        since = lose(server)
        assert await asyncio.wait_for(task, 5) == 2
        assert run.ended[0] - since < AT_ONCE
        assert leader.FIRST_PAUSE / 2 - 0.02 <= run.begun[1] - run.ended[0] < leader.FIRST_PAUSE + AT_ONCE
    assert free(server)
    (record,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert record.getMessage().startswith("asynclock: lock 'job' was lost after ")
    assert "asynclock: lock 'job' was lost (deleted), its leader was stopped, and contends again" in caplog.messages


async def test_pauses_grow_while_losses_come_one_after_the_other(locker: Locker, server: Server) -> None:
    run = Leader(stopped=4)
    async with leading(locker, run) as task:
        for times in range(1, 5):
            await until(lambda times=times: len(run.begun) == times and not free(server))  # type: ignore[misc]
            lose(server)
        assert await asyncio.wait_for(task, 10) == 5
    pauses = [begun - ended for ended, begun in zip(run.ended, run.begun[1:], strict=False)]
    for times, pause in enumerate(pauses):
        # Up to half of each is taken off at random; and uvloop counts a timer from where its turn began, in whole ms.
        assert pause >= leader.FIRST_PAUSE * 2**times / 2 - 0.02


async def test_a_leader_that_was_taken_over_waits_for_its_successor(locker: Locker, other: Locker) -> None:
    run = Leader()
    async with leading(locker, run) as task:
        await until(lambda: run.works)
        async with other.force_with_context("job"):
            await until(lambda: run.ended)
            await asyncio.sleep(0.5)  # longer than its pause
            assert len(run.begun) == 1
        assert await asyncio.wait_for(task, 5) == 2


# Errors


@pytest.mark.fast
async def test_an_exception_of_run_comes_out_and_nothing_is_run_again(locker: Locker, server: Server) -> None:
    begun = 0

    async def run(scope: LockScope) -> None:
        nonlocal begun
        begun += 1
        raise OwnError

    with pytest.raises(OwnError):
        await locker.lead("job", run)
    assert begun == 1
    assert free(server)


@pytest.mark.parametrize("loses", [False, True])
async def test_so_does_one_that_it_raises_when_it_is_stopped(loses: bool, locker: Locker, server: Server) -> None:
    async def run(scope: LockScope) -> None:
        try:
            if loses:
                lose(server)
                await asyncio.sleep(60)
        finally:
            raise OwnError

    with pytest.raises(OwnError):
        await locker.lead("job", run)


@pytest.mark.parametrize("loses", [False, True])
async def test_an_exception_of_a_task_comes_out(loses: bool, locker: Locker, server: Server) -> None:
    async def fails() -> None:
        try:
            if loses:
                lose(server)
                await asyncio.sleep(60)
        finally:
            raise OwnError

    async def run(scope: LockScope) -> None:
        scope.create_task(fails())
        await asyncio.sleep(60)

    with pytest.raises((ExceptionGroup, LockLostError)) as caught:
        await locker.lead("job", run)
    group = caught.value.__cause__ if loses else caught.value
    assert isinstance(group, ExceptionGroup)
    assert [type(each) for each in group.exceptions] == [OwnError]


async def checks(scope: LockScope) -> None:
    while True:
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            scope.check()
            raise


async def in_the_body(scope: LockScope) -> None:
    await checks(scope)


async def in_a_task(scope: LockScope) -> None:
    scope.create_task(checks(scope))
    await asyncio.sleep(60)


async def in_both(scope: LockScope) -> None:
    scope.create_task(checks(scope))
    await checks(scope)


async def in_a_task_group(scope: LockScope) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(checks(scope))
        await asyncio.sleep(60)


@pytest.mark.parametrize("where", [in_the_body, in_a_task, in_both, in_a_task_group])
async def test_what_check_raises_is_the_loss_and_no_failure(
    where: Callable[[LockScope], Awaitable[None]], locker: Locker, server: Server
) -> None:
    begun = 0

    async def run(scope: LockScope) -> int:
        nonlocal begun
        begun += 1
        if begun == 1:
            await where(scope)
        return begun

    async with leading(locker, run) as task:
        await until(lambda: begun and not free(server))
        lose(server)
        assert await asyncio.wait_for(task, 5) == 2


async def test_the_loss_of_another_lock_is_an_error_of_run(locker: Locker, server: Server) -> None:
    async def run(scope: LockScope) -> None:
        async with locker.with_context("another"):
            server.execute("DEL", key("another"))
            await asyncio.sleep(60)

    with pytest.raises(LockLostError, match="'another'"):
        await locker.lead("job", run)
    assert free(server)


async def test_a_scope_that_run_has_released_is_not_lost(locker: Locker, server: Server) -> None:
    async def run(scope: LockScope) -> None:
        await scope.release()
        scope.check()

    with pytest.raises(LockLostError, match="its scope has released it"):
        await locker.lead("job", run)


async def test_who_would_wait_for_himself_is_told(locker: Locker, server: Server) -> None:
    async def run(scope: LockScope) -> None:
        async with locker.with_context("job"):
            raise AssertionError("entered")

    with pytest.raises(AlreadyHeldError):
        async with asyncio.timeout(5):
            await locker.lead("job", run)
    async with locker.with_context("job"):
        with pytest.raises(AlreadyHeldError):
            async with asyncio.timeout(5):
                await locker.lead("job", run)
    assert free(server)


@pytest.mark.fast
async def test_what_cannot_be_run_is_refused_before_anything_is_acquired(locker: Locker, server: Server) -> None:
    async def run(scope: LockScope) -> None:
        """Never called."""

    wrong: list[tuple[Any, str]] = [
        (run(None), r"the coroutine of .*run\(\), .* give .*run itself"),  # type: ignore[arg-type]
        (None, "takes a LockScope, not None"),
    ]
    for what, told in wrong:
        with pytest.raises(ConfigurationError, match=told):
            await locker.lead("job", what)
    with pytest.raises(ConfigurationError, match="must not be empty"):
        await locker.lead("", run)


# Cancelled


@pytest.mark.fast
async def test_cancelled_it_gives_the_lock_back_at_once(locker: Locker, server: Server) -> None:
    run = Leader()
    async with leading(locker, run) as task:
        await until(lambda: run.works)
        since = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert free(server)
        assert time.monotonic() - since < AT_ONCE


async def test_cancelled_while_it_waits_it_leaves_nothing(locker: Locker, other: Locker, server: Server) -> None:
    async with other.with_context("job"):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await locker.lead("job", Leader())
    assert free(server)


async def test_cancelled_during_a_pause_it_leads_no_more(locker: Locker, server: Server) -> None:
    run = Leader(stopped=2)
    async with leading(locker, run) as task:
        await until(lambda: run.works)
        lose(server)
        await until(lambda: run.ended)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(run.begun) == 1
    assert free(server)


async def test_cancelled_while_it_is_stopped_by_a_loss(locker: Locker, server: Server) -> None:
    stopping = asyncio.Event()

    async def run(scope: LockScope) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            stopping.set()
            await asyncio.sleep(0.05)

    async with leading(locker, run) as task:
        await until(lambda: not free(server))
        lose(server)
        await stopping.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 5)


async def test_steps_down_with_cancel(locker: Locker, other: Locker, server: Server) -> None:
    """... and another leads, before it does again."""
    order: list[str] = []

    async def steps_down(scope: LockScope) -> str:
        order.append("first")
        if len(order) == 1:
            scope.cancel()
            await asyncio.sleep(60)
        return "returned"

    async def second(scope: LockScope) -> None:
        order.append("second")

    async with leading(locker, steps_down) as task:
        await until(lambda: order)
        await other.lead("job", second)
        assert await asyncio.wait_for(task, 5) == "returned"
    assert order == ["first", "second", "first"]
    assert free(server)


# Run ends in the moment of a loss


async def test_a_loss_that_shows_at_the_release_comes_after_the_work(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async def run(scope: LockScope) -> str:
        lose(server)
        return "done"

    with caplog.at_level(logging.INFO, "asynclock"):
        async with Locker(server.url, try_next_after=2) as locker:  # so long, the release waits for its answer
            assert await locker.lead("job", run) == "done"
    assert "lock 'job' was lost (deleted) when its leader had done its work" in caplog.text


async def test_so_does_one_that_has_not_stopped_it_yet(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    async def run(scope: LockScope) -> str:
        time.sleep(scope.remaining() + 0.01)  # noqa: ASYNC251  # what it must not do
        assert not scope.held
        return "done"

    with caplog.at_level(logging.INFO, "asynclock"):
        async with Locker(server.url, key_validity=0.2) as locker:
            assert await locker.lead("job", run) == "done"
    assert "lock 'job' was lost (expired) when its leader had done its work" in caplog.text


async def test_a_leader_that_swallows_the_cancellation_and_returns_leads_again(locker: Locker, server: Server) -> None:
    begun = 0

    async def run(scope: LockScope) -> str:
        nonlocal begun
        begun += 1
        if begun == 1:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            return "stopped"
        return "done"

    async with leading(locker, run) as task:
        await until(lambda: begun and not free(server))
        lose(server)
        assert await asyncio.wait_for(task, 5) == "done"


async def test_a_leader_that_swallows_the_cancellation_and_goes_on_is_stopped(locker: Locker, server: Server) -> None:
    begun = 0

    async def run(scope: LockScope) -> str:
        nonlocal begun
        begun += 1
        if begun == 1:
            for _ in range(3):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
        return "done"

    async with leading(locker, run) as task:
        await until(lambda: begun and not free(server))
        lose(server)
        assert await asyncio.wait_for(task, 10) == "done"
        assert begun == 2


@pytest.mark.parametrize("loses", [False, True])
async def test_a_leader_that_swallows_the_cancellation_of_others_has_returned(
    loses: bool, locker: Locker, server: Server
) -> None:
    """As of any coroutine. It must not contend again: whoever has cancelled it waits for its end."""

    async def run(scope: LockScope) -> str:
        task = asyncio.current_task()
        assert task is not None
        if loses:
            lose(server)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return "stopped"

    async with leading(locker, run) as task:
        assert await asyncio.wait_for(task, 5) == "stopped"
    assert free(server)


# Servers and lockers


async def test_it_waits_for_a_server_that_is_away_when_it_connects(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    own_server.stop()
    run = Leader()
    locker = Locker(own_server.url)
    async with leading(locker, run) as task:
        await asyncio.sleep(0.7)
        assert not task.done()
        own_server.start()
        await until(lambda: run.works, 10)
    await locker.aclose()
    told = [record.getMessage() for record in caplog.records if "cannot contend" in record.getMessage()]
    assert len(told) == len(set(told)) >= 1  # told again only if the error has changed
    assert told[0].startswith("asynclock: cannot contend for lock 'job', still trying: ")


async def test_it_leads_again_when_its_server_is_back(own_server: Server) -> None:
    run = Leader()
    async with Locker(own_server.url) as locker, leading(locker, run) as task:
        await until(lambda: run.works)
        own_server.kill()
        await until(lambda: run.ended)
        await asyncio.sleep(0.5)  # longer than its pause
        assert not task.done()
        own_server.start()
        assert await asyncio.wait_for(task, 20) == 2


async def test_a_server_that_refuses_for_good_is_an_error(server: Server) -> None:
    locker = Locker(f"redis://nobody:wrong@127.0.0.1:{server.port}/0")
    with pytest.raises(ServerError) as caught:
        await asyncio.wait_for(locker.lead("job", Leader()), 5)
    assert caught.value.lasting


@pytest.mark.parametrize("during", ["the work", "the wait", "the pause"])
async def test_a_locker_that_is_closed_ends_it(during: str, server: Server, other: Locker) -> None:
    run = Leader()
    async with contextlib.AsyncExitStack() as stack:
        if during == "the wait":
            await stack.enter_async_context(other.with_context("job"))
        locker = await stack.enter_async_context(Locker(server.url))
        task = await stack.enter_async_context(leading(locker, run))
        if during == "the wait":
            await asyncio.sleep(0.1)
        else:
            await until(lambda: run.works)
        if during == "the pause":
            lose(server)
            await until(lambda: run.ended)
        await locker.aclose()
        with pytest.raises(LockerClosedError):
            await asyncio.wait_for(task, leader.FIRST_PAUSE + AT_ONCE)
        assert not run.works
    assert free(server)


async def test_a_server_error_of_run_is_its_own(locker: Locker, server: Server) -> None:
    async def run(scope: LockScope) -> None:
        async with Locker("redis://127.0.0.1:1"):
            raise AssertionError("connected")

    with pytest.raises(ServerError):
        await locker.lead("job", run)
    assert free(server)


@pytest.mark.parametrize("blocked", [True, False])
async def test_a_cancellation_is_not_taken_for_the_loss_that_came_with_it(server: Server, blocked: bool) -> None:
    """What comes out of run tells of the loss only, as its clean-up calls check()."""
    calls = 0

    async def run(scope: LockScope) -> None:
        nonlocal calls
        calls += 1
        try:
            await asyncio.sleep(60)
        finally:
            try:
                await asyncio.sleep(0.0 if blocked else 0.2)
            finally:
                scope.check()

    async with Locker(server.url, key_validity=1) as locker:
        task = asyncio.create_task(locker.lead("job", run))
        await until(lambda: calls)
        if blocked:
            time.sleep(1.2)  # noqa: ASYNC251 - beyond the deadline
            task.cancel()
        else:
            task.cancel()
            await asyncio.sleep(0.05)
            server.execute("DEL", key("job"))
        await asyncio.wait([task], timeout=5)
        assert task.cancelled()
        assert calls == 1
