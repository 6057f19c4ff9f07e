"""asynclock.sync in one process: threads, signals, blocks, losses. What only several processes show is in
test_sync_processes.py."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import itertools
import os
import random
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.sentinel
import trustme
from redis.cluster import RedisCluster

import asynclock
from asynclock import (
    AcquireTimeoutError,
    AlreadyHeldError,
    ConfigurationError,
    LockerClosedError,
    LockLostError,
    LossReason,
    NotLockedError,
    ServerError,
)
from asynclock.events import Acquired, Event, Released
from asynclock.sync import Locker, LockScope
from asynclock.sync import locker as sync_locker
from asynclock.sync.loop_thread import Latch, LoopThread
from asynclock.testing import Cluster, Sentinels, Server, TLSFront
from tests.support.helpers import AT_ONCE, key

pytestmark = [pytest.mark.every_python, pytest.mark.redis_py, pytest.mark.handoff]


class OwnError(Exception):
    """The body's own, or a signal handler's."""


def loop_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("asynclock")]


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    gc.collect()
    end = time.monotonic() + 2
    while loop_threads() and time.monotonic() < end:  # that of a forgotten locker ends by itself
        time.sleep(0.01)
    assert not loop_threads()


@pytest.fixture
def locker(server: Server) -> Iterator[Locker]:
    with Locker(server.url) as locker:
        yield locker


@pytest.fixture
def other(server: Server) -> Iterator[Locker]:
    """To the server, it is another process."""
    with Locker(server.url) as locker:
        yield locker


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as threads:
        yield threads


def free(server: Server, name: str = "job") -> bool:
    return server.execute("EXISTS", key(name)) == 0


def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not true within {seconds} s"
        time.sleep(0.001)


# Acquiring and releasing


@pytest.mark.fast
def test_a_block(locker: Locker, server: Server) -> None:
    with locker.with_context("job") as scope:
        assert scope.name == "job"
        assert scope.held
        assert scope.lost_reason is None
        assert 4 < scope.remaining() <= 4.948
        scope.check()
        assert not free(server)
    assert free(server)
    assert not scope.held
    assert scope.remaining() == 0.0
    assert scope.lost_reason is None
    with pytest.raises(LockLostError, match="has released it"):
        scope.check()


def test_by_hand(locker: Locker, server: Server) -> None:
    scope = locker.acquire("job")
    assert not free(server)
    scope.release()
    assert free(server)
    scope.release()
    with locker.acquire("job") as scope:
        assert not free(server)
    assert free(server)
    with pytest.raises(RuntimeError, match="entered once"):
        scope.__enter__()
    with pytest.raises(LockLostError), released(locker):
        pass


def released(locker: Locker) -> LockScope:
    scope = locker.acquire("another")
    scope.release()
    return scope


def test_a_context_is_for_one_block(locker: Locker) -> None:
    context = locker.with_context("job")
    with context:
        pass
    with pytest.raises(RuntimeError, match="used before"), context:
        pass


def test_released_inside_of_the_block(locker: Locker, server: Server) -> None:
    with locker.with_context("job") as scope:
        scope.release()
        assert free(server)
        assert not scope.held
    with locker.with_context("job") as scope:
        threading.Thread(target=scope.release).start()
        assert scope.wait_lost(timeout=5) is None
        assert not scope.held


def test_not_free(locker: Locker, other: Locker) -> None:
    with other.with_context("job"):
        with pytest.raises(NotLockedError):
            locker.try_acquire("job")
        with pytest.raises(NotLockedError), locker.try_with_context("job"):
            pass
        with pytest.raises(AcquireTimeoutError):
            locker.acquire("job", timeout=0)
        for timeout in (0.1, timedelta(seconds=0.1)):
            since = time.monotonic()
            with (
                pytest.raises(AcquireTimeoutError, match=r"within 0\.1 s"),
                locker.with_context("job", timeout=timeout),
            ):
                pass
            assert 0.1 <= time.monotonic() - since < 0.1 + AT_ONCE
    with locker.try_with_context("job") as scope:
        assert scope.held


@pytest.mark.parametrize("wrong", [-1, "1", float("nan"), True])
def test_wrong_arguments(locker: Locker, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout"):
        locker.acquire("job", timeout=wrong)
    with pytest.raises(ConfigurationError, match="timeout"), locker.with_context("job") as scope:
        scope.wait_lost(timeout=wrong)
    for call in (locker.acquire, locker.try_acquire, locker.force_acquire):
        with pytest.raises(ConfigurationError, match="at_least="):
            call("job", at_least=wrong)
    for name in ("", 1):
        with pytest.raises(ConfigurationError, match="name"):
            locker.acquire(name)  # type: ignore[arg-type]


def test_a_take_over(locker: Locker, other: Locker) -> None:
    with pytest.raises(LockLostError, match="took it over"), locker.with_context("job") as scope:
        with other.force_with_context("job") as taken:
            assert scope.wait_lost(timeout=5) is LossReason.TAKEN_OVER
            assert taken.held
        scope = other.force_acquire("job")
        scope.release()


def test_a_waiter_gets_it_at_once(locker: Locker, other: Locker, threads: ThreadPoolExecutor) -> None:
    scope = other.acquire("job")
    waiting = threads.submit(locker.acquire, "job")
    time.sleep(0.1)
    assert not waiting.done()
    scope.release()
    since = time.monotonic()
    waiting.result(5).release()
    assert time.monotonic() - since < AT_ONCE


def test_the_options_are_those_of_the_asynchronous_locker() -> None:
    def described(of: Any) -> dict[str, tuple[Any, Any]]:
        parameters = inspect.signature(of).parameters.values()
        return {each.name: (each.default, each.annotation) for each in parameters if each.name != "servers"}

    assert described(Locker) == described(asynclock.Locker)
    with pytest.raises(ConfigurationError, match="did you mean 'key_validity'"):
        Locker("redis://127.0.0.1", key_vality=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="extend_interval"):
        Locker("redis://127.0.0.1", extend_interval=10)


def test_so_are_the_methods() -> None:
    def methods(of: Any) -> set[str]:
        return {name for name in dir(of) if not name.startswith("_")}

    # A body in a thread cannot be stopped when the lock is lost, nor can one that waits for a change be.
    for_coroutines = {"lead", "synchronized", "watch"}
    there = methods(asynclock.Locker) - for_coroutines
    assert methods(Locker) - {"fork"} == {"close" if name == "aclose" else name for name in there}
    assert methods(LockScope) - {"on_lost"} == methods(asynclock.LockScope) - {"create_task"}
    for name in methods(Locker) & methods(asynclock.Locker) - {"client"}:
        assert list(inspect.signature(getattr(Locker, name)).parameters) == list(
            inspect.signature(getattr(asynclock.Locker, name)).parameters
        )


# Looking


@pytest.mark.fast
def test_who_holds_it_and_what_happens(locker: Locker, server: Server) -> None:
    assert Locker(server.url).statistics().acquired == 0
    told: list[Event] = []
    unsubscribe = locker.subscribe(told.append)
    with locker.with_context("job"):
        holder = locker.holder("job")
        assert holder is not None and holder.pid == os.getpid()
        assert locker.names() == ["job"]
        assert locker.statistics().held == 1
    until(lambda: [type(event) for event in told] == [Acquired, Released])
    unsubscribe()
    with locker.with_context("job"):
        pass
    assert locker.holder("job") is None
    assert len(told) == 2
    locker.close()
    assert locker.statistics().released == 2


# Losses


@pytest.mark.fast
def test_a_loss_is_told_at_once(locker: Locker, server: Server, threads: ThreadPoolExecutor) -> None:
    with pytest.raises(LockLostError, match="another client deleted its key") as caught:
        with locker.with_context("job") as scope:
            waiting = [threads.submit(scope.wait_lost) for _ in range(5)]
            assert scope.wait_lost(timeout=0.05) is None
            since = time.monotonic()
            server.execute("DEL", key("job"))
            assert scope.wait_lost(timeout=5) is LossReason.DELETED
            assert time.monotonic() - since < AT_ONCE
            assert {each.result(5) for each in waiting} == {LossReason.DELETED}
            assert not scope.held
            assert scope.lost_reason is LossReason.DELETED
            assert scope.remaining() == 0.0
            with pytest.raises(LockLostError):
                scope.check()
    assert caught.value.reason is LossReason.DELETED
    assert key("job") in caught.value.detail
    assert scope.wait_lost() is LossReason.DELETED


def test_the_body_that_notices_nothing_goes_on(locker: Locker, server: Server) -> None:
    """Longer than the engine looks whether what it has cancelled still works."""
    with pytest.raises(LockLostError), locker.with_context("job"):
        server.execute("DEL", key("job"))
        time.sleep(1.5)
        went_on = True
    assert went_on


def test_a_loss_that_only_the_release_finds(server: Server) -> None:
    with Locker(server.url, client_side_caching=False) as locker, pytest.raises(LockLostError, match="deleted"):
        with locker.with_context("job"):
            server.execute("DEL", key("job"))


def test_the_bodys_own_error_comes_out(locker: Locker, server: Server) -> None:
    with pytest.raises(OwnError), locker.with_context("job"):
        raise OwnError
    assert free(server)
    with pytest.raises(OwnError), locker.with_context("job") as scope:
        server.execute("DEL", key("job"))
        assert scope.wait_lost(timeout=5) is not None
        raise OwnError
    with pytest.raises(LockLostError) as caught, locker.with_context("job") as scope:
        server.execute("DEL", key("job"))
        assert scope.wait_lost(timeout=5) is not None
        scope.check()
    assert caught.traceback[-2].name == "check"  # the one that the body let pass


def test_callbacks(locker: Locker, server: Server) -> None:
    told: list[object] = []
    events = [threading.Event() for _ in range(4)]

    def with_reason(reason: LossReason) -> None:
        told.append(reason)
        told.append(threading.current_thread())
        events[0].set()

    def blocking() -> None:
        events[1].set()
        events[3].wait(5)

    with contextlib.suppress(LockLostError), locker.with_context("job") as scope:
        scope.on_lost(blocking)
        scope.on_lost(with_reason)
        scope.on_lost(events[2].set)
        assert not told
        server.execute("DEL", key("job"))
        assert all(event.wait(5) for event in events[:3])
        with locker.with_context("another") as another:  # nothing has blocked the event loop
            assert another.held
        events[3].set()
    assert told[0] is LossReason.DELETED
    assert told[1] not in (threading.main_thread(), *loop_threads())
    late: list[LossReason] = []
    scope.on_lost(late.append)
    until(lambda: late)
    assert late == [LossReason.DELETED]


def test_callbacks_are_not_called_without_a_loss(locker: Locker, server: Server) -> None:
    told: list[LossReason] = []
    with locker.with_context("job") as scope:
        scope.on_lost(told.append)
    with locker.with_context("job") as scope:
        scope.on_lost(told.append)
        scope.cancel()
        server.execute("DEL", key("job"))
        time.sleep(0.1)
    scope.on_lost(told.append)
    time.sleep(0.1)
    assert told == []


def test_a_callback_that_fails(locker: Locker, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)

    def fail() -> None:
        raise OwnError

    with contextlib.suppress(LockLostError), locker.with_context("job") as scope:
        scope.on_lost(fail)
        server.execute("DEL", key("job"))
        scope.wait_lost(timeout=5)
    until(lambda: failed)
    assert failed[0].exc_type is OwnError


def test_a_callback_without_a_thread_for_it(locker: Locker, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the end of the process, or when there are too many."""
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def cannot(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def fail() -> None:
        raise OwnError

    with contextlib.suppress(LockLostError), locker.with_context("job") as scope:
        scope.on_lost(fail)
        scope.on_lost(told.append)
        monkeypatch.setattr(threading.Thread, "start", cannot)
        server.execute("DEL", key("job"))
        until(lambda: len(told) == 2)
    assert told[1] is LossReason.DELETED


def test_a_server_that_dies(own_server: Server) -> None:
    with Locker(own_server.url) as locker, pytest.raises(LockLostError) as caught:
        with locker.with_context("job") as scope:
            own_server.kill()
            since = time.monotonic()
            assert scope.wait_lost(timeout=10) is LossReason.DISCONNECTED
            assert time.monotonic() - since < AT_ONCE
    assert caught.value.reason is LossReason.DISCONNECTED


def test_a_server_that_is_not_there(own_server: Server) -> None:
    own_server.kill()
    with pytest.raises(ServerError, match="is it running"), Locker(own_server.url):
        pass
    assert not loop_threads()
    locker = Locker(own_server.url)
    with pytest.raises(ServerError):
        locker.acquire("job")
    own_server.start()
    locker.acquire("job").release()
    locker.close()


def test_a_server_that_is_silent(own_server: Server) -> None:
    with Locker(own_server.url) as locker:
        scope = locker.acquire("job")
        own_server.pause()
        try:
            since = time.monotonic()
            scope.release()
            assert time.monotonic() - since < AT_ONCE
            with pytest.raises(AcquireTimeoutError):
                locker.acquire("another", timeout=0.1)
            assert time.monotonic() - since < 2 * AT_ONCE
        finally:
            own_server.resume()
        until(lambda: free(own_server))


# Stopping the body


@pytest.mark.parametrize("notices", [True, False])
def test_cancelled(locker: Locker, server: Server, notices: bool) -> None:
    """Until the body has left, nobody else gets the lock."""
    with locker.with_context("job") as scope:
        threading.Timer(0.05, scope.cancel).start()
        assert scope.wait_lost(timeout=5) is None
        assert not scope.held
        assert scope.remaining() == 0.0
        assert not free(server)
        if notices:
            scope.check()
            pytest.fail("went on")
    assert free(server)
    assert scope.lost_reason is None


def test_cancelled_errors_that_are_others(locker: Locker, server: Server) -> None:
    with pytest.raises(OwnError), locker.with_context("job") as scope:
        scope.cancel()
        raise OwnError
    with pytest.raises(LockLostError, match="another"), locker.with_context("job") as scope:
        scope.cancel()
        released(locker).check()
    with pytest.raises(LockLostError, match="deleted"), locker.with_context("job") as scope:
        server.execute("DEL", key("job"))
        scope.wait_lost(timeout=5)
        scope.cancel()  # too late


def test_cancelled_and_then_lost(locker: Locker, server: Server) -> None:
    with locker.with_context("job") as scope:
        scope.cancel()
        server.execute("DEL", key("job"))
        time.sleep(0.1)
        scope.check()


def test_cancelled_by_hand(locker: Locker, server: Server) -> None:
    scope = locker.acquire("job")
    scope.cancel()
    until(lambda: free(server))
    with pytest.raises(LockLostError):
        scope.check()
    scope.release()


# Threads


def test_one_thread_for_all(server: Server, threads: ThreadPoolExecutor) -> None:
    lockers = [Locker(server.url) for _ in range(10)]
    assert not loop_threads()  # it comes with the first use
    ready = threading.Barrier(10)

    def use(locker: Locker) -> None:
        ready.wait(5)
        with locker.with_context("job"):
            assert len(loop_threads()) == 1

    list(threads.map(use, lockers))
    for locker in lockers[1:]:
        locker.close()
    assert len(loop_threads()) == 1
    lockers[0].close()
    assert not loop_threads()
    with Locker(server.url):
        assert len(loop_threads()) == 1


def test_ten_threads_contend_as_one(locker: Locker, other: Locker, server: Server, threads: ThreadPoolExecutor) -> None:
    """While another holds the lock, one asks the server, and all are told by one push."""

    def sets() -> int:
        found = re.search(rb"cmdstat_set:calls=(\d+)", server.execute("INFO", "commandstats"))
        return int(found[1]) if found else 0

    inside = 0
    most = 0

    def hold() -> None:
        nonlocal inside, most
        with locker.with_context("job"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.001)
            inside -= 1

    scope = other.acquire("job")
    before = sets()
    waiting = [threads.submit(hold) for _ in range(10)]
    time.sleep(1)
    assert not any(each.done() for each in waiting)
    # An attempt that finds the lock held, at most another one to watch it, and the holder's first check.
    assert sets() - before <= 4
    scope.release()
    for each in waiting:
        each.result(5)
    assert most == 1


def test_many_threads_and_names(locker: Locker, other: Locker, threads: ThreadPoolExecutor) -> None:
    counts = dict.fromkeys("abc", 0)

    def count(number: int) -> None:
        for name in itertools.islice(itertools.cycle("abc"), number % 3, number % 3 + 30):
            with (locker, other)[number % 2].with_context(name):
                value = counts[name]
                time.sleep(0)
                counts[name] = value + 1

    list(threads.map(count, range(12)))
    assert sum(counts.values()) == 360


def test_a_thread_that_would_wait_for_itself(locker: Locker, threads: ThreadPoolExecutor) -> None:
    with locker.with_context("job") as scope:
        for timeout in (None, 1):
            with pytest.raises(AlreadyHeldError, match="a block around this call"):
                locker.acquire("job", timeout=timeout)
            with pytest.raises(AlreadyHeldError), locker.with_context("job", timeout=timeout):
                pass
        for asked in (lambda: locker.try_acquire("job"), lambda: locker.acquire("job", timeout=0)):
            with pytest.raises((NotLockedError, AcquireTimeoutError)):
                asked()
        with pytest.raises(AcquireTimeoutError):
            threads.submit(locker.acquire, "job", timeout=0.05).result(5)
        with locker.with_context("another"):
            pass
        scope.release()
        with locker.with_context("job"):
            pass
    by_hand = locker.acquire("job")
    with pytest.raises(AcquireTimeoutError):  # another thread may release it
        locker.acquire("job", timeout=0.05)
    by_hand.release()
    with locker.with_context("job"):  # all is forgotten when a block is left
        pass


def test_a_block_that_another_thread_leaves(locker: Locker, server: Server, threads: ThreadPoolExecutor) -> None:
    stack = contextlib.ExitStack()
    threads.submit(stack.enter_context, locker.with_context("job")).result(5)
    assert not free(server)
    stack.close()
    assert free(server)
    threads.submit(locker.acquire, "job").result(5).release()


@pytest.mark.asyncio
@pytest.mark.one_loop
async def test_an_event_loop_is_not_blocked(server: Server) -> None:
    locker = Locker(server.url)
    scope = await asyncio.to_thread(locker.acquire, "job")
    waiting: list[Callable[[], object]] = [
        lambda: locker.acquire("another"),
        lambda: locker.try_acquire("another"),
        lambda: locker.force_acquire("job"),
        locker.with_context("another").__enter__,
        locker.__enter__,
        locker.close,
        scope.__enter__,
        scope.wait_lost,
        scope.release,
    ]
    for call in waiting:
        with pytest.raises(ConfigurationError, match=r"asynclock\.Locker.*asyncio\.to_thread"):
            call()
    told: list[LossReason] = []
    scope.on_lost(told.append)
    scope.check()
    assert scope.held
    assert scope.remaining() > 4
    server.execute("DEL", key("job"))
    assert await asyncio.to_thread(scope.wait_lost, timeout=5) is LossReason.DELETED
    assert scope.lost_reason is LossReason.DELETED
    scope.cancel()
    await asyncio.to_thread(locker.close)
    until(lambda: told)


# Closing


def test_closed(server: Server, threads: ThreadPoolExecutor) -> None:
    locker = Locker(server.url)
    by_hand = locker.acquire("by hand")
    scope = locker.acquire("job")
    waiting = threads.submit(locker.acquire, "job")
    time.sleep(0.05)
    assert "open" in repr(locker)
    locker.close()
    locker.close()
    assert "closed" in repr(locker)
    with pytest.raises(LockerClosedError, match="make a new Locker"):
        waiting.result(5)
    with pytest.raises(LockerClosedError):
        locker.acquire("job")
    with pytest.raises(LockerClosedError), locker:
        pass
    assert server.execute("KEYS", "*") == []
    for each in (by_hand, scope):
        assert each.lost_reason is LossReason.CLOSED
        assert each.wait_lost() is LossReason.CLOSED
        with pytest.raises(LockLostError, match="the locker was closed"):
            each.check()
        each.release()
        each.cancel()


def test_a_locker_that_was_never_used(server: Server) -> None:
    locker = Locker(server.url)
    assert "new" in repr(locker)
    locker.close()
    with pytest.raises(LockerClosedError):
        locker.acquire("job")
    with pytest.raises(LockerClosedError), locker:
        pass


def test_closing_waits_for_the_blocks_of_other_threads(server: Server, threads: ThreadPoolExecutor) -> None:
    locker = Locker(server.url)
    inside = threading.Event()
    lost: list[LossReason | None] = []

    def body() -> None:
        with locker.with_context("job") as scope:
            inside.set()
            lost.append(scope.wait_lost(timeout=5))
            time.sleep(0.2)
            lost.append(LossReason.FLUSHED if free(server) else None)

    done = threads.submit(body)
    assert inside.wait(5)
    locker.close()
    assert lost == [LossReason.CLOSED, None]
    assert free(server)
    with pytest.raises(LockLostError, match="the locker was closed"):
        done.result(5)


def test_but_not_longer_than_the_lock_would_have_lasted(server: Server, threads: ThreadPoolExecutor) -> None:
    locker = Locker(server.url, key_validity=0.5)
    inside, leave = threading.Event(), threading.Event()

    def body() -> None:
        with locker.with_context("job"):
            inside.set()
            leave.wait(5)

    done = threads.submit(body)
    assert inside.wait(5)
    since = time.monotonic()
    locker.close()
    assert time.monotonic() - since < 0.5 + AT_ONCE
    assert free(server)
    leave.set()
    with pytest.raises(LockLostError, match="the locker was closed"):
        done.result(5)


def test_nor_for_the_block_it_is_called_in(server: Server) -> None:
    locker = Locker(server.url)
    with pytest.raises(LockLostError, match="the locker was closed"), locker.with_context("job"):
        since = time.monotonic()
        locker.close()
        assert time.monotonic() - since < AT_ONCE
        assert free(server)


def test_a_block_whose_lock_was_released_does_not_hold_up_the_closing(server: Server) -> None:
    inside, left = threading.Event(), threading.Event()
    locker = Locker(server.url)

    def work() -> None:
        with locker.with_context("job") as scope:
            scope.release()
            inside.set()
            left.wait(30)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert inside.wait(AT_ONCE)
        since = time.monotonic()
        locker.close()
        assert time.monotonic() - since < AT_ONCE
    finally:
        left.set()
        thread.join()


def test_a_client_that_is_being_made_holds_nobody_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a cluster connects, and the nodes may hang."""
    made, begun = threading.Event(), threading.Event()
    make = sync_locker.synchronous

    def slowly(source: Any) -> Any:
        begun.set()
        made.wait(30)
        return make(source)

    monkeypatch.setattr(sync_locker, "synchronous", slowly)
    with Locker(server.url) as locker:
        clients: list[Any] = []
        threads = [threading.Thread(target=lambda: clients.append(locker.client)) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            assert begun.wait(AT_ONCE)
            since = time.monotonic()
            with locker.with_context("job", timeout=1):
                assert time.monotonic() - since < AT_ONCE
        finally:
            made.set()
            for thread in threads:
                thread.join()
        assert clients == [locker.client] * 2


@pytest.mark.parametrize("where", ["start", "wait"])
def test_a_loop_thread_whose_start_was_interrupted_ends(
    where: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(BaseException): ...

    start, wait = threading.Thread.start, Latch.wait

    def started(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "asynclock":
            raise Interrupted

    def waited(latch: Latch, timeout: float | None = None) -> bool:
        wait(latch, timeout)
        raise Interrupted

    before = set(threading.enumerate())
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        if where == "start":
            patch.setattr(threading.Thread, "start", started)
        else:
            patch.setattr(Latch, "wait", waited)
        LoopThread()
    end = time.monotonic() + AT_ONCE
    while set(threading.enumerate()) - before:
        assert time.monotonic() < end, threading.enumerate()
        time.sleep(0.01)


def test_several_threads_close(server: Server, threads: ThreadPoolExecutor) -> None:
    for _ in range(20):
        locker = Locker(server.url)
        scope = locker.acquire("job")
        list(threads.map(lambda locker: locker.close(), [locker] * 5))
        assert free(server)
        assert not scope.held
        assert not loop_threads()


def test_threads_that_use_a_locker_while_it_is_closed(server: Server, threads: ThreadPoolExecutor) -> None:
    """Whatever they are doing: it works, or says that the locker is closed, and nobody waits for ever."""
    for delay in (0.0, 0.001, 0.003, 0.01, 0.03) * 4:
        locker = Locker(server.url)
        ready = threading.Barrier(6)

        def use(locker: Locker = locker, ready: threading.Barrier = ready) -> None:
            ready.wait(5)
            with contextlib.suppress(LockerClosedError, LockLostError):
                while True:
                    with locker.with_context("job") as scope:
                        scope.wait_lost(timeout=0.001)
                        scope.check()

        users = [threads.submit(use) for _ in range(5)]
        ready.wait(5)
        time.sleep(delay)
        locker.close()
        for user in users:
            user.result(10)
        assert free(server)


def test_a_forgotten_locker(server: Server) -> None:
    locker = Locker(server.url)
    with locker.with_context("job"):
        pass
    with pytest.warns(ResourceWarning, match=r"sync\.Locker .* was forgotten without close\(\); use 'with'"):
        del locker
        gc.collect()
    until(lambda: not loop_threads())


def test_a_forgotten_scope(locker: Locker, server: Server) -> None:
    scope = locker.acquire("job")
    with pytest.warns(ResourceWarning, match=r"of lock 'job' was forgotten without release; use 'with', or"):
        del scope
    until(lambda: free(server))
    stack = contextlib.ExitStack()
    stack.enter_context(locker.with_context("job")).on_lost(lambda: None)
    with pytest.warns(ResourceWarning, match="was forgotten without release"):
        del stack
        gc.collect()
    until(lambda: free(server))

    def generator() -> Iterator[None]:
        with locker.with_context("job"):
            yield

    abandoned = generator()
    next(abandoned)
    assert not free(server)
    del abandoned
    assert free(server)


def test_a_scope_keeps_its_locker(server: Server) -> None:
    scope = Locker(server.url).acquire("job")
    gc.collect()
    assert scope.held
    with pytest.warns(ResourceWarning):
        scope.release()
        del scope
        gc.collect()


# Signals


@contextlib.contextmanager
def alarms() -> Iterator[Callable[[float], None]]:
    """Call it to have OwnError raised in this thread after so many seconds."""

    def handler(number: int, frame: object) -> None:
        raise OwnError

    def alarm(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield alarm
    finally:
        alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_ends_a_wait(locker: Locker, other: Locker, server: Server) -> None:
    """And nothing waits any more: the lock does not come later, to nobody."""
    with alarms() as alarm:
        for wait in (
            lambda: locker.acquire("job"),
            lambda: locker.acquire("job", timeout=60),
            locker.with_context("job").__enter__,
        ):
            with other.with_context("job"):
                since = time.monotonic()
                with pytest.raises(OwnError):
                    alarm(0.1)
                    wait()
                assert time.monotonic() - since < 0.1 + AT_ONCE
            time.sleep(0.05)
            assert free(server)
        with pytest.raises(OwnError), locker.with_context("job") as scope:
            alarm(0.1)
            scope.wait_lost()
        assert free(server)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_at_any_point(locker: Locker, other: Locker) -> None:
    """Wherever it strikes, the lock is released, and the event loop goes on: it must wait for nothing that the
    interrupted thread holds. A scope that is lost between two instructions is released when it is forgotten."""
    chance = random.Random(1)
    interrupted = 0
    with alarms() as alarm:
        for _ in range(600):
            scope: LockScope | None = None
            try:
                try:
                    alarm(chance.uniform(1e-5, chance.choice([3e-4, 2e-3])))
                    match chance.randrange(3):
                        case 0:
                            with locker.with_context("job") as scope:
                                scope.check()
                        case 1:
                            scope = locker.acquire("job", timeout=1)
                            scope.release()
                        case _:
                            with locker.acquire("job") as scope:
                                scope.wait_lost(timeout=0.001)
                finally:
                    alarm(0)
            except OwnError:
                interrupted += 1
            scope = None
            other.acquire("job", timeout=5).release()
    assert interrupted > 100


def test_a_signal_handler_may_close_the_locker(server: Server) -> None:
    locker = Locker(server.url)
    scope = locker.acquire("job")
    before = signal.signal(signal.SIGALRM, lambda *_: locker.close())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(LockerClosedError):
            locker.acquire("job")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert free(server)
    assert scope.lost_reason is LossReason.CLOSED


# Clients


def test_the_client_is_one_for_threads(server: Server) -> None:
    with Locker(server.url + "?client_name=mine") as locker:
        client = locker.client
        assert isinstance(client, redis.Redis)
        assert client is locker.client
        assert client.ping()
        assert client.client_getname() in ("mine", b"mine")
    assert not client.connection_pool._available_connections or not client.connection_pool._in_use_connections


@pytest.mark.parametrize("how", ["plain", "unix", "tls", "settings"])
def test_a_client_is_given(server: Server, kind: str, tmp_path: Any, how: str) -> None:
    with contextlib.ExitStack() as stack:
        if how == "unix":
            server = stack.enter_context(Server(kind, unix_socket=True))
            client = redis.Redis.from_url(server.unix_url)
        elif how == "tls":
            authority = trustme.CA()
            papers = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            authority.issue_cert("localhost").configure_cert(papers)
            authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
            front = stack.enter_context(TLSFront(server.port, papers))
            client = redis.Redis(host="localhost", port=front.port, ssl=True, ssl_ca_certs=str(tmp_path / "ca.pem"))
        elif how == "settings":
            server.execute("ACL", "SETUSER", "mine", "on", ">secret", "allkeys", "allchannels", "+@all")
            stack.callback(server.execute, "ACL", "DELUSER", "mine")
            client = redis.Redis(
                port=server.port, db=3, username="mine", password="secret", client_name="own", decode_responses=True
            )
        else:
            client = redis.Redis(port=server.port)
        stack.callback(client.close)
        locker = stack.enter_context(Locker(client))
        assert locker.client is client
        with pytest.raises(LockLostError), locker.with_context("job") as scope:
            assert client.exists(key("job"))
            client.delete(key("job"))
            assert scope.wait_lost(timeout=5) is LossReason.DELETED
        assert client.ping()  # it is the program's


def test_clients_of_several_servers(server: Server, own_server: Server) -> None:
    clients = [redis.Redis(port=server.port), redis.Redis(port=own_server.port)]
    with pytest.raises(ConfigurationError, match="odd number"), Locker(clients):
        pass


@pytest.mark.slow
def test_a_cluster(cluster: Cluster) -> None:
    with Locker(cluster.url) as locker:
        client = locker.client
        assert isinstance(client, RedisCluster)
        with locker.with_context("job"):
            assert [client.exists(key("job", index)) for index in range(3)] == [1, 1, 1]
        with Locker(client) as another, another.with_context("job"):
            assert another.client is client
            with pytest.raises(NotLockedError):
                locker.try_acquire("job")
    client.close()


@pytest.mark.slow
def test_behind_sentinels() -> None:
    with Sentinels() as sentinels:
        with Locker(sentinels.url) as locker:
            assert isinstance(locker.client, redis.Redis)
            locker.client.set("x", 1)
            with locker.with_context("job"):
                assert locker.client.exists(key("job"))
        manager = redis.sentinel.Sentinel(sentinels.addresses)
        with Locker(manager.master_for(sentinels.name)) as locker, locker.with_context("job") as scope:
            assert scope.held
        with pytest.raises(ConfigurationError, match="replicas"):
            Locker(manager.slave_for(sentinels.name))


def test_clients_that_do_not_fit() -> None:
    class Connection(redis.Connection):
        """Nobody knows what it does."""

    for wrong, why in (
        (redis.asyncio.Redis(), "takes URLs and clients of redis"),
        (redis.Redis(connection_pool=redis.ConnectionPool(connection_class=Connection)), "one of redis-py's"),
        (redis.Redis(ssl=True, ssl_validate_ocsp=True), "ssl_validate_ocsp"),
        (redis.Redis(redis_connect_func=print), "redis_connect_func"),
        (1, "expected a URL"),
        ([], "an empty list"),
    ):
        with pytest.raises(ConfigurationError, match=why):
            Locker(wrong)  # type: ignore[arg-type]


def test_what_is_imported() -> None:
    """Whoever has an event loop does not pay for this."""
    code = "import asynclock, sys; print('asynclock.sync' in sys.modules or 'anyio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
