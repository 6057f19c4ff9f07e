"""Semaphores: at most so many scopes of one name at once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
import weakref
from collections import Counter
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

import asynclock.sync
from asynclock import (
    AcquireTimeoutError,
    AsyncLockError,
    ConfigurationError,
    Locker,
    LockerClosedError,
    LockScope,
    LossReason,
    NotLockedError,
    Semaphore,
    ServerError,
)
from asynclock._engine.clock import clock
from asynclock.events import Acquired, Event, GaveUp, Lost, Released, TimedOut
from asynclock.testing import Cluster, Proxy, Sentinels, Server
from asynclock.testing.losses import find
from asynclock.testing.nodes import slot_of
from asynclock.wire.commands import unbulk
from tests.support import internals
from tests.support.cluster import keys, primaries
from tests.support.helpers import AT_ONCE, body, until, worker
from tests.support.kinds import each
from tests.support.tap import Tap

pytestmark = [pytest.mark.every_python]

Locked = list[str]


def slots(server: Server, name: str = "job") -> Locked:
    """The keys of permits that are held on that server."""
    found = server.execute("KEYS", "*:p?:*")
    assert isinstance(found, list)
    words = [key.decode().split(":", 4) for key in found]
    return sorted(":".join(parts) for parts in words if parts[3] != "n" and parts[4] == name)


async def hold(locker: Locker, count: int, permits: int, name: str = "job") -> list[LockScope]:
    semaphore = locker.semaphore(name, permits)
    return [await semaphore.acquire(timeout=10) for _ in range(count)]


async def release(scopes: list[LockScope]) -> None:
    for scope in scopes:
        await scope.release()


# At most so many at once


@pytest.mark.asyncio
@pytest.mark.fast
async def test_a_block_holds_a_permit_and_releases_it(server: Server, locker: Locker) -> None:
    semaphore = locker.semaphore("job", 2)
    assert (semaphore.name, semaphore.permits) == ("job", 2) and "'job' with 2 permits" in repr(semaphore)
    assert slots(server) == []  # nothing was sent
    async with semaphore.with_context() as one, semaphore.try_with_context() as other:
        assert isinstance(one, LockScope) and one.name == other.name == "job" and one.names == ("job",)
        assert one.held and 4 < one.remaining() <= 5
        one.check()
        assert len(slots(server)) == 2
        assert locker.statistics().held == 2
        with pytest.raises(NotLockedError, match=r"none of the 2 permits of semaphore 'job' is free") as refused:
            await semaphore.try_acquire()
        assert refused.value.holder is None and refused.value.name == "job"
        for timeout in (0, 0.05):
            with pytest.raises(AcquireTimeoutError, match=r"none of the 2 permits of semaphore 'job' is free") as late:
                await semaphore.acquire(timeout=timeout)
            assert late.value.timeout == timeout and late.value.__cause__ is None and late.value.holder is None
    assert slots(server) == [] and not one.held
    figures = locker.statistics()
    assert (figures.acquired, figures.released, figures.refused, figures.timed_out) == (2, 2, 1, 2)


@pytest.mark.asyncio
@pytest.mark.parametrize("permits", [1, 2, 5])
async def test_several_lockers(server: Server, permits: int) -> None:
    """More tasks than permits, in three lockers: never more than ``permits`` inside, and all get their turn."""
    inside, most, done = 0, 0, 0

    async def one(locker: Locker) -> None:
        nonlocal inside, most, done
        for _ in range(5):
            async with locker.semaphore("job", permits).with_context():
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.002)
                inside -= 1
            done += 1

    async with Locker(server.url) as a, Locker(server.url) as b, Locker(server.url) as c:
        async with asyncio.timeout(60):
            await asyncio.gather(*(one(locker) for locker in (a, b, c) for _ in range(8)))
        assert most == permits and done == 3 * 8 * 5
        assert slots(server) == [] and internals.busy(a) == []


@pytest.mark.asyncio
@pytest.mark.one_loop
async def test_several_processes(server: Server) -> None:
    async with contextlib.AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(worker(server, "5", "permits", "job", "3", "4", "60")) for _ in range(3)
        ]
        for each_one in workers:
            assert (await each_one.event())["event"] == "ready"
        for each_one in workers:
            each_one.tell()
        done = [await each_one.event(60) for each_one in workers]
    assert max(event["most"] for event in done) == 3
    assert sum(event["acquired"] for event in done) == 3 * 60


@pytest.fixture
def three(kind: str) -> Iterator[list[Server]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Server(kind)) for _ in range(3)]


def test_counting_on_each_server_lets_too_many_in(three: list[Server]) -> None:
    """Why a permit is not a count: each of three servers counts up to 2, and 3 clients find a majority."""

    def count(server: Server) -> bool:
        taken = int(server.execute("GET", "count") or 0)  # type: ignore[call-overload]  # bytes or None
        return taken < 2 and bool(server.execute("INCR", "count"))

    inside = 0
    for away in range(3):  # from each client, another server does not answer
        votes = [count(server) for number, server in enumerate(three) if number != away]
        inside += sum(votes) >= 2
    assert inside == 3


@pytest.mark.asyncio
async def test_the_limit_holds_on_three_servers(three: list[Server]) -> None:
    """The same three clients get 2 permits."""
    async with contextlib.AsyncExitStack() as stack:
        scopes, refused = [], 0
        for away in range(3):
            proxies = [await stack.enter_async_context(Proxy(server.port)) for server in three]
            urls = [proxy.url for proxy in proxies]
            # Who does not wait gives a server ``try_next_after``, and the loop may be busy for longer than the default.
            options = {"restart_quarantine": False, "try_next_after": 1.0}
            locker = await stack.enter_async_context(Locker(urls, **options))
            proxies[away].refuse()
            proxies[away].cut()
            await until(lambda locker=locker: not internals.up(locker))  # type: ignore[misc]  # bound at once
            try:
                scopes.append(await locker.semaphore("job", 2).try_acquire())
            except NotLockedError:
                refused += 1
        assert (len(scopes), refused) == (2, 1)
        await release(scopes)


@pytest.mark.asyncio
async def test_a_lock_of_the_same_name_is_another_thing(server: Server, locker: Locker, other: Locker) -> None:
    lock = await locker.acquire("job")
    async with locker.semaphore("job", 1).with_context() as scope:
        assert await locker.names() == ["job"]  # semaphores are not listed
        holder = await other.holder("job")
        assert holder is not None and holder.keys[0].key == "asynclock:0:job"
        with pytest.raises(NotLockedError):
            await other.semaphore("job", 1).try_acquire()
        async with other.force_with_context("job"):
            await lock.wait_lost()
            assert scope.held


@pytest.mark.asyncio
@pytest.mark.parametrize("prefix", ["asynclock", "{app}", "{app", "{}app", "{app}:x"])
async def test_a_test_that_loses_a_lock_loses_no_permit(server: Server, prefix: str) -> None:
    async with Locker(server.url, key_prefix=prefix) as locker:
        async with locker.semaphore("job", 1).with_context():
            assert find(server, "job") is None
            async with locker.with_context("job"):
                found = find(server, "job")
                assert found is not None and found.keys == (f"{prefix}:0:job".encode(),)


# Waiting


@pytest.mark.asyncio
async def test_a_waiter_gets_each_slot_that_becomes_free(server: Server, locker: Locker, other: Locker) -> None:
    """Whichever it is: none is left out. The waiter's locker knows them all from one look only."""
    scopes = await hold(other, 5, 5)
    semaphore = locker.semaphore("job", 5)
    for _ in range(10):
        waiting = asyncio.create_task(semaphore.acquire(timeout=30))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        since = time.monotonic()
        await scopes.pop(0).release()
        scope = await waiting
        assert time.monotonic() - since < AT_ONCE
        # It goes back to the other locker, which then has another slot than before, sooner or later.
        await scope.release()
        scopes += await hold(other, 1, 5)
    await release(scopes)


@pytest.mark.asyncio
async def test_only_as_many_wake_as_slots_become_free(server: Server) -> None:
    """100 waiters in two lockers, and slots that are freed one by one."""
    attempts = 0
    async with Locker(server.url) as holder, Tap(server) as one, Tap(server) as two:
        async with Locker(one.url) as a, Locker(two.url) as b:
            scopes = await hold(holder, 8, 8)
            tasks = [asyncio.create_task(one_of.semaphore("job", 8).acquire()) for one_of in (a, b) for _ in range(50)]

            def woken() -> int:
                return sum(task.done() for task in tasks)

            await asyncio.sleep(0.3)
            before = len(one.commands("SET")) + len(two.commands("SET"))
            for number, scope in enumerate(scopes):
                await scope.release()
                await until(lambda number=number: woken() > number)  # type: ignore[misc]  # bound at once
                await asyncio.sleep(0.02)
                assert woken() == number + 1, "one waiter for each slot"
            attempts = len(one.commands("SET")) + len(two.commands("SET")) - before
            # Both lockers hear of each slot, and one is faster; and those that were got are extended now and then.
            assert 8 <= attempts <= 40
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, LockScope):
                    await outcome.release()


@pytest.mark.asyncio
async def test_the_longest_waiter_is_next(server: Server, locker: Locker, other: Locker) -> None:
    """Beside permits that are held for long."""
    held = await hold(other, 4, 5)
    quick = (await hold(other, 1, 5))[0]
    served: list[int] = []
    semaphore = locker.semaphore("job", 5)

    async def one(number: int) -> None:
        async with semaphore.with_context():
            served.append(number)
            await asyncio.sleep(0.005)

    async with asyncio.timeout(30):
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(one(number))
                await asyncio.sleep(0.002)
            await quick.release()
    assert served == list(range(20))
    await release(held)


@pytest.mark.asyncio
async def test_two_lockers_take_turns(server: Server, locker: Locker, other: Locker) -> None:
    """Each has more tasks than there are permits, and neither starves."""
    shares: Counter[str] = Counter()
    longest = 0.0
    stop = False

    async def one(who: str, each_locker: Locker) -> None:
        nonlocal longest
        while not stop:
            since = time.monotonic()
            async with each_locker.semaphore("job", 2).with_context():
                longest = max(longest, time.monotonic() - since)
                shares[who] += 1
                await asyncio.sleep(0.002)

    tasks = [
        asyncio.create_task(one(who, each_locker))
        for who, each_locker in (("a", locker), ("b", other))
        for _ in range(6)
    ]
    await asyncio.sleep(3)
    stop = True
    await asyncio.gather(*tasks)
    assert min(shares.values()) > sum(shares.values()) / 20, shares
    assert longest < 2, "a turn is some 50 ms"


@pytest.mark.asyncio
@pytest.mark.one_loop
async def test_holders_that_come_and_go_fast_do_not_slow_a_waiter_down(server: Server, other: Locker) -> None:
    """Each time, the key expires at almost the same time as before. To take that for pushes that mean nothing would put
    off all checks on this server for up to 1.3 s: those of locks, too."""
    stop = time.monotonic() + 2
    longest = 0.0

    async def others() -> None:
        while time.monotonic() < stop:
            async with other.semaphore("job", 50).with_context(wait_release=False):
                await asyncio.sleep(0.003)

    async with Locker(server.url) as locker:

        async def ours() -> None:
            nonlocal longest
            while time.monotonic() < stop:
                since = time.monotonic()
                async with locker.semaphore("job", 50).with_context():
                    longest = max(longest, time.monotonic() - since)
                    await asyncio.sleep(0)
                manager = internals.manager(locker)
                assert internals.node(locker).pace.pause(manager.clock()) == 0

        async with asyncio.timeout(30):
            await asyncio.gather(*(others() for _ in range(50)), ours(), ours())
    assert longest < 1, "with pauses, it was two seconds"


@pytest.mark.asyncio
async def test_a_thousand_permits_cost_no_more_round_trips(server: Server) -> None:
    """One to find a free one while an attempt fails, and one to take it; and one for the rest of the room's work."""
    async with Locker(server.url) as holder, Proxy(server.port) as proxy, Locker(proxy.url) as locker:
        scopes = await hold(holder, 999, 1000)
        await (await locker.acquire("other")).release()
        proxy.delay = 0.1  # seconds, in each direction
        since = time.monotonic()
        scope = await locker.semaphore("job", 1000).acquire(timeout=10)
        assert time.monotonic() - since < 0.59, "three round trips take 0.6 s"
        since = time.monotonic()
        with pytest.raises(NotLockedError):
            await locker.semaphore("job", 1000).try_acquire()
        assert time.monotonic() - since < 0.39, "it looks once"
        proxy.delay = 0
        await scope.release()
        await asyncio.gather(*(each_scope.release() for each_scope in scopes))
        await until(lambda: slots(server) == [])  # what was tried meanwhile is on its way through the proxy


@pytest.mark.asyncio
async def test_one_round_trip_when_permits_are_free(server: Server) -> None:
    async with Proxy(server.port) as proxy, Locker(proxy.url) as locker:
        semaphore = locker.semaphore("job", 100)
        await (await semaphore.acquire()).release()
        proxy.delay = 0.1  # seconds, in each direction
        since = time.monotonic()
        scopes = await asyncio.gather(*(semaphore.acquire() for _ in range(10)))
        assert time.monotonic() - since < 0.39, "two round trips take 0.4 s"
        proxy.delay = 0
        await release(scopes)


@pytest.mark.asyncio
async def test_who_does_not_wait_gets_a_permit_that_was_contended_before(
    server: Server, locker: Locker, other: Locker
) -> None:
    """Turns are for those who wait. This one found none, though all were free."""
    for one, two in ((locker, other), (other, locker)):
        scope = await one.semaphore("job", 1).acquire()
        waiting = asyncio.create_task(two.semaphore("job", 1).acquire())
        await asyncio.sleep(0.05)
        await scope.release()
        await (await waiting).release()
    for one in (locker, other):
        for _ in range(3):
            await (await one.semaphore("job", 1).try_acquire()).release()


@pytest.mark.asyncio
async def test_who_does_not_wait_gets_a_permit_while_others_are_served(server: Server, other: Locker) -> None:
    """Those who wait are about to get one of the many that are free, too."""
    held = await hold(other, 50, 100)
    async with Proxy(server.port) as proxy, Locker(proxy.url) as locker:
        await (await locker.acquire("other")).release()
        proxy.delay = 0.05  # seconds, in each direction
        semaphore = locker.semaphore("job", 100)
        tasks = [asyncio.create_task(semaphore.acquire()) for _ in range(5)]
        for _ in range(20):  # while the first attempts are made, while it looks, and afterwards
            await asyncio.sleep(0.02)
            tasks.append(asyncio.create_task(semaphore.try_acquire()))
        scopes = await asyncio.gather(*tasks)
        proxy.delay = 0
        await release(scopes)
    await release(held)


@pytest.mark.asyncio
async def test_a_look_that_is_under_way_is_waited_for(three: list[Server]) -> None:
    """Two servers say that the slot is taken that was tried first. A third is silent, and the look waits for that."""
    async with contextlib.AsyncExitStack() as stack:
        other = await stack.enter_async_context(Locker([each.url for each in three], restart_quarantine=False))
        proxy = await stack.enter_async_context(Proxy(three[2].port))
        urls = [three[0].url, three[1].url, proxy.url]
        locker = await stack.enter_async_context(Locker(urls, restart_quarantine=False))
        internals.manager(other).chance = internals.manager(locker).chance = lambda: 0.0  # both try slot 0 first
        (held,) = await hold(other, 1, 2)
        proxy.freeze()
        scope = await locker.semaphore("job", 2).try_acquire()
        assert (internals.slot(held), internals.slot(scope)) == (0, 1)
        proxy.thaw()
        await scope.release()
        await held.release()


@pytest.mark.asyncio
async def test_a_look_that_began_before_does_not_count(server: Server, other: Locker) -> None:
    """A permit is released while the answer to a look is on its way, and then somebody asks for one."""
    held = await hold(other, 3, 3)
    async with Proxy(server.port) as proxy, Locker(proxy.url) as locker:
        semaphore = locker.semaphore("job", 3)
        with pytest.raises(NotLockedError):
            await semaphore.try_acquire()
        proxy.delay = 0.2  # seconds, in each direction
        early = asyncio.create_task(semaphore.try_acquire())
        await asyncio.sleep(0.3)
        await held.pop().release()
        late = asyncio.create_task(semaphore.try_acquire())
        with pytest.raises(NotLockedError):
            await early
        scope = await late
        proxy.delay = 0
        await scope.release()
    await release(held)


@pytest.mark.asyncio
async def test_a_look_whose_answers_are_outdated_does_not_count(server: Server, other: Locker) -> None:
    """As when another server reconnects meanwhile: what this one has answered is forgotten."""
    held = await hold(other, 3, 3)
    async with Proxy(server.port) as proxy, Locker(proxy.url) as locker:
        semaphore = locker.semaphore("job", 3)
        with pytest.raises(NotLockedError):
            await semaphore.try_acquire()
        await held.pop().release()
        await asyncio.sleep(0.02)
        proxy.delay = 0.05  # seconds, in each direction
        trying = asyncio.create_task(semaphore.try_acquire())
        await asyncio.sleep(0.02)
        assert internals.looks(locker)
        internals.manager(locker).semaphores.all_changed()
        scope = await trying
        proxy.delay = 0
        await scope.release()
    await release(held)


# Holders that die


@pytest.mark.asyncio
@pytest.mark.one_loop
@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_the_permit_of_a_dead_holder(server: Server, how: str) -> None:
    async with worker(server, "1", "permit", "job", "2") as one, worker(server, "1", "permit", "job", "2") as two:
        assert (await one.event())["event"] == (await two.event())["event"] == "held"
        async with Locker(server.url, key_validity=1) as locker:
            waiting = asyncio.create_task(locker.semaphore("job", 2).acquire(timeout=20))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            os.kill(one.process.pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
            since = time.monotonic()
            scope = await waiting
            assert 0.3 < time.monotonic() - since < 1 + AT_ONCE
            if how == "paused":
                os.kill(one.process.pid, signal.SIGCONT)
                lost = await one.event()
                assert (lost["event"], lost["reason"]) == ("lost", "expired")
            assert scope.held
            await scope.release()


# Losses


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["deleted", "overwritten", "flushed"])
async def test_a_lost_permit_stops_its_block_and_no_other(server: Server, locker: Locker, how: str) -> None:
    one, two = await hold(locker, 2, 2)
    (mine,) = [key for key in slots(server) if int(key.split(":")[3]) == internals.slot(one)]
    first, second = await body(one), await body(two)
    await asyncio.sleep(0.05)  # the first check
    since = time.monotonic()
    if how == "deleted":
        server.execute("DEL", mine)
    elif how == "overwritten":
        server.execute("SET", mine, "x")
    else:
        server.execute("FLUSHALL")
    loss = await first.lost_within(AT_ONCE, since)
    assert (loss.name, loss.reason) == ("job", LossReason(how)) and mine in loss.detail
    if how == "flushed":
        await second.lost_within(AT_ONCE, since)
    else:
        assert two.held
        second.task.cancel()
        await asyncio.wait([second.task])
    server.execute("DEL", mine)
    await release(await hold(locker, 2, 2))


@pytest.mark.asyncio
async def test_a_lost_permit_is_found_free_by_those_who_wait(server: Server, locker: Locker) -> None:
    (scope,) = await hold(locker, 1, 1)
    lost = await body(scope)
    waiting = asyncio.create_task(locker.semaphore("job", 1).acquire(timeout=10))
    await asyncio.sleep(0.05)
    since = time.monotonic()
    server.execute("DEL", *slots(server))
    await lost.lost_within(AT_ONCE, since)
    await (await waiting).release()
    assert time.monotonic() - since < AT_ONCE


# Ends


@pytest.mark.asyncio
@pytest.mark.parametrize("free", [0, 1])
async def test_a_cancellation_at_any_moment_leaves_nothing(
    server: Server, locker: Locker, other: Locker, free: int
) -> None:
    held = await hold(other, 2 - free, 2)
    for turns in range(25):
        semaphore = locker.semaphore("job", 2)
        tasks = [asyncio.create_task(semaphore.acquire()) for _ in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        if turns % 5 == 4:
            await asyncio.sleep(0.003)
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, LockScope):  # it was faster
                await outcome.release()
        await until(lambda: len(slots(server)) == len(held))
        assert locker.statistics().waiting == 0
    await release(held)
    await until(lambda: internals.busy(locker) == [])
    await release(await hold(locker, 2, 2))


@pytest.mark.asyncio
async def test_what_is_known_of_many_is_forgotten(server: Server, locker: Locker) -> None:
    """Rooms that are empty, and semaphores that nobody uses."""
    (scope,) = await hold(locker, 1, 100, "held")
    lock = await locker.acquire("held")
    for number in range(30):
        await release(await hold(locker, 2, 1000, f"job {number}"))
    manager = internals.manager(locker)
    gc.collect()
    assert len(list(manager.semaphores)) < 30
    manager.rooms._sweep()
    assert sorted(room.name for room in manager.rooms.values()) == ["held", "held"]
    assert "held" in {each_one.name for each_one in manager.semaphores}
    assert scope.held and lock.held
    await lock.release()
    await release(await hold(locker, 99, 100, "held"))
    await scope.release()


@pytest.mark.asyncio
async def test_closing(server: Server, other: Locker) -> None:
    locker = Locker(server.url)
    (mine,), theirs = await hold(locker, 1, 3), await hold(other, 2, 3)
    tasks = [asyncio.create_task(locker.semaphore("job", 3).acquire()) for _ in range(5)]
    await asyncio.sleep(0.05)
    assert locker.statistics().waiting == 5
    await locker.aclose()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, LockerClosedError)
    assert mine.lost_reason is LossReason.CLOSED
    assert len(slots(server)) == 2
    with pytest.raises(LockerClosedError):
        await locker.semaphore("job", 3).acquire()
    await release(theirs)


@pytest.mark.asyncio
async def test_a_forgotten_scope(server: Server, locker: Locker) -> None:
    (scope,) = await hold(locker, 1, 1)
    waiting = asyncio.create_task(locker.semaphore("job", 1).acquire(timeout=10))
    await asyncio.sleep(0.02)
    with pytest.warns(ResourceWarning, match="the scope of lock 'job' was forgotten") as warned:
        del scope
        gc.collect()
    assert warned[0].filename == __file__
    await (await waiting).release()


@pytest.mark.parametrize("who", ["holds", "waits", "tries"])
@pytest.mark.parametrize("where", ["no loop runs", "another loop runs"])
def test_a_coroutine_that_is_closed_while_its_loop_does_not_run(server: Server, who: str, where: str) -> None:
    """What there is to do is done when its loop runs again, with others waiting for what it gives back."""

    async def work(semaphore: Semaphore) -> None:
        async with semaphore.with_context():
            await asyncio.sleep(60)

    async def start(semaphore: Semaphore) -> tuple[Coroutine[Any, Any, None], list[asyncio.Task[LockScope]]]:
        coroutine = work(semaphore)
        attempt = coroutine.send(None)
        if who == "holds":
            await until(attempt.done)  # type: ignore[attr-defined]  # it is a future
            coroutine.send(None)
        tasks = [asyncio.create_task(semaphore.acquire()) for _ in range(3)]
        if who != "tries":
            await asyncio.sleep(0.05)
        return coroutine, tasks

    async def close(coroutine: Coroutine[Any, Any, None]) -> None:
        coroutine.close()
        await asyncio.sleep(0.01)

    async def end(tasks: list[asyncio.Task[LockScope]], locker: Locker) -> None:
        async with asyncio.timeout(2):  # its key would last for 5 s
            for task in tasks:
                await (await task).release()
        assert slots(server) == [] and internals.busy(locker) == []
        await locker.aclose()

    async def connect(locker: Locker) -> list[LockScope]:
        await (await locker.semaphore("job", 1).acquire()).release()
        return [] if who != "waits" else await hold(locker, 1, 1)

    with asyncio.Runner() as runner:
        locker = Locker(server.url)
        held = runner.run(connect(locker))
        coroutine, tasks = runner.run(start(locker.semaphore("job", 1)))
        if where == "no loop runs":
            coroutine.close()
        else:
            asyncio.run(close(coroutine))
        runner.run(release(held))
        runner.run(end(tasks, locker))


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["timed out", "no time", "refused", "cancelled", "closed", "closed while it looks"])
async def test_an_error_leaves_no_reference_cycle(server: Server, other: Locker, how: str) -> None:
    """The task goes with the last reference to it, without the garbage collector."""
    held = await hold(other, 1, 1)
    async with Locker(server.url) as locker:
        semaphore = locker.semaphore("job", 1)
        gc.disable()
        try:
            if how in ("no time", "timed out", "cancelled", "closed"):
                timeout = {"timed out": 0.05, "no time": 0}.get(how)
                task = asyncio.create_task(semaphore.acquire(timeout=timeout))
            else:
                task = asyncio.create_task(semaphore.try_acquire())
            if how == "closed while it looks":
                async with asyncio.timeout(10):
                    while not internals.looks(locker):
                        await asyncio.sleep(0)
            elif how != "timed out":
                await asyncio.sleep(0.02)
            if how == "cancelled":
                task.cancel()
            elif how.startswith("closed"):
                await locker.aclose()
            await asyncio.wait([task])
            assert task.cancelled() or isinstance(task.exception(), AsyncLockError)
            kept = weakref.ref(task)
            del task
            await asyncio.sleep(0.02)
            assert kept() is None
        finally:
            gc.enable()
    await release(held)


@pytest.mark.asyncio
async def test_a_context_is_for_one_block(locker: Locker) -> None:
    context = locker.semaphore("job", 1).with_context()
    async with context:
        pass
    with pytest.raises(RuntimeError, match="used before"):
        async with context:
            pass


@pytest.mark.asyncio
async def test_without_waiting_for_the_release(server: Server) -> None:
    async with Locker(server.url, wait_release=False) as locker:
        semaphore = locker.semaphore("job", 1)
        for _ in range(20):
            async with semaphore.with_context(timeout=5):
                pass
        async with semaphore.with_context(wait_release=True):
            pass
    assert slots(server) == []


@pytest.mark.asyncio
async def test_events(server: Server, locker: Locker) -> None:
    events: list[Event] = []
    locker.subscribe(events.append)
    semaphore = locker.semaphore("job", 1)
    async with semaphore.with_context():
        with pytest.raises(NotLockedError):
            await semaphore.try_acquire()
        with pytest.raises(AcquireTimeoutError):
            await semaphore.acquire(timeout=0.02)
    scope = await semaphore.acquire()
    await asyncio.sleep(0.02)
    server.execute("DEL", *slots(server))
    await scope.wait_lost()
    await asyncio.sleep(0.02)
    assert [type(event) for event in events] == [Acquired, GaveUp, TimedOut, Released, Acquired, Lost]
    assert {event.name for event in events if not isinstance(event, GaveUp)} == {"job"}  # type: ignore[union-attr]


@pytest.mark.asyncio
async def test_there_are_no_fencing_tokens(locker: Locker) -> None:
    async with locker.semaphore("job", 1).with_context() as scope:
        with pytest.raises(ConfigurationError, match="semaphore 'job' has no fencing tokens"):
            await scope.fencing_token()


# What is wrong


@pytest.mark.parametrize("permits", [0, -1, 1001, True, 1.0, "3", None])
def test_a_wrong_number_of_permits(permits: int) -> None:
    with pytest.raises(ConfigurationError, match=r"permits=.*must be a whole number from 1 to 1000"):
        Locker("redis://127.0.0.1:1").semaphore("job", permits)


@pytest.mark.parametrize("name", ["", "x" * 1025, "\udc001:x", 1])
def test_a_wrong_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match="name"):
        Locker("redis://127.0.0.1:1").semaphore(name, 1)


def test_two_numbers_in_one_locker() -> None:
    locker = Locker("redis://127.0.0.1:1")
    locker.semaphore("job", 2)
    locker.semaphore("job", 2)
    with pytest.raises(ConfigurationError, match="permits=3: semaphore 'job' has 2 permits in this locker"):
        locker.semaphore("job", 3)


@pytest.mark.asyncio
async def test_two_numbers_in_two_lockers(
    server: Server, locker: Locker, other: Locker, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    for _ in range(3):
        await release(await hold(locker, 2, 2))
    assert told() == []
    for _ in range(3):
        await release(await hold(other, 3, 3))
    await until(told)
    assert len(told()) == 1 and "semaphore 'job' on" in told()[0]
    assert "has 3 permits here and 2 elsewhere" in told()[0]
    assert caplog.records[-1].asynclock_message == "permits_differ"  # type: ignore[attr-defined]
    # The newest number is the one that others compare with: the locker that was first is told when it looks again.
    scopes = await hold(other, 3, 3)
    with pytest.raises(NotLockedError):
        await locker.semaphore("job", 2).try_acquire()
    assert len(told()) == 2 and "has 2 permits here and 3 elsewhere" in told()[1]
    await release(scopes)


@pytest.mark.asyncio
async def test_a_long_wait_is_logged(server: Server, other: Locker, caplog: pytest.LogCaptureFixture) -> None:
    scopes = await hold(other, 2, 2)
    async with Locker(server.url, warn_after=0.2) as locker:
        waiting = asyncio.create_task(locker.semaphore("job", 2).acquire())
        await until(lambda: "long_wait_for_permit" in [vars(each)["asynclock_message"] for each in caplog.records])
        waiting.cancel()
        await asyncio.wait([waiting])
    (text, *_) = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert "semaphore 'job' on" in text and "(1 wait here); there are 2 permits" in text
    await release(scopes)


@pytest.mark.asyncio
async def test_the_server_is_away(own_server: Server) -> None:
    async with Locker(own_server.url) as locker:
        semaphore = locker.semaphore("job", 2)
        await (await semaphore.acquire()).release()
        own_server.kill()
        await until(lambda: not internals.up(locker))
        with pytest.raises(ServerError):
            await semaphore.try_acquire()
        with pytest.raises(AcquireTimeoutError) as late:
            await semaphore.acquire(timeout=0.1)
        assert isinstance(late.value.__cause__, ServerError)
        waiting = [asyncio.create_task(semaphore.acquire(timeout=20)) for _ in range(2)]
        await asyncio.sleep(0.1)
        own_server.start()
        await release(await asyncio.gather(*waiting))


@pytest.mark.asyncio
async def test_an_error_does_not_outlive_its_cause(server: Server) -> None:
    """The look beside the first attempt is refused. The attempt is not, and with it this process has all permits."""
    server.execute("ACL", "SETUSER", "somebody", "reset", "on", ">secret", "~*", "+@all")
    try:
        async with Locker(f"redis://somebody:secret@127.0.0.1:{server.port}/0") as locker:
            server.execute("ACL", "SETUSER", "somebody", "-pttl")
            semaphore = locker.semaphore("job", 1)
            async with semaphore.with_context():
                await until(lambda: not internals.board(locker, "job").looking)
                server.execute("ACL", "SETUSER", "somebody", "+pttl")
                with pytest.raises(NotLockedError, match="the only permit of semaphore"):
                    await semaphore.try_acquire()
                with pytest.raises(AcquireTimeoutError, match="the only permit of semaphore"):
                    await semaphore.acquire(timeout=0.1)
    finally:
        server.execute("ACL", "DELUSER", "somebody")


@pytest.mark.asyncio
async def test_the_error_of_an_attempt_does_not_outlive_its_cause(own_server: Server, other: Locker) -> None:
    """The server has memory again, and somebody else has the permit."""
    async with Locker(own_server.url) as locker, Locker(own_server.url) as theirs:
        semaphore = locker.semaphore("job", 1)
        await (await semaphore.acquire()).release()
        own_server.execute("CONFIG", "SET", "maxmemory", "1")
        waiting = asyncio.create_task(semaphore.acquire(timeout=60))
        await until(lambda: internals.pause_after_failure(locker, "job") > 0.5)
        own_server.execute("CONFIG", "SET", "maxmemory", "0")
        async with theirs.semaphore("job", 1).with_context(timeout=10):
            await until(lambda: internals.board(locker, "job").tickets)  # it has seen that
            with pytest.raises(NotLockedError, match="the only permit of semaphore"):
                await semaphore.try_acquire()
        await (await waiting).release()


@pytest.mark.asyncio
async def test_a_silent_server_does_not_say_that_none_is_free(server: Server) -> None:
    async with Proxy(server.port) as proxy, Locker(proxy.url) as locker:
        semaphore = locker.semaphore("job", 5)
        await (await semaphore.acquire()).release()
        await until(lambda: not internals.looks(locker))
        proxy.freeze()
        with pytest.raises(AcquireTimeoutError, match="has not answered yet"):
            await semaphore.acquire(timeout=0.3)
        proxy.thaw()


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["the user", "pttl", "set"])
async def test_who_waits_is_told_that_the_server_refuses(server: Server, locker: Locker, how: str) -> None:
    server.execute("ACL", "SETUSER", "somebody", "reset", "on", ">secret", "~*", "+@all")
    scopes = await hold(locker, 2, 2)
    try:
        async with Locker(f"redis://somebody:secret@127.0.0.1:{server.port}/0") as refused:
            waiting = [asyncio.create_task(refused.semaphore("job", 2).acquire()) for _ in range(5)]
            await asyncio.sleep(0.05)
            if how == "the user":
                server.execute("ACL", "SETUSER", "somebody", "off")
                internals.drop(refused)
            else:
                server.execute("ACL", "SETUSER", "somebody", f"-{how}")
                await scopes.pop().release()
                scopes += await hold(locker, how == "pttl", 2)
            for outcome in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10):
                assert isinstance(outcome, ServerError) and outcome.lasting
            assert refused.statistics().waiting == 0
            with pytest.raises(ServerError):
                await refused.semaphore("job", 2).try_acquire()
            if how != "pttl":  # which somebody who waits needs only if no permit is free
                with pytest.raises(ServerError):
                    await asyncio.wait_for(refused.semaphore("job", 2).acquire(), 10)
    finally:
        server.execute("ACL", "DELUSER", "somebody")
    await release(scopes)


@pytest.mark.asyncio
async def test_one_server_that_refuses_for_good_and_one_that_is_away(three: list[Server]) -> None:
    """Two of three are enough, and the one that is away may come back: those who wait go on."""
    for server in three:
        server.execute("ACL", "SETUSER", "somebody", "reset", "on", ">secret", "~*", "+@all")
    urls = [f"redis://somebody:secret@127.0.0.1:{server.port}/0" for server in three]
    options = {"restart_quarantine": False}
    async with Locker([server.url for server in three], **options) as other, Locker(urls, **options) as locker:
        scopes = await hold(other, 5, 5)
        waiting = [asyncio.create_task(locker.semaphore("job", 5).acquire()) for _ in range(2)]
        await asyncio.sleep(0.05)
        three[0].execute("ACL", "SETUSER", "somebody", "off")
        internals.drop(locker)
        nodes = internals.nodes(locker)
        await until(lambda: "authentication refused" in str(nodes[0].trouble) and nodes[1].session and nodes[2].session)
        three[1].kill()
        await until(lambda: nodes[1].session is None)
        waiting += [asyncio.create_task(locker.semaphore("free", 5).acquire()) for _ in range(2)]
        waiting += [asyncio.create_task(locker.acquire("as a lock"))]
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in waiting)
        three[1].start()
        three[1].execute("ACL", "SETUSER", "somebody", "reset", "on", ">secret", "~*", "+@all")
        await release(scopes)
        for task in waiting:
            await (await asyncio.wait_for(task, 10)).release()


@pytest.mark.asyncio
@pytest.mark.one_loop
async def test_a_server_without_memory_is_left_alone(own_server: Server) -> None:
    """Slots are free there, and nobody can have one: attempts must not follow each other without a pause."""
    async with Tap(own_server) as tap, Locker(tap.url) as locker:
        semaphore = locker.semaphore("job", 20)
        await (await semaphore.acquire()).release()
        own_server.execute("CONFIG", "SET", "maxmemory", "1")
        before = len(tap.commands("SET"))
        waiting = [asyncio.create_task(semaphore.acquire(timeout=1)) for _ in range(3)]
        stay = asyncio.create_task(semaphore.acquire(timeout=20))
        await asyncio.sleep(0.2)
        with pytest.raises(ServerError, match="OOM"):
            await semaphore.try_acquire()
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, AcquireTimeoutError)
            assert isinstance(outcome.__cause__, ServerError) and "OOM" in str(outcome)
        assert len(tap.commands("SET")) - before < 40, "each task tries once; then one of them with growing pauses"
        own_server.execute("CONFIG", "SET", "maxmemory", "0")
        await (await stay).release()


@pytest.mark.asyncio
async def test_after_a_suspend_nothing_is_late(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's timers stand still while the machine is suspended; what is due is counted on a clock that does not."""
    suspended = 0.0
    monkeypatch.setattr("asynclock._engine.manager.clock", lambda: clock() + suspended)
    # The server does not look for what has expired, so nobody is told of it.
    own_server.execute("DEBUG", "SET-ACTIVE-EXPIRE", "0")
    async with Locker(own_server.url, key_validity=6.0) as locker:
        scopes = await hold(locker, 2, 2)
        keys = own_server.execute("KEYS", "*:p?:*:[0-9]*:job")
        await release(scopes)
    assert isinstance(keys, list) and len(keys) == 2
    for key in keys:
        own_server.execute("SET", key.decode(), "somebody", "PX", "5000")
    async with Locker(own_server.url, key_validity=6.0) as locker:
        waiting = asyncio.create_task(locker.semaphore("job", 2).acquire())
        await until(lambda: internals.board(locker, "job") and internals.board(locker, "job").tickets)
        board = internals.board(locker, "job")
        await until(lambda: not (board.looking or board.unsure))
        (ticket,) = board.tickets.values()
        with_ticket = unbulk(ticket.room.keys[0])
        suspended = 4.0
        for key in keys:
            own_server.execute("PEXPIRE", key.decode(), "60000" if key == with_ticket else "1400")
        since = time.monotonic()
        await (await asyncio.wait_for(waiting, 10)).release()
        assert time.monotonic() - since < 1.4 + 1.5  # and not the 5 s that were left before the suspend


# Every deployment


async def check(one: Locker, two: Locker) -> None:
    """Two permits for two lockers: a third task waits, and gets the one that is given back."""
    name, permits = "a permit", 2
    a, b = one.semaphore(name, permits), two.semaphore(name, permits)
    async with asyncio.timeout(30):
        first, second = await a.acquire(), await b.acquire()
        with pytest.raises(NotLockedError):
            await a.try_acquire()
        waiting = [asyncio.create_task(each_one.acquire()) for each_one in (a, b, a)]
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in waiting)
        await second.release()
        (got,), _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        await first.release()
        await (await got).release()
        await release([await task for task in waiting if task is not got][:1])
        await release([await task for task in waiting])

    inside = most = 0

    async def cycle(locker: Locker) -> None:
        nonlocal inside, most
        for _ in range(4):
            async with locker.semaphore("cycles", 3).with_context(timeout=30):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.001)
                inside -= 1

    await asyncio.gather(*(cycle(locker) for locker in (one, two) for _ in range(6)))
    assert most <= 3


@pytest.mark.asyncio
async def test_independent_servers(three: list[Server]) -> None:
    urls = [server.url for server in three]
    async with Locker(urls) as one, Locker(urls) as two:
        await check(one, two)
        three[0].kill()
        await until(lambda: not internals.up(one) and not internals.up(two))
        await check(one, two)
        assert [len(slots(server, "a permit")) for server in three[1:]] == [0, 0]


@pytest.mark.asyncio
@pytest.mark.parametrize("spread", [False, True])
async def test_a_cluster(cluster: Cluster, spread: bool) -> None:
    async with Locker(cluster.url, spread_keys=spread) as one, Locker(cluster.url, spread_keys=spread) as two:
        await check(one, two)
        for locker in (one, two):  # what looks for another layout of locks leaves permits alone
            if (other_layout := internals.manager(locker)._other_layout) is not None:
                other_layout._tick()
        scopes = await hold(one, 5, 5, "spread")
        found = [key for key in keys(cluster, "*:spread") if b":n:" not in key]
        assert len(found) == 3 * 5
        await release(scopes)


@pytest.mark.asyncio
async def test_a_cluster_whose_slot_moves(cluster: Cluster) -> None:
    """While it moves, some keys of one semaphore are here and some there; then all are there."""
    async with Locker(cluster.url) as one, Locker(cluster.url) as two:
        scopes = await hold(one, 2, 4)
        key = next(each_key for each_key in keys(cluster, "*:p0:*:job") if b":n:" not in each_key).decode()
        owners = primaries(cluster)
        target = next(server for server in owners if server is not cluster.primary_of(key))
        cluster.begin_migration(slot_of(key), target)
        more = await hold(two, 2, 4)
        with pytest.raises(NotLockedError):
            await one.semaphore("job", 4).try_acquire()
        assert all(scope.held for scope in (*scopes, *more))
        cluster.move_keys(slot_of(key), target)
        cluster.finish_migration(slot_of(key), target)
        with pytest.raises(NotLockedError):
            await two.semaphore("job", 4).try_acquire()
        waiting = asyncio.create_task(two.semaphore("job", 4).acquire(timeout=20))
        await release(scopes)
        await release([await waiting])
        await release(more)
        await check(one, two)


@pytest.mark.asyncio
@pytest.mark.one_loop
async def test_sentinel(kind: str) -> None:
    if kind == "redis-6.2":
        pytest.skip("asynclock.testing has no Sentinels of Redis 6.2")
    with Sentinels(kind) as sentinels:
        async with Locker(sentinels.url) as one, Locker(sentinels.url) as two:
            await check(one, two)


@pytest.mark.asyncio
@pytest.mark.one_loop
@pytest.mark.parametrize("which", each("redis-6.2", "redis-8.2", "valkey-9.1"))
async def test_other_servers(which: str) -> None:
    with Server(which) as server:
        async with Locker(server.url) as one, Locker(server.url) as two:
            await check(one, two)


@pytest.mark.asyncio
async def test_resp2(server: Server) -> None:
    async with Tap(server, lambda words: [b"NO-" + words[0]] if words[0] == b"HELLO" else words) as tap:
        async with Locker(tap.url) as one, Locker(tap.url) as two:
            await check(one, two)


@pytest.mark.asyncio
async def test_without_tracking(server: Server) -> None:
    """Nobody tells of a change: those who wait look again at least every ``extend_interval``."""
    async with (
        Locker(server.url, client_side_caching=False, extend_interval=0.2) as one,
        Locker(server.url, client_side_caching=False, extend_interval=0.2) as two,
    ):
        await check(one, two)


@pytest.mark.asyncio
async def test_several_keys_on_one_server(server: Server) -> None:
    async with Locker(server.url, key_majority=2) as one, Locker(server.url, key_majority=2) as two:
        await check(one, two)


@pytest.mark.asyncio
@pytest.mark.parametrize("prefix", ["{tag}", "a{b", "{}x", "}"])
async def test_braces_in_the_prefix(cluster: Cluster, prefix: str) -> None:
    async with Locker(cluster.url, key_prefix=prefix) as one, Locker(cluster.url, key_prefix=prefix) as two:
        await check(one, two)


# Threads


def test_threads(server: Server) -> None:
    with asynclock.sync.Locker(server.url) as locker:
        semaphore = locker.semaphore("job", 2)
        assert (semaphore.name, semaphore.permits) == ("job", 2) and "'job' with 2" in repr(semaphore)
        with semaphore.with_context() as one, semaphore.try_with_context(wait_release=False) as other:
            one.check()
            assert len(slots(server)) == 2 and other.name == "job"
            with pytest.raises(NotLockedError):
                semaphore.try_acquire()
            with pytest.raises(AcquireTimeoutError):
                semaphore.acquire(timeout=0.02)
            with locker.with_context("job"):  # another thing
                pass
            with pytest.raises(ConfigurationError, match="fencing"):
                one.fencing_token()
        semaphore.acquire().release()
        with pytest.raises(ConfigurationError, match="permits=3"):
            locker.semaphore("job", 3)
    assert slots(server) == []


@pytest.mark.asyncio
@pytest.mark.one_loop
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
async def test_a_fork(server: Server, locker: Locker) -> None:
    """What the child does with the parent's permit is nothing to the parent."""
    (scope,) = await hold(locker, 1, 2)
    waiting = [asyncio.create_task(locker.semaphore("job", 2).acquire()) for _ in range(3)]
    await asyncio.sleep(0.05)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            scope.cancel()
            figures = locker.statistics()
            status = 0 if not scope.held and (figures.waiting, figures.held) == (0, 0) else 2
        finally:
            os._exit(status)
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert scope.held and len(slots(server)) == 2 and locker.statistics().waiting == 2
    await scope.release()
    for task in waiting:
        await (await task).release()
