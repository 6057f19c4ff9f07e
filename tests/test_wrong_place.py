"""A synchronous client, trio, and a locker for several event loops: what is wrong is told, with what to do instead."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.cluster

from asynclock import ConfigurationError, Locker, LockScope
from asynclock.testing import Server
from tests.support.helpers import key

pytestmark = [pytest.mark.every_python, pytest.mark.redis_py]

SYNC = r"not the synchronous client redis\S+: give one of redis\.asyncio, or its URL; .* asynclock\.sync\.Locker"
SENTINEL = r"Sentinel: give a client of redis\.asyncio\.Sentinel\.master_for, or a redis\+sentinel:// URL"
ADDRESSES = [("127.0.0.1", 1)]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: redis.Redis(port=1), SYNC),
        (lambda: [redis.Redis(port=1)], SYNC),
        (lambda: redis.cluster.RedisCluster.__new__(redis.cluster.RedisCluster), SYNC),  # which connects when made
        (lambda: redis.Sentinel(ADDRESSES), SENTINEL),
        (lambda: redis.asyncio.sentinel.Sentinel(ADDRESSES), SENTINEL),
        (lambda: redis.asyncio.ConnectionPool(), r"give redis\.asyncio\.Redis\(connection_pool=pool\)"),
        (lambda: 6379, "not int$"),
        (lambda: Server(), r"not asynclock\.testing\.servers\.Server$"),
    ],
    ids=["sync", "sync in a list", "sync cluster", "sync Sentinel", "Sentinel", "pool", "int", "else"],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the cluster client, half made
def test_a_client_of_another_kind(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        Locker(make())


async def run(scope: LockScope) -> None:
    """A leader's work."""


async def enters(locker: Locker) -> None:
    async with locker.with_context("job"):
        pass


async def opens(locker: Locker) -> None:
    async with locker:
        pass


async def acquires(locker: Locker) -> None:
    await (await locker.acquire("job")).release()


async def acquires_with_a_timeout(locker: Locker) -> None:
    await (await locker.acquire("job", timeout=1)).release()


async def calls(locker: Locker) -> None:
    await locker.synchronized("job")(nothing)()


async def leads(locker: Locker) -> None:
    await locker.lead("job", run)


async def nothing() -> None:
    """Needs no lock."""


Use = Callable[[Locker], Awaitable[None]]
USES: list[Use] = [enters, opens, acquires, acquires_with_a_timeout, calls, leads]
each_use = pytest.mark.parametrize("use", USES)
ANOTHER = (
    r"belongs to another event loop; make a Locker for each event loop, inside of it; asyncio\.run\(\) and "
    r"async_to_sync\(\) start a new one each time; synchronous code uses asynclock\.sync\.Locker"
)
NONE = r"needs an event loop of asyncio, and none runs here; use asynclock\.sync\.Locker .*trio\.to_thread\.run_sync"


@each_use
def test_without_an_event_loop(use: Use) -> None:
    locker = Locker("redis://127.0.0.1:1")
    steps = use(locker).__await__()
    with pytest.raises(ConfigurationError, match=NONE):
        next(steps)


@each_use
def test_under_trio(use: Use, server: Server) -> None:
    trio = pytest.importorskip("trio")
    locker = Locker(server.url)
    with pytest.raises(ConfigurationError, match=NONE):
        trio.run(use, locker)
    with pytest.raises(ConfigurationError, match=NONE):
        trio.run(locker.aclose)

    async def here() -> None:
        async with locker:  # it was not used up
            await acquires(locker)

    asyncio.run(here())
    assert server.execute("EXISTS", key("job")) == 0


@each_use
def test_in_a_second_event_loop(use: Use, server: Server) -> None:
    with asyncio.Runner() as first, asyncio.Runner() as second:
        locker = Locker(server.url)
        first.run(acquires(locker))  # type: ignore[arg-type]  # a coroutine
        with pytest.raises(ConfigurationError, match=ANOTHER):
            second.run(use(locker))  # type: ignore[arg-type]  # as above
        first.run(acquires(locker))  # type: ignore[arg-type]  # as above
        first.run(locker.aclose())


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # its loop was closed under it, with all connections
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@each_use
def test_with_async_to_sync_twice(use: Use, server: Server) -> None:
    sync = pytest.importorskip("asgiref.sync")
    locker = Locker(server.url)
    sync.async_to_sync(acquires)(locker)
    with pytest.raises(ConfigurationError, match=ANOTHER):
        sync.async_to_sync(use)(locker)


def test_async_to_sync_with_a_locker_for_each_call(server: Server) -> None:
    """As the error says."""
    sync = pytest.importorskip("asgiref.sync")

    async def work() -> bool:
        async with Locker(server.url) as locker, locker.with_context("job") as scope:
            return scope.held

    for _ in range(2):
        assert sync.async_to_sync(work)()
    assert server.execute("EXISTS", key("job")) == 0
