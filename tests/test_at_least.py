"""``at_least``: a lock that stays for a least time after it was acquired, though it is released earlier."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import sys
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

import asynclock.sync
from asynclock import AcquireTimeoutError, Locker, LockLostError, NotLockedError
from asynclock.sync import scope as sync_scope
from asynclock.testing import Cluster, Proxy, Sentinels, Server, clock_off
from tests.support.cluster import execute, primaries, spread
from tests.support.helpers import AT_ONCE, ROOT, body, key, until
from tests.support.tap import Rewrite, Tap, without_compare, without_pxat
from tests.test_docs import blocks
from tests.test_refusals import Refuses, full, read_only, refusals

LONG = 60.0  # seconds: nobody waits for the end of it
SHORT = 0.5  # seconds: for those who wait
FAILOVER = 20.0  # seconds; it takes two or three


def left(server: Server, name: str = "job", index: int = 0) -> float:
    """Seconds until the key expires; -0.002: there is none."""
    ttl = server.execute("PTTL", key(name, index))
    assert isinstance(ttl, int)
    return ttl / 1000


def stays(server: Server, since: float, at_least: float = LONG, index: int = 0) -> bool:
    """Does the key stay until ``at_least`` seconds after ``since`` (``time.monotonic()``), and not much longer?"""
    before = time.monotonic()
    remaining = left(server, index=index)
    after = time.monotonic()
    end = since + at_least
    # It is read between the two, and cut to whole milliseconds.
    return end <= after + remaining + 0.001 and before + remaining < end + AT_ONCE


class OwnError(Exception):
    """The body's own."""


# However it is left


async def _normally(locker: Locker) -> None:
    async with locker.with_context("job", at_least=LONG):
        pass


async def _after_a_while(locker: Locker) -> None:
    async with locker.with_context("job", at_least=LONG) as scope:
        await asyncio.sleep(0.02)  # its key is tracked by then
        scope.check()


async def _by_an_exception(locker: Locker) -> None:
    with pytest.raises(OwnError):
        async with locker.with_context("job", at_least=LONG):
            raise OwnError


async def _by_cancel(locker: Locker) -> None:
    async with locker.with_context("job", at_least=LONG) as scope:
        scope.create_task(asyncio.sleep(60))
        scope.cancel()
        await asyncio.sleep(60)


async def _cancelled(locker: Locker) -> None:
    task = asyncio.create_task(body_of(locker))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def body_of(locker: Locker) -> None:
    async with locker.with_context("job", at_least=LONG):
        await asyncio.sleep(60)


async def _by_hand(locker: Locker) -> None:
    scope = await locker.acquire("job", at_least=timedelta(seconds=LONG))
    await scope.release()
    await scope.release()


async def _without_waiting(locker: Locker) -> None:
    async with locker.try_with_context("job", at_least=LONG, wait_release=False):
        pass
    await asyncio.sleep(0.05)


async def _by_force(locker: Locker) -> None:
    async with locker.force_with_context("job", at_least=LONG):
        pass


async def _forgotten(locker: Locker) -> None:
    scope = await locker.try_acquire("job", at_least=LONG)
    with pytest.warns(ResourceWarning, match="forgotten"):
        del scope
        gc.collect()
    await asyncio.sleep(0.05)


async def _forced_and_cancelled(locker: Locker) -> None:
    scope = await locker.force_acquire("job", at_least=LONG)
    scope.cancel()
    await asyncio.sleep(0.05)


WAYS: list[Callable[[Locker], Awaitable[None]]] = [
    _normally,
    _after_a_while,
    _by_an_exception,
    _by_cancel,
    _cancelled,
    _by_hand,
    _without_waiting,
    _by_force,
    _forgotten,
    _forced_and_cancelled,
]
each_way = pytest.mark.parametrize("leave", WAYS, ids=lambda leave: leave.__name__.strip("_"))


@pytest.mark.asyncio
@pytest.mark.every_python
@pytest.mark.fast
@each_way
async def test_it_stays_however_it_is_left(
    server: Server, locker: Locker, other: Locker, leave: Callable[[Locker], Awaitable[None]]
) -> None:
    since = time.monotonic()
    await leave(locker)
    assert time.monotonic() - since < AT_ONCE, "it waits for nothing"
    assert stays(server, since)
    for one in (locker, other):
        with pytest.raises(NotLockedError) as caught:
            await one.try_acquire("job")
        holder = caught.value.holder
        assert holder is not None and holder.remaining is not None
        assert LONG - 2 * AT_ONCE < holder.remaining <= LONG + 0.01
        assert (await one.holder("job")) is not None
    assert await locker.names() == ["job"]
    assert locker.statistics().held == 0 and locker.statistics().released == 1


@pytest.mark.asyncio
async def test_longer_than_the_validity_and_shorter(server: Server) -> None:
    async with Locker(server.url, key_validity=10) as locker:
        for at_least in (60.0, 3.0):
            since = time.monotonic()
            async with locker.force_with_context("job", at_least=at_least):
                assert 9 < left(server) < 11
            assert stays(server, since, at_least)


@pytest.mark.asyncio
async def test_it_is_extended_as_ever_while_it_is_held(server: Server) -> None:
    async with Locker(server.url, key_validity=0.4) as locker:
        since = time.monotonic()
        async with locker.with_context("job", at_least=LONG) as scope:
            while time.monotonic() < since + 1:
                await asyncio.sleep(0.05)
                assert scope.held and 0 < left(server) <= 0.5
        assert stays(server, since)


@pytest.mark.asyncio
@pytest.mark.fast
async def test_once_that_time_is_over_it_is_free_at_once(server: Server, locker: Locker) -> None:
    async with locker.with_context("job", at_least=0.05):
        await asyncio.sleep(0.06)
    assert server.execute("DBSIZE") == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("off", [-3600.0, 3600.0])
@pytest.mark.skipif(sys.platform != "linux", reason="libfaketime is preloaded as Linux has it")
async def test_the_clock_of_the_server_does_not_matter(kind: str, off: float) -> None:
    with Server(kind, environment=clock_off(off)) as server:
        async with Locker(server.url) as locker:
            since = time.monotonic()
            async with locker.with_context("job", at_least=LONG):
                pass
            assert stays(server, since)


# Who gets it, and when


@pytest.mark.asyncio
@pytest.mark.fast
@pytest.mark.handoff
@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("tracking", [True, False])
async def test_who_waits_gets_it_at_its_end(server: Server, here: bool, tracking: bool) -> None:
    """Without tracking, whoever waited before it was released looks again after ``extend_interval``, and at its end."""
    options = {} if tracking else {"client_side_caching": False, "extend_interval": 0.2}
    async with Locker(server.url, **options) as locker, Locker(server.url, **options) as other:
        since = time.monotonic()
        async with locker.with_context("job", at_least=SHORT):
            waiting = [asyncio.create_task((locker if here else other).acquire("job")) for _ in range(3)]
            await asyncio.sleep(0.05)
        for task in waiting:
            scope = await asyncio.wait_for(task, 10)
            took = time.monotonic() - since
            await scope.release()
            assert SHORT <= took < SHORT + AT_ONCE
        assert server.execute("DBSIZE") == 0


@pytest.mark.asyncio
@pytest.mark.handoff
async def test_many_in_several_processes_and_each_holds_it_for_its_time(server: Server) -> None:
    """No two of them in less than the least time, wherever they are."""
    least, times = 0.1, []
    async with contextlib.AsyncExitStack() as stack:
        lockers = [await stack.enter_async_context(Locker(server.url)) for _ in range(3)]

        async def one(locker: Locker) -> None:
            async with locker.with_context("job", at_least=least):
                times.append(time.monotonic())

        await asyncio.gather(*(one(locker) for locker in lockers for _ in range(4)))
    assert len(times) == 12
    assert all(later - earlier > least - 0.002 for earlier, later in itertools.pairwise(times)), times


@pytest.mark.asyncio
async def test_a_wait_that_is_shorter_times_out(server: Server) -> None:
    # On a busy machine, it takes longer than 26 ms to read who has the lock.
    async with Locker(server.url, try_next_after=1.0) as locker, Locker(server.url, try_next_after=1.0) as other:
        await _normally(locker)
        for one in (locker, other):
            with pytest.raises(AcquireTimeoutError) as caught:
                await one.acquire("job", timeout=0.1, at_least=2 * LONG)
            assert caught.value.holder is not None
            task = asyncio.create_task(one.acquire("job", at_least=2 * LONG))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert LONG - 10 < left(server) <= LONG


@pytest.mark.asyncio
@pytest.mark.handoff
async def test_it_passes_to_the_next_task_once_its_time_is_over(server: Server, locker: Locker) -> None:
    """... which does not have to keep it, or has a time of its own."""
    async with locker.with_context("job", at_least=0.02):
        waiting = asyncio.create_task(locker.acquire("job"))
        await asyncio.sleep(0.03)
    await (await waiting).release()
    assert server.execute("DBSIZE") == 0
    since = time.monotonic()
    async with locker.with_context("job", at_least=0.02):
        waiting = asyncio.create_task(locker.acquire("job", at_least=LONG))
        await asyncio.sleep(0.03)
    second = await waiting
    await second.release()
    assert stays(server, since)


@pytest.mark.asyncio
async def test_whoever_takes_it_over_has_it(
    server: Server, locker: Locker, other: Locker, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody has lost it by that."""
    with caplog.at_level(logging.WARNING, "asynclock"):
        for one in (other, locker):
            await _after_a_while(locker)
            async with one.force_with_context("job"):
                await asyncio.sleep(0.05)
            assert server.execute("DBSIZE") == 0
    assert not caplog.records
    assert locker.statistics().lost == other.statistics().lost == {}


# What need not stay


@pytest.mark.asyncio
@pytest.mark.fast
async def test_a_lost_lock_is_not_kept(server: Server, locker: Locker, other: Locker) -> None:
    with pytest.raises(LockLostError, match="deleted"):
        async with locker.with_context("job", at_least=LONG):
            await asyncio.sleep(0.02)
            server.execute("DEL", key("job"))
            await asyncio.sleep(60)
    await (await other.try_acquire("job")).release()


@pytest.mark.asyncio
async def test_nor_one_that_was_taken_over(server: Server, locker: Locker, other: Locker) -> None:
    for one in (locker, other):
        holding = await body(await locker.acquire("job", at_least=LONG))
        async with one.force_with_context("job"):
            await holding.lost_within(AT_ONCE, time.monotonic())
            assert 0 < left(server) < 6
        assert server.execute("DBSIZE") == 0


@pytest.mark.asyncio
async def test_nor_what_others_have_when_it_is_left(server: Server) -> None:
    """Without tracking, only the answer shows it."""
    async with Locker(server.url, client_side_caching=False) as locker:
        for value in (None, "somebody's"):
            with pytest.raises(LockLostError, match="noticed only when the lock was released"):
                async with locker.with_context("job", at_least=LONG):
                    await asyncio.sleep(0.02)
                    server.execute("DEL", key("job"))
                    if value is not None:
                        server.execute("SET", key("job"), value, "PX", 5000)
            assert left(server) <= 5
            server.execute("FLUSHALL")


@pytest.mark.asyncio
@pytest.mark.every_python
async def test_nor_a_lock_that_nobody_has_got(server: Server, locker: Locker) -> None:
    """Its task was cancelled in the turn of the event loop in which it was granted, or any other."""
    for turns in range(12):
        task = asyncio.create_task(locker.acquire("job", at_least=LONG))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            scope = await task
            scope._stay(0.0)
            await scope.release()
        await asyncio.sleep(0.01)
        assert server.execute("DBSIZE") == 0


@pytest.mark.asyncio
async def test_after_a_crash_it_stays_for_the_validity(server: Server) -> None:
    """docs/at-least.md says so."""
    async with Proxy(server.port) as proxy:
        locker = Locker(proxy.url, key_validity=0.5)
        holding = await body(await locker.acquire("job", at_least=LONG))
        proxy.refuse()
        proxy.cut()
        await until(lambda: left(server) < 0)
        await asyncio.wait([holding.task])
        proxy.accept()
        await locker.aclose()


# Closing


@pytest.mark.asyncio
@pytest.mark.every_python
@pytest.mark.parametrize("block", [True, False])
async def test_closing_keeps_it_and_waits_for_nothing(server: Server, other: Locker, block: bool) -> None:
    locker = Locker(server.url)
    since = time.monotonic()
    scope = await locker.acquire("job", at_least=LONG)
    holding = await body(scope) if block else None
    await locker.aclose()
    assert time.monotonic() - since < AT_ONCE
    if holding is not None:
        assert (await holding.lost_within(AT_ONCE, since)).reason == "closed"
    assert stays(server, since)
    with pytest.raises(NotLockedError):
        await other.try_acquire("job")


@pytest.mark.asyncio
async def test_closing_while_its_block_takes_longer_than_the_lock(server: Server) -> None:
    locker = Locker(server.url, key_validity=0.5)
    since = time.monotonic()

    async def stubborn() -> None:
        async with locker.with_context("job", at_least=LONG):
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(1.5)

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0.1)
    await locker.aclose()
    assert not task.done()
    assert stays(server, since)
    with pytest.raises(LockLostError):
        await task
    assert stays(server, since)


@pytest.mark.asyncio
async def test_a_locker_that_was_forgotten_keeps_it(server: Server) -> None:
    locker = Locker(server.url)
    since = time.monotonic()
    scope = await locker.acquire("job", at_least=LONG)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del locker, scope
        gc.collect()
        await asyncio.sleep(0.1)
    assert stays(server, since)


# Servers that are away, or refuse


@pytest.mark.asyncio
async def test_it_is_kept_after_a_reconnect(server: Server) -> None:
    async with Proxy(server.port) as proxy, Locker(proxy.url, disconnect_grace=30, key_validity=30) as locker:
        since = time.monotonic()
        async with locker.with_context("job", at_least=LONG):
            await asyncio.sleep(0.02)
            proxy.refuse()
            proxy.cut()
            await asyncio.sleep(0.05)
        assert time.monotonic() - since < AT_ONCE
        assert left(server) < 31
        await asyncio.sleep(0.5)
        proxy.accept()
        await until(lambda: left(server) > 31)
        assert stays(server, since)  # and not half a second longer


@pytest.mark.asyncio
async def test_it_is_released_after_a_reconnect_if_its_time_is_over(server: Server) -> None:
    async with Proxy(server.port) as proxy, Locker(proxy.url, disconnect_grace=30, key_validity=30) as locker:
        async with locker.with_context("job", at_least=0.5):
            await asyncio.sleep(0.02)
            proxy.refuse()
            proxy.cut()
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.6)
        assert left(server) > 20
        proxy.accept()
        await until(lambda: left(server) < 0)


@pytest.mark.asyncio
async def test_an_answer_that_is_lost_with_its_connection(own_server: Server) -> None:
    """The server may have run it, or not: it is sent again."""
    async with Proxy(own_server.port) as proxy, Locker(proxy.url, key_validity=30) as locker:
        since = time.monotonic()
        scope = await locker.acquire("job", at_least=LONG)
        await asyncio.sleep(0.05)
        own_server.pause()
        await scope.release()
        proxy.cut()
        own_server.resume()
        await until(lambda: left(own_server) > 31)
        await asyncio.sleep(0.3)
        assert stays(own_server, since)


@pytest.mark.asyncio
@refusals
async def test_a_server_that_refuses_it_is_asked_again(own_server: Server, refuses: Refuses) -> None:
    """Without memory, it can still be kept: by a script."""
    async with Locker(own_server.url, key_validity=30) as locker:
        since = time.monotonic()
        scope = await locker.acquire("job", at_least=LONG)
        await asyncio.sleep(0.05)
        with refuses(own_server):
            await scope.release()
            await asyncio.sleep(0.3)
            if refuses is full:
                assert stays(own_server, since)
        await until(lambda: left(own_server) > 31)
        await asyncio.sleep(0.1)
        assert stays(own_server, since)


@pytest.mark.asyncio
@refusals
async def test_who_waits_here_while_a_server_refuses_it_is_served(own_server: Server, refuses: Refuses) -> None:
    """What it has read until then is the validity. With NOLOOP, nobody tells this process that its own command has
    changed that."""
    async with Locker(own_server.url, key_validity=30, local_handoffs=0) as locker:
        since = time.monotonic()
        scope = await locker.acquire("job", at_least=2.0)
        await asyncio.sleep(0.05)
        with refuses(own_server):
            await scope.release()
            waiting = asyncio.create_task(locker.acquire("job"))
            await asyncio.sleep(0.3)
        scope = await asyncio.wait_for(waiting, 15)
        assert 2.0 <= time.monotonic() - since < 6.0
        await scope.release()


@pytest.mark.asyncio
async def test_a_server_that_refuses_it_until_it_is_over(own_server: Server) -> None:
    async with Locker(own_server.url, key_validity=30) as locker:
        scope = await locker.acquire("job", at_least=1.0)
        await asyncio.sleep(0.05)
        with read_only(own_server):
            await scope.release()
            await asyncio.sleep(1.2)
        await until(lambda: own_server.execute("EXISTS", key("job")) == 0)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "rewrite",
    [without_pxat, without_compare, lambda words: without_compare(without_pxat(words))],
    ids=["PXAT", "compare", "both"],
)
async def test_servers_without(server: Server, rewrite: Rewrite) -> None:
    async with Tap(server, rewrite) as tap, Locker(tap.url) as locker:
        for flushed in (False, True):
            if flushed:
                server.execute("SCRIPT", "FLUSH")
            since = time.monotonic()
            async with locker.force_with_context("job", at_least=LONG):
                pass
            assert stays(server, since)
        with pytest.raises(NotLockedError):
            await locker.try_acquire("job")


@pytest.mark.asyncio
async def test_resp2(server: Server, other: Locker) -> None:
    async with Locker(f"{server.url}?protocol=2") as locker:
        since = time.monotonic()
        async with locker.with_context("job", at_least=SHORT):
            waiting = [asyncio.create_task(one.acquire("job")) for one in (locker, other)]
            await asyncio.sleep(0.05)
        for task in asyncio.as_completed(waiting):
            await (await asyncio.wait_for(task, 10)).release()
            assert SHORT <= time.monotonic() - since < SHORT + AT_ONCE


@pytest.mark.asyncio
async def test_replicas(kind: str) -> None:
    """``min_replicas`` is for what counts: nobody waits for replicas to keep a lock, but they have it soon."""
    with Server(kind) as primary, Server(kind) as replica:
        replica.execute("REPLICAOF", "127.0.0.1", str(primary.port))
        await until(lambda: b"master_link_status:up" in bytes(replica.execute("INFO", "replication")), 20)  # type: ignore[arg-type]
        async with Locker(primary.url, min_replicas=1, key_validity=10) as locker:
            since = time.monotonic()
            async with locker.with_context("job", at_least=LONG):
                pass
            assert stays(primary, since)
            await until(lambda: left(replica) > 11)
            with pytest.raises(NotLockedError):
                await locker.try_acquire("job")


# Independent servers


@pytest.fixture(scope="module")
def shared_three(kind: str) -> Iterator[list[Server]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Server(kind)) for _ in range(3)]


@pytest.fixture
def three(shared_three: list[Server]) -> Iterator[list[Server]]:
    for server in shared_three:
        server.start()  # what a test before has killed
        server.execute("FLUSHALL")
    yield shared_three
    for server in shared_three:
        server.resume()


def quorum(servers: list[Server], **options: object) -> Locker:
    return Locker([server.url for server in servers], restart_quarantine=False, **options)


@pytest.mark.asyncio
@each_way
async def test_on_three_servers(three: list[Server], leave: Callable[[Locker], Awaitable[None]]) -> None:
    async with quorum(three) as locker, quorum(three) as other:
        since = time.monotonic()
        await leave(locker)
        await until(lambda: all(stays(server, since, index=index) for index, server in enumerate(three)))
        for one in (locker, other):
            with pytest.raises(NotLockedError):
                await one.try_acquire("job")


@pytest.mark.asyncio
@pytest.mark.parametrize("here", [True, False])
async def test_on_three_servers_who_waits_gets_it_at_its_end(three: list[Server], here: bool) -> None:
    async with quorum(three) as locker, quorum(three) as other:
        since = time.monotonic()
        async with locker.with_context("job", at_least=SHORT):
            waiting = asyncio.create_task((locker if here else other).acquire("job"))
            await asyncio.sleep(0.05)
        await (await asyncio.wait_for(waiting, 10)).release()
        assert SHORT <= time.monotonic() - since < SHORT + AT_ONCE


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["killed", "silent", "key lost"])
async def test_a_minority_is_no_obstacle(three: list[Server], how: str) -> None:
    async with quorum(three, key_validity=10) as locker, quorum(three, key_validity=10) as other:
        since = time.monotonic()
        scope = await locker.acquire("job", at_least=LONG)
        await until(lambda: all(server.execute("EXISTS", key("job", i)) for i, server in enumerate(three)))
        if how == "killed":
            three[1].kill()
        elif how == "silent":
            three[1].pause()
        else:
            three[1].execute("DEL", key("job", 1))
        await asyncio.sleep(0.1)
        assert scope.held
        await scope.release()
        assert stays(three[0], since) and stays(three[2], since, index=2)
        with pytest.raises(NotLockedError):
            await other.try_acquire("job")


# Clusters and Sentinels


@pytest.mark.asyncio
async def test_in_a_cluster(cluster: Cluster) -> None:
    async with Locker(cluster.url) as locker, Locker(cluster.urls[1]) as other:
        name = next(spread(cluster))
        since = time.monotonic()
        async with locker.with_context(name, at_least=SHORT):
            waiting = [asyncio.create_task(one.acquire(name)) for one in (locker, other)]
            await asyncio.sleep(0.05)
        for task in asyncio.as_completed(waiting):
            await (await asyncio.wait_for(task, 10)).release()
            assert SHORT <= time.monotonic() - since < SHORT + AT_ONCE
        async with locker.with_context(name, at_least=LONG):
            pass
        ttls = [execute(cluster, "PTTL", key(name, index)) for index in range(3)]
        assert all(isinstance(ttl, int) and 1000 * (LONG - 10) < ttl < 1000 * LONG + 50 for ttl in ttls)


@pytest.mark.asyncio
@pytest.mark.parametrize("moment", ["begun", "keys moved", "finished"])
async def test_while_its_slot_moves(cluster: Cluster, moment: str) -> None:
    """It is redirected, by ASK or MOVED."""
    async with Locker(cluster.url, key_majority=1, key_validity=10) as locker:
        name = next(spread(cluster))
        slot = cluster.slot_of(key(name))
        source = cluster.owner(slot)
        target = next(server for server in primaries(cluster) if server is not source)
        scope = await locker.acquire(name, at_least=LONG)
        await asyncio.sleep(0.05)
        await asyncio.to_thread(cluster.begin_migration, slot, target)
        if moment != "begun":
            await asyncio.to_thread(cluster.move_keys, slot, target)
        if moment == "finished":
            await asyncio.to_thread(cluster.finish_migration, slot, target)
        await scope.release()
        if moment == "begun":
            await asyncio.to_thread(cluster.move_keys, slot, target)
        if moment != "finished":
            await asyncio.to_thread(cluster.finish_migration, slot, target)
        ttl = target.execute("PTTL", key(name))
        assert isinstance(ttl, int) and 1000 * (LONG - 10) < ttl < 1000 * LONG + 50
        target.execute("DEL", key(name))
        await asyncio.to_thread(cluster.migrate, slot, source)


@pytest.mark.asyncio
@pytest.mark.slow
async def test_behind_sentinels(kind: str) -> None:
    """Before and after a failover."""
    if kind == "redis-6.2":
        pytest.skip("asynclock.testing has no Sentinels of Redis 6.2")
    with Sentinels(kind) as sentinels:
        async with Locker(sentinels.url, min_replicas=1, key_validity=10) as locker:
            since = time.monotonic()
            async with locker.with_context("job", at_least=LONG):
                pass
            old = sentinels.primary
            assert stays(old, since)
            replica = next(server for server in sentinels.replicas)
            await until(lambda: left(replica) > 11)
            old.kill()
            new = await asyncio.to_thread(sentinels.wait_for_failover, old)
            assert stays(new, since)
            end = time.monotonic() + FAILOVER
            while True:
                try:
                    await locker.try_acquire("job")
                except NotLockedError:
                    break
                except asynclock.ServerError:
                    assert time.monotonic() < end
                    await asyncio.sleep(0.1)


# Threads


@pytest.mark.every_python
def test_in_threads(server: Server) -> None:
    with asynclock.sync.Locker(server.url) as locker:
        for way in (locker.with_context, locker.try_with_context, locker.force_with_context):
            since = time.monotonic()
            with way("job", at_least=timedelta(seconds=LONG)):
                pass
            assert stays(server, since)
            server.execute("DEL", key("job"))
        for acquire in (locker.acquire, locker.try_acquire, locker.force_acquire):
            since = time.monotonic()
            scope = acquire("job", at_least=LONG)
            scope.release()
            assert stays(server, since)
            server.execute("DEL", key("job"))
        since = time.monotonic()
        with locker.with_context("job", at_least=LONG):
            with pytest.raises(NotLockedError):
                locker.try_acquire("job")
    assert stays(server, since)


@pytest.mark.every_python
def test_a_thread_that_is_interrupted_before_its_block_keeps_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: sync_scope.Block) -> None:
        raise KeyboardInterrupt

    with asynclock.sync.Locker(server.url) as locker:
        monkeypatch.setattr(sync_scope.Block, "enter", interrupted)
        with pytest.raises(KeyboardInterrupt), locker.with_context("job", at_least=LONG):
            pass
        end = time.monotonic() + 5
        while server.execute("DBSIZE"):
            assert time.monotonic() < end
            time.sleep(0.01)


# The nightly job


async def nightly(urls: list[str], at_least: float) -> list[str]:
    """Three hosts whose clocks differ by 0.2 s have a job that is due at a time by their own clocks. What they say."""
    async with contextlib.AsyncExitStack() as stack:
        hosts = []
        for off in (-0.2, 0.0, 0.2):
            host = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "tests.support.nightly", ",".join(urls), str(at_least)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                cwd=ROOT,
                env={**os.environ, **clock_off(off)},
            )
            stack.push_async_callback(_end, host)
            hosts.append(host)
        for host in hosts:
            assert host.stdout is not None
            assert await asyncio.wait_for(host.stdout.readline(), 30) == b"ready\n"
        for host in hosts:
            assert host.stdin is not None
            host.stdin.write(b"%f\n" % (time.time() + 1.0))
        said = [await asyncio.wait_for(host.stdout.readline(), 30) for host in hosts if host.stdout is not None]
        return [line.decode().strip() for line in said]


async def _end(host: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        host.kill()
    await host.communicate()


@pytest.mark.asyncio
@pytest.mark.one_loop
@pytest.mark.skipif(sys.platform != "linux", reason="libfaketime is preloaded as Linux has it")
@pytest.mark.parametrize("servers", [1, 3])
async def test_the_nightly_job_on_three_hosts_whose_clocks_differ_runs_once(three: list[Server], servers: int) -> None:
    urls = [server.url for server in three[:servers]]
    assert sorted(await nightly(urls, 60.0)) == ["did not run", "did not run", "ran"]


@pytest.mark.asyncio
async def test_the_example_of_the_page(
    server: Server, locker: Locker, other: Locker, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    for code in blocks(ROOT / "docs" / "at-least.md", "python"):
        exec(compile(code, "at-least.md", "exec"), names)
    for one in (locker, other, locker):
        await names["nightly"](one)
    assert capsys.readouterr().out == "write the report\n"
    assert LONG - 5 < left(server, "nightly-report") <= LONG


@pytest.mark.asyncio
@pytest.mark.one_loop
@pytest.mark.skipif(sys.platform != "linux", reason="libfaketime is preloaded as Linux has it")
async def test_without_a_least_time_it_runs_more_than_once(server: Server) -> None:
    """On each of them, which shows that the clocks do differ; or on two, where the machine is so busy that a job takes
    0.2 s."""
    assert (await nightly([server.url], 0.0)).count("ran") >= 2
