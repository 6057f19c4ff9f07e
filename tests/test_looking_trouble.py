"""Who holds a lock, and what happens to it, asked in trouble: silent servers, crowds, forks, callbacks that ask."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import subprocess
import sys
import time

import pytest

from asynclock import AcquireTimeoutError, AlreadyHeldError, Holder, Locker, LockerClosedError, NotLockedError
from asynclock.events import Event, GaveUp, TimedOut
from asynclock.testing import Server
from tests.support.family import Family
from tests.support.helpers import key, until
from tests.support.runs import URLS

pytestmark = pytest.mark.every_python

PATIENCE = 0.02  # try_next_after, by default
PROMISED = 1.3 * PATIENCE  # seconds that a timeout may take more if a server is silent: docs/guarantees.md, 4


@pytest.fixture
def env(server: Server, family: Family) -> dict[str, str]:
    rest = {name: value for name, value in family.env.items() if name not in URLS}
    return rest | {"ASYNCLOCK_URL": server.url, "COLUMNS": "80", "PYTHONWARNINGS": "ignore"}


# Callbacks in the thread of asynclock.sync


PROGRAM = """
import sys, threading, time
from asynclock.sync import Locker
locker = Locker(sys.argv[1], key_validity=1)
asked = threading.Event()
def callback(event):
    if not asked.is_set():
        asked.set()
        {call}
unsubscribe = locker.subscribe(callback)
with Locker(sys.argv[1], key_validity=1) as other, other.with_context("other") as scope:
    with locker, locker.with_context("job"):
        time.sleep(1.5)
    print("other is held:", scope.held, flush=True)
"""


@pytest.mark.serverless
@pytest.mark.one_loop
@pytest.mark.parametrize("call", ["locker.statistics()", "unsubscribe()", "locker.subscribe(id)"])
def test_a_callback_of_a_sync_locker_may_ask_it_something(server: Server, call: str) -> None:
    try:
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(call=call), server.url],
            capture_output=True,
            text=True,
            timeout=15,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.fail("the thread 'asynclock' waits for itself; no lock of the process is extended or released any more")
    assert ended.stdout == "other is held: True\n", ended.stderr


# A key that is too long for the name of a lock


@pytest.mark.serverless
@pytest.mark.one_loop
def test_status_lists_the_locks_beside_a_key_that_is_too_long(server: Server, env: dict[str, str]) -> None:
    server.execute("SET", key("report"), "asynclock:n:aa:1:1700000000000:web-3:812", "PX", 60_000)
    server.execute("SET", key("x" * 70_000), "anything")
    command = [sys.executable, "-m", "asynclock", "status"]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, "web-3:812" in ended.stdout) == (0, True), ended.stderr[:100]


@pytest.mark.asyncio
async def test_names_are_names_of_locks(server: Server, locker: Locker) -> None:
    server.execute("SET", key("x" * 70_000), "anything")
    for name in await locker.names():
        await locker.holder(name)


# Forks

FORK = """
import os, sys, time
from asynclock.sync import Locker
locker = Locker(sys.argv[1])
with locker.with_context("parent"):
    pass
if os.fork() == 0:
    told = []
    locker.subscribe(told.append)
    with locker.with_context("child"):
        pass
    time.sleep(0.2)
    print([type(event).__name__ for event in told], locker.statistics().acquired, flush=True)
    locker.close()
    os._exit(0)
os.wait()
locker.close()
"""


@pytest.mark.serverless
@pytest.mark.one_loop
def test_the_child_of_a_fork_subscribes(server: Server) -> None:
    command = [sys.executable, "-c", FORK, server.url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert ended.stdout == "['Acquired', 'Released'] 1\n", ended.stderr


# The holder, for an error: within the time that is promised


@pytest.mark.asyncio
async def test_a_timeout_on_a_silent_server_ends_when_it_is_promised(own_server: Server) -> None:
    async with Locker(own_server.url) as holder, Locker(own_server.url) as waiter:
        async with holder.with_context("job"):
            late = []
            for _ in range(5):
                own_server.pause()
                began = time.monotonic()
                with pytest.raises(AcquireTimeoutError):
                    await waiter.acquire("job", timeout=0.2)
                late.append(time.monotonic() - began - 0.2)
                own_server.resume()
                await asyncio.sleep(0.1)
    assert min(late) < PROMISED + 0.01, f"{[round(each * 1000) for each in late]} ms after the timeout"


@pytest.mark.asyncio
async def test_a_try_does_not_wait_for_a_silent_minority(kind: str) -> None:
    with Server(kind) as a, Server(kind) as b, Server(kind) as c:
        urls = [each.url for each in (a, b, c)]
        async with (
            Locker(urls, restart_quarantine=False) as holder,
            Locker(urls, restart_quarantine=False) as locker,
            holder.with_context("job"),
        ):
            with pytest.raises(NotLockedError):
                await locker.try_acquire("job")
            c.pause()
            took = []
            for _ in range(10):
                began = time.monotonic()
                with pytest.raises(NotLockedError):
                    await locker.try_acquire("job")
                took.append(time.monotonic() - began)
            began = time.monotonic()
            assert await locker.holder("job") is not None
            looked = time.monotonic() - began
            c.resume()
    # Two servers have said who holds it, within a millisecond.
    assert min(took) < PATIENCE / 2, f"each try took {min(took) * 1000:.0f} ms"
    assert looked < 0.5, f"holder() took {looked:.1f} s"


@pytest.mark.asyncio
async def test_many_timeouts_do_not_block_the_loop(own_server: Server) -> None:
    """10,000 tasks wait for one lock with one timeout, and the server hangs. One reading of the keys is for all."""
    blocked = 0.0

    async def beat() -> None:
        nonlocal blocked
        last = time.thread_time()  # CPU time: a machine that is busy with others blocks every loop
        while True:
            await asyncio.sleep(0.005)
            blocked = max(blocked, time.thread_time() - last)
            last = time.thread_time()

    async with Locker(own_server.url, key_validity=20) as holder, Locker(own_server.url, key_validity=20) as locker:
        async with holder.with_context("job"):
            tasks = [asyncio.create_task(locker.acquire("job", timeout=4)) for _ in range(10_000)]
            await asyncio.sleep(2)
            own_server.pause()
            blocked = 0.0
            beating = asyncio.create_task(beat())
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            beating.cancel()
            own_server.resume()
            assert {type(each) for each in ended} == {AcquireTimeoutError}
    assert blocked < 0.3, f"the loop was blocked for {blocked:.2f} s: locks with a short key_validity are lost then"


# Every wait has an end


@pytest.mark.asyncio
async def test_so_has_one_that_did_not_begin(own_server: Server) -> None:
    told: list[Event] = []
    locker = Locker(own_server.url)
    locker.subscribe(told.append)
    own_server.pause()
    connecting = asyncio.create_task(locker.acquire("job"))
    await asyncio.sleep(0.1)
    connecting.cancel()
    await asyncio.gather(connecting, return_exceptions=True)
    own_server.resume()
    async with locker, locker.with_context("job"):
        with pytest.raises(AlreadyHeldError):
            await locker.acquire("job")
    with pytest.raises(LockerClosedError):
        await locker.acquire("job")
    await asyncio.sleep(0)
    errors = [event.error for event in told if isinstance(event, GaveUp)]
    assert errors == ["CancelledError", "AlreadyHeldError", "LockerClosedError"]


@pytest.mark.asyncio
async def test_every_wait_has_an_end(own_server: Server) -> None:
    async with Locker(own_server.url) as holder, Locker(own_server.url, try_next_after=0.5) as locker:
        told: list[Event] = []
        locker.subscribe(told.append)
        async with holder.with_context("job"):
            own_server.pause()
            task = asyncio.create_task(locker.acquire("job", timeout=0.1))
            await asyncio.sleep(0.4)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            own_server.resume()
            await asyncio.sleep(0.1)
        assert any(isinstance(event, GaveUp | TimedOut) for event in told), told


# A long wait, and servers that are away


@pytest.mark.asyncio
async def test_the_warning_does_not_say_what_nobody_knows(own_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    async with (
        Locker(own_server.url, disconnect_grace=20, key_validity=20) as holder,
        Locker(own_server.url, warn_after=0.3) as locker,
        holder.with_context("job"),
    ):
        task = asyncio.create_task(locker.acquire("job"))
        await asyncio.sleep(0.1)
        own_server.stop()
        with caplog.at_level(logging.WARNING, "asynclock"), contextlib.suppress(AssertionError):
            await until(lambda: "a task has waited" in caplog.text, 3)
        own_server.start()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    warnings = [each.getMessage() for each in caplog.records if "a task has waited" in each.getMessage()]
    assert warnings
    assert not [each for each in warnings if "nobody holds it now" in each], warnings


# Watching


@pytest.mark.asyncio
async def test_watch_notices_the_end_of_an_acquisition_that_was_cancelled(server: Server) -> None:
    told: list[Holder | None] = []
    async with Locker(server.url, owner="h") as holder, Locker(server.url, owner="w", key_validity=5) as locker:

        async def watch() -> None:
            async for each in locker.watch("job"):
                told.append(each)

        watching = asyncio.create_task(watch())
        for turn in range(60):
            scope = await holder.acquire("job")
            task = asyncio.create_task(locker.acquire("job"))
            await asyncio.sleep(0.015)
            await scope.release()
            end = time.monotonic() + turn % 20 * 0.0002
            while time.monotonic() < end:
                await asyncio.sleep(0)
            task.cancel()
            for each in await asyncio.gather(task, return_exceptions=True):
                if not isinstance(each, BaseException):
                    await each.release()
            await asyncio.sleep(0.1)
            if told[-1] is not None and not server.execute("EXISTS", key("job")):
                await asyncio.sleep(0.5)
                if told[-1] is not None and not server.execute("EXISTS", key("job")):
                    break
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    assert told[-1] is None, f"the key is free for more than 0.5 s, and watch says {told[-1]}"


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_locker_that_only_watch_uses_is_closed_with_it(server: Server) -> None:
    """Nothing is left of it."""
    before = bytes(server.execute("CLIENT", "LIST")).count(b"name=asynclock")  # type: ignore[arg-type]
    watching = Locker(server.url).watch("job")
    assert await anext(watching) is None
    tasks = asyncio.all_tasks()
    await watching.aclose()
    del watching
    gc.collect()
    await asyncio.sleep(0.5)
    left = bytes(server.execute("CLIENT", "LIST")).count(b"name=asynclock") - before  # type: ignore[arg-type]
    assert left == 0, f"{left} connection is left, and nobody can close it; tasks: {tasks}"


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_locker_is_kept_while_a_task_watches(server: Server) -> None:
    locker = Locker(server.url)
    await locker.__aenter__()
    told: list[Holder | None] = []

    async def watch(holders: object) -> None:
        async for each in holders:  # type: ignore[attr-defined]
            told.append(each)

    task = asyncio.create_task(watch(locker.watch("job")))
    await until(lambda: told)
    del locker
    gc.collect()
    await asyncio.wait([task], timeout=0.5)
    assert not task.done(), repr(task.exception())
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_what_one_subscriber_raises_does_not_matter_to_the_others(locker: Locker) -> None:
    """``except Exception``: a CancelledError is none. Of a future that was cancelled, ``result()`` raises one."""
    told: list[Event] = []

    def cancelled(event: Event) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        future.result()

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    locker.subscribe(cancelled)
    locker.subscribe(told.append)
    async with locker.with_context("job"):
        pass
    await asyncio.sleep(0.05)
    assert told


@pytest.mark.asyncio
async def test_many_watchers_end_fast(server: Server, locker: Locker) -> None:
    """What one costs does not depend on the others."""

    async def watch() -> None:
        async for _ in locker.watch("job"):
            pass

    async def measure(count: int) -> float:
        tasks = [asyncio.create_task(watch()) for _ in range(count)]
        await asyncio.sleep(1)
        began = time.monotonic()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return time.monotonic() - began

    few, many = await measure(1000), await measure(8000)
    assert many < 0.5 + 16 * few, f"1,000 take {few:.2f} s, 8,000 take {many:.2f} s"
