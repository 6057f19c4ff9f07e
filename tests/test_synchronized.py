"""``@locker.synchronized``: the lock of each call, what comes out of it, and what is refused at decoration."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import AsyncIterator, Callable
from datetime import date, timedelta
from typing import Any

import pytest

from asynclock import (
    AcquireTimeoutError,
    AlreadyHeldError,
    ConfigurationError,
    Locker,
    LockLostError,
)
from asynclock.testing import Server
from tests.support.helpers import AT_ONCE, key, until

pytestmark = [pytest.mark.every_python, pytest.mark.asyncio]
DAY = date(2026, 11, 26)


class OwnError(Exception):
    """The function's own."""


def keys(server: Server) -> list[str]:
    found = server.execute("KEYS", "*")
    assert isinstance(found, list)
    return sorted(each.decode() for each in found)


def functions(locker: Locker, server: Server) -> dict[str, Callable[..., Any]]:
    """Each returns the keys that exist while it runs."""

    @locker.synchronized("plain")
    async def plain() -> list[str]:
        return keys(server)

    @locker.synchronized("report:{day}")
    async def report(day: date, /, *, draft: bool = False) -> list[str]:
        return keys(server)

    @locker.synchronized("report:{day:%Y}:{draft}")
    async def default(day: date = DAY, *, draft: bool = False) -> list[str]:
        return keys(server)

    @locker.synchronized("{first}:{rest[0]}:{named[x]}")
    async def variable(first: int, *rest: int, **named: int) -> list[str]:
        return keys(server)

    class Account:
        def __init__(self, number: int) -> None:
            self.number = number

        @locker.synchronized("account:{self.number}")
        async def pay(self, amount: int) -> list[str]:
            return keys(server)

        @classmethod
        @locker.synchronized("accounts of {cls.__name__}")
        async def all(cls) -> list[str]:
            return keys(server)

        @staticmethod
        @locker.synchronized("account:{number}")
        async def close(number: int) -> list[str]:
            return keys(server)

    def doubling(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def double(*args: Any, **kwargs: Any) -> Any:
            return await function(*args, **kwargs)

        return double

    @locker.synchronized("{a}:{b}")
    @doubling
    async def decorated(a: int, b: int = 2) -> list[str]:
        return keys(server)

    account = Account(7)
    return {
        "plain": plain,
        "report:2026-11-26": lambda: report(DAY, draft=True),
        "report:2026:False": default,
        "report:2026:True": lambda: default(draft=True),
        "1:2:3": lambda: variable(1, 2, x=3),
        "account:7": lambda: account.pay(5),
        "account:8": lambda: Account.pay(Account(8), amount=5),
        "accounts of Account": Account.all,
        "account:9": lambda: Account.close(9),
        "1:2": lambda: decorated(b=2, a=1),
        "1:5": lambda: locker.synchronized("{a}:{b}")(functools.partial(decorated.__wrapped__, b=5))(1),
    }


NAMES = list(functions(Locker("redis://127.0.0.1:1"), Server()))


@pytest.mark.parametrize("name", NAMES)
async def test_a_call_holds_the_lock_of_its_arguments(name: str, locker: Locker, server: Server) -> None:
    assert await functions(locker, server)[name]() == [key(name)]
    assert keys(server) == []


@pytest.mark.fast
async def test_calls_with_one_name_take_turns_and_others_do_not(locker: Locker, other: Locker) -> None:
    running: list[int] = []
    together = 0

    async def work(number: int, turn: int) -> int:
        nonlocal together
        assert number not in running
        running.append(number)
        together = max(together, len(running))
        await asyncio.sleep(0.02)
        running.remove(number)
        return turn

    here, there = (each.synchronized("n:{number}")(work) for each in (locker, other))
    calls = [(here, there)[turn % 2](number, turn) for turn in range(4) for number in (1, 2)]
    assert await asyncio.gather(*calls) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert together == 2


async def test_it_looks_like_the_function(locker: Locker) -> None:
    async def write(day: date, *, draft: bool = False) -> str:
        """Write it."""
        return f"{day} {draft}"

    wrapped = locker.synchronized("report:{day}")(write)
    assert inspect.iscoroutinefunction(wrapped)
    assert inspect.signature(wrapped) == inspect.signature(write)
    assert (wrapped.__name__, wrapped.__qualname__, wrapped.__doc__) == ("write", write.__qualname__, "Write it.")
    assert wrapped.__wrapped__ is write  # type: ignore[attr-defined]  # as of functools.wraps
    assert await wrapped(DAY, draft=True) == "2026-11-26 True"


async def test_wrong_arguments_are_told_before_anything_is_acquired(locker: Locker, server: Server) -> None:
    @locker.synchronized("x")
    async def write(day: date) -> None:
        """Never called."""

    async with locker.with_context("x"):
        with pytest.raises(TypeError, match=r"write\(\): missing a required argument: 'day'"):
            await write()  # type: ignore[call-arg]
        with pytest.raises(TypeError, match=r"write\(\): got an unexpected keyword argument 'night'"):
            await write(DAY, night=DAY)  # type: ignore[call-arg]
        assert keys(server) == [key("x")]


@pytest.mark.fast
async def test_a_loss_cancels_the_call_and_is_raised(locker: Locker, server: Server) -> None:
    stopped = 0.0

    @locker.synchronized("job")
    async def work() -> None:
        nonlocal stopped
        try:
            await asyncio.sleep(60)
        finally:
            stopped = time.monotonic()

    call = asyncio.create_task(work())
    await until(lambda: keys(server) == [key("job")])
    since = time.monotonic()
    server.execute("DEL", key("job"))
    with pytest.raises(LockLostError, match="deleted"):
        await call
    assert stopped - since < AT_ONCE


async def test_a_loss_that_shows_at_the_release_is_raised(locker: Locker, server: Server) -> None:
    @locker.synchronized("job")
    async def work() -> int:
        server.execute("DEL", key("job"))
        return 1

    with pytest.raises(LockLostError, match="deleted"):
        await work()


async def test_its_own_exception_comes_out_and_the_lock_is_given_back(locker: Locker, server: Server) -> None:
    @locker.synchronized("job")
    async def work() -> None:
        raise OwnError

    with pytest.raises(OwnError):
        await work()
    assert keys(server) == []


async def test_a_call_that_is_cancelled_gives_the_lock_back(locker: Locker, server: Server) -> None:
    @locker.synchronized("job")
    async def work() -> None:
        await asyncio.sleep(60)

    holding, waiting = (asyncio.create_task(work()) for _ in range(2))
    await until(lambda: keys(server) == [key("job")])
    for task in (waiting, holding):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert keys(server) == []


async def test_it_waits_for_its_timeout(locker: Locker, other: Locker) -> None:
    async def work() -> None:
        """Never called."""

    async with other.with_context("job"):
        for timeout, seconds in ((0, 0.0), (0.1, 0.1), (timedelta(milliseconds=100), 0.1)):
            since = time.monotonic()
            with pytest.raises(AcquireTimeoutError):
                await locker.synchronized("job", timeout=timeout)(work)()
            assert seconds * 0.9 <= time.monotonic() - since < seconds + AT_ONCE


@pytest.mark.fast
async def test_a_call_inside_of_itself_would_wait_for_ever(locker: Locker, server: Server) -> None:
    @locker.synchronized("n:{number}")
    async def work(number: int, then: int | None = None) -> int:
        return number if then is None else await work(then)

    assert await work(1, then=2) == 2
    with pytest.raises(AlreadyHeldError, match="'n:1'"):
        await asyncio.wait_for(work(1, then=1), 5)
    assert keys(server) == []


async def test_in_a_task_of_its_own_it_waits_its_turn(locker: Locker) -> None:
    """The call that it was made in does not wait for it."""
    inner: list[asyncio.Task[None]] = []

    @locker.synchronized("job")
    async def work(more: bool) -> None:
        if more:
            inner.append(asyncio.create_task(work(False)))
            await asyncio.sleep(0.01)
            assert not inner[0].done()

    await work(True)
    await asyncio.wait_for(inner[0], 5)


async def coroutine(day: date) -> None:
    """Never called."""


async def generator(day: date) -> AsyncIterator[int]:
    yield 1


def synchronous(day: date) -> None:
    """Never called."""


class Callable_:
    async def __call__(self, day: date) -> None:
        """Never called."""


@pytest.mark.fast
@pytest.mark.parametrize(
    ("name", "function", "told"),
    [
        ("report:{night}", coroutine, r"'report:{night}' needs 'night', .* the arguments of coroutine\(\): day"),
        ("report:{}", coroutine, "a value without a name"),
        ("report:{day", coroutine, "braces"),
        (7, coroutine, "must be a str"),
        ("report:{day}", generator, r"on generator: it is an async generator.*async with locker\.with_context"),
        ("report:{day}", synchronous, r"on synchronous: it is not a coroutine function.*asynclock\.sync\.Locker"),
        ("report:{day}", Callable_, "on Callable_: it is not a coroutine function"),
        ("report:{day}", Callable_(), "it is not a coroutine function"),
        ("report:{day}", staticmethod(coroutine), "write @staticmethod above it"),
        ("report:{day}", classmethod(coroutine), "write @classmethod above it"),
        ("report:{day}", None, "it is not a coroutine function"),
    ],
)
async def test_what_cannot_be_decorated(name: Any, function: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        Locker("redis://127.0.0.1:1").synchronized(name)(function)


@pytest.mark.parametrize("timeout", [-1, "1", True, float("nan")])
async def test_a_wrong_timeout_is_told_at_decoration(timeout: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout"):
        Locker("redis://127.0.0.1:1").synchronized("x", timeout=timeout)


async def test_a_name_that_turns_out_empty_is_refused(locker: Locker) -> None:
    with pytest.raises(ConfigurationError, match="must not be empty"):
        await locker.synchronized("{day}")(coroutine)(day="")  # type: ignore[arg-type]
