"""A server that does not read: what is kept for it is bounded, it fails in time, and all goes on after."""

from __future__ import annotations

import asyncio

import pytest

from asynclock import AcquireTimeoutError, Locker, LockScope
from asynclock.testing import Proxy, Server
from asynclock.wire.connection import MAX_UNSENT
from tests.support import internals
from tests.support.helpers import key, until

LONG = 60_000  # characters of a name: so that few names fill the buffers of both kernels
NAMES = [f"{number} ".ljust(LONG, "x") for number in range(400)]


@pytest.mark.asyncio
async def test_a_server_that_does_not_read_takes_no_memory_without_bound(own_server: Server) -> None:
    # With this validity the connection counts as dead after 2 s without an answer: it is resumed before that.
    async with Locker(own_server.url, key_validity=60) as locker:
        held = await locker.acquire("held")
        node = internals.node(locker)
        wire = node.connection
        assert wire is not None
        own_server.pause()
        try:
            failures = await asyncio.gather(
                *(locker.acquire(name, timeout=0.2) for name in NAMES), return_exceptions=True
            )
            assert {type(failure) for failure in failures} == {AcquireTimeoutError}
            assert wire.full, "the buffers of the kernels have taken it all: more names are needed"
            kept = sum(map(len, wire._out))
            assert MAX_UNSENT < kept < MAX_UNSENT + 2 * LONG
            # Who is not asked any more is told why.
            with pytest.raises(AcquireTimeoutError, match="does not read what is sent to it"):
                await locker.acquire("another", timeout=0.05)
            waiting = asyncio.create_task(locker.acquire("waiting"))
            await asyncio.sleep(0.05)
            assert not waiting.done()
        finally:
            own_server.resume()
        async with await asyncio.wait_for(waiting, 5) as scope:
            assert node.connection is wire, "the connection was not lost"
            assert scope.held and held.held
        # Whatever was sent late was released late.
        await until(lambda: own_server.execute("DBSIZE") == 1, 5)
        assert own_server.execute("EXISTS", key("held")) == 1
        await held.release()
        async with locker.with_context(NAMES[0]):
            pass


@pytest.mark.asyncio
async def test_a_server_that_answers_late_is_asked_no_more_until_it_has_answered(own_server: Server) -> None:
    """What is asked behind a second's worth of other questions would be answered too late, and be kept until then."""
    async with (
        Proxy(own_server.port) as proxy,
        # With this validity an answer is late after half a second.
        Locker(proxy.url, key_validity=2) as locker,
    ):
        node = internals.node(locker)
        wire = node.connection
        assert wire is not None
        proxy.rate = 5_000
        tasks: list[asyncio.Task[LockScope]] = []

        def slow_at_last() -> bool:
            """A little at a time: an answer comes now and then, and each is later than the one before."""
            tasks.extend(asyncio.create_task(locker.acquire(f"name {len(tasks)} {n}")) for n in range(5))
            return wire.slow

        await until(slow_at_last, 5)
        pending = len(wire.waiting)
        assert pending > 0
        with pytest.raises(AcquireTimeoutError, match=r"answers are more than 0\.5 s late"):
            await locker.acquire("another", timeout=0.05)
        tasks += [asyncio.create_task(locker.acquire(f"late {number}")) for number in range(300)]
        await asyncio.sleep(0.05)
        held = sum(task.done() for task in tasks)  # these are looked at and extended: two answers each, nothing else
        assert len(wire.waiting) <= pending + 4 * held < pending + 300
        proxy.rate = 0
        proxy.deliver()
        for scope in await asyncio.wait_for(asyncio.gather(*tasks), 10):
            await scope.release()
        assert node.connection is wire, "the connection was not lost"
        assert not wire.slow
    await until(lambda: own_server.execute("DBSIZE") == 0, 5)


@pytest.mark.asyncio
async def test_what_is_held_at_a_server_that_answers_late_is_extended_and_given_back(own_server: Server) -> None:
    """Only new votes are not asked for there: what was begun is ended."""
    async with Proxy(own_server.port) as proxy:
        async with Locker(proxy.url, key_validity=2) as locker:
            node = internals.node(locker)
            wire = node.connection
            assert wire is not None
            held = [await locker.acquire(f"name {number}") for number in range(10)]
            wire.slow_down()  # for ever: the watchdog ends only what it has begun
            await asyncio.sleep(2.5)
            assert all(scope.held for scope in held)
            with pytest.raises(AcquireTimeoutError, match=r"answers are more than 0\.5 s late"):
                await locker.acquire("another", timeout=0.05)
            await held.pop().release()
            assert own_server.execute("DBSIZE") == 9
            for scope in held[:3]:
                await scope.release()
        assert own_server.execute("DBSIZE") == 0  # closing has given back the others


@pytest.mark.asyncio
async def test_a_server_that_never_reads_again_is_left(own_server: Server) -> None:
    async with Locker(own_server.url, key_validity=2) as locker:
        node = internals.node(locker)
        held = await locker.acquire("held")
        own_server.pause()
        try:
            tasks = [asyncio.create_task(locker.acquire(name)) for name in NAMES]
            assert await asyncio.wait_for(held.wait_lost(), 4) in ("expired", "disconnected")
            await until(lambda: node.connection is None, 4)
        finally:
            own_server.resume()
        for scope in await asyncio.wait_for(asyncio.gather(*tasks), 20):
            await scope.release()
