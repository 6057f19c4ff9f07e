"""Several names in one scope: all or none, in one agreed order, lost when any of them is."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
import warnings
from collections.abc import AsyncIterator

import pytest

import asynclock.sync
from asynclock import (
    AcquireTimeoutError,
    AlreadyHeldError,
    ConfigurationError,
    Locker,
    LockerClosedError,
    LockLostError,
    LossReason,
    NotLockedError,
    ServerError,
)
from asynclock.events import Acquired, Event, Lost, Released
from asynclock.testing import Cluster, Proxy, Sentinels, Server
from tests.support import internals
from tests.support.helpers import AT_ONCE, body, key, until
from tests.support.tap import Tap

pytestmark = [pytest.mark.every_python, pytest.mark.handoff]

NAMES = ("c", "a", "b")


def held(server: Server) -> set[str]:
    """The names of all locks on that server."""
    found = server.execute("KEYS", "*")
    assert isinstance(found, list)
    return {each.decode().split(":", 2)[2] for each in found if each.split(b":")[1].isdigit()}  # no counters


async def gone(server: Server) -> None:
    await until(lambda: not held(server))


# All of them


@pytest.mark.asyncio
@pytest.mark.fast
async def test_a_block_holds_all_and_releases_all(server: Server, locker: Locker) -> None:
    async with locker.with_context(*NAMES) as scope:
        assert scope.names == NAMES and scope.name == "c"
        assert scope.held and 4 < scope.remaining() <= 5
        scope.check()
        assert held(server) == set(NAMES)
        assert "'c', 'a', 'b' held for" in repr(scope)
        assert locker.statistics().held == 3
    assert held(server) == set()
    assert not scope.held and scope.remaining() == 0 and scope.lost_reason is None
    with pytest.raises(LockLostError, match="released"):
        scope.check()
    assert (locker.statistics().acquired, locker.statistics().released) == (3, 3)


@pytest.mark.asyncio
@pytest.mark.fast
@pytest.mark.parametrize("how", ["acquire", "try_acquire", "force_acquire"])
async def test_by_hand(server: Server, locker: Locker, how: str) -> None:
    scope = await getattr(locker, how)("a", "b")
    assert held(server) == {"a", "b"}
    waiting = asyncio.ensure_future(scope.wait_lost())
    await asyncio.sleep(0)
    await scope.release()
    assert held(server) == set()
    assert await waiting is None
    await scope.release()


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["try_with_context", "force_with_context"])
async def test_blocks_of_the_other_kinds(server: Server, locker: Locker, how: str) -> None:
    async with getattr(locker, how)("a", "b") as scope:
        assert held(server) == {"a", "b"} == set(scope.names)
    assert held(server) == set()


@pytest.mark.asyncio
async def test_one_name_is_one_name(locker: Locker) -> None:
    async with locker.with_context("a") as scope:
        assert scope.names == ("a",)


@pytest.mark.asyncio
async def test_one_round_trip_when_all_are_free(server: Server) -> None:
    async with Proxy(server.port) as proxy, Locker(proxy.url) as locker:
        await (await locker.acquire("other")).release()
        proxy.delay = 0.1  # seconds, in each direction
        since = time.monotonic()
        scope = await locker.acquire(*NAMES)
        assert time.monotonic() - since < 0.39, "two round trips take 0.4 s"
        proxy.delay = 0
        await scope.release()


@pytest.mark.asyncio
@pytest.mark.parametrize("loss", ["exception", "cancelled", "cancel()"])
async def test_whatever_ends_the_block(server: Server, locker: Locker, loss: str) -> None:
    inside = asyncio.Event()

    async def run() -> None:
        async with locker.with_context("a", "b") as scope:
            scope.create_task(asyncio.sleep(60))
            inside.set()
            if loss == "exception":
                raise KeyError("own")
            if loss == "cancel()":
                scope.cancel()
            await asyncio.sleep(60)

    task = asyncio.create_task(run())
    await inside.wait()
    if loss == "cancelled":
        await asyncio.sleep(0.01)
        task.cancel()
    await asyncio.wait([task], timeout=5)
    assert held(server) == set()
    if loss == "exception":
        assert isinstance(task.exception(), KeyError)
    else:
        assert task.cancelled() == (loss == "cancelled")


@pytest.mark.asyncio
async def test_without_waiting_for_the_release(server: Server) -> None:
    async with Locker(server.url, wait_release=False) as locker:
        async with locker.with_context("a", "b"):
            pass
        await gone(server)
        async with locker.with_context("a", "b", wait_release=True):
            pass
        assert held(server) == set()


@pytest.mark.asyncio
async def test_they_stay_for_a_least_time(server: Server, locker: Locker) -> None:
    async with locker.with_context("a", "b", at_least=2):
        pass
    assert held(server) == {"a", "b"}
    ttl = server.execute("PTTL", key("b"))
    assert isinstance(ttl, int) and 1000 < ttl <= 2001
    with pytest.raises(NotLockedError):
        await locker.try_acquire("b", "c")
    server.execute("FLUSHALL")
    with pytest.raises(LockLostError):
        async with locker.with_context("a", "b", at_least=60):
            server.execute("DEL", key("a"))
            await asyncio.sleep(60)
    await gone(server)  # what is lost does not stay, nor does the rest


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["released", "forgotten"])
async def test_none_stays_if_the_time_of_one_is_over_though_nobody_has_noticed(
    server: Server, locker: Locker, how: str
) -> None:
    scope = await locker.acquire("a", "b", at_least=60)
    internals.expire(locker, "a")
    if how == "released":
        await scope.release()
    else:
        with pytest.warns(ResourceWarning, match="forgotten without release"):
            del scope
            gc.collect()
    await gone(server)


@pytest.mark.asyncio
async def test_extended_as_long_as_it_is_held(server: Server) -> None:
    async with Locker(server.url, key_validity=0.5) as locker, locker.with_context("a", "b") as scope:
        await asyncio.sleep(1.5)
        scope.check()
        assert held(server) == {"a", "b"}


# None of them


@pytest.mark.asyncio
@pytest.mark.fast
async def test_none_if_one_is_not_free(server: Server, locker: Locker, other: Locker) -> None:
    async with other.with_context("b"):
        with pytest.raises(NotLockedError) as refused:
            await locker.try_acquire("a", "b", "c")
        assert refused.value.name == "b" and refused.value.holder is not None
        assert held(server) == {"b"}
        with pytest.raises(AcquireTimeoutError) as late:
            await locker.acquire("a", "b", "c", timeout=0)
        assert (late.value.name, late.value.timeout) == ("b", 0)
        with pytest.raises(AcquireTimeoutError) as late:
            await locker.acquire("c", "b", "a", timeout=0.1)
        assert (late.value.name, late.value.timeout) == ("b", 0.1)
        assert held(server) == {"b"}
    statistics = locker.statistics()
    assert (statistics.refused, statistics.timed_out, statistics.acquired) == (1, 2, 0)


@pytest.mark.asyncio
@pytest.mark.fast
async def test_while_it_waits_it_holds_only_what_comes_before(server: Server, locker: Locker, other: Locker) -> None:
    async with other.with_context("b"):
        acquiring = asyncio.create_task(locker.acquire("c", "b", "a"))
        await until(lambda: held(server) == {"a", "b"})
        await asyncio.sleep(0.05)
        assert held(server) == {"a", "b"}
        async with other.with_context("c"):  # free
            pass
    scope = await asyncio.wait_for(acquiring, AT_ONCE)
    assert held(server) == {"a", "b", "c"}
    await scope.release()


@pytest.mark.asyncio
async def test_so_it_is_inside_one_process(server: Server, locker: Locker) -> None:
    async with locker.with_context("b"):
        acquiring = asyncio.create_task(locker.acquire("c", "b", "a"))
        await until(lambda: held(server) == {"a", "b"})
        async with locker.with_context("c"):
            pass
    scope = await asyncio.wait_for(acquiring, AT_ONCE)
    await scope.release()
    assert held(server) == set()


@pytest.mark.asyncio
@pytest.mark.parametrize("end", ["cancelled", "timeout", "closed"])
async def test_one_that_gives_up_leaves_nothing(server: Server, locker: Locker, other: Locker, end: str) -> None:
    async with other.with_context("b"):
        timeout = 0.1 if end == "timeout" else None
        acquiring = asyncio.create_task(locker.acquire("a", "b", timeout=timeout))
        await until(lambda: held(server) == {"a", "b"})
        if end == "cancelled":
            acquiring.cancel()
        elif end == "closed":
            await locker.aclose()
        await asyncio.wait([acquiring], timeout=AT_ONCE)
        assert held(server) == {"b"}
        if end == "cancelled":
            assert acquiring.cancelled()
        else:
            assert isinstance(acquiring.exception(), AcquireTimeoutError if end == "timeout" else LockerClosedError)


@pytest.mark.asyncio
async def test_cancelled_at_any_moment(server: Server, locker: Locker) -> None:
    await (await locker.acquire("a", "b", "c")).release()
    for turns in range(40):
        acquiring = asyncio.create_task(locker.acquire("a", "b", "c"))
        for _ in range(turns):
            await asyncio.sleep(0)
        acquiring.cancel()
        await asyncio.wait([acquiring])
        if not acquiring.cancelled():
            await acquiring.result().release()
        assert held(server) == set()
        assert internals.busy(locker) == []


@pytest.mark.asyncio
@pytest.mark.fast
@pytest.mark.parametrize(
    ("names", "error"),
    [
        (("a", "a"), "'a' is given twice"),
        (("b", "a", "b"), "'b' is given twice"),
        (("a", ""), "must not be empty"),
        (("a", 5), "must be a string"),
        (("a", "\ud800"), "valid Unicode"),
    ],
)
@pytest.mark.parametrize("how", ["acquire", "try_acquire", "force_acquire", "with_context"])
async def test_bad_names(server: Server, locker: Locker, names: tuple[str, ...], error: str, how: str) -> None:
    for _ in range(2):  # before it is connected, and after
        with pytest.raises(ConfigurationError, match=error):
            if how == "with_context":
                async with locker.with_context(*names):
                    pass
            else:
                await getattr(locker, how)(*names)
        assert held(server) == set()
        await (await locker.acquire("x")).release()


@pytest.mark.asyncio
async def test_a_block_around_the_call_holds_one(server: Server, locker: Locker) -> None:
    async with locker.with_context("a", "b"):
        with pytest.raises(AlreadyHeldError) as refused:
            await locker.acquire("c", "b")
        assert refused.value.name == "b"
        with pytest.raises(AlreadyHeldError):
            await locker.acquire("a")
        assert held(server) == {"a", "b"}
    async with locker.with_context("b"):
        with pytest.raises(AlreadyHeldError) as refused:
            await locker.acquire("a", "b", "c")
        assert refused.value.name == "b"
        assert held(server) == {"b"}


@pytest.mark.asyncio
async def test_a_context_manager_is_for_one_block(locker: Locker) -> None:
    context = locker.with_context("a", "b")
    async with context:
        pass
    with pytest.raises(RuntimeError, match="used before"):
        async with context:
            pass


# Lost


@pytest.mark.asyncio
@pytest.mark.fast
@pytest.mark.parametrize("which", ["a", "b", "c"])
async def test_lost_when_any_is_lost(server: Server, locker: Locker, which: str) -> None:
    running = await body(await locker.acquire("c", "a", "b"))
    since = time.monotonic()
    server.execute("DEL", key(which))
    error = await running.lost_within(AT_ONCE, since)
    assert (error.name, error.reason) == (which, LossReason.DELETED)
    assert running.scope.lost_reason is LossReason.DELETED
    await gone(server)  # their release is sent, and not waited for


@pytest.mark.asyncio
@pytest.mark.parametrize("reason", ["overwritten", "taken over", "flushed", "expired"])
async def test_for_whatever_reason(server: Server, locker: Locker, other: Locker, reason: str) -> None:
    running = await body(await locker.acquire("a", "b"))
    taken = None
    since = time.monotonic()
    if reason == "overwritten":
        server.execute("SET", key("b"), "another")
    elif reason == "taken over":
        taken = await other.force_acquire("b")
    elif reason == "flushed":
        server.execute("FLUSHALL")
    else:
        server.execute("PEXPIRE", key("b"), "100")
    error = await running.lost_within(AT_ONCE, since)
    assert error.reason == reason
    assert error.name == "b" or reason == "flushed"
    await until(lambda: "a" not in held(server))
    if taken is not None:
        await taken.release()


@pytest.mark.asyncio
async def test_after_a_loss_the_rest_is_kept_until_the_work_has_stopped(server: Server, locker: Locker) -> None:
    seen = []
    with pytest.raises(LockLostError):
        async with locker.with_context("a", "b"):
            server.execute("DEL", key("a"))
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.1)
                seen.append(held(server))
    assert seen == [{"b"}]
    await gone(server)


@pytest.mark.asyncio
@pytest.mark.parametrize("wanted", [("b",), ("b", "a"), ("c", "b")])
async def test_who_cleans_up_does_not_wait_for_the_rest_that_its_block_keeps(
    server: Server, locker: Locker, wanted: tuple[str, ...]
) -> None:
    with pytest.raises(AlreadyHeldError, match="'b'"):
        async with locker.with_context("a", "b"):
            server.execute("DEL", key("a"))
            try:
                await asyncio.sleep(60)
            finally:
                async with locker.with_context("a"):  # this one is its block's no more
                    pass
                await locker.acquire(*wanted, timeout=AT_ONCE)
    await gone(server)


@pytest.mark.asyncio
async def test_by_hand_the_rest_is_kept_until_it_is_released(server: Server, locker: Locker) -> None:
    scope = await locker.acquire("a", "b")
    server.execute("DEL", key("a"))
    assert await scope.wait_lost() is LossReason.DELETED
    assert held(server) == {"b"} and not scope.held
    with pytest.raises(LockLostError, match="'a' was lost"):
        scope.check()
    await scope.release()
    await gone(server)


@pytest.mark.asyncio
async def test_by_hand_the_rest_of_one_that_is_forgotten_after_a_loss(server: Server, locker: Locker) -> None:
    scope = await locker.acquire("a", "b")
    server.execute("DEL", key("a"))
    await scope.wait_lost()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del scope
        gc.collect()
    await gone(server)


@pytest.mark.asyncio
async def test_a_forgotten_scope_is_released_with_a_warning(server: Server, locker: Locker) -> None:
    with pytest.warns(ResourceWarning, match="'a', 'b' was forgotten without release"):
        await locker.acquire("a", "b")
        gc.collect()
    await gone(server)


@pytest.mark.asyncio
async def test_a_loss_that_only_the_release_shows(server: Server) -> None:
    async with Locker(server.url, client_side_caching=False) as locker:
        with pytest.raises(LockLostError) as lost:
            async with locker.with_context("a", "b"):
                server.execute("DEL", key("b"))
        assert (lost.value.name, lost.value.reason) == ("b", LossReason.DELETED)


@pytest.mark.asyncio
async def test_lost_before_the_last_one_is_acquired(server: Server, locker: Locker, other: Locker) -> None:
    """It is acquired again, in the agreed order."""
    async with other.with_context("b"):
        acquiring = asyncio.create_task(locker.acquire("a", "b"))
        await until(lambda: held(server) == {"a", "b"})
        taken = await other.force_acquire("a")
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.05)
    assert not acquiring.done()
    async with other.with_context("b", timeout=AT_ONCE):  # it is not held while "a" is waited for
        pass
    await taken.release()
    scope = await asyncio.wait_for(acquiring, AT_ONCE)
    assert held(server) == {"a", "b"}
    await scope.release()


@pytest.mark.asyncio
async def test_by_force(server: Server, locker: Locker, other: Locker) -> None:
    first, second = await other.acquire("a"), await other.acquire("b", "c")
    async with locker.force_with_context("a", "b"):
        assert await first.wait_lost() is LossReason.TAKEN_OVER
        assert await second.wait_lost() is LossReason.TAKEN_OVER
        assert held(server) == {"a", "b", "c"}
    await second.release()
    await gone(server)


@pytest.mark.asyncio
async def test_two_that_force_the_same(server: Server, locker: Locker, other: Locker) -> None:
    """Both get them: the one who is later takes them from the other."""
    for _ in range(20):
        scopes = await asyncio.wait_for(
            asyncio.gather(locker.force_acquire("a", "b"), other.force_acquire("b", "a")), 10
        )
        await until(lambda scopes=scopes: sum(scope.held for scope in scopes) <= 1)
        for scope in scopes:
            await scope.release()
        await gone(server)


@pytest.mark.asyncio
@pytest.mark.parametrize("blocked", [False, True])
async def test_close(server: Server, blocked: bool) -> None:
    locker = Locker(server.url)
    seen = []
    inside = asyncio.Event()

    async def run() -> None:
        async with locker.with_context("a", "b"):
            inside.set()
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.1 * blocked)
                seen.append(held(server))

    task = asyncio.create_task(run())
    await inside.wait()
    await locker.aclose()
    with pytest.raises(LockLostError, match="closed"):
        await task
    assert seen == [{"a", "b"}]
    assert held(server) == set()


@pytest.mark.asyncio
async def test_the_time_of_one_is_over_while_the_loop_is_blocked(server: Server) -> None:
    async with Locker(server.url, key_validity=0.3) as locker:
        scope = await locker.acquire("a", "b")
        time.sleep(0.4)  # noqa: ASYNC251
        assert not scope.held
        with pytest.raises(LockLostError, match="validity ended"):
            scope.check()
        await scope.release()


# What is told


@pytest.mark.asyncio
async def test_events_and_log(server: Server, locker: Locker, caplog: pytest.LogCaptureFixture) -> None:
    events: list[Event] = []
    locker.subscribe(events.append)
    with caplog.at_level(logging.WARNING, "asynclock"):
        async with locker.with_context("b", "a"):
            pass
        with pytest.raises(LockLostError):
            async with locker.with_context("b", "a"):
                server.execute("DEL", key("a"))
                await asyncio.sleep(60)
    await asyncio.sleep(0.01)
    told = [(type(event), event.name) for event in events if isinstance(event, Acquired | Released | Lost)]
    assert told == [
        *((Acquired, name) for name in ("a", "b")),
        *((Released, name) for name in ("a", "b")),
        *((Acquired, name) for name in ("a", "b")),
        (Lost, "a"),
        (Released, "b"),
    ]
    assert ["'a' was lost" in record.message for record in caplog.records] == [True]
    statistics = locker.statistics()
    assert (statistics.acquired, statistics.released, statistics.held) == (4, 3, 0)


@pytest.mark.asyncio
async def test_a_closed_lock_that_is_forgotten_is_not_released_as_well(server: Server) -> None:
    told: list[Event] = []
    async with Locker(server.url) as locker:
        locker.subscribe(told.append)
        scope = await locker.acquire("a", "b")
    assert scope.lost_reason is LossReason.CLOSED
    del scope
    gc.collect()
    await asyncio.sleep(0.01)  # two turns of the event loop: one to give it up, one to tell of that
    assert [type(event) for event in told] == [Acquired, Acquired, Lost, Lost]
    figures = locker.statistics()
    assert (figures.acquired, figures.released, sum(figures.lost.values())) == (2, 0, 2)


@pytest.mark.asyncio
async def test_fencing_tokens(locker: Locker) -> None:
    async with locker.with_context("a", "b") as scope:
        token = await scope.fencing_token("a")
        assert await scope.fencing_token("a") == token
        assert await scope.fencing_token("b") > 0
        with pytest.raises(ConfigurationError, match="needs a name"):
            await scope.fencing_token()
        with pytest.raises(ConfigurationError, match="'c' is not in this scope"):
            await scope.fencing_token("c")
    async with locker.with_context("a") as scope:
        assert await scope.fencing_token() > token
        assert await scope.fencing_token("a") > token
        with pytest.raises(ConfigurationError, match="'b' is not in this scope"):
            await scope.fencing_token("b")


def test_in_threads(server: Server) -> None:
    with asynclock.sync.Locker(server.url) as locker:
        with locker.with_context("b", "a") as scope:
            assert scope.names == ("b", "a") and held(server) == {"a", "b"}
            assert scope.fencing_token("a") > 0
            with pytest.raises(AlreadyHeldError):
                locker.acquire("c", "a")
            with pytest.raises(NotLockedError):
                locker.try_acquire("c", "a")
        assert held(server) == set()
        with pytest.raises(LockLostError) as lost, locker.with_context("a", "b") as scope:
            server.execute("DEL", key("b"))
            scope.wait_lost(timeout=AT_ONCE)
        assert lost.value.name == "b"
        end = time.monotonic() + AT_ONCE
        while held(server):
            assert time.monotonic() < end


def test_a_thread_does_not_wait_for_the_rest_that_its_block_keeps(server: Server) -> None:
    with asynclock.sync.Locker(server.url) as locker:
        with pytest.raises(LockLostError), locker.with_context("a", "b") as scope:
            server.execute("DEL", key("a"))
            scope.wait_lost(timeout=AT_ONCE)
            for wanted in (("b",), ("a", "b"), ("c", "b")):
                with pytest.raises(AlreadyHeldError, match="'b'"):
                    locker.acquire(*wanted, timeout=AT_ONCE)
            with locker.with_context("a"):  # this one is its block's no more
                pass
            scope.release()
            with locker.with_context("a", "b", timeout=AT_ONCE):
                pass


# Deployments


@contextlib.asynccontextmanager
async def three(kind: str) -> AsyncIterator[tuple[list[Server], Locker]]:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server(kind)) for _ in range(3)]
        async with Locker([server.url for server in servers], restart_quarantine=False) as locker:
            yield servers, locker


@pytest.mark.asyncio
async def test_three_independent_servers(kind: str) -> None:
    async with three(kind) as (servers, locker):
        async with locker.with_context("a", "b") as scope:
            await until(lambda: all(held(server) == {"a", "b"} for server in servers))  # two votes are enough for it
            servers[0].execute("DEL", key("a", 0))
            servers[1].execute("DEL", key("b", 1))
            await asyncio.sleep(0.1)
            scope.check()  # each has a majority
        await until(lambda: not any(held(server) for server in servers))
        running = await body(await locker.acquire("a", "b"))
        servers[0].kill()
        await asyncio.sleep(0.2)
        running.scope.check()
        since = time.monotonic()
        servers[1].execute("DEL", key("b", 1))
        error = await running.lost_within(AT_ONCE, since)
        assert error.name == "b"
        await until(lambda: not any(held(server) for server in servers[1:]))


@pytest.mark.asyncio
async def test_a_cluster(kind: str) -> None:
    with Cluster(kind) as cluster:
        async with Locker(cluster.url) as locker, Locker(cluster.url) as other:
            names = [f"job {number}" for number in range(12)]
            async with locker.with_context(*names) as scope:
                with pytest.raises(NotLockedError):
                    await other.try_acquire("another", names[7])
                assert await locker.names() == sorted(names)
                scope.check()
            assert await locker.names() == []


@pytest.mark.asyncio
@pytest.mark.serverless  # Redis 6.2's Sentinels cannot be made quick
async def test_sentinels(kind: str) -> None:
    with Sentinels(kind) as sentinels:
        async with Locker(sentinels.url) as locker:
            async with locker.with_context("a", "b"):
                assert await locker.names() == ["a", "b"]
            assert await locker.names() == []


@pytest.mark.asyncio
async def test_servers_that_are_away(own_server: Server) -> None:
    async with Locker(own_server.url) as locker:
        await (await locker.acquire("a")).release()
        own_server.kill()
        with pytest.raises(ServerError):
            await locker.try_acquire("a", "b")
        with pytest.raises(AcquireTimeoutError):
            await locker.acquire("a", "b", timeout=0.2)
        acquiring = asyncio.create_task(locker.acquire("a", "b"))
        await asyncio.sleep(0.1)
        own_server.start()
        scope = await asyncio.wait_for(acquiring, 10)
        await scope.release()
        assert held(own_server) == set()


@pytest.mark.asyncio
async def test_on_resp2_and_without_tracking(server: Server) -> None:
    for url, options in ((f"{server.url}?protocol=2", {}), (server.url, {"client_side_caching": False})):
        async with Locker(url, **options) as locker, Locker(url, **options) as other:  # type: ignore[arg-type]
            async with other.with_context("b"):
                acquiring = asyncio.create_task(locker.acquire("a", "b"))
                await until(lambda: held(server) == {"a", "b"})
            scope = await asyncio.wait_for(acquiring, 10)
            await scope.release()
            assert held(server) == set()


# Many


@pytest.mark.asyncio
async def test_many_tasks_in_two_lockers(server: Server, locker: Locker, other: Locker) -> None:
    """Any mix of one and several: nothing is held twice, and nobody waits for ever."""
    inside: dict[str, int] = dict.fromkeys("abcde", 0)
    rounds = 0

    async def run(number: int, which: Locker) -> None:
        nonlocal rounds
        for turn in range(60):
            names = [name for place, name in enumerate("abcde") if (number * 7 + turn * 11) >> place & 1] or ["a"]
            names = names[::-1] if turn % 2 else names
            async with which.with_context(*names) as scope:
                for name in names:
                    inside[name] += 1
                await asyncio.sleep(0.0005)
                scope.check()
                assert all(inside[name] == 1 for name in names)
                for name in names:
                    inside[name] -= 1
            rounds += 1

    async with asyncio.timeout(120):
        await asyncio.gather(*(run(number, which) for number in range(8) for which in (locker, other)))
    assert rounds == 60 * 16
    await gone(server)


@pytest.mark.asyncio
async def test_only_what_is_needed_is_sent(server: Server) -> None:
    """While one of them is held in this process, no server is asked for what comes after it."""
    async with Tap(server) as tap, Locker(tap.url) as locker:
        async with locker.with_context("b"):
            before = len(tap.sent)
            with pytest.raises(AcquireTimeoutError):
                await asyncio.create_task(locker.acquire("b", "c", timeout=0.05))
            names = {word for seen in tap.sent[before:] for word in seen.words if word.endswith(b":c")}
            assert not names
