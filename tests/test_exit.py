"""How a block ends: whose exception comes out, what is released, what asyncio sees. The exit table, line by line."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
import warnings

import anyio
import pytest

from asynclock import Locker, LockerClosedError, LockLostError, LockScope, LossReason, ServerError
from asynclock.testing import Proxy, Server
from tests.support import internals
from tests.support.helpers import AT_ONCE, key, until

pytestmark = [pytest.mark.every_python, pytest.mark.redis_py, pytest.mark.handoff]


class OwnError(Exception):
    """The body's or a task's own."""


def cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


def free(server: Server, name: str = "job") -> bool:
    return server.execute("EXISTS", key(name)) == 0


async def forever(stopped: list[str] | None = None, name: str = "task") -> None:
    try:
        await asyncio.sleep(60)
    finally:
        if stopped is not None:
            stopped.append(name)


@pytest.mark.asyncio
@pytest.mark.fast
async def test_a_quiet_end(locker: Locker, server: Server) -> None:
    async with locker.with_context("job") as scope:
        assert scope.held
        assert scope.lost_reason is None
        assert 4 < scope.remaining() <= 4.948
        result = scope.create_task(asyncio.sleep(0.01, "done"), name="mine")
        assert result.get_name() == "mine"
    assert result.result() == "done"  # the block waits for its tasks
    assert not scope.held
    assert scope.lost_reason is None
    assert scope.remaining() == 0.0
    assert free(server)


@pytest.mark.asyncio
@pytest.mark.fast
async def test_the_body_raises(locker: Locker, server: Server) -> None:
    stopped: list[str] = []
    with pytest.raises(OwnError) as caught:
        async with locker.with_context("job") as scope:
            scope.create_task(forever(stopped))
            await asyncio.sleep(0)
            raise OwnError
    assert caught.value.__cause__ is None
    assert stopped == ["task"]
    assert free(server)
    assert cancelling() == 0


@pytest.mark.asyncio
@pytest.mark.fast
async def test_a_task_raises(locker: Locker, server: Server) -> None:
    stopped: list[str] = []

    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise OwnError

    with pytest.raises(ExceptionGroup) as caught:
        async with locker.with_context("job") as scope:
            scope.create_task(forever(stopped, "sibling"))
            scope.create_task(fail())
            await forever(stopped, "body")
    assert [type(error) for error in caught.value.exceptions] == [OwnError]
    assert sorted(stopped) == ["body", "sibling"]
    assert free(server)
    assert cancelling() == 0


@pytest.mark.asyncio
async def test_body_and_task_raise(locker: Locker) -> None:
    async def fail() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise OwnError("task")

    with pytest.raises(ExceptionGroup) as caught:
        async with locker.with_context("job") as scope:
            scope.create_task(fail())
            await asyncio.sleep(0)
            raise OwnError("body")
    assert [str(error) for error in caught.value.exceptions] == ["task", "body"]


@pytest.mark.asyncio
@pytest.mark.fast
async def test_the_lock_is_lost(locker: Locker, server: Server) -> None:
    order: list[str] = []

    async def slow_to_stop() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            order.append("task")

    with pytest.raises(LockLostError) as caught:
        async with locker.with_context("job") as scope:
            scope.create_task(slow_to_stop())
            await asyncio.sleep(0)
            server.execute("DEL", key("job"))
            await forever(order, "body")
    assert order == ["body", "task"]  # awaited, all of them
    assert caught.value.reason == "deleted"
    assert caught.value.__cause__ is None
    assert cancelling() == 0
    with pytest.raises(RuntimeError):
        await scope.__aenter__()
    coroutine = forever()
    with pytest.raises(LockLostError):
        scope.create_task(coroutine)
    with pytest.raises(LockLostError):
        scope.check()


@pytest.mark.asyncio
async def test_a_task_fails_while_it_is_stopped_after_a_loss(locker: Locker, server: Server) -> None:
    async def fail() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise OwnError

    with pytest.raises(LockLostError) as caught:
        async with locker.with_context("job") as scope:
            scope.create_task(fail())
            await asyncio.sleep(0)
            server.execute("DEL", key("job"))
            await forever()
    assert isinstance(caught.value.__cause__, ExceptionGroup)


@pytest.mark.asyncio
async def test_the_body_fails_while_it_is_stopped_after_a_loss(locker: Locker, server: Server) -> None:
    with pytest.raises(OwnError):
        async with locker.with_context("job") as scope:
            server.execute("DEL", key("job"))
            try:
                await forever()
            finally:
                raise OwnError
    assert scope.lost_reason == "deleted"
    assert cancelling() == 0


@pytest.mark.asyncio
async def test_the_body_swallows_the_cancellation(locker: Locker, server: Server) -> None:
    swallowed = 0
    with pytest.raises(LockLostError):
        async with locker.with_context("job"):
            server.execute("DEL", key("job"))
            try:
                await forever()
            except asyncio.CancelledError:
                swallowed += 1
    assert swallowed == 1
    assert cancelling() == 0


@pytest.mark.asyncio
async def test_a_body_that_goes_on_is_cancelled_again(locker: Locker, server: Server) -> None:
    swallowed = 0
    cleaned_up = False
    with pytest.raises(LockLostError):
        async with locker.with_context("job"):
            server.execute("DEL", key("job"))
            for _ in range(3):
                try:
                    await forever()
                except asyncio.CancelledError:
                    swallowed += 1
            try:
                await forever()
            finally:
                await asyncio.sleep(0.3)  # while it is handled, nothing disturbs
                cleaned_up = True
    assert swallowed == 3
    assert cleaned_up
    assert cancelling() == 0


@pytest.mark.asyncio
async def test_a_cancellation_that_wait_for_drops_comes_again(locker: Locker, server: Server) -> None:
    """python/cpython#86296, which Python 3.11 still has; redis-py sends every command so."""
    with pytest.raises(LockLostError):
        async with locker.with_context("job") as scope:
            while True:
                done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                waiting = asyncio.ensure_future(scope.wait_lost())
                waiting.add_done_callback(lambda _, done=done: done.done() or done.set_result(None))
                server.execute("DEL", key("job"))
                await asyncio.wait_for(done, 5)
                await asyncio.sleep(5)
                pytest.fail("went on with a lost lock")


@pytest.mark.asyncio
@pytest.mark.fast
async def test_cancelled_from_outside(locker: Locker, server: Server) -> None:
    stopped: list[str] = []
    inside = asyncio.Event()

    async def run() -> None:
        async with locker.with_context("job") as scope:
            scope.create_task(forever(stopped))
            await asyncio.sleep(0)
            inside.set()
            await forever(stopped, "body")

    task = asyncio.create_task(run())
    await inside.wait()
    task.cancel("outside")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert sorted(stopped) == ["body", "task"]
    assert free(server)


@pytest.mark.asyncio
@pytest.mark.fast
async def test_asyncio_timeout_around(locker: Locker, server: Server) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), locker.with_context("job"):
            await forever()
    assert cancelling() == 0
    assert free(server)


@pytest.mark.asyncio
async def test_asyncio_timeout_inside(locker: Locker, server: Server) -> None:
    async with locker.with_context("job") as scope:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await forever()
        assert scope.held
        assert cancelling() == 0
    assert free(server)


@pytest.mark.asyncio
@pytest.mark.fast
async def test_anyio_around(locker: Locker, server: Server) -> None:
    with anyio.move_on_after(0.05) as moved:
        async with locker.with_context("job") as scope:
            scope.create_task(forever())
            await forever()
    assert moved.cancelled_caught
    assert free(server)
    assert cancelling() == 0
    with pytest.raises(TimeoutError):
        with anyio.fail_after(0.05):
            async with locker.with_context("job"):
                await anyio.sleep(60)
    async with anyio.create_task_group() as group:
        inside = anyio.Event()

        async def hold() -> None:
            async with locker.with_context("job"):
                inside.set()
                await anyio.sleep(60)

        group.start_soon(hold)
        await inside.wait()
        group.cancel_scope.cancel()
    assert free(server)
    assert cancelling() == 0


@pytest.mark.asyncio
async def test_anyio_inside(locker: Locker, server: Server) -> None:
    with pytest.raises(LockLostError):
        async with locker.with_context("job") as scope:
            with anyio.move_on_after(0.02):
                await forever()
            assert scope.held
            async with anyio.create_task_group() as group:
                group.start_soon(forever)
                server.execute("DEL", key("job"))
                await anyio.sleep(60)
    assert cancelling() == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("first", ["loss", "anyio"])
async def test_anyio_cancels_in_the_turn_of_the_loss(locker: Locker, server: Server, first: str) -> None:
    """Both cancel the same task, and it hears once: the first one wins, and nothing is left over."""
    outcome = pytest.raises(LockLostError) if first == "loss" else contextlib.nullcontext()
    with outcome, anyio.CancelScope() as around:
        async with locker.with_context("job"):

            def lose() -> None:
                internals.lose(locker, "job")  # as if the server had refused to be reconnected

            def both() -> None:
                for cancel in (lose, around.cancel) if first == "loss" else (around.cancel, lose):
                    cancel()

            asyncio.get_running_loop().call_soon(both)
            await forever()
    assert around.cancelled_caught is (first == "anyio")
    await asyncio.sleep(0.01)
    assert cancelling() == 0


@pytest.mark.asyncio
@pytest.mark.fast
async def test_task_group_around(locker: Locker, server: Server) -> None:
    async def lose() -> None:
        async with locker.with_context("job"):
            server.execute("DEL", key("job"))
            await forever()

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(lose())
    assert caught.group_contains(LockLostError)
    assert task.cancelling() == 0


@pytest.mark.asyncio
async def test_nested_scopes(locker: Locker, server: Server) -> None:
    with pytest.raises(LockLostError) as caught:
        async with locker.with_context("outer"):
            async with locker.with_context("inner"):
                server.execute("DEL", key("outer"))
                await forever()
    assert caught.value.name == "outer"
    assert free(server, "inner")
    assert cancelling() == 0
    async with locker.with_context("outer") as outer:
        with pytest.raises(LockLostError) as caught:
            async with locker.with_context("inner"):
                server.execute("DEL", key("inner"))
                await forever()
        assert caught.value.name == "inner"
        assert outer.held
        assert cancelling() == 0
    with pytest.raises(LockLostError):
        async with locker.with_context("outer"), locker.with_context("inner"):
            server.execute("FLUSHALL")
            await forever()
    assert cancelling() == 0


@pytest.mark.asyncio
@pytest.mark.fast
async def test_scope_cancel(locker: Locker, server: Server) -> None:
    stopped: list[str] = []
    async with locker.with_context("job") as scope:
        scope.create_task(forever(stopped))
        await asyncio.sleep(0)
        scope.cancel()
        scope.cancel()
        await forever(stopped, "body")
    assert sorted(stopped) == ["body", "task"]
    assert free(server)
    assert scope.lost_reason is None
    assert cancelling() == 0
    async with locker.with_context("job") as scope:
        scope.cancel()  # nothing is awaited after it, in or after the block
    await asyncio.sleep(0)
    assert cancelling() == 0
    async with locker.with_context("job") as scope:
        asyncio.get_running_loop().call_later(0.01, scope.cancel)
        await forever()
    with pytest.raises(OwnError):
        async with locker.with_context("job") as scope:
            scope.cancel()
            raise OwnError
    scope = await locker.acquire("job")
    scope.cancel()
    assert not scope.held
    await until(lambda: free(server))


@pytest.mark.asyncio
async def test_the_server_is_down_at_release(own_server: Server) -> None:
    async with Locker(own_server.url, disconnect_grace=60) as locker:
        async with locker.with_context("job"):
            own_server.kill()
            since = time.monotonic()
        assert time.monotonic() - since < AT_ONCE
        own_server.start()


@pytest.mark.asyncio
async def test_the_server_hangs_at_release(own_server: Server) -> None:
    async with Locker(own_server.url) as locker:
        with pytest.raises(OwnError):
            async with locker.with_context("job"):
                own_server.pause()
                since = time.monotonic()
                raise OwnError
        took = time.monotonic() - since
        own_server.resume()
        assert took < AT_ONCE  # try_next_after is meant
        await until(lambda: free(own_server), 3)  # the release was on its way


@pytest.mark.asyncio
async def test_a_release_that_a_reset_swallowed_is_sent_again(own_server: Server) -> None:
    async with Proxy(own_server.port) as proxy, Locker(proxy.url, key_validity=30) as locker:
        scope = await locker.acquire("job")
        proxy.freeze()
        await scope.release()
        proxy.reset()
        proxy.thaw()
        await until(lambda: free(own_server), 3)


@pytest.mark.asyncio
async def test_by_hand(locker: Locker, server: Server) -> None:
    scope = await locker.acquire("job")
    scope.check()
    coroutine = forever()
    with pytest.raises(RuntimeError, match="async with"):
        scope.create_task(coroutine)
    waiting = asyncio.create_task(scope.wait_lost())
    await asyncio.sleep(0)
    await scope.release()
    await scope.release()
    assert await waiting is None
    assert free(server)
    with pytest.raises(LockLostError, match="released") as caught:
        scope.check()
    assert caught.value.reason is LossReason.RELEASED
    with pytest.raises(LockLostError, match="released"):
        async with scope:
            pytest.fail("it was released")
    assert scope.lost_reason is None

    async with locker.with_context("job") as scope:
        await scope.release()
        with pytest.raises(LockLostError, match="released"):
            scope.create_task(forever())

    scope = await locker.acquire("job")
    waiting = asyncio.create_task(scope.wait_lost())
    await asyncio.sleep(0)
    server.execute("DEL", key("job"))
    assert await asyncio.wait_for(waiting, 1) == "deleted"
    await scope.release()
    async with await locker.acquire("job") as scope:
        assert scope.held
        with pytest.raises(RuntimeError, match="once"):
            async with scope:
                pytest.fail("twice")
    context = locker.with_context("job")
    async with context:
        pass
    assert not [name for name in dir(context) if not name.startswith("_")]
    with pytest.raises(RuntimeError, match="used before"):
        async with context:
            pytest.fail("twice")


@pytest.mark.asyncio
async def test_release_inside_the_block(locker: Locker, server: Server) -> None:
    async with locker.with_context("job") as scope:
        await scope.release()
        assert free(server)
    assert scope.lost_reason is None


@pytest.mark.asyncio
async def test_check_from_inside_raises_and_leaves_no_cancellation_behind(locker: Locker, server: Server) -> None:
    async with Locker(server.url, key_validity=0.2) as locker:
        with pytest.raises(LockLostError):
            async with locker.with_context("job") as scope:
                time.sleep(0.3)  # noqa: ASYNC251
                scope.check()
        assert cancelling() == 0
        await asyncio.sleep(0.01)


@pytest.mark.asyncio
@pytest.mark.fast
async def test_a_forgotten_scope_is_released_with_a_warning(locker: Locker, server: Server) -> None:
    scope = await locker.acquire("job")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del scope
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    assert "'job'" in str(caught[0].message)
    await until(lambda: free(server))


@pytest.mark.asyncio
@pytest.mark.fast
@pytest.mark.parametrize("where", ["acquiring", "inside"])
async def test_a_closed_coroutine_releases(locker: Locker, server: Server, where: str) -> None:
    """A coroutine that is thrown away cannot await any more, and leaves nothing behind all the same."""
    inside = False

    async def hold() -> None:
        nonlocal inside
        async with locker.with_context("job"):
            inside = True
            await asyncio.sleep(60)

    coroutine = hold()
    future = coroutine.send(None)  # what a task does: it waits for the server's answer now
    assert future is not None
    if where == "inside":
        await until(future.done)
        coroutine.send(None)
        assert inside
    coroutine.close()
    await until(lambda: free(server) and not internals.busy(locker))
    assert cancelling() == 0


@pytest.mark.asyncio
@pytest.mark.fast
async def test_close_waits_for_the_blocks(server: Server) -> None:
    locker = Locker(server.url)
    order: list[str] = []

    inside = asyncio.Event()

    async def run() -> None:
        async with locker.with_context("job"):
            inside.set()
            try:
                await forever()
            finally:
                await asyncio.sleep(0.1)
                order.append(f"left, key {'free' if free(server) else 'kept'}")

    task = asyncio.create_task(run())
    await inside.wait()
    await locker.aclose()
    order.append("closed")
    with pytest.raises(LockLostError, match="closed"):
        await task
    assert order == ["left, key kept", "closed"]
    assert free(server)


@pytest.mark.asyncio
async def test_who_holds_by_hand_hears_of_the_close_before_the_key_is_free(server: Server) -> None:
    """Nobody waits for a block that is none. But a task that waits for the loss, in a task of its own even, is told
    before others can have the lock, and also if the loop is blocked in between."""
    locker = Locker(server.url)
    scope = await locker.acquire("job")
    heard: list[bool] = []

    async def hold() -> None:
        await asyncio.wait([asyncio.ensure_future(scope.wait_lost())])
        heard.append(free(server))  # a question to the server, in which the loop is blocked

    holding = asyncio.create_task(hold())
    await asyncio.sleep(0.01)
    await locker.aclose()
    await holding
    assert heard == [False]
    assert free(server)


@pytest.mark.asyncio
async def test_close_inside_a_block(server: Server) -> None:
    locker = Locker(server.url)
    since = time.monotonic()
    with pytest.raises(LockLostError, match="closed"):
        async with locker.with_context("job"):
            await locker.aclose()
            await asyncio.sleep(60)
    assert time.monotonic() - since < 2
    assert free(server)
    assert cancelling() == 0


@pytest.mark.asyncio
async def test_outside_cancellation_of_a_waiting_exit(locker: Locker, server: Server) -> None:
    """Cancelled again and again while tasks take their time: still awaited, still released."""
    cleaned: list[str] = []

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.1)
            cleaned.append("task")

    inside = asyncio.Event()

    async def run() -> None:
        async with locker.with_context("job") as scope:
            scope.create_task(stubborn())
            await asyncio.sleep(0)
            inside.set()
            await forever()

    task = asyncio.create_task(run())
    await inside.wait()
    for _ in range(5):
        task.cancel()
        await asyncio.sleep(0.01)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned == ["task"]
    assert free(server)


@pytest.mark.asyncio
async def test_clean_up_is_left_in_peace_whatever_cancelled_it(locker: Locker, server: Server) -> None:
    """Libraries make cancellations anew, and others cancel too: what handles them is not disturbed."""
    cleaned: list[str] = []

    async def clean_up(what: str) -> None:
        await asyncio.sleep(0.15)
        cleaned.append(what)

    for what in ("gather", "thread", "outside"):

        async def run(what: str = what) -> None:
            async with locker.with_context(what):
                server.execute("DEL", key(what))
                try:
                    if what == "gather":
                        await asyncio.gather(asyncio.sleep(60), asyncio.sleep(60))
                    elif what == "thread":
                        await asyncio.to_thread(time.sleep, 0.05)
                        await asyncio.sleep(60)
                    else:
                        await asyncio.sleep(60)
                finally:
                    await clean_up(what)

        task = asyncio.create_task(run())
        if what == "outside":
            await asyncio.sleep(0.05)
            assert not task.done()
            with pytest.raises(LockLostError):
                await task
        else:
            with pytest.raises(LockLostError):
                await task
    assert cleaned == ["gather", "thread", "outside"]


@pytest.mark.asyncio
async def test_looked_at_from_a_thread(server: Server) -> None:
    async with Locker(server.url, key_validity=0.3) as locker:

        def work(scope: LockScope) -> LossReason:
            scope.check()
            assert scope.held
            while scope.held:
                time.sleep(0.01)
            with pytest.raises(LockLostError) as caught:
                scope.check()
            return caught.value.reason

        with pytest.raises(LockLostError):
            async with locker.with_context("job") as scope:
                working = asyncio.create_task(asyncio.to_thread(work, scope))
                await asyncio.sleep(0.02)
                time.sleep(0.4)  # noqa: ASYNC251  # the loop is blocked: nothing is extended
                await asyncio.sleep(5)
        assert await working == "expired"


@pytest.mark.asyncio
async def test_close_with_many_locks_on_a_server_that_hangs(own_server: Server) -> None:
    locker = Locker(own_server.url)
    scopes = [await locker.acquire(f"job {number}") for number in range(20)]
    own_server.pause()
    since = time.monotonic()
    await locker.aclose()
    assert time.monotonic() - since < AT_ONCE  # try_next_after once for the releases, once for the connection
    assert {scope.lost_reason for scope in scopes} == {"closed"}
    own_server.resume()


@pytest.mark.asyncio
async def test_cancelled_while_its_own_error_is_on_its_way_out(locker: Locker, server: Server) -> None:
    leaving, cancelled = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            leaving.set()
            await cancelled.wait()
            await asyncio.sleep(0.01)

    async def run() -> None:
        async with locker.with_context("job") as scope:
            scope.create_task(slow())
            await asyncio.sleep(0)
            raise OwnError

    task = asyncio.create_task(run())
    await leaving.wait()
    task.cancel()
    cancelled.set()
    with pytest.raises(OwnError):
        await task
    assert free(server)


@pytest.mark.asyncio
async def test_two_that_close_do_not_wait_for_each_other(server: Server) -> None:
    locker = Locker(server.url)
    inside = asyncio.Event()

    async def run() -> None:
        async with locker.with_context("job"):
            inside.set()
            try:
                await asyncio.sleep(60)
            finally:
                await locker.aclose()

    task = asyncio.create_task(run())
    await inside.wait()
    since = time.monotonic()
    await locker.aclose()
    with pytest.raises(LockLostError):
        await task
    assert time.monotonic() - since < 1


@pytest.mark.asyncio
async def test_many_take_overs_when_the_connection_is_lost(own_server: Server) -> None:
    async with Locker(own_server.url) as locker:
        forcing = [asyncio.create_task(locker.force_acquire("job")) for _ in range(1000)]
        await asyncio.sleep(0)
        own_server.kill()
        for task in forcing:
            with contextlib.suppress(ServerError):
                await (await asyncio.wait_for(task, 5)).release()


@pytest.mark.asyncio
async def test_the_answer_to_a_release_is_read_after_the_loop_was_blocked(server: Server) -> None:
    """A timer that comes late is no sign of a server that says nothing: its answer may be there, unread."""
    async with Locker(server.url, client_side_caching=False, try_next_after=0.4) as locker:
        for _ in range(2):
            scope = await locker.acquire("job")
            server.execute("DEL", key("job"))
            releasing = asyncio.create_task(scope.release())
            await asyncio.sleep(0)  # it is about to be sent
            time.sleep(0.5)  # noqa: ASYNC251 - the loop is to be blocked
            await releasing
            assert scope.lost_reason is LossReason.DELETED


@pytest.mark.asyncio
async def test_close_while_who_has_just_been_granted_the_lock_is_cancelled(own_server: Server) -> None:
    """Both wait for the release then: who closes, and who was cancelled."""
    locker = Locker(own_server.url)
    await (await locker.acquire("other")).release()
    acquiring = asyncio.create_task(locker.acquire("job"))
    await asyncio.sleep(0)  # it has been asked for
    time.sleep(0.05)  # noqa: ASYNC251 - so that the answer is read in the turn in which the other two begin

    def cancel() -> None:
        acquiring.cancel()
        own_server.pause()  # the release is not answered yet when both wait for it

    resume = asyncio.get_running_loop().call_later(0.1, own_server.resume)
    closing = asyncio.create_task(locker.aclose())
    asyncio.get_running_loop().call_soon(cancel)
    done, _ = await asyncio.wait([acquiring, closing], timeout=AT_ONCE)
    resume.cancel()
    own_server.resume()
    assert done == {acquiring, closing}
    assert acquiring.cancelled()
    await until(lambda: own_server.execute("KEYS", "*") == [], AT_ONCE)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("after", "stuck"),
    [(0, False), (0.1, True), (0.05, False), (0.15, False), (0.25, False)],
    ids=["not begun", "block", "release", "answers", "connection"],
)
async def test_every_task_is_cancelled_while_it_closes(own_server: Server, after: float, stuck: bool) -> None:
    """As programs do that end. The times are in the middle of what closing waits for, one after the other, when the
    server is silent. Nothing is left: ``tests/support/leftovers.py`` looks for it."""
    locker = Locker(own_server.url, try_next_after=0.1)

    async def hold() -> None:
        async with locker.with_context("job"):
            try:
                await asyncio.sleep(60)
            finally:
                if stuck:
                    await asyncio.sleep(60)

    holding = asyncio.create_task(hold())
    await until(lambda: locker.statistics().held)
    own_server.pause()
    closing = asyncio.create_task(locker.aclose())
    await asyncio.sleep(after)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.wait_for(asyncio.gather(holding, closing, return_exceptions=True), AT_ONCE)
    own_server.resume()
    await until(lambda: own_server.execute("KEYS", "*") == [], AT_ONCE)
    await until(lambda: bytes(own_server.execute("CLIENT", "LIST")).count(b"name=asynclock") == 0)  # type: ignore[arg-type]
    await locker.aclose()


@pytest.mark.asyncio
async def test_close_while_an_attempt_is_under_way(server: Server) -> None:
    """Its answer comes just after its release was sent. If the connection were closed already, the answer would be
    refused with RST, and a proxy drops what it has not passed on when it sees that: the release."""
    async with Proxy(server.port) as proxy:
        locker = Locker(proxy.url, try_next_after=1)
        await (await locker.acquire("other")).release()
        proxy.delay = 0.1  # in each direction
        acquiring = asyncio.create_task(locker.acquire("job"))
        await asyncio.sleep(0.18)
        await locker.aclose()
        with pytest.raises(LockerClosedError):
            await acquiring
        assert free(server)
