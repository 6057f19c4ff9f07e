"""LockServer: each loss really happens, for the reason that was asked for, and never in the test's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from asynclock import Locker, LockLostError, LossReason, NotLockedError
from asynclock.testing import LockServer
from asynclock.testing.losses import CAUSES
from tests.support.helpers import AT_ONCE, body, key, until

FROM_INSIDE = {LossReason.CLOSED, LossReason.RELEASED}
VALIDITY = 1.0  # seconds: "expired" takes as long. A machine that is busier than that loses locks by itself
each_reason = pytest.mark.parametrize("reason", CAUSES, ids=str)


@pytest.fixture(scope="module")
def shared_lock_server(kind: str) -> Iterator[LockServer]:
    with LockServer(kind) as server:
        yield server


@pytest.fixture
def lock_server(shared_lock_server: LockServer) -> Iterator[LockServer]:
    """As that of the plugin."""
    shared_lock_server.reset()
    yield shared_lock_server
    shared_lock_server.settle()


def test_every_reason_has_a_cause_or_says_how() -> None:
    assert set(CAUSES) | FROM_INSIDE == set(LossReason)


@pytest.mark.asyncio
@each_reason
@pytest.mark.parametrize("form", ["async with", "with", "call", "await"])
async def test_the_holder_loses_it_for_that_reason(lock_server: LockServer, reason: LossReason, form: str) -> None:
    async with Locker(lock_server.url, key_validity=VALIDITY) as locker:
        holding = await body(await locker.acquire("job"))
        since = time.monotonic()
        match form:
            case "async with":
                async with lock_server.lose("job", reason, after=0.05):
                    error = await holding.lost_within(0.05 + 2 * VALIDITY + AT_ONCE, since)
            case "with":
                with lock_server.lose("job", str(reason), after=0.05):
                    error = await holding.lost_within(0.05 + 2 * VALIDITY + AT_ONCE, since)
                await asyncio.to_thread(lock_server.settle)  # with does not wait until the server is back
            case "call":
                lock_server.lose("job", reason, after=0.05)
                error = await holding.lost_within(0.05 + 2 * VALIDITY + AT_ONCE, since)
            case "await":
                loss = lock_server.lose("job", reason, after=0.05)
                assert not loss.happened and holding.scope.held
                await loss
                assert loss.happened
                error = await holding.lost_within(AT_ONCE, time.monotonic())
        assert time.monotonic() - since > 0.05
        assert error.reason is reason
        assert holding.scope.lost_reason is reason


@pytest.mark.asyncio
@each_reason
async def test_a_lock_that_is_acquired_later(lock_server: LockServer, reason: LossReason) -> None:
    """As most tests are written: the block is around what acquires the lock."""
    async with Locker(lock_server.url, key_validity=VALIDITY) as locker:
        async with lock_server.lose("job", reason, after=0.1):
            await asyncio.sleep(0.15)
            since = time.monotonic()
            with pytest.raises(LockLostError) as lost:
                async with locker.with_context("job"):
                    await asyncio.sleep(60)
            assert time.monotonic() - since > 0.09  # counted from the acquisition
            assert lost.value.reason is reason
        # What would last is cleared up.
        async with locker.with_context("job", timeout=10) as scope:
            scope.check()


@pytest.mark.asyncio
@each_reason
@pytest.mark.parametrize("majority", [1, 2])
async def test_other_options_of_the_holder(lock_server: LockServer, reason: LossReason, majority: int) -> None:
    async with Locker(lock_server.url, key_validity=VALIDITY, key_prefix="my:jobs", key_majority=majority) as locker:
        holding = await body(await locker.acquire("a[b]*:1"))
        async with lock_server.lose("a[b]*:1", reason, after=0):
            error = await holding.lost_within(2 * VALIDITY + AT_ONCE, time.monotonic())
        assert error.reason is reason


@pytest.mark.asyncio
async def test_neighbours_are_left_alone(lock_server: LockServer) -> None:
    async with Locker(lock_server.url) as locker:
        neighbours = [await locker.acquire(name) for name in ("jo", "ajob", "0:jobs", "*")]
        for reason in ("deleted", "overwritten", "taken over", "forgotten"):
            holding = await body(await locker.acquire("job"))
            async with lock_server.lose("job", reason, after=0):
                await holding.lost_within(AT_ONCE, time.monotonic())
        await asyncio.sleep(0.1)
        assert all(scope.held for scope in neighbours)
        for scope in neighbours:
            await scope.release()


@pytest.mark.asyncio
@pytest.mark.parametrize("reason", ["expired", "disconnected", "taken over"])
async def test_the_event_loop_goes_on(lock_server: LockServer, reason: str) -> None:
    gaps = []

    async def watch() -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.005)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    async with Locker(lock_server.url, key_validity=2.0) as locker:
        scope = await locker.acquire("job")
        watching = asyncio.create_task(watch())
        async with lock_server.lose("job", reason, after=0.1):
            assert await scope.wait_lost() == reason
        async with lock_server.hold("other"):
            pass
        watching.cancel()
    # The server is silent for 1 to 2 s, or takes some 50 ms to start. The rest is for a busy machine.
    assert max(gaps) < 0.5


def test_without_an_event_loop(lock_server: LockServer) -> None:
    for reason in ("deleted", "overwritten", "flushed", "taken over", "forgotten", "disconnected"):
        with lock_server.hold("job"):
            with lock_server.lose("job", reason) as loss:
                assert lock_server.running and not loss.happened
            assert loss.happened
            assert lock_server.execute("EXISTS", key("job")) == 0
    with lock_server.hold("job"):
        loss = lock_server.lose("job", "overwritten")
        loss.wait()
        assert b"somebody else" in lock_server.execute("GET", key("job"))  # type: ignore[operator]  # bytes
        lock_server.settle()
        assert lock_server.execute("EXISTS", key("job")) == 0


def test_what_cannot_be_caused_from_outside_says_how(lock_server: LockServer) -> None:
    with pytest.raises(ValueError, match=r"locker\.aclose\(\)"):
        lock_server.lose("job", "closed")
    with pytest.raises(ValueError, match=r"scope\.release\(\)"):
        lock_server.lose("job", LossReason.RELEASED)
    with pytest.raises(ValueError, match=r"'deleted', 'overwritten'.*'taken over'"):
        lock_server.lose("job", "stolen")
    with pytest.raises(ValueError, match="0 or more"):
        lock_server.lose("job", after=-1)


def test_a_lock_that_nobody_holds(lock_server: LockServer, monkeypatch: pytest.MonkeyPatch) -> None:
    lock_server.lose("job")
    with pytest.raises(TimeoutError, match=r"lose\('job', 'deleted', after=0\.1\).*when the test ended.*await it"):
        lock_server.settle()
    lock_server.settle()  # told once
    monkeypatch.setattr("asynclock.testing.lock_server._HELD_LIMIT", 0.1)
    with pytest.raises(TimeoutError, match=f"within 0.2 s.*{lock_server.url}"), lock_server.lose("job"):
        pass


def test_two_prefixes_are_one_too_many(lock_server: LockServer) -> None:
    with lock_server.hold("job"), lock_server.hold("job", key_prefix="b"):
        with pytest.raises(RuntimeError, match="'asynclock', 'b'"), lock_server.lose("job"):
            pass


@pytest.mark.asyncio
async def test_with_does_not_wait_in_a_coroutine(lock_server: LockServer) -> None:
    async with lock_server.hold("job"):
        with pytest.raises(RuntimeError, match="async with"), lock_server.lose("job", after=60):
            pass
        loss = lock_server.lose("job", after=0)
        with pytest.raises(RuntimeError, match="await"):
            loss.wait()
        await loss


@pytest.mark.asyncio
async def test_what_has_begun_when_a_block_ends_happens(lock_server: LockServer) -> None:
    async with Locker(lock_server.url, key_validity=VALIDITY) as locker:
        scope = await locker.acquire("job")
        with lock_server.lose("job", "expired", after=0) as loss:
            await until(lambda: not lock_server.awake)
        assert await asyncio.wait_for(scope.wait_lost(), 2 * VALIDITY + AT_ONCE) == "expired"
        await loss
        await until(lambda: lock_server.awake)


@pytest.mark.asyncio
async def test_an_error_in_the_block_comes_out_at_once(lock_server: LockServer) -> None:
    since = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        async with lock_server.lose("job", after=60):
            raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), lock_server.lose("job", after=60):
        raise ZeroDivisionError
    lock_server.settle()  # nothing to complain about
    assert time.monotonic() - since < 5


@pytest.mark.asyncio
async def test_a_cancellation_while_it_waits_clears_up(lock_server: LockServer) -> None:
    async def lose() -> None:
        async with lock_server.lose("job", after=60):
            pass

    losing = asyncio.create_task(lose())
    await asyncio.sleep(0.05)
    losing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await losing
    lock_server.settle()
    async with lock_server.hold("job"):
        await asyncio.sleep(0.1)
        assert lock_server.execute("EXISTS", key("job")) == 1


@pytest.mark.asyncio
async def test_cancelled_in_the_middle_of_a_silence_the_server_answers_again(lock_server: LockServer) -> None:
    async with lock_server.hold("job"):
        loss = lock_server.lose("job", "expired", after=0)
        await until(lambda: not lock_server.awake)
        with contextlib.suppress(TimeoutError):  # it had not happened: settle() says so
            lock_server.settle()
        assert lock_server.awake and not loss.happened
        assert lock_server.execute("PING") == "PONG"


@pytest.mark.asyncio
@pytest.mark.parametrize("form", ["async with", "with"])
async def test_somebody_else_holds_it(lock_server: LockServer, form: str) -> None:
    async with Locker(lock_server.url) as locker:
        async with contextlib.AsyncExitStack() as stack:
            if form == "async with":
                await stack.enter_async_context(lock_server.hold("job"))
            else:
                stack.enter_context(lock_server.hold("job"))
            with pytest.raises(NotLockedError):
                await locker.try_acquire("job")
            with pytest.raises(NotLockedError):
                async with lock_server.hold("job"):
                    pass
            waiting = asyncio.create_task(locker.acquire("job"))
            await asyncio.sleep(0.1)
            assert not waiting.done()
        scope = await asyncio.wait_for(waiting, AT_ONCE)  # woken, not at the expiry
        with pytest.raises(NotLockedError), lock_server.hold("job"):
            pass
        await scope.release()
        async with lock_server.hold("job", key_prefix="other", key_majority=2):
            assert lock_server.execute("EXISTS", *(key("job", index, "other") for index in range(3))) == 3
            await (await locker.try_acquire("job")).release()


def test_a_hold_is_for_one_block(lock_server: LockServer) -> None:
    hold = lock_server.hold("job")
    with hold:
        pass
    with pytest.raises(RuntimeError, match=r"hold\('job'\) was used before"), hold:
        pass


def test_a_new_test_finds_the_server_empty_and_well(lock_server: LockServer) -> None:
    hold = lock_server.hold("job")
    hold.__enter__()
    lock_server.pause()
    lock_server.resume()
    lock_server.execute("SET", "key", "value")
    lock_server.reset()
    assert lock_server.execute("DBSIZE") == 0
    lock_server.kill()
    lock_server.reset()
    lock_server.pause()
    lock_server.reset()
    assert lock_server.execute("PING") == "PONG"


@pytest.mark.asyncio
async def test_the_end_of_the_server_is_the_end_of_all(kind: str) -> None:
    threads = threading.active_count()
    with LockServer(kind) as server:
        server.hold("job").__enter__()
        loss = server.lose("job", "disconnected", after=0)
        await loss
        assert not server.running
    assert threading.active_count() == threads
    assert not server.running
    with pytest.raises(RuntimeError, match="start"):
        LockServer(kind).lose("job")
