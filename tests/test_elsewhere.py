"""Used in a thread or another event loop: what only looks works, all else refuses, and has changed nothing."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast
from unittest.mock import MagicMock

import pytest

from asynclock import AsyncLockError, ConfigurationError, Locker, LockLostError, LockScope
from asynclock.testing import Server
from tests.support import internals
from tests.support.helpers import key, until

pytestmark = pytest.mark.every_python


class OwnError(Exception):
    """The body's own."""


def in_a_loop(call: Callable[[], Awaitable[object]]) -> Callable[[], object]:
    async def run() -> object:
        return await call()

    return lambda: asyncio.run(run())


def by_hand(call: Callable[[], Coroutine[Any, Any, object]]) -> Callable[[], object]:
    """Without an event loop: the first step of the coroutine."""

    def run() -> None:
        coroutine = call()
        try:
            coroutine.send(None)
        finally:
            coroutine.close()

    return run


def everything(locker: Locker, scope: LockScope) -> dict[str, Callable[[], object]]:
    """What changes or waits."""

    async def nothing() -> None:
        pass

    context = locker.with_context("other")
    coroutines: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "release": scope.release,
        "wait_lost": scope.wait_lost,
        "fencing_token": scope.fencing_token,
        "__aenter__": scope.__aenter__,
        "__aexit__": lambda: scope.__aexit__(None, None, None),
        "__aexit__ with an error": lambda: scope.__aexit__(OwnError, OwnError(), None),
        "__aexit__ cancelled": lambda: scope.__aexit__(asyncio.CancelledError, asyncio.CancelledError(), None),
    }
    calls: dict[str, Callable[[], object]] = {
        "cancel": scope.cancel,
        "create_task": lambda: scope.create_task(nothing()),
        "with_context": in_a_loop(context.__aenter__),
        "acquire": in_a_loop(lambda: locker.acquire("other")),
        "acquire with a timeout": in_a_loop(lambda: locker.acquire("other", timeout=1)),
        "try_acquire": in_a_loop(lambda: locker.try_acquire("other")),
        "force_acquire": in_a_loop(lambda: locker.force_acquire("job")),
        "async with locker": in_a_loop(locker.__aenter__),
        "aclose": in_a_loop(locker.aclose),
        "leave the locker": in_a_loop(lambda: locker.__aexit__(None, None, None)),
    }
    for name, call in coroutines.items():
        calls[name] = by_hand(call)
        calls[f"{name} in a loop"] = in_a_loop(call)
    for name in ("cancel", "create_task"):

        async def called(call: Callable[[], object] = calls[name]) -> None:
            call()

        calls[f"{name} in a loop"] = in_a_loop(called)
    return calls


NAMES = list(everything(Locker("redis://127.0.0.1:1"), cast(LockScope, MagicMock(LockScope))))


@pytest.mark.asyncio
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("entered", [True, False], ids=["entered", "by hand"])
async def test_it_refuses_and_changes_nothing(locker: Locker, server: Server, name: str, entered: bool) -> None:
    async def lost(scope: LockScope) -> None:
        """It is what it was: held, and told when it is lost."""
        assert scope.held
        assert server.execute("EXISTS", key("job")) == 1
        assert server.execute("EXISTS", key("other")) == 0
        assert internals.busy(locker) == ["job"]
        server.execute("DEL", key("job"))
        await asyncio.sleep(5)
        pytest.fail("went on")

    async def refused(scope: LockScope) -> None:
        with pytest.raises(ConfigurationError, match="event loop"):
            await asyncio.to_thread(everything(locker, scope)[name])

    if entered:
        with pytest.raises(LockLostError, match="deleted"):
            async with locker.with_context("job") as scope:
                task = scope.create_task(asyncio.sleep(5))
                await refused(scope)
                assert not task.done()
                await lost(scope)
        assert task.cancelled()
    else:
        scope = await locker.acquire("job")
        await refused(scope)
        with pytest.raises(LockLostError, match="deleted"):
            async with scope:
                await lost(scope)


@pytest.mark.asyncio
async def test_a_quiet_end_of_the_block_elsewhere(locker: Locker, server: Server) -> None:
    """Without tasks or anything else that is to be stopped, which is the shortest way out."""
    context = locker.with_context("job")
    scope = await context.__aenter__()
    for leave in (by_hand, in_a_loop):
        with pytest.raises(ConfigurationError, match="event loop"):
            await asyncio.to_thread(leave(lambda: context.__aexit__(None, None, None)))
        assert scope.held
    await context.__aexit__(None, None, None)
    assert server.execute("EXISTS", key("job")) == 0


def test_another_loop_in_the_same_thread(server: Server) -> None:
    with asyncio.Runner() as first, asyncio.Runner() as second:
        locker = Locker(server.url)
        contexts = [locker.with_context("a"), locker.with_context("b")]
        scope = first.run(_enter(contexts[0]))
        for call in (
            lambda: contexts[0].__aexit__(None, None, None),
            contexts[1].__aenter__,
            scope.release,
            scope.wait_lost,
        ):
            with pytest.raises(ConfigurationError, match="event loop"):
                second.run(_await(call))
            assert scope.held
        with pytest.raises(ConfigurationError):
            scope.cancel()  # the loop does not run: it has to be asked
        first.run(_await(lambda: contexts[0].__aexit__(None, None, None)))
        first.run(_enter(contexts[1]))  # it was not used up
        first.run(_await(lambda: contexts[1].__aexit__(None, None, None)))
        first.run(locker.aclose())
    assert server.execute("KEYS", "*") == []


async def _enter(context: Any) -> LockScope:
    scope: LockScope = await context.__aenter__()
    return scope


async def _await(call: Callable[[], Awaitable[object]]) -> None:
    await call()


def test_a_closed_loop_is_not_asked(server: Server) -> None:
    """There is nobody left to give it back to: it dies by its time to live."""
    for close in (lambda scope: scope.cancel(), lambda scope: asyncio.run(scope.release())):
        locker = Locker(server.url, key_validity=1)
        loop = asyncio.new_event_loop()
        scope = loop.run_until_complete(locker.acquire("job", timeout=3))
        loop.run_until_complete(internals.topology(locker).aclose())  # no socket is to be left open
        loop.close()
        close(scope)
        close(scope)
        assert not scope.held
        with pytest.warns(ResourceWarning, match="was forgotten without aclose"):
            del scope, locker


@pytest.mark.asyncio
async def test_what_only_looks_works_in_threads(locker: Locker, server: Server) -> None:
    """Also in the moment in which the lock is lost: who finds it gone, finds out why."""
    reasons: set[object] = set()
    ready = threading.Barrier(4)

    def look(scope: LockScope) -> None:
        assert scope.name == "job"
        assert scope.held
        assert scope.lost_reason is None
        assert 0 < scope.remaining() < 5
        scope.check()
        assert "held" in repr(scope)
        ready.wait()
        while True:
            try:
                scope.check()
            except LockLostError as error:
                reasons.add(error.reason)
                break
        reasons.add(scope.lost_reason)
        assert not scope.held
        assert scope.remaining() == 0.0

    with contextlib.suppress(LockLostError):
        async with locker.with_context("job") as scope:
            looking = [asyncio.create_task(asyncio.to_thread(look, scope)) for _ in range(3)]
            await asyncio.to_thread(ready.wait)
            server.execute("DEL", key("job"))
            await asyncio.sleep(5)
    await asyncio.gather(*looking)
    assert reasons == {"deleted"}


@pytest.mark.asyncio
async def test_a_thread_asks_the_loop(locker: Locker, server: Server) -> None:
    """As the error says."""
    loop = asyncio.get_running_loop()
    async with locker.with_context("job") as scope:
        await asyncio.to_thread(loop.call_soon_threadsafe, scope.cancel)
        await asyncio.sleep(5)
    scope = await locker.acquire("job")
    await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(scope.release(), loop).result(5))
    await until(lambda: server.execute("EXISTS", key("job")) == 0)


@pytest.mark.asyncio
async def test_the_bodys_own_error_is_seen_when_its_block_is_left_elsewhere(locker: Locker) -> None:
    own = OwnError()
    scope = await locker.acquire("job")
    await scope.__aenter__()

    def leave() -> None:
        try:
            raise own
        except OwnError:
            by_hand(lambda: scope.__aexit__(OwnError, own, None))()

    with pytest.raises(AsyncLockError) as caught:
        await asyncio.to_thread(leave)
    assert caught.value.__context__ is own
    await scope.__aexit__(None, None, None)
