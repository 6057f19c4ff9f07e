"""While a task waits: when it is woken, what it costs, and what it leaves behind. The waiting table, line by line."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import statistics
import time

import pytest

from asynclock import AcquireTimeoutError, Locker, LockLostError, NotLockedError, ServerError
from asynclock._engine.clock import clock
from asynclock.testing import Proxy, Server
from tests.support import internals
from tests.support.helpers import AT_ONCE, body, contend, key, until, worker

pytestmark = [pytest.mark.every_python, pytest.mark.handoff]


@pytest.mark.asyncio
@pytest.mark.fast
async def test_acquires_at_once_when_a_holder_elsewhere_releases(locker: Locker, server: Server) -> None:
    waits = []
    async with worker(server, "5", "hold", "job") as holder:
        await holder.event()
        for _ in range(20):
            waiting = asyncio.create_task(locker.acquire("job"))
            await asyncio.sleep(0.02)
            assert not waiting.done()
            holder.tell()
            released = await holder.event()
            scope = await asyncio.wait_for(waiting, 2)
            waits.append(time.monotonic() - released["at"])
            holder.tell()
            await scope.release()
            await holder.event()
    # The table says 2 ms at the median; seen here 0.1 to 0.3 ms before the worker's own line arrives.
    assert statistics.median(waits) < 0.02, waits


@pytest.mark.asyncio
async def test_acquires_when_the_keys_of_a_killed_holder_expire(own_server: Server) -> None:
    """Twenty keys, one after the other. The server does not look for what has expired, so nobody is told of it."""
    own_server.execute("DEBUG", "SET-ACTIVE-EXPIRE", "0")
    late = []
    async with Locker(own_server.url) as locker:

        async def take(name: str) -> float:
            async with locker.with_context(name):
                return time.monotonic()

        async with worker(own_server, "1", "hold_many", "job", "20") as holder:
            await holder.event()
            names = [f"job {number}" for number in range(20)]
            waiting = [asyncio.create_task(take(name)) for name in names]
            await until(lambda: all((room := internals.room(locker, name)) and room.contended for name in names))
            holder.process.kill()
            await holder.process.wait()
            expiries = []
            for name in names:
                asked = time.monotonic()
                ttl = own_server.execute("PTTL", key(name))
                assert isinstance(ttl, int)
                assert ttl > 0
                expiries.append((asked + ttl / 1000, time.monotonic() + ttl / 1000))
            for acquired, (earliest, latest) in zip(await asyncio.gather(*waiting), expiries, strict=True):
                assert acquired > earliest - 0.005  # not before it was free
                late.append(acquired - latest)
    # The table says within 20 ms, 20 times out of 20. The machine may be busy: for a moment, or with all of it.
    assert statistics.median(late) < 0.04 and max(late) < 0.25, late


@pytest.mark.asyncio
@pytest.mark.fast
async def test_a_lost_push_costs_the_ttl_at_most(server: Server, locker: Locker) -> None:
    async with Proxy(server.port) as proxy, Locker(proxy.url) as deaf:
        proxy.swallow_pushes = True
        server.execute("SET", key("job"), "somebody", "PX", "700")
        since = time.monotonic()
        waiting = asyncio.create_task(deaf.acquire("job"))
        await asyncio.sleep(0.1)
        server.execute("DEL", key("job"))  # nobody hears of it
        scope = await asyncio.wait_for(waiting, 5)
        assert 0.5 < time.monotonic() - since < 0.7 + AT_ONCE
        await scope.release()


@pytest.mark.asyncio
async def test_a_key_without_expiry_is_looked_at_again(server: Server) -> None:
    async with Proxy(server.port) as proxy, Locker(proxy.url, key_validity=0.4) as deaf:
        proxy.swallow_pushes = True
        server.execute("SET", key("job"), "somebody")
        waiting = asyncio.create_task(deaf.acquire("job"))
        await asyncio.sleep(0.05)
        server.execute("DEL", key("job"))
        scope = await asyncio.wait_for(waiting, 2)
        await scope.release()


@pytest.mark.asyncio
async def test_who_does_not_wait_is_told_that_answers_take_too_long(server: Server) -> None:
    """The connection is there, and the vote is over when it comes."""
    async with Proxy(server.port) as proxy, Locker(proxy.url, key_validity=0.15) as locker:
        proxy.delay = 0.2
        with pytest.raises(ServerError, match=r"longer than key_validity=0\.15 s"):
            await locker.try_acquire("job")
        proxy.delay = 0.0
        await (await locker.acquire("job", timeout=5)).release()


@pytest.mark.asyncio
@pytest.mark.fast
async def test_a_dropped_connection_does_not_leave_a_waiter_behind(server: Server, locker: Locker) -> None:
    async with Proxy(server.port) as proxy, Locker(proxy.url) as waiter:
        scope = await locker.acquire("job")
        waiting = asyncio.create_task(waiter.acquire("job"))
        await asyncio.sleep(0.05)
        proxy.refuse()
        proxy.reset()
        await scope.release()  # its push goes nowhere
        proxy.accept()
        taken = await asyncio.wait_for(waiting, 2)
        await taken.release()


@pytest.mark.asyncio
async def test_a_silent_connection_is_given_up_and_made_again(server: Server) -> None:
    """A connection that the network swallows: no reset, no answer."""
    async with Proxy(server.port) as proxy, Locker(proxy.url, key_validity=1.2, extend_interval=0.4) as locker:
        holding = await body(await locker.acquire("job"))
        proxy.freeze()
        await asyncio.sleep(0.3)
        waiting = asyncio.create_task(locker.acquire("other"))
        await until(lambda: holding.error, 3)
        assert isinstance(holding.error, LockLostError)
        proxy.thaw()
        scope = await asyncio.wait_for(waiting, 5)
        await scope.release()


async def acquire_and_leave(locker: Locker, name: str, delay: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(delay), locker.with_context(name):
            await asyncio.sleep(random.random() * 0.0002)


@pytest.mark.asyncio
@pytest.mark.parametrize("majority", [1, 2])
async def test_cancelled_at_any_point_leaves_no_key(server: Server, majority: int) -> None:
    random.seed(majority)
    async with Locker(server.url, key_majority=majority) as locker, Locker(server.url, key_majority=majority) as other:
        left = 0
        for round_ in range(1000):
            delay = random.random() * 0.0006
            if round_ % 2:
                await acquire_and_leave(locker, "job", delay)
            else:  # with somebody to contend with
                await asyncio.gather(
                    acquire_and_leave(locker, "job", delay),
                    acquire_and_leave(other, "job", random.random() * 0.0006),
                    acquire_and_leave(locker, "job", random.random() * 0.0006),
                )
            left += server.execute("DBSIZE") != 0
        assert left == 0
        scope = await locker.acquire("job", timeout=1)
        await scope.release()


@pytest.mark.asyncio
@pytest.mark.fast
async def test_timed_out_at_any_point_leaves_no_key(server: Server) -> None:
    random.seed(3)
    timeouts = acquired = 0
    async with Locker(server.url) as locker:
        # Mostly 400 of a thousand. Where a server that is woken takes the core, nearly every answer is there first.
        while timeouts + acquired < 1000 or min(timeouts, acquired) <= 10:
            assert timeouts + acquired < 20_000, (timeouts, acquired)
            try:
                # Half of them less than 0.1 ms, which is about what it takes. (uvloop's timers count whole
                # milliseconds: there the time is over at once or after a while.)
                scope = await locker.acquire("job", timeout=random.random() ** 4 * 0.0015)
            except AcquireTimeoutError:
                timeouts += 1
            else:
                acquired += 1
                await scope.release()
            assert server.execute("DBSIZE") == 0


@pytest.mark.asyncio
@pytest.mark.fast
async def test_cancelled_while_somebody_holds_it(server: Server, locker: Locker, other: Locker) -> None:
    scope = await other.acquire("job")
    value = server.execute("GET", key("job"))
    for _ in range(200):
        await acquire_and_leave(locker, "job", random.random() * 0.002)
        assert server.execute("GET", key("job")) == value
    await scope.release()
    assert server.execute("DBSIZE") == 0


@pytest.mark.asyncio
async def test_a_thousand_waiters_are_one_contender(server: Server, own_server: Server) -> None:
    async with Proxy(server.port) as proxy, Locker(proxy.url) as locker:
        server.execute("SET", key("job"), "somebody", "PX", "1000")
        waiting = [asyncio.create_task(locker.acquire("job")) for _ in range(1000)]
        await asyncio.sleep(0.9)
        asked = sum(proxy.commands[command] for command in ("SET", "GET", "PTTL", "EVAL"))
        # Two attempts of two and three commands, besides what was tried at connect.
        assert asked < 20, proxy.commands
        server.execute("PEXPIRE", key("job"), "60000")  # a push: one more attempt
        await asyncio.sleep(0.5)
        asked_later = sum(proxy.commands[command] for command in ("SET", "GET", "PTTL", "EVAL"))
        assert asked_later - asked <= 4
        server.execute("DEL", key("job"))
        for task in waiting:
            await (await task).release()
        assert server.execute("DBSIZE") == 0


@pytest.mark.asyncio
@pytest.mark.fast
async def test_waiters_of_a_process_are_served_in_order(locker: Locker) -> None:
    order: list[int] = []

    async def one(number: int) -> None:
        async with locker.with_context("job"):
            order.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(one(number) for number in range(300)))
    assert order == list(range(300))


@pytest.mark.asyncio
@pytest.mark.slow
@pytest.mark.one_loop
@pytest.mark.parametrize(("handoffs", "times"), [(0, 1500), (100, 5000)])
async def test_two_processes_hand_one_lock_back_and_forth(server: Server, handoffs: int, times: int) -> None:
    """By two processes with ten tasks each, that many times; a counter that only the lock guards is exact."""
    options = json.dumps({"local_handoffs": handoffs})
    async with worker(server, options, "count", "job", "10", str(times)) as one:
        async with worker(server, options, "count", "job", "10", str(times)) as two:
            for each in (one, two):
                assert (await each.event())["event"] == "ready"
            for each in (one, two):
                each.tell()
            counted = [await each.event(120) for each in (one, two)]
    assert [event["counted"] for event in counted] == [times, times]
    assert server.execute("GET", "counter") == str(2 * times).encode()
    assert server.execute("EXISTS", key("job")) == 0


@pytest.mark.asyncio
async def test_without_handoff_every_release_reaches_the_server(server: Server) -> None:
    async with Locker(server.url, local_handoffs=0) as locker:
        values = set()

        async def one() -> None:
            async with locker.with_context("job"):
                values.add(server.execute("GET", key("job")))

        await asyncio.gather(*(one() for _ in range(10)))
        assert len(values) == 10


@pytest.mark.asyncio
async def test_without_handoff_tasks_that_are_alone_are_as_quick_as_one(server: Server) -> None:
    """A process holds back for nobody whom it has not met."""

    async def median(locker: Locker, tasks: int) -> float:
        """From one acquisition to the next, of 2000."""
        stamps = []

        async def one() -> None:
            for _ in range(2000 // tasks):
                async with locker.with_context("job"):
                    stamps.append(time.perf_counter())

        await asyncio.gather(*(one() for _ in range(tasks)))
        return statistics.median(then - first for first, then in itertools.pairwise(stamps))

    async with Locker(server.url, local_handoffs=0) as locker:
        ratios = []
        for _ in range(3):  # what a busy machine adds, it adds to both
            alone = await median(locker, 1)
            ratios.append(await median(locker, 16) / alone)
    # The bound is 1.3; seen: 0.5 to 1.0. It was 5 to 18.
    assert statistics.median(ratios) < 2, ratios


@pytest.mark.asyncio
@pytest.mark.fast
@pytest.mark.parametrize("handoffs", [5, 0])
async def test_handoff_is_bounded_so_that_others_get_their_turn(server: Server, other: Locker, handoffs: int) -> None:
    async with Locker(server.url, local_handoffs=handoffs) as locker:
        stop = False
        turns = 0

        async def greedy() -> None:
            nonlocal turns
            while not stop:
                async with locker.with_context("job"):
                    turns += 1
                    await asyncio.sleep(0)

        tasks = [asyncio.create_task(greedy()) for _ in range(10)]
        await asyncio.sleep(0.05)
        before = []
        for _ in range(20):
            since = turns
            async with asyncio.timeout(2), other.with_context("job"):
                before.append(turns - since)
        stop = True
        await asyncio.gather(*tasks)
        # While it is not known that somebody else is there, 50 ms are the bound instead: before the other's first turn,
        # and again after a pause of the machine, in which nobody was met.
        assert statistics.median(before) < 100, before


@pytest.mark.asyncio
@pytest.mark.fast
async def test_try_acquire(locker: Locker, other: Locker) -> None:
    scope = await locker.try_acquire("job")
    for each in (locker, other):
        since = time.monotonic()
        with pytest.raises(NotLockedError, match="job"):
            await each.try_acquire("job")
        assert time.monotonic() - since < 1
        with pytest.raises(NotLockedError):
            async with each.try_with_context("job"):
                pytest.fail("not locked")
    await scope.release()
    async with other.try_with_context("job") as scope:
        assert scope.held


@pytest.mark.asyncio
async def test_acquire_times_out(locker: Locker, other: Locker) -> None:
    scope = await other.acquire("job")
    for timeout in (0.1, 0):
        since = time.monotonic()
        with pytest.raises(AcquireTimeoutError, match="somebody else holds it") as caught:
            await locker.acquire("job", timeout=timeout)
        assert timeout <= time.monotonic() - since + 0.002 < timeout + 0.5
        assert isinstance(caught.value, TimeoutError)
    with pytest.raises(AcquireTimeoutError):
        async with locker.with_context("job", timeout=0.05):
            pytest.fail("not locked")
    await scope.release()


@pytest.mark.asyncio
@pytest.mark.slow
@pytest.mark.parametrize("caching", [True, False])
async def test_ten_thousand_names_at_once(server: Server, caching: bool) -> None:
    each = "for _, key in ipairs(redis.call('KEYS', '*')) do least = math.min(least, redis.call('PTTL', key)) end"
    options = {"client_side_caching": caching, "key_validity": 20.0, "extend_interval": 2.0}
    async with Locker(server.url, **options) as locker:
        since = time.monotonic()
        scopes = await asyncio.gather(*(locker.acquire(f"name {number}") for number in range(10_000)))
        assert time.monotonic() - since < 10
        assert server.execute("DBSIZE") == 10_000
        await asyncio.sleep(3.5)
        left = server.execute("EVAL", f"local least = 1e9 {each} return least", "0")
        assert isinstance(left, int)
        assert left > 16_600  # all were extended, 2 s ago or less, and what a busy machine adds
        assert all(scope.held for scope in scopes)
        assert server.execute("DBSIZE") == 10_000
        await asyncio.gather(*(scope.release() for scope in scopes))
        assert server.execute("DBSIZE") == 0


@pytest.mark.asyncio
async def test_waiting_without_tracking_polls(server: Server, other: Locker) -> None:
    async with Locker(server.url, client_side_caching=False, key_validity=0.6) as locker:
        scope = await other.acquire("job")
        waiting = asyncio.create_task(locker.acquire("job"))
        await asyncio.sleep(0.1)
        await scope.release()
        since = time.monotonic()
        taken = await asyncio.wait_for(waiting, 2)
        assert time.monotonic() - since < 0.3 + AT_ONCE  # at least every extend_interval
        await taken.release()


@pytest.mark.asyncio
async def test_force_while_others_wait(locker: Locker, other: Locker, server: Server) -> None:
    holder = await body(await locker.acquire("job"))
    waiters = [asyncio.create_task(each.acquire("job")) for each in (locker, other)]
    await asyncio.sleep(0.05)
    taken = await other.force_acquire("job")
    await holder.lost_within(AT_ONCE, time.monotonic())
    assert not any(task.done() for task in waiters)
    await taken.release()
    for task in asyncio.as_completed(waiters, timeout=2):
        await (await task).release()
    assert server.execute("DBSIZE") == 0


@pytest.mark.asyncio
async def test_after_a_suspend_nothing_is_late(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's timers stand still while the machine is suspended; what is due is counted on a clock that does not."""
    suspended = 0.0
    monkeypatch.setattr("asynclock._engine.manager.clock", lambda: clock() + suspended)
    # The server does not look for what has expired, so nobody is told of it.
    own_server.execute("DEBUG", "SET-ACTIVE-EXPIRE", "0")
    async with Locker(own_server.url, key_validity=6.0, extend_interval=5.0) as locker:
        monkeypatch.setattr(internals.manager(locker), "chance", lambda: 1.0)  # first extended after 5 s
        held = await locker.acquire("held")
        own_server.execute("SET", key("job"), "somebody", "PX", "5000")
        waiting = asyncio.create_task(locker.acquire("job"))
        await until(lambda: (room := internals.room(locker, "job")) and room.last_failed)
        await until(lambda: held.remaining() < 5.8)
        suspended = 4.0
        own_server.execute("PEXPIRE", key("job"), "1400")
        own_server.execute("PEXPIRE", key("held"), "1700")
        since = time.monotonic()
        await (await asyncio.wait_for(waiting, 5)).release()
        took = time.monotonic() - since
        assert took < 1.4 + AT_ONCE, took
        await until(lambda: held.remaining() > 4)  # extended, before its time was over
        await held.release()


@pytest.mark.asyncio
@pytest.mark.one_loop
async def test_who_contends_with_others_is_not_put_off_as_if_pushes_meant_nothing(server: Server) -> None:
    """Whoever is refused sees nearly the same time to live each time, though it is another holder's."""
    waits = await contend([server.url], processes=3, times=1500)
    assert max(waits) < 1.0  # PAUSE is more; 0.2 s are seen on a busy machine
