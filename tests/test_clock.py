"""A server whose clock is an hour ahead or behind: nothing takes longer, nothing is over earlier.

The server alone runs under libfaketime, which answers it with another time of day.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asynclock import Locker, LockLostError
from asynclock.core.clock import ServerClock
from asynclock.testing import Proxy, Server, clock_off
from tests.support import internals
from tests.support.helpers import AT_ONCE, body, key, until, worker
from tests.support.tap import Tap, without_compare

HOUR = 3600

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libfaketime is preloaded as Linux has it")


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """What is written in here is how far the server's clock is off."""
    return tmp_path / "clock"


@pytest.fixture
def skewed(kind: str, clock: Path) -> Iterator[Callable[[int], Server]]:
    """Starts the server, with its clock off by so many seconds."""
    environment = clock_off(0)
    del environment["FAKETIME"]  # which would be for good
    environment |= {"FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    server = Server(kind, environment=environment)

    def start(seconds: int) -> Server:
        set_off(clock, seconds)
        server.start()
        assert abs(server_time(server) - time.time() - seconds) < 5
        return server

    yield start
    server.close()


def set_off(clock: Path, seconds: float) -> None:
    new = clock.with_suffix(".new")
    new.write_text(f"{seconds:+g}s\n")
    new.rename(clock)  # it is never half written


def server_time(server: Server) -> float:
    reply: Any = server.execute("TIME")
    return int(reply[0]) + int(reply[1]) / 1e6


def pttl(server: Server, name: str) -> int:
    ttl = server.execute("PTTL", name)
    assert isinstance(ttl, int)
    return ttl


each_way = pytest.mark.parametrize("seconds", [HOUR, -HOUR])


@pytest.mark.asyncio
@each_way
async def test_held_for_as_long_as_usual(skewed: Callable[[int], Server], seconds: int) -> None:
    """Over several validities, in each of which the key lives for one more."""
    server = skewed(seconds)
    async with Locker(server.url, key_validity=1.0) as locker:
        scope = await locker.acquire("job")
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            remaining = scope.remaining()
            asked = time.monotonic()
            ttl = pttl(server, key("job"))
            assert 250 < ttl <= 1100  # the offset is measured from its safe side: later by a round trip at most
            assert 0 < remaining <= ttl / 1000 + (time.monotonic() - asked)
            assert scope.held
            await asyncio.sleep(0.01)
        await scope.release()
        assert server.execute("DBSIZE") == 0


@pytest.mark.asyncio
@each_way
@pytest.mark.parametrize("scripts", [False, True])
async def test_the_expiry_is_in_the_servers_time(skewed: Callable[[int], Server], seconds: int, scripts: bool) -> None:
    server = skewed(seconds)
    rewrite = {"rewrite": without_compare} if scripts else {}
    # A measurement of the clock is used for a validity: a long one, so that the machine may be busy meanwhile.
    options = {"key_validity": 3.0, "extend_interval": 0.2}
    async with Tap(server, **rewrite) as tap, Locker(tap.url, **options) as locker:
        connecting = len(tap.sent)
        now = server_time(server)
        scope = await locker.acquire("job")
        await asyncio.sleep(0.6)
        await scope.release()
        await (await locker.force_acquire("job")).release()
        until = server_time(server) + 3
    expiries = []
    for words in (seen.words for seen in tap.sent[connecting:]):
        assert b"PX" not in words
        assert b"PEXPIRE" not in words
        for word in (b"PXAT", b"PEXPIREAT"):
            if word in words:
                expiries.append(int(words[words.index(word) + 1]) / 1000)
    assert len(expiries) >= 4  # acquired, extended twice or more, taken by force
    # A later measurement of the clock may be a better one: less by half of a round trip that took long.
    assert all(later > earlier - 0.1 for earlier, later in itertools.pairwise(expiries))
    assert now + 3 <= expiries[0]
    assert expiries[-1] <= until + 0.5  # a round trip is meant


@pytest.mark.asyncio
@each_way
async def test_told_of_a_loss_and_of_a_release_as_soon_as_usual(skewed: Callable[[int], Server], seconds: int) -> None:
    server = skewed(seconds)
    async with Locker(server.url) as locker, Locker(server.url) as other:
        holding = await body(await locker.acquire("job"))
        server.execute("DEL", key("job"))
        error = await holding.lost_within(AT_ONCE, time.monotonic())
        assert error.reason == "deleted"

        scope = await other.acquire("job")
        waiting = asyncio.create_task(locker.acquire("job"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await scope.release()
        since = time.monotonic()
        holding = await body(await asyncio.wait_for(waiting, 2))
        assert time.monotonic() - since < AT_ONCE

        taken = await other.force_acquire("job")
        error = await holding.lost_within(AT_ONCE, time.monotonic())
        assert error.reason == "taken over"
        await taken.release()


@pytest.mark.asyncio
@each_way
async def test_a_killed_holders_lock_is_taken_at_the_usual_time(skewed: Callable[[int], Server], seconds: int) -> None:
    server = skewed(seconds)
    async with Locker(server.url) as locker:
        for _ in range(2):
            async with worker(server, "0.6", "hold", "job") as holder:
                await holder.event()
                waiting = asyncio.create_task(locker.acquire("job"))
                await asyncio.sleep(0.5)  # through an extension
                holder.process.kill()
                await holder.process.wait()
                asked = time.monotonic()
                ttl = pttl(server, key("job"))
                assert 0 < ttl <= 700
                scope = await asyncio.wait_for(waiting, 3)
                assert -0.01 < time.monotonic() - (asked + ttl / 1000) < AT_ONCE
                await scope.release()


@pytest.mark.asyncio
@pytest.mark.parametrize("seconds", [0.5, 4, -HOUR])
async def test_the_clock_was_set_before_a_lock_is_acquired(
    skewed: Callable[[int], Server], clock: Path, seconds: float
) -> None:
    """The holder never counts on the key for longer than it lives, and the key never lives for much longer."""
    server = skewed(0)
    async with Locker(server.url) as locker:
        await (await locker.acquire("before")).release()
        await asyncio.sleep(0.2)
        set_off(clock, seconds)
        # Until the server has noticed: it reads its clock now and then.
        await until(lambda: abs(server_time(server) - time.time() - seconds) < 0.1, 2)
        for timeout in (None, 0):
            scope = await locker.acquire("job", timeout=timeout)
            remaining, ttl = scope.remaining(), pttl(server, key("job")) / 1000
            assert remaining <= ttl < 5.5
            await scope.release()
        scope = await locker.force_acquire("job")
        assert scope.remaining() <= pttl(server, key("job")) / 1000 < 5.5
        await scope.release()


@pytest.mark.asyncio
@pytest.mark.parametrize("seconds", [3, -HOUR])
async def test_the_clock_was_set_before_a_lock_is_extended(
    skewed: Callable[[int], Server], clock: Path, seconds: float
) -> None:
    """Right after the extension, and not only when the time is asked for again."""
    server = skewed(0)
    async with Locker(server.url, key_validity=20, extend_interval=0.5) as locker:
        scope = await locker.acquire("job")
        await asyncio.sleep(0.7)
        set_off(clock, seconds)
        await until(lambda: abs(server_time(server) - time.time() - seconds) < 0.1, 2)
        await asyncio.sleep(1.0)  # two extensions
        ends = time.monotonic() + 2
        while time.monotonic() < ends:
            assert scope.remaining() <= pttl(server, key("job")) / 1000 + 0.05 < 21
            await asyncio.sleep(0.02)
        await scope.release()


@pytest.mark.asyncio
async def test_the_clock_is_set_back_while_a_lock_is_held(skewed: Callable[[int], Server], clock: Path) -> None:
    """The key lives an hour too long, until its expiry is set by a new measurement of the clock.

    That hour may be too short to be seen here: the next extension may come right after the server has read its clock.
    """
    server = skewed(0)
    async with Locker(server.url, key_validity=1.0) as locker:
        scope = await locker.acquire("job")
        set_off(clock, -HOUR)
        await until(lambda: server_time(server) < time.time() - HOUR / 2, 5)  # it reads its clock now and then
        await until(lambda: pttl(server, key("job")) <= 1500, 5)
        assert scope.held
        await scope.release()


@pytest.mark.asyncio
@pytest.mark.parametrize("looked_at", [False, True])
async def test_the_clock_is_set_forward_while_a_lock_is_held(
    skewed: Callable[[int], Server], clock: Path, looked_at: bool
) -> None:
    """To the server the key's time is over: the holder is told, and can have the lock again at once."""
    server = skewed(0)
    async with Locker(server.url, key_validity=1.0) as locker:
        holding = await body(await locker.acquire("job"))
        if looked_at:
            await until(lambda: not internals.rooms(locker)["job"].holder.untracked)
        set_off(clock, HOUR)
        await until(lambda: holding.error, 1)  # the server's own search for expired keys, or the next extension
        assert isinstance(holding.error, LockLostError)
        since = time.monotonic()
        scope = await locker.acquire("job", timeout=2)
        assert time.monotonic() - since < AT_ONCE
        assert 0 < pttl(server, key("job")) <= 1500
        await asyncio.sleep(1.2)
        assert scope.held
        await scope.release()


@pytest.mark.asyncio
async def test_a_restart_is_known_by_the_process_whatever_its_uptime(
    skewed: Callable[[int], Server], clock: Path, kind: str
) -> None:
    """One of three servers restarts empty, with its clock an hour behind, which is set right before anybody has
    reconnected: it seems to have been up for an hour, and has forgotten a vote that counts."""
    one, validity = skewed(0), 4.0
    with Server(kind) as two, Server(kind) as three:
        async with Proxy(one.port) as first, Proxy(one.port) as second, Proxy(three.port) as hidden:
            options: dict[str, Any] = {"key_validity": validity}
            async with (
                Locker([first.url, two.url, hidden.url], restart_quarantine=False, **options) as holder,
                Locker([second.url, two.url, three.url], **options) as other,
            ):
                await asyncio.sleep(validity)  # until none of them has just been started
                hidden.refuse()
                hidden.reset()
                scope = await holder.acquire("job")  # with the votes of one and two
                first.freeze()  # the holder does not hear of it
                second.refuse()
                since = time.monotonic()
                one.kill()
                set_off(clock, -HOUR)
                await asyncio.to_thread(one.start)
                set_off(clock, 0)
                second.accept()
                theirs = await asyncio.wait_for(other.acquire("job"), 4 * validity)
                assert not scope.held
                assert time.monotonic() - since > validity / 2
                await theirs.release()
                first.thaw()


@pytest.mark.asyncio
async def test_a_late_answer_about_the_time_does_not_lengthen_the_life_of_keys(server: Server) -> None:
    async with Proxy(server.port) as proxy:
        locker = Locker(proxy.url)
        opening = asyncio.create_task(locker.acquire("first"))
        proxy.delay = 0.3  # while it connects
        await opening
        proxy.delay = 0.0
        async with locker.with_context("job"):
            assert pttl(server, key("job")) <= 5000 + 100 + 5  # a clock may be off by 2 % of the validity
        await locker.aclose()


def test_a_late_answer_confirms_a_measurement_or_ends_it() -> None:
    clock = ServerClock(5.0)
    clock.observe(sent=100.0, server=1000.0, received=100.001)
    clock.observe(sent=101.0, server=1001.5, received=103.0)  # somewhere in these two seconds
    assert clock.usable(103.0) and clock.at_most(103.0) == pytest.approx(1003.0)
    clock.observe(sent=103.0, server=1005.5, received=105.0)  # set forward by half a second, at the least
    assert not clock.usable(105.0)
    assert not clock.due(105.5)  # not again and again
    assert clock.due(107.0)
