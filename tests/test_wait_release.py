"""``wait_release=False``: leaving a block sends the release, and does not wait for the answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

import asynclock.sync
from asynclock import ConfigurationError, Locker, LockLostError, LockScope, LossReason
from asynclock.acquisition import Acquisition
from asynclock.testing import Proxy, Server
from tests.support.helpers import key, until

pytestmark = pytest.mark.every_python

PATIENCE = 1.0  # try_next_after: what leaving takes while the server is silent, if it waits
SOON = PATIENCE / 2

HOW: dict[str, Callable[[Locker], Acquisition]] = {
    "with_context": lambda locker: locker.with_context("job", wait_release=False),
    "try_with_context": lambda locker: locker.try_with_context("job", wait_release=False),
    "force_with_context": lambda locker: locker.force_with_context("job", wait_release=False),
}


async def nothing() -> None: ...


async def with_a_task(scope: LockScope) -> None:
    scope.create_task(nothing())


async def cancels(scope: LockScope) -> None:
    scope.cancel()


async def fails(scope: LockScope) -> None:
    raise ZeroDivisionError


async def only_waits(scope: LockScope) -> None:
    await asyncio.sleep(0)


BODIES = [only_waits, with_a_task, cancels, fails]


async def time_to_leave(context: Any, proxy: Proxy, body: Callable[[LockScope], Any] = only_waits) -> float:
    """Seconds, while the server is silent."""
    since = 0.0
    try:
        async with context as scope:
            proxy.freeze()
            try:
                await body(scope)
            finally:
                since = time.monotonic()
    except ZeroDivisionError:
        assert body is fails
    finally:
        took = time.monotonic() - since
        proxy.thaw()
    return took


@pytest.mark.asyncio
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("how", HOW)
async def test_leaving_does_not_wait(server: Server, how: str, body: Callable[[LockScope], Any]) -> None:
    async with Proxy(server.port) as proxy, Locker(proxy.url, try_next_after=PATIENCE) as locker:
        began = time.monotonic()
        assert await time_to_leave(HOW[how](locker), proxy, body) < SOON
        assert time.monotonic() - began < SOON
        await until(lambda: server.execute("EXISTS", key("job")) == 0)


@pytest.mark.asyncio
async def test_the_keyword_goes_before_the_option(server: Server) -> None:
    async with (
        Proxy(server.port) as proxy,
        Locker(proxy.url, try_next_after=PATIENCE, wait_release=False) as swift,
        Locker(proxy.url, try_next_after=PATIENCE) as patient,
    ):
        assert await time_to_leave(swift.with_context("one"), proxy) < SOON
        assert await time_to_leave(await swift.acquire("two"), proxy) < SOON
        assert await time_to_leave(swift.with_context("three", wait_release=True), proxy) >= SOON
        assert await time_to_leave(patient.with_context("four"), proxy) >= SOON
        assert await time_to_leave(patient.with_context("five", wait_release=False), proxy) < SOON


@pytest.mark.asyncio
async def test_release_waits_all_the_same(server: Server) -> None:
    async with Locker(server.url, wait_release=False) as locker:
        for _ in range(100):
            async with locker.with_context("job") as scope:
                await scope.release()
                assert server.execute("EXISTS", key("job")) == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("wait", [True, False, None])
async def test_what_only_the_answer_shows_is_logged(
    server: Server, caplog: pytest.LogCaptureFixture, wait: bool | None
) -> None:
    caplog.set_level(logging.WARNING, "asynclock")
    async with Locker(server.url, wait_release=False) as locker:
        raised = None
        try:
            async with locker.with_context("job", wait_release=wait):
                server.execute("SET", key("job"), "somebody else's")  # nothing is awaited: no push is read
        except LockLostError as error:
            raised = error
        if wait:
            assert raised is not None and raised.reason is LossReason.OVERWRITTEN
        else:
            assert raised is None
        await until(lambda: bool(caplog.messages))
        (said,) = caplog.messages
        for word in ("'job'", "overwritten", "noticed only when the lock was released"):
            assert word in said
        server.execute("DEL", key("job"))


@pytest.mark.asyncio
@pytest.mark.parametrize("cancellations", [1, 2])
@pytest.mark.parametrize("body", [only_waits, with_a_task])
async def test_what_the_answer_shows_to_a_task_that_is_being_cancelled_is_logged(
    server: Server, caplog: pytest.LogCaptureFixture, body: Callable[[LockScope], Any], cancellations: int
) -> None:
    """The cancellation goes before the loss."""
    caplog.set_level(logging.WARNING, "asynclock")
    leaving = asyncio.Event()

    async def work() -> None:
        async with locker.with_context("job") as scope:
            await body(scope)
            server.execute("SET", key("job"), "somebody else's")
            proxy.freeze()
            leaving.set()

    async with Proxy(server.port) as proxy, Locker(proxy.url, try_next_after=10) as locker:
        task = asyncio.create_task(work())
        await leaving.wait()
        for _ in range(cancellations):
            await asyncio.sleep(0.05)  # it waits for the answer
            task.cancel()
        await asyncio.sleep(0.05)
        proxy.thaw()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 5)
        assert ["'job'" in said and "overwritten" in said for said in caplog.messages] == [True]
    server.execute("DEL", key("job"))


@pytest.mark.asyncio
async def test_a_loss_that_is_known_is_raised(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    async with Locker(server.url, wait_release=False) as locker:
        with pytest.raises(LockLostError) as lost:
            async with locker.with_context("job"):
                await asyncio.sleep(0.02)
                server.execute("DEL", key("job"))
                await asyncio.sleep(5)
        assert lost.value.reason is LossReason.DELETED
    (said,) = caplog.messages
    assert "'job'" in said and "deleted" in said


@pytest.mark.asyncio
async def test_closing_waits_for_the_answers(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "asynclock")
    async with Proxy(server.port) as proxy:
        locker = Locker(proxy.url, try_next_after=10, wait_release=False)
        async with locker.with_context("held"), locker.with_context("overwritten"):
            server.execute("SET", key("overwritten"), "somebody else's")
            proxy.freeze()
        closing = asyncio.create_task(locker.aclose())
        await asyncio.sleep(0.1)
        assert not closing.done()
        assert server.execute("EXISTS", key("held")) == 1
        proxy.thaw()
        await asyncio.wait_for(closing, 5)  # far below try_next_after: it was the answer that ended it
        assert server.execute("EXISTS", key("held")) == 0
        assert ["'overwritten'" in said for said in caplog.messages] == [True]
    server.execute("DEL", key("overwritten"))


@pytest.mark.asyncio
async def test_closing_does_not_wait_for_a_server_that_is_silent(server: Server) -> None:
    async with Proxy(server.port) as proxy:
        locker = Locker(proxy.url, try_next_after=0.1, wait_release=False)
        async with locker.with_context("job"):
            proxy.freeze()
        await asyncio.wait_for(locker.aclose(), 3)  # a few times try_next_after
        proxy.thaw()
        await until(lambda: server.execute("EXISTS", key("job")) == 0)


@pytest.mark.asyncio
async def test_one_at_a_time_all_the_same(server: Server) -> None:
    """Lockers of their own, so that every turn goes by the server."""
    inside = 0

    async def work(locker: Locker) -> None:
        nonlocal inside
        for _ in range(50):
            async with locker.with_context("job"):
                inside += 1
                assert inside == 1
                await asyncio.sleep(0)
                inside -= 1

    lockers = [Locker(server.url, wait_release=False, local_handoffs=0) for _ in range(3)]
    try:
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for locker in lockers:
                group.create_task(work(locker))
                group.create_task(work(locker))
    finally:
        for locker in lockers:
            await locker.aclose()
    assert server.execute("EXISTS", key("job")) == 0


@pytest.mark.asyncio
@pytest.mark.slow
@pytest.mark.parametrize("body", [only_waits, with_a_task])
async def test_others_have_their_turn(server: Server, body: Callable[[LockScope], Any]) -> None:
    """Whoever takes the lock again right behind its own release would have it for ever: nobody gets in between."""
    turns = [0, 0, 0]
    until = time.monotonic() + 4

    async def work(number: int) -> None:
        async with Locker(server.url, wait_release=False) as locker:
            while time.monotonic() < until:
                async with locker.with_context("job") as scope:
                    turns[number] += 1
                    await body(scope)
                    await asyncio.sleep(0.002)

    await asyncio.gather(*map(work, range(3)))
    assert min(turns) >= 5, turns  # 28 and more were seen; without their turns, it is one


@pytest.mark.asyncio
async def test_who_comes_now_and_then_never_waits(server: Server) -> None:
    """Others have their chance anyway."""
    async with Proxy(server.port) as proxy, Locker(proxy.url, try_next_after=PATIENCE, wait_release=False) as locker:
        for _ in range(3):
            assert await time_to_leave(locker.with_context("job"), proxy) < SOON
            await until(lambda: server.execute("EXISTS", key("job")) == 0)
            await asyncio.sleep(0.06)  # more than the time for which a name may be left without waiting


@pytest.mark.asyncio
async def test_the_next_acquisition_comes_behind_the_release(server: Server) -> None:
    """The same task has it again at once, without a retry."""
    async with Locker(server.url, wait_release=False, local_handoffs=0) as locker:
        async with locker.with_context("job"):
            pass
        for _ in range(200):
            async with locker.try_with_context("job"):  # it would raise NotLockedError
                pass


@pytest.mark.asyncio
@pytest.mark.parametrize("value", [1, "no", 0.0])
async def test_a_value_that_is_not_a_boolean_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="wait_release="):
        Locker("redis://127.0.0.1:1", wait_release=value)
    locker = Locker("redis://127.0.0.1:1")
    for context in (locker.with_context, locker.try_with_context, locker.force_with_context):
        with pytest.raises(ConfigurationError, match="wait_release="):
            context("job", wait_release=value)


@pytest.mark.asyncio
@pytest.mark.parametrize("option, keyword, waits", [(True, None, True), (True, False, False), (False, None, False)])
async def test_in_threads(server: Server, option: bool, keyword: bool | None, waits: bool) -> None:
    def leave(frozen: Callable[[], None]) -> float:
        with locker.with_context("job", wait_release=keyword):
            frozen()
            since = time.monotonic()
        return time.monotonic() - since

    async with Proxy(server.port) as proxy:
        locker = asynclock.sync.Locker(proxy.url, try_next_after=PATIENCE, wait_release=option)
        loop = asyncio.get_running_loop()

        def freeze() -> None:
            done: Future[None] = Future()
            loop.call_soon_threadsafe(lambda: done.set_result(proxy.freeze()))
            done.result()

        took = await asyncio.to_thread(leave, freeze)
        assert (took >= SOON) == waits
        proxy.thaw()
        await asyncio.to_thread(locker.close)
        assert server.execute("EXISTS", key("job")) == 0


def test_in_threads_a_value_that_is_not_a_boolean_is_refused() -> None:
    locker = asynclock.sync.Locker("redis://127.0.0.1:1")
    for context in (locker.with_context, locker.try_with_context, locker.force_with_context):
        with pytest.raises(ConfigurationError, match="wait_release=1"):
            context("job", wait_release=1)  # type: ignore[operator]  # what is tested
