"""asyncio's own traps: some thousand of the random programs (``python -m tests.traps`` runs as many as one likes),
and the ones that they have found."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from redis.asyncio import Redis

from asynclock import Locker, LockLostError
from asynclock.testing import Server
from tests.support import internals
from tests.support.helpers import AT_ONCE, eager_task, key
from tests.traps.__main__ import told
from tests.traps.programs import make
from tests.traps.runner import run_all

pytestmark = pytest.mark.every_python

PROGRAMS = 2500  # on each event loop, other ones on each: 3 s if the machine does nothing else


@pytest.mark.asyncio
async def test_random_programs(own_server: Server) -> None:
    first = 0 if isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop) else PROGRAMS
    report = await run_all(own_server, map(make, range(first, first + PROGRAMS)))
    assert report.programs == PROGRAMS
    assert len(report.seen) > 4  # of all the things that may come out of a block
    assert not report.failed and not report.left, told("", report)


@pytest.mark.asyncio
@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_random_programs_of_eager_tasks(own_server: Server) -> None:
    loop = asyncio.get_running_loop()
    first = 2 * PROGRAMS if isinstance(loop, asyncio.SelectorEventLoop) else 3 * PROGRAMS
    loop.set_task_factory(eager_task)
    try:
        report = await run_all(own_server, map(make, range(first, first + PROGRAMS)))
    finally:
        loop.set_task_factory(None)
    assert not report.failed and not report.left, told("", report)


# Who swallows the cancellation of a lost lock and goes on is cancelled again, whatever still keeps the exception


async def nested_with_a_task(locker: Locker, lose: Callable[[], None]) -> None:
    async with locker.with_context("inner") as scope:
        scope.create_task(asyncio.sleep(0.1))
        asyncio.get_running_loop().call_later(0.01, lose)


async def task_group(_: Locker, lose: Callable[[], None]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(0.1))
        asyncio.get_running_loop().call_later(0.01, lose)


async def slow_task_group(_: Locker, lose: Callable[[], None]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(slow())
        asyncio.get_running_loop().call_later(0.01, lose)


async def gathered(_: Locker, lose: Callable[[], None]) -> None:
    lose()
    await asyncio.gather(*kept)


async def gathered_whatever_comes(_: Locker, lose: Callable[[], None]) -> None:
    lose()
    await asyncio.gather(*kept, return_exceptions=True)


async def gathered_slowly(_: Locker, lose: Callable[[], None]) -> None:
    kept.append(asyncio.ensure_future(slow()))
    lose()
    await asyncio.gather(*reversed(kept))


async def task(_: Locker, lose: Callable[[], None]) -> None:
    lose()
    await kept[0]


async def swallows() -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(5)
    await asyncio.sleep(5)


async def task_that_swallows(_: Locker, lose: Callable[[], None]) -> None:
    kept.append(asyncio.ensure_future(swallows()))
    lose()
    await kept[-1]


async def group_whose_task_swallows(_: Locker, lose: Callable[[], None]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(swallows())
        lose()


async def future(_: Locker, lose: Callable[[], None]) -> None:
    kept.append(asyncio.get_running_loop().create_future())
    lose()
    await kept[-1]


async def in_a_thread(_: Locker, lose: Callable[[], None]) -> None:
    lose()
    await asyncio.to_thread(thread_may_end.wait, 5)


async def found_by_a_task_that_it_waits_for(locker: Locker, _: Callable[[], None]) -> None:
    """That one runs when it is cancelled, and passes the cancellation on to what it awaits next."""
    kept.append(asyncio.get_running_loop().create_future())

    async def find() -> None:
        internals.lose(locker, "outer")
        await kept[-1]

    await asyncio.create_task(find())


class Proxy:
    """As frameworks have it: what it stands for is not there now, and to ask for it is an error."""

    @property
    def __class__(self) -> type:
        raise RuntimeError("working outside of a request")


async def beside_a_proxy(_: Locker, lose: Callable[[], None]) -> None:
    request = Proxy()
    lose()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(5)
    await asyncio.sleep(5)
    del request


async def raised_again(_: Locker, lose: Callable[[], None]) -> None:
    lose()
    try:
        await asyncio.sleep(5)
    except asyncio.CancelledError as error:
        again = error
    raise again


async def slow() -> None:
    """To stop: a cycle, and it takes its time."""
    try:
        await asyncio.sleep(5)
    finally:
        await asyncio.sleep(0.1)


kept: list[asyncio.Future[None]] = []
thread_may_end = threading.Event()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "inside",
    [
        nested_with_a_task,
        task_group,
        slow_task_group,
        gathered,
        gathered_whatever_comes,
        gathered_slowly,
        task,
        task_that_swallows,
        group_whose_task_swallows,
        future,
        in_a_thread,
        found_by_a_task_that_it_waits_for,
        beside_a_proxy,
        raised_again,
    ],
)
async def test_a_body_that_swallows_a_cancellation_is_cancelled_again(
    locker: Locker, server: Server, inside: Callable[[Locker, Callable[[], None]], Awaitable[None]]
) -> None:
    kept[:] = [asyncio.ensure_future(asyncio.sleep(5)) for _ in range(2)]
    thread_may_end.clear()
    went_on = False
    gc.disable()  # it might come by and help
    try:
        with pytest.raises(LockLostError):
            async with locker.with_context("outer"):
                with contextlib.suppress(asyncio.CancelledError):
                    await inside(locker, lambda: server.execute("DEL", key("outer")))
                await asyncio.sleep(3.0)  # 1.1 s are needed at most; the rest is for a busy machine
                went_on = True
    finally:
        gc.enable()
        thread_may_end.set()
        while left := [each for each in kept if not each.done()]:
            for each in left:
                each.cancel()
            await asyncio.wait(left, timeout=0.01)
        kept.clear()
    assert not went_on
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0


# Who cleans up is not: neither the task nor those that it waits for


class Cleaner:
    """Takes 0.3 s to stop, and counts how often it is told to."""

    def __init__(self) -> None:
        self.told = 0
        self.cleaned_up = False

    async def run(self) -> None:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            self.told += 1
            await self.clean_up()
            raise

    async def clean_up(self) -> None:
        end = asyncio.get_running_loop().time() + 0.3
        while asyncio.get_running_loop().time() < end:
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                self.told += 1
        self.cleaned_up = True


class Wrapped:
    """As many libraries have it: something that can be awaited, and has a coroutine inside."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run = run

    def __await__(self) -> Any:
        return self.run().__await__()


async def itself(cleaner: Cleaner) -> None:
    await cleaner.run()


async def its_task(cleaner: Cleaner) -> None:
    await asyncio.create_task(cleaner.run())


async def one_of_a_gather(cleaner: Cleaner) -> None:
    everything = asyncio.sleep(5), cleaner.run(), asyncio.sleep(5)
    await asyncio.gather(*everything, return_exceptions=True)  # else it does not wait for all of them


async def one_of_a_group(cleaner: Cleaner) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(cleaner.run())
        await asyncio.sleep(5)


async def one_of_a_wait_for(cleaner: Cleaner) -> None:
    await asyncio.wait_for(cleaner.run(), 5)


async def with_an_exception_made_anew(cleaner: Cleaner) -> None:
    async def run() -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(5)
            raise asyncio.CancelledError
        except asyncio.CancelledError:
            cleaner.told += 1
            await cleaner.clean_up()
            raise

    await Wrapped(run)


async def with_an_exception_that_it_keeps(cleaner: Cleaner) -> None:
    """Not inside ``except``, and in no variable. That it means to raise it again cannot be told from having forgotten
    it somewhere: so this is left in peace for a second."""
    errors: list[BaseException] = []
    try:
        await asyncio.gather(*(asyncio.create_task(asyncio.sleep(5)) for _ in range(2)))
    except asyncio.CancelledError as error:
        cleaner.told += 1
        errors.append(error)
    await cleaner.clean_up()
    raise errors.pop()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "inside",
    [
        itself,
        its_task,
        one_of_a_gather,
        one_of_a_group,
        one_of_a_wait_for,
        with_an_exception_made_anew,
        with_an_exception_that_it_keeps,
    ],
)
@pytest.mark.parametrize("where", ["body", "task"])
async def test_a_body_that_cleans_up_is_cancelled_once(
    locker: Locker, server: Server, inside: Callable[[Cleaner], Awaitable[None]], where: str
) -> None:
    cleaner = Cleaner()
    with pytest.raises(LockLostError):
        async with locker.with_context("job") as scope:
            asyncio.get_running_loop().call_later(0.01, server.execute, "DEL", key("job"))
            if where == "body":
                await inside(cleaner)
            else:
                scope.create_task(inside(cleaner))  # type: ignore[arg-type]
    assert cleaner.cleaned_up
    assert cleaner.told == 1


# Clean-up that takes longer than the second after which who shows no sign of a cancellation is cancelled again


async def takes_long(told: list[str]) -> None:
    try:
        await asyncio.sleep(1.6)
    except asyncio.CancelledError:
        told.append("again")


async def in_finally(told: list[str]) -> None:
    try:
        await asyncio.sleep(5)
    finally:
        await takes_long(told)


async def in_new_tasks(told: list[str]) -> None:
    try:
        await asyncio.sleep(5)
    finally:
        await asyncio.gather(takes_long(told), asyncio.create_task(takes_long(told)))


async def in_a_new_group(told: list[str]) -> None:
    try:
        await asyncio.sleep(5)
    finally:
        async with asyncio.TaskGroup() as group:
            group.create_task(takes_long(told))


async def in_a_new_wait_for(told: list[str]) -> None:
    try:
        await asyncio.sleep(5)
    finally:
        await asyncio.wait_for(takes_long(told), 5)


async def in_the_tasks_of_a_group(told: list[str]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(in_finally(told))
        await in_finally(told)


async def in_a_task_of_wait_for(told: list[str]) -> None:
    await asyncio.wait_for(asyncio.create_task(in_finally(told)), 5)


async def in_one_of_a_gather(told: list[str]) -> None:
    await asyncio.gather(in_finally(told), asyncio.sleep(5), return_exceptions=True)


async def in_a_greenlet(told: list[str]) -> None:
    """As SQLAlchemy's asyncio does it: no frame of the task shows that the exception is handled."""

    def work() -> None:
        try:
            await_only(asyncio.sleep(5))
        finally:
            await_only(takes_long(told))

    await greenlet_spawn(work)


async def in_a_greenlet_of_a_group(told: list[str]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(in_a_greenlet(told))


SLOW: list[Callable[[list[str]], Coroutine[Any, Any, None]]] = [
    in_finally,
    in_new_tasks,
    in_a_new_group,
    in_a_new_wait_for,
    in_the_tasks_of_a_group,
    in_a_task_of_wait_for,
    in_one_of_a_gather,
]
with contextlib.suppress(ImportError):
    from sqlalchemy.util.concurrency import await_only, greenlet_spawn

    SLOW += [in_a_greenlet, in_a_greenlet_of_a_group]


@pytest.mark.asyncio
async def test_slow_clean_up_is_left_in_peace(locker: Locker, server: Server) -> None:
    async def run(clean_up: Callable[[list[str]], Coroutine[Any, Any, None]], where: str) -> tuple[str, list[str]]:
        told: list[str] = []
        name = f"{clean_up.__name__}, {where}"
        with pytest.raises(LockLostError):
            async with locker.with_context(name) as scope:
                asyncio.get_running_loop().call_later(0.05, server.execute, "DEL", key(name))
                if where == "body":
                    await clean_up(told)
                else:
                    scope.create_task(clean_up(told))
        return name, told

    since = time.monotonic()
    results = await asyncio.gather(*(run(clean_up, where) for clean_up in SLOW for where in ("body", "task")))
    assert {name: told for name, told in results if told} == {}
    assert time.monotonic() - since > 1.6


# Commands of redis-py: in Python 3.11, asyncio.wait_for drops most of the cancellations that come while one is sent


async def commands(client: Redis) -> None:
    while True:
        await client.get("x")


async def a_task(client: Redis) -> None:
    await asyncio.create_task(commands(client))


async def a_gather(client: Redis) -> None:
    await asyncio.gather(commands(client), commands(client), return_exceptions=True)


async def a_group(client: Redis) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(commands(client))
        await commands(client)


async def a_wait_for(client: Redis) -> None:
    await asyncio.wait_for(commands(client), 60)


async def a_gather_in_a_wait_for(client: Redis) -> None:
    await asyncio.wait_for(a_gather(client), 60)


@pytest.mark.asyncio
@pytest.mark.parametrize("body", [commands, a_task, a_gather, a_group, a_wait_for, a_gather_in_a_wait_for])
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
async def test_commands_of_redis_py_are_stopped(
    locker: Locker, server: Server, body: Callable[[Redis], Awaitable[None]], busy: bool
) -> None:
    """Also while the loop is so busy that each answer is there before it is waited for."""
    loop = asyncio.get_running_loop()
    chance = random.Random(1)
    running = busy

    async def work() -> None:
        while running:
            until = time.perf_counter() + 0.001
            while time.perf_counter() < until:
                pass
            await asyncio.sleep(0)

    def lose() -> None:
        server.execute("DEL", key("job"))
        lost.append(time.monotonic())

    working = asyncio.create_task(work())
    lost: list[float] = []
    async with Redis.from_url(server.url, socket_timeout=5) as client:
        for _ in range(10):
            with pytest.raises(LockLostError):
                async with locker.with_context("job"):
                    loop.call_later(0.01 + chance.random() / 200, lose)
                    await body(client)
            assert time.monotonic() - lost[-1] < AT_ONCE
    running = False
    await working
    assert len(lost) == 10


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["lost", "fails", "cancelled"])
async def test_an_exit_leaves_no_cycle_of_exceptions(locker: Locker, server: Server, how: str) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise RuntimeError

    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        try:
            async with asyncio.timeout(5) as timeout, locker.with_context("job") as scope:
                if how == "fails":
                    scope.create_task(fail())
                elif how == "lost":
                    server.execute("DEL", key("job"))
                else:
                    scope.create_task(asyncio.sleep(5))
                    timeout.reschedule(asyncio.get_running_loop().time() + 0.01)
                await asyncio.sleep(5 if how != "cancelled" else 0)
        except (LockLostError, ExceptionGroup, TimeoutError) as error:
            kind = type(error)
        gc.collect()
        cycles = [each for each in gc.garbage if isinstance(each, BaseException)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert kind is {"lost": LockLostError, "fails": ExceptionGroup, "cancelled": TimeoutError}[how]
    assert cycles == []
