"""What the options do to the keys on a real server."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from asynclock import Locker, LockLostError
from asynclock.testing import Proxy, Server
from tests.support.helpers import AT_ONCE, body, key, until

pytestmark = pytest.mark.every_python


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "options", [{}, {"fallback_setpx": True}, {"no_loop_tracking": False}, {"key_majority": 3}], ids=str
)
async def test_keys_live_for_the_validity_and_are_extended(server: Server, options: dict[str, Any]) -> None:
    """By the server's clock, whether the expiry is sent as a duration or as a time."""
    async with Locker(server.url, key_validity=0.6, extend_interval=0.2, **options) as locker:
        scope = await locker.acquire("job")
        keys = [key("job", index) for index in range(2 * options.get("key_majority", 1) - 1)]
        assert server.execute("DBSIZE") == len(keys)
        for name in keys:
            ttl = server.execute("PTTL", name)
            assert isinstance(ttl, int)
            assert 300 < ttl <= 700  # with a time, longer by the round trip in which the server's clock was read
        lowest = 600
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            for name in keys:
                ttl = server.execute("PTTL", name)
                assert isinstance(ttl, int)
                lowest = min(lowest, ttl)
            assert scope.remaining() * 1000 <= lowest + 400
            await asyncio.sleep(0.01)
        assert lowest > 150, "extended in time"
        assert scope.held
        await scope.release()
        assert server.execute("DBSIZE") == 0


@pytest.mark.asyncio
@pytest.mark.fast
async def test_the_deadline_is_never_beyond_the_servers_expiry(server: Server) -> None:
    async with Proxy(server.port) as proxy, Locker(proxy.url, key_validity=1.0) as locker:
        for delay in (0.0, 0.05, 0.1):
            proxy.delay = delay
            scope = await locker.acquire("job")
            for _ in range(20):
                remaining = scope.remaining()
                asked = time.monotonic()
                ttl = server.execute("PTTL", key("job"))
                assert isinstance(ttl, int)
                assert remaining <= ttl / 1000 + (time.monotonic() - asked)
                await asyncio.sleep(0.05)
            assert scope.held
            await scope.release()


@pytest.mark.asyncio
@pytest.mark.fast
async def test_another_prefix_is_another_lock(server: Server, locker: Locker) -> None:
    async with Locker(server.url, key_prefix="rueidislock", key_majority=2) as other:
        async with locker.with_context("job"), other.with_context("job"):
            assert sorted(server.execute("KEYS", "*")) == [
                b"asynclock:0:job",
                b"rueidislock:0:job",
                b"rueidislock:1:job",
                b"rueidislock:2:job",
            ]


@pytest.mark.asyncio
async def test_a_majority_of_the_keys_is_enough_and_the_rest_comes_back(server: Server) -> None:
    async with Locker(server.url, key_majority=2, key_validity=0.6) as locker:
        server.execute("SET", key("job", 1), "somebody")
        holding = await body(await locker.acquire("job"))
        assert server.execute("GET", key("job", 1)) == b"somebody"
        server.execute("DEL", key("job", 1))
        await until(lambda: server.execute("EXISTS", key("job", 1)), 2)  # at an extension, since it is free
        server.execute("DEL", key("job", 0))
        await until(lambda: server.execute("EXISTS", key("job", 0)), 2)
        assert holding.scope.held
        server.execute("DEL", key("job", 0), key("job", 2))
        error = await holding.lost_within(AT_ONCE, time.monotonic())
        assert isinstance(error, LockLostError)
        await until(lambda: server.execute("DBSIZE") == 0)  # what was left of it is given back


@pytest.mark.asyncio
async def test_keys_held_by_somebody_else_are_waited_for(server: Server) -> None:
    async with Locker(server.url, key_majority=2) as locker:
        server.execute("SET", key("job", 0), "somebody", "PX", "60000")
        server.execute("SET", key("job", 1), "somebody", "PX", "400")
        since = time.monotonic()
        scope = await asyncio.wait_for(locker.acquire("job"), 3)
        assert 0.3 < time.monotonic() - since < 0.4 + AT_ONCE  # the first key that makes a majority possible
        await scope.release()
        assert server.execute("GET", key("job", 0)) == b"somebody"
        assert server.execute("DBSIZE") == 1
