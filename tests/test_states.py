"""The life of a locker without servers: which state follows which, whoever cancels, closes or forks when."""

from __future__ import annotations

import asyncio
import gc
import warnings

import pytest

from asynclock import ConfigurationError, Locker, LockerClosedError
from asynclock._engine.lifecycle import Lifecycle, State
from tests.support import internals

pytestmark = [pytest.mark.fast, pytest.mark.every_python, pytest.mark.serverless]

NAME = "<Locker x>"


async def nothing(hurry: asyncio.Future[None] | None = None) -> None:
    pass


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


async def refuse() -> None:
    raise OSError("refused")


def is_idle(life: Lifecycle) -> bool:
    return life.serving is None and life.opening is None and not life.needs_closing


@pytest.mark.asyncio
async def test_from_new_to_closed() -> None:
    life = Lifecycle()
    assert (life.state, life.loop, str(life), life.can_send) == (State.NEW, None, "new", False)
    assert is_idle(life)
    opening = life.open(nothing, "opening")
    assert life.open(nothing, "opening") is opening
    assert (life.state, life.serving, str(life), life.needs_closing) == (State.OPENING, None, "new", True)
    await opening
    loop = asyncio.get_running_loop()
    assert (life.state, life.loop, life.serving, life.opening, str(life)) == (State.OPEN, loop, loop, None, "open")
    life.check(NAME)
    life.close(nothing, "closing")
    assert (life.state, life.serving, str(life)) == (State.CLOSING, None, "closed")
    with pytest.raises(LockerClosedError, match=NAME):
        life.check(NAME)
    await life.wait_closed()
    assert (life.state, life.connected, life.loop) == (State.CLOSED, True, loop)
    assert is_idle(life)
    await life.wait_closed()


@pytest.mark.asyncio
async def test_connecting_that_fails_can_be_tried_again() -> None:
    life = Lifecycle()
    for _ in range(2):
        with pytest.raises(OSError, match="refused"):
            await life.open(refuse, "opening")
        assert (life.state, life.loop, life.connected) == (State.NEW, None, False)
        assert is_idle(life)
    await life.open(nothing, "opening")
    assert life.state is State.OPEN


@pytest.mark.asyncio
@pytest.mark.parametrize("asked_again", [True, False])
async def test_connecting_that_is_cancelled_before_it_has_begun(asked_again: bool) -> None:
    life = Lifecycle()
    opening = life.open(nothing, "opening")
    opening.cancel()
    while not opening.done():
        await asyncio.sleep(0)
    if not asked_again:
        await asyncio.sleep(0)
        assert (life.state, life.loop) == (State.NEW, None)
        assert is_idle(life)
    again = life.open(nothing, "opening")
    assert again is not opening
    await again
    assert life.state is State.OPEN


@pytest.mark.asyncio
async def test_closed_while_it_connects() -> None:
    life = Lifecycle()
    opening = life.open(for_ever, "opening")
    await asyncio.sleep(0)
    life.close(nothing, "closing")
    assert is_idle(life)
    await life.wait_closed()
    assert opening.cancelled()
    assert (life.state, life.connected) == (State.CLOSED, False)


@pytest.mark.asyncio
async def test_connected_in_the_moment_in_which_it_is_closed() -> None:
    """It is never open, and what was connected is there to be closed."""
    life = Lifecycle()
    told = asyncio.get_running_loop().create_future()
    found = []

    async def connect() -> None:
        await told

    async def work(hurry: asyncio.Future[None]) -> None:
        found.append((life.connected, life.serving, hurry.done()))

    opening = life.open(connect, "opening")
    await asyncio.sleep(0)
    told.set_result(None)
    life.close(work, "closing", hurry=True)
    await life.wait_closed()
    assert opening.done() and not opening.cancelled()
    assert found == [(True, None, True)]
    assert life.state is State.CLOSED


@pytest.mark.asyncio
async def test_whoever_is_cancelled_while_it_closes_makes_it_hurry_and_waits_on() -> None:
    life = Lifecycle()
    steps = []

    async def work(hurry: asyncio.Future[None]) -> None:
        await hurry
        steps.append("in a hurry")
        await asyncio.sleep(0.01)
        steps.append("closed")

    life.close(work, "closing")
    waiting = [asyncio.create_task(life.wait_closed()) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.wait(waiting)
    assert steps == ["in a hurry", "closed"]
    assert waiting[0].cancelled() and not waiting[1].cancelled()


@pytest.mark.asyncio
async def test_work_that_fails_is_the_end_all_the_same() -> None:
    life = Lifecycle()

    async def work(hurry: asyncio.Future[None]) -> None:
        raise OSError("the work's own")

    life.close(work, "closing")
    with pytest.raises(OSError, match="own"):
        await life.wait_closed()
    assert life.state is State.CLOSED


@pytest.mark.asyncio
@pytest.mark.parametrize("state", State)
async def test_fork(state: State) -> None:
    """A child can use what was not connected; of all else it has a copy that does nothing."""
    life = Lifecycle()
    opening = None
    if state not in (State.NEW, State.CLOSED):
        opening = life.open(for_ever if state is State.OPENING else nothing, "opening")
    if opening is not None and state is not State.OPENING:
        await opening
    if state is State.FORKED:
        assert life.fork()
    if state in (State.CLOSING, State.CLOSED):
        life.close(nothing, "closing")
    if state is State.CLOSED:
        await life.wait_closed()
    assert life.state is state
    if state in (State.NEW, State.CLOSED):
        assert not life.fork()
        assert life.state is state
        return
    assert life.fork()
    assert (life.state, life.can_send, str(life)) == (State.FORKED, False, "forked")
    assert is_idle(life)
    with pytest.raises(ConfigurationError, match="fork"):
        life.check(NAME)
    life.call_soon(lambda: pytest.fail("called"))
    await asyncio.sleep(0.001)
    assert life.state is State.FORKED
    if opening is not None:
        opening.cancel()
    await asyncio.sleep(0.001)
    assert life.state is State.FORKED


def test_another_loop() -> None:
    life = Lifecycle()

    async def open_it() -> None:
        await life.open(nothing, "opening")

    async def check() -> None:
        life.check(NAME)

    asyncio.run(open_it())
    assert not life.can_send
    with pytest.raises(ConfigurationError, match="another event loop; make a Locker for each"):
        asyncio.run(check())
    life.call_soon(lambda: pytest.fail("called"))


@pytest.mark.asyncio
async def test_forgotten_while_it_is_closed_before_it_was_connected() -> None:
    """There is nothing left to do, and nothing to complain of."""
    locker = Locker("redis://127.0.0.1:1")
    manager = internals.manager(locker)
    manager.connect = for_ever  # type: ignore[method-assign]  # a server that says nothing
    asking = asyncio.create_task(manager.ready())
    await asyncio.sleep(0)
    closing = asyncio.create_task(manager.aclose())
    await asyncio.sleep(0)
    assert manager.life.state is State.CLOSING
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del locker
        gc.collect()
    with pytest.raises(LockerClosedError, match="closed>: make a new Locker"):
        await asking
    await closing
    assert manager.life.state is State.CLOSED
