"""What runs in the background runs on, whatever is raised in it, and ends with ``aclose``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import pytest

from asynclock import Locker, LockLostError, LossReason, ServerError
from asynclock.testing import Proxy, Server
from asynclock.wire.background import CANCELLED_PAUSE, Loop, Ticker, Timer
from asynclock.wire.connector import Connector
from asynclock.wire.watchdog import max_silence
from tests.support import internals
from tests.support.helpers import AT_ONCE, body, until

UNFORESEEN = pytest.mark.parametrize(
    "error", [RuntimeError("nobody has thought of it"), asyncio.CancelledError("their own"), KeyError("x")], ids=repr
)


def the_node(locker: Locker):  # type: ignore[no-untyped-def]  # of a package that tests alone look into
    return next(iter(internals.nodes(locker)))


@pytest.mark.asyncio
@UNFORESEEN
async def test_a_loop_goes_on_after_whatever_is_raised_and_tells_once(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    steps: list[int] = []
    told: list[Exception] = []

    async def step() -> float | None:
        steps.append(1)
        if len(steps) < 4:
            raise error
        return None

    loop = Loop("a loop", step, told.append)
    with caplog.at_level(logging.ERROR, "asynclock"):
        loop.start()
        await until(lambda: not loop.running)
    assert len(steps) == 4 and len(told) == 3
    assert [record.getMessage() for record in caplog.records] == ["asynclock: a loop failed; retrying"]
    loop.start()  # and again, when there is something to do
    await until(lambda: len(steps) == 5)
    await loop.aclose()
    loop.start()
    assert not loop.running


@pytest.mark.asyncio
async def test_a_loop_that_is_closed_ends_wherever_it_is() -> None:
    async def forever() -> float | None:
        await asyncio.sleep(60)
        return 0.0

    async def stubborn() -> float | None:
        with contextlib.suppress(asyncio.CancelledError):  # as a library that loses a cancellation
            await asyncio.sleep(60)
        return 60.0

    for step in (forever, stubborn):
        loop = Loop("a loop", step)
        loop.start()
        await asyncio.sleep(0)
        await asyncio.wait_for(loop.aclose(), 5)
        assert not loop.running


@pytest.mark.asyncio
async def test_a_ticker_goes_on_after_whatever_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    looks: list[int] = []

    def look() -> float | None:
        looks.append(1)
        if len(looks) < 4:
            raise RuntimeError("nobody has thought of it")
        return None

    with caplog.at_level(logging.ERROR, "asynclock"):
        ticker = Ticker("looking", look, 0.001)
        await until(lambda: len(looks) > 6)
    ticker.stop()
    count = len(looks)
    await asyncio.sleep(0.01)
    assert len(looks) == count
    assert len(caplog.records) == 1


@pytest.mark.asyncio
async def test_a_timer_makes_one_call_and_none_after_it_was_stopped() -> None:
    calls: list[str] = []
    loop, timer = asyncio.get_running_loop(), Timer()

    def call(what: str) -> None:
        calls.append(what)
        assert not timer.running
        if what == "first":
            timer.start(0.001, call, "again")

    timer.start(0.001, call, "replaced")
    timer.start(0.001, call, "first")
    assert timer.running
    await until(lambda: len(calls) == 2)
    timer.start(0.002, call, "stopped")
    loop.call_later(0.001, timer.stop)
    time.sleep(0.01)  # noqa: ASYNC251 - the loop is late: when it runs the first, the time of both has come
    await asyncio.sleep(0.02)
    timer.stop()
    assert calls == ["first", "again"] and not timer.running


@pytest.mark.asyncio
@UNFORESEEN
async def test_connecting_goes_on_after_whatever_is_raised(
    server: Server, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """At a reconnect, and at the first connection: who waits is told, or served a moment later."""
    real, failures = Connector.open, 3

    async def failing(self: Connector) -> asyncio.StreamWriter:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise error
        return await real(self)

    async with Locker(server.url) as locker:
        holding = await body(await locker.acquire("held"))
        await asyncio.sleep(0.01)
        monkeypatch.setattr(Connector, "open", failing)
        the_node(locker).connection.abort()
        scope = await asyncio.wait_for(locker.acquire("x"), 5)
        await scope.release()
        assert failures < 0
        assert holding.scope.held  # none of that shows that the server is gone
        holding.scope.cancel()
        await holding.task
    failures = 1
    locker = Locker(server.url)
    with pytest.raises(ServerError, match=r"cannot be set up|cancelled by somebody else|their own|nobody"):
        await locker.acquire("x")
    async with locker.with_context("x"):  # the next one connects
        pass
    await locker.aclose()


@pytest.mark.asyncio
async def test_an_idle_connection_is_found_dead_before_somebody_needs_it(server: Server) -> None:
    """A router or load balancer has forgotten it: packets vanish, and nobody is told."""
    async with Proxy(server.port) as proxy, Locker(proxy.url) as locker:
        async with locker.with_context("x"):
            pass
        node = the_node(locker)
        wire = node.connection
        await asyncio.sleep(1.5 * max_silence(node.options))  # idle, and pinged
        assert node.connection is wire
        proxy.freeze()
        # One and a half times the silence that counts as dead, half of it until the ping; and what a busy machine adds.
        await until(lambda: node.connection is None, 2 * max_silence(node.options) + AT_ONCE)
        proxy.thaw()
        async with asyncio.timeout(AT_ONCE + 1), locker.with_context("x"):
            pass


@pytest.mark.asyncio
async def test_a_silent_wire_is_found_dead_long_before_a_long_validity_is_over(own_server: Server) -> None:
    async with Proxy(own_server.port) as proxy, Locker(proxy.url, key_validity=30) as locker:
        scope = await locker.acquire("x")
        await asyncio.sleep(0.1)
        node = the_node(locker)
        proxy.freeze()
        await until(lambda: node.connection is None, 2 * max_silence(node.options) + AT_ONCE)
        own_server.execute("DEL", "asynclock:0:x")  # nobody can tell of it
        proxy.thaw()
        assert await asyncio.wait_for(scope.wait_lost(), 5) is not None


@pytest.mark.asyncio
async def test_a_suspend_while_the_server_is_away_is_noticed(
    own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspended = 0.0
    clock = time.monotonic
    monkeypatch.setattr("asynclock._engine.manager.clock", lambda: clock() + suspended)
    async with Locker(own_server.url, key_validity=30, disconnect_grace=60) as locker:
        holding = await body(await locker.acquire("x"))
        await asyncio.sleep(0.05)
        own_server.kill()
        await until(lambda: the_node(locker).connection is None)
        await asyncio.sleep(0.05)
        assert holding.scope.held
        since = time.monotonic()
        suspended = 40.0
        error = await holding.lost_within(0.5 + AT_ONCE, since)  # looked for every half a second
        assert error.reason in (LossReason.EXPIRED, LossReason.DISCONNECTED)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("deleted", LossReason.DELETED),
        ("overwritten", LossReason.OVERWRITTEN),
        ("taken over", LossReason.TAKEN_OVER),
        ("acquired by another", LossReason.DELETED),
    ],
)
async def test_a_loss_that_the_release_finds_tells_its_reason(server: Server, what: str, reason: LossReason) -> None:
    """Without tracking nothing tells of a loss before the next extension."""
    async with (
        Locker(server.url, key_validity=30, client_side_caching=False) as locker,
        Locker(server.url, key_validity=30) as other,
    ):
        for by_hand in (False, True):
            scope = await locker.acquire("x")
            await asyncio.sleep(0.05)  # until after the first look
            theirs = None
            try:
                async with scope if not by_hand else asyncio.timeout(30):
                    if what == "overwritten":
                        server.execute("SET", "asynclock:0:x", "hello")
                    elif what == "taken over":
                        theirs = await other.force_acquire("x")
                    else:
                        server.execute("DEL", "asynclock:0:x")
                        if what != "deleted":
                            theirs = await other.acquire("x")
                    if by_hand:
                        await scope.release()
                        scope.check()
            except LockLostError as error:
                assert error.reason is reason and "released" in error.detail
            else:
                raise AssertionError("no loss was told")
            assert scope.lost_reason is reason
            if theirs is not None:
                await theirs.release()
            server.execute("DEL", "asynclock:0:x")


@pytest.mark.asyncio
async def test_a_program_that_cancels_all_tasks_and_goes_on_is_served_again(own_server: Server) -> None:
    async with Locker(own_server.url) as locker:
        async with locker.with_context("x"):
            pass
        own_server.kill()
        await until(lambda: the_node(locker).connection is None)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.05)
        own_server.start()
        async with asyncio.timeout(CANCELLED_PAUSE + 5), locker.with_context("x"):
            pass


@pytest.mark.asyncio
async def test_a_loop_that_somebody_cancels_begins_anew_until_it_is_closed() -> None:
    steps: list[int] = []

    async def step() -> float | None:
        steps.append(1)
        await asyncio.sleep(60)
        return None

    loop = Loop("a loop", step)
    loop.start()
    await until(lambda: len(steps) == 1)
    assert loop._task is not None
    loop._task.cancel()
    await until(lambda: len(steps) == 2)
    loop._task.cancel()
    await asyncio.sleep(0)
    assert loop.running
    await loop.aclose()
    assert not loop.running
    await asyncio.sleep(CANCELLED_PAUSE + 0.1)
    assert len(steps) == 2


@pytest.mark.asyncio
async def test_a_loop_that_closes_itself_ends() -> None:
    closed = asyncio.Event()

    async def step() -> float:
        await loop.aclose()
        closed.set()
        return 0.0

    loop = Loop("closing itself", step)
    loop.start()
    await asyncio.wait_for(closed.wait(), 5)
    await until(lambda: not loop.running)
