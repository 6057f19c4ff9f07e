"""Several names in one scope, attacked: cancelled, lost, closed, forgotten and looked at at bad moments."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import time
import warnings
from collections import Counter

import pytest

from asynclock import (
    AcquireTimeoutError,
    AlreadyHeldError,
    AsyncLockError,
    ConfigurationError,
    Locker,
    LockerClosedError,
    LockLostError,
    LockScope,
    LossReason,
    NotLockedError,
)
from asynclock.events import Acquired, Event, Lost, Released
from asynclock.several_scope import SeveralScope
from asynclock.testing import Cluster, Proxy, Server
from tests.support import internals
from tests.support.cluster import no_keys
from tests.support.helpers import AT_ONCE, key, until
from tests.test_cluster_migration import MOMENTS, Move
from tests.test_lifecycle import in_child

pytestmark = [pytest.mark.every_python, pytest.mark.handoff]


def held(server: Server) -> set[str]:
    """The names of all locks on that server."""
    found = server.execute("KEYS", "*")
    assert isinstance(found, list)
    return {each.decode().split(":", 2)[2] for each in found if each.split(b":")[1].isdigit()}  # no counters


# What is told adds up


def told_of(events: list[Event], name: str) -> list[type]:
    return [type(event) for event in events if isinstance(event, Acquired | Released | Lost) and event.name == name]


@pytest.mark.asyncio
@pytest.mark.parametrize("loses", ["old", "new"])
async def test_what_was_handed_on_is_no_longer_this_scopes(server: Server, loses: str) -> None:
    """The task that got one of the locks loses it while this one waits for the release of the other."""
    options = {"client_side_caching": False, "local_handoffs": 100}
    async with Proxy(server.port) as proxy, Locker(proxy.url, **options) as locker:  # type: ignore[arg-type]
        events: list[Event] = []
        locker.subscribe(events.append)
        scope = await locker.acquire("a", "b")
        errors: list[Exception] = []

        async def wait() -> None:
            try:
                async with locker.with_context("a"):
                    pass
            except LockLostError as error:
                errors.append(error)

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0.01)
        proxy.delay = 0.004  # the answers to what the old and the new holder send come together
        server.execute("DEL", key("a"))
        await scope.release()
        await waiting
        assert scope.lost_reason is None and len(errors) == 1
        await asyncio.sleep(0.01)
        assert [type(event) for event in events].count(Lost) == 1
        assert sum(locker.statistics().lost.values()) == 1
        proxy.delay = 0


@pytest.mark.asyncio
@pytest.mark.parametrize("end", ["left", "cancelled", "by exception"])
async def test_each_loss_is_told_once_though_only_some_releases_are_waited_for(server: Server, end: str) -> None:
    options = {"wait_release": False, "client_side_caching": False, "try_next_after": 0.5}  # a busy loop
    async with Proxy(server.port) as proxy, Locker(proxy.url, **options) as locker:  # type: ignore[arg-type]
        events: list[Event] = []
        async with locker.with_context("b"):
            pass
        room = internals.room(locker, "b")
        assert room is not None
        locker.subscribe(events.append)
        inside = asyncio.Event()

        async def run() -> None:
            async with locker.with_context("a", "b"):
                inside.set()
                server.execute("DEL", key("a"), key("b"))
                room.unattended_since = 0.0  # long ago: the release of "b" is waited for, that of "a" is not
                proxy.delay = 0.004
                if end == "by exception":
                    raise KeyError

        task = asyncio.create_task(run())
        await inside.wait()
        await asyncio.sleep(0.01)
        if end == "cancelled":
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or isinstance(task.exception(), KeyError if end == "by exception" else LockLostError)
        proxy.delay = 0
        await until(lambda: sum(locker.statistics().lost.values()) >= 2)
        await asyncio.sleep(0.1)
        assert Counter(event.name for event in events if isinstance(event, Lost)) == {"a": 1, "b": 1}
        assert sum(locker.statistics().lost.values()) == 2


@pytest.mark.asyncio
async def test_one_that_is_forgotten_after_its_locker_closed_has_ended_once(server: Server) -> None:
    locker = Locker(server.url)
    events: list[Event] = []
    locker.subscribe(events.append)
    scope = await locker.acquire("a", "b")
    await locker.aclose()
    del scope
    await asyncio.sleep(0.01)
    for name in ("a", "b"):
        assert told_of(events, name) == [Acquired, Lost]
    assert held(server) == set()


# Nothing is left


@pytest.mark.asyncio
@pytest.mark.parametrize("names", [("a",), ("a", "b", "c")], ids=["one", "several"])
@pytest.mark.parametrize(
    "how",
    """left, listened to, released, refused, timed out, cancelled, cancelled twice, waited for, lost, lost by hand,
    forgotten, forced, closed, raised, forgotten when closed""".replace("\n    ", " ").split(", "),
)
async def test_nothing_is_left_to_the_garbage_collector(
    server: Server, other: Locker, how: str, names: tuple[str, ...]
) -> None:
    last = names[-1]

    async def one(locker: Locker) -> None:
        match how:
            case "left" | "listened to":
                async with locker.with_context(*names):
                    pass
            case "released":
                await (await locker.acquire(*names)).release()
            case "refused" | "timed out" | "cancelled" | "cancelled twice" | "waited for":
                async with other.with_context(last):
                    acquiring = asyncio.create_task(
                        locker.try_acquire(*names)
                        if how == "refused"
                        else locker.acquire(*names, timeout=0.01 if how == "timed out" else None)
                    )
                    await asyncio.sleep(0.005)
                    if how.startswith("cancelled"):
                        acquiring.cancel()
                    if how == "cancelled twice":
                        await asyncio.sleep(0)
                        acquiring.cancel()
                        await asyncio.sleep(0)
                        acquiring.cancel()
                    if how != "waited for":
                        await asyncio.wait([acquiring])
                        assert acquiring.cancelled() or acquiring.exception()
                if how == "waited for":
                    await (await acquiring).release()
            case "lost" | "closed" | "raised":
                try:
                    async with locker.with_context(*names):
                        if how == "raised":
                            raise KeyError
                        if how == "lost":
                            server.execute("DEL", key(last))
                        else:
                            asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(locker.aclose()))
                        await asyncio.sleep(5)
                except (LockLostError, KeyError):
                    pass
                await locker.aclose()
            case "lost by hand":
                scope = await locker.acquire(*names)
                server.execute("DEL", key(last))
                await scope.wait_lost()
                await scope.release()
            case "forgotten":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    await locker.acquire(*names)
                    await until(lambda: not held(server))
            case "forgotten when closed":
                scope = await locker.acquire(*names)
                await locker.aclose()
                del scope
            case "forced":
                scope = await other.acquire(*names)
                async with locker.force_with_context(*names):
                    await scope.wait_lost()
                await scope.release()

    await (await other.acquire("warm")).release()
    for warming in (True, False):
        async with Locker(server.url) as locker:
            if how == "listened to":
                locker.subscribe(lambda event: None)
            await (await locker.acquire("warm")).release()
            await asyncio.sleep(0.01)
            gc.collect()
            gc.disable()
            gc.set_debug(gc.DEBUG_SAVEALL)
            try:
                await one(locker)
                await asyncio.sleep(0.01)
                gc.collect()
                found = [each for each in gc.garbage if _is_ours(each)]
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()
        if not warming:
            assert found == []
        del found


def _is_ours(thing: object) -> bool:
    """Not what a locker that was closed has had for its connection: that is once for each."""
    module = type(thing).__module__
    return isinstance(thing, BaseException) or (module.startswith("asynclock") and module != "asynclock.wire.commands")


# It never waits for itself


@pytest.mark.asyncio
async def test_a_block_around_the_call_holds_one_that_comes_after_one_that_is_not_free(
    server: Server, locker: Locker, other: Locker
) -> None:
    async with other.with_context("a"), locker.with_context("b"):
        with pytest.raises(AlreadyHeldError) as refused:
            await locker.acquire("a", "b", timeout=AT_ONCE)
        assert refused.value.name == "b"
        assert held(server) == {"a", "b"}


@pytest.mark.asyncio
@pytest.mark.parametrize("servers", [1, 3])
async def test_two_that_force_do_not_go_on_for_ever(kind: str, servers: int) -> None:
    """In step over a slow network, they could take the locks from each other again and again."""
    names = ("a", "b", "c")
    async with contextlib.AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(Proxy(stack.enter_context(Server(kind)).port)) for _ in range(servers)
        ]
        urls = [proxy.url for proxy in proxies]
        lockers = [await stack.enter_async_context(Locker(urls, restart_quarantine=False)) for _ in range(2)]
        for proxy in proxies:
            proxy.delay = 0.01
        for _ in range(3):
            scopes = await asyncio.wait_for(asyncio.gather(*(each.force_acquire(*names) for each in lockers)), 10)
            await until(lambda scopes=scopes: sum(scope.held for scope in scopes) <= 1)
            for scope in scopes:
                await scope.release()
        for proxy in proxies:
            proxy.delay = 0


# Moments


@pytest.mark.asyncio
@pytest.mark.parametrize("what", ["cancelled", "closed", "a lost", "b lost", "c lost", "cancelled twice"])
@pytest.mark.parametrize("contended", [False, True])
async def test_at_any_moment(server: Server, locker: Locker, other: Locker, what: str, contended: bool) -> None:
    """Whatever happens after any number of turns of the event loop: all or none, and nothing is left."""
    await (await locker.acquire("a", "b", "c")).release()
    for turns in range(30):
        async with Locker(server.url) as mine:
            await (await mine.acquire("warm up")).release()
            before = await other.acquire("b") if contended else None
            acquiring: asyncio.Task[LockScope] = asyncio.create_task(mine.acquire("c", "b", "a"))
            if before is not None:
                await asyncio.sleep(0.002)
                releasing = asyncio.create_task(before.release())
            for _ in range(turns):
                await asyncio.sleep(0)
            if what == "cancelled":
                acquiring.cancel()
            elif what == "closed":
                await mine.aclose()
            elif what == "cancelled twice":
                acquiring.cancel()
                await asyncio.sleep(0)
                acquiring.cancel()
            else:
                internals.lose(mine, what[0])
            if before is not None:
                await releasing
            await asyncio.wait([acquiring], timeout=5)
            if acquiring.cancelled():
                assert what in ("cancelled", "cancelled twice")
            elif (error := acquiring.exception()) is not None:
                assert what == "closed" and isinstance(error, LockerClosedError)
            else:
                scope = acquiring.result()
                await asyncio.sleep(0.002)
                assert scope.held == (scope.lost_reason is None)
                if scope.held:
                    assert held(server) >= {"a", "b", "c"}
                await scope.release()
            await until(lambda: not held(server))
            assert internals.busy(mine) == []


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["acquire", "leave"])
async def test_timed_out_at_any_moment(server: Server, locker: Locker, other: Locker, how: str) -> None:
    """A timeout of its own or around it, in whatever step it strikes."""
    await (await locker.acquire("a", "b", "c")).release()
    ends: Counter[str] = Counter()
    for step in range(80):
        before = await other.acquire("b")
        releasing = asyncio.create_task(_release_after(before, 0.0005 * (step % 5)))
        seconds = 0.0001 * step
        try:
            if how == "acquire":
                scope = await locker.acquire("c", "b", "a", timeout=seconds)
                scope.check()
                assert held(server) >= {"a", "b", "c"}
                await scope.release()
            else:
                async with asyncio.timeout(seconds), locker.with_context("c", "b", "a"):
                    pass
            ends["in time"] += 1
        except TimeoutError:
            ends["late"] += 1
        await releasing
        await until(lambda: not held(server))
        assert internals.busy(locker) == []
    assert set(ends) == {"in time", "late"}


async def _release_after(scope: LockScope, seconds: float) -> None:
    await asyncio.sleep(seconds)
    await scope.release()


@pytest.mark.asyncio
@pytest.mark.parametrize("contended", [False, True])
async def test_the_coroutine_is_closed_while_it_waits(
    server: Server, locker: Locker, other: Locker, contended: bool
) -> None:
    await (await locker.acquire("a", "b")).release()
    async with other.with_context("b") if contended else contextlib.nullcontext():
        acquiring = locker.acquire("a", "b")
        for _ in range(2 if contended else 1):
            acquiring.send(None)  # up to the first future, without a task's help
            await asyncio.sleep(0.01)
        acquiring.close()
        await until(lambda: held(server) == ({"b"} if contended else set()))
    assert internals.busy(locker) == []


@pytest.mark.asyncio
async def test_threads_look_while_it_ends(server: Server, locker: Locker) -> None:
    """Nothing but the loss is raised there, and what has ended stays ended."""
    problems: list[object] = []
    scopes: list[LockScope] = []
    over = threading.Event()

    def look() -> None:
        ended: LockScope | None = None
        while not over.is_set():
            if not scopes:
                continue
            scope = scopes[-1]
            try:
                repr(scope)
                left, here = scope.remaining(), scope.held
                if scope is ended and (here or left):
                    problems.append(f"{scope!r} was over, and is held for {left} s")
                try:
                    scope.check()
                except LockLostError as error:
                    ended = scope
                    if error.name not in scope.names:
                        problems.append(error)
                if scope.lost_reason is not None and scope.held:
                    problems.append(f"lost, and held: {scope!r}")
            except Exception as error:
                problems.append(error)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(60):
            scope = await locker.acquire("a", "b", "c")
            scopes.append(scope)
            await asyncio.sleep(0.001)
            if turn % 3:
                server.execute("DEL", key("abc"[turn % 2]), key("c"))
                await asyncio.wait_for(scope.wait_lost(), AT_ONCE)
            await scope.release()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert problems == []


# Servers


@pytest.mark.asyncio
async def test_a_server_is_silent_while_a_later_name_is_held(kind: str) -> None:
    """Two of three answer: nothing takes longer than try_next_after. One of three: until the timeout, and not more."""
    async with contextlib.AsyncExitStack() as stack:
        servers = [stack.enter_context(Server(kind)) for _ in range(3)]
        proxies = [await stack.enter_async_context(Proxy(server.port)) for server in servers]
        urls = [proxy.url for proxy in proxies]
        other = await stack.enter_async_context(Locker([server.url for server in servers], restart_quarantine=False))
        locker = await stack.enter_async_context(Locker(urls, restart_quarantine=False, key_validity=2.0))
        await (await locker.acquire("a", "b", "c")).release()
        # "b" is found taken, while "a" and "c" are acquired at once with it.
        before = await other.acquire("b")
        proxies[0].freeze()
        acquiring = asyncio.create_task(locker.acquire("a", "b", "c"))
        await until(lambda: held(servers[1]) == held(servers[2]) == {"a", "b"})
        await before.release()
        scope = await asyncio.wait_for(acquiring, AT_ONCE)
        assert scope.held
        proxies[1].freeze()
        assert await asyncio.wait_for(scope.wait_lost(), 2.0 + AT_ONCE) is not None
        await scope.release()
        since = time.monotonic()
        with pytest.raises(AcquireTimeoutError):
            await locker.acquire("a", "b", timeout=0.3)
        assert time.monotonic() - since < 0.3 + AT_ONCE
        for proxy in proxies[:2]:
            proxy.thaw()
        scope = await asyncio.wait_for(locker.acquire("a", "b", "c"), 10)
        await scope.release()
        await until(lambda: not any(held(server) for server in servers))


@pytest.mark.asyncio
@pytest.mark.parametrize("after", [0.0, 0.005, 0.05])
async def test_the_server_dies_while_some_are_held(own_server: Server, after: float) -> None:
    async with Locker(own_server.url) as locker, Locker(own_server.url) as other:
        before = await other.acquire("b")
        acquiring = asyncio.create_task(locker.acquire("a", "b", "c"))
        await until(lambda: held(own_server) == {"a", "b"})
        own_server.kill()
        await asyncio.sleep(after)
        own_server.start()
        await before.wait_lost()
        await before.release()
        scope = await asyncio.wait_for(acquiring, 10)
        assert scope.held and held(own_server) == {"a", "b", "c"}
        await scope.release()
        assert held(own_server) == set()


@pytest.mark.asyncio
async def test_what_the_statistics_say_adds_up(server: Server, locker: Locker, other: Locker) -> None:
    """Whatever ends scopes of several names: acquired = held + released + lost while held, and so do the events."""
    events: list[Event] = []
    locker.subscribe(events.append)
    await (await locker.acquire("a", "b", "c")).release()
    for turn in range(60):
        try:
            async with asyncio.timeout(0.01 if turn % 5 == 0 else None):
                async with locker.with_context("a", "b", "c") as scope:
                    if turn % 3 == 0:
                        server.execute("DEL", key("abc"[turn % 2]))
                    if turn % 7 == 0:
                        await (await other.force_acquire("b")).release()
                    if turn % 4 == 0:
                        scope.cancel()
                    await asyncio.sleep(0.002)
        except (AsyncLockError, TimeoutError):
            pass
    await asyncio.sleep(0.05)
    statistics = locker.statistics()
    assert statistics.held == 0
    count = Counter(type(event) for event in events)
    late = sum("noticed only" in event.detail for event in events if isinstance(event, Lost))
    assert count[Acquired] == statistics.acquired == statistics.released + count[Lost] - late
    ends = Counter((event.name, event.hold) for event in events if isinstance(event, Released | Lost))
    begun = {(event.name, event.hold) for event in events if isinstance(event, Acquired)}
    assert set(ends) == begun
    assert sum(ends.values()) - len(ends) == late, "what is noticed late is told after the release"


@pytest.mark.asyncio
@pytest.mark.parametrize("wait_release", [True, False])
async def test_the_exit_after_a_loss_waits_for_no_server(server: Server, wait_release: bool) -> None:
    """The locks that are left are given back, without waiting for the answer."""
    async with Proxy(server.port) as proxy, Locker(proxy.url, wait_release=wait_release, try_next_after=3.0) as locker:
        with pytest.raises(LockLostError):
            async with locker.with_context("a", "b", "c"):
                server.execute("DEL", key("b"))
                try:
                    await asyncio.sleep(60)
                finally:
                    proxy.freeze()
                    since = time.monotonic()
        assert time.monotonic() - since < AT_ONCE
        proxy.thaw()
        await until(lambda: not held(server))


@pytest.mark.asyncio
async def test_nor_does_a_release_by_hand(server: Server) -> None:
    async with Proxy(server.port) as proxy, Locker(proxy.url, try_next_after=3.0) as locker:
        scope = await locker.acquire("a", "b")
        server.execute("DEL", key("b"))
        await scope.wait_lost()
        proxy.freeze()
        since = time.monotonic()
        await scope.release()
        assert time.monotonic() - since < AT_ONCE
        proxy.thaw()
        await until(lambda: not held(server))


@pytest.mark.asyncio
@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_slot_of_one_of_them_moves(cluster: Cluster, moment: str) -> None:
    """While they are held, while one is waited for with the others held, and before they are acquired."""
    names = [f"{moment} {number}" for number in range(4)]
    async with Locker(cluster.url, key_majority=1) as locker, Locker(cluster.urls[2], key_majority=1) as other:
        scope = await locker.acquire(*names)
        waiting = asyncio.create_task(other.acquire(*names[1:], "last"))
        move = Move(cluster, names[2])
        await move.up_to(moment)
        await asyncio.sleep(0.1)
        scope.check()
        with pytest.raises(NotLockedError):
            await other.try_acquire("another", names[2])
        await scope.release()
        second = await asyncio.wait_for(waiting, 5)
        waiting = asyncio.create_task(locker.acquire(*names, timeout=10))
        await asyncio.sleep(0.05)
        # A key that is set anew while its slot moves is at the target already.
        assert move.execute("DEL", "finished" if moment == "finished" else "key moved") == 1
        assert await asyncio.wait_for(second.wait_lost(), AT_ONCE) is LossReason.DELETED
        await second.release()
        third = await waiting
        assert third.held
        await move.finish()
        await asyncio.sleep(0.05)
        third.check()
        await third.release()
        await no_keys(cluster)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.asyncio
async def test_in_the_child_of_a_fork_they_are_the_parents(server: Server, locker: Locker) -> None:
    async with locker.with_context("a", "b") as scope:

        def child() -> list[object]:
            nonlocal scope
            found: list[object] = [scope.held, scope.remaining()]
            try:
                scope.check()
            except ConfigurationError as error:
                found.append("fork" in str(error))
            with contextlib.suppress(StopIteration):
                scope.release().send(None)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                del scope
                gc.collect()
            return found

        assert await asyncio.to_thread(in_child, child) == [False, 0.0, True]
        assert held(server) == {"a", "b"}
        scope.check()
    assert held(server) == set()


@pytest.mark.asyncio
async def test_no_thread_finds_a_scope_that_holds_none_of_its_locks_held(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it looks at while the scope ends."""
    parts = SeveralScope.__dict__["_parts"]
    seen: list[bool] = []

    def end(scope: SeveralScope, value: list[object]) -> None:
        parts.__set__(scope, value)
        if hasattr(scope, "_lease") and not value and entered:  # just now
            seen.append(scope._lease is not None and not scope._over())

    entered = False
    monkeypatch.setattr(SeveralScope, "_parts", property(parts.__get__, end))
    async with Locker(server.url) as locker:
        for by_hand in (False, True):
            entered = False
            scope = await locker.acquire("a", "b")
            entered = True
            if by_hand:
                await scope.release()
            else:
                async with scope:
                    pass
    assert seen == [False, False]
