"""The libraries that are measured: asynclock and its alternatives, each used as in its own README.

An opener gets the server's URL and the number of tasks (some libraries need a connection for each task). It yields a
function of a name that returns an ``async with`` context manager: it acquires, with a validity of 5 seconds, and
releases. A library is imported when it is opened, so that only those are left out that are not installed, or do not run
on this Python.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import asynclock

from . import builds
from .figures import OURS, PURE, SWIFT

Enter = Callable[[str], AbstractAsyncContextManager[Any]]
Opener = Callable[[str, int], AbstractAsyncContextManager[Enter]]

VALIDITY = 5.0  # seconds
NOT_INSTALLED = "not installed"


def ours(*, pure: bool = False, wait_release: bool = True) -> Opener:
    """One connection for all tasks.

    :param pure: the Python source, also where the compiled build is installed
    """

    @contextlib.asynccontextmanager
    async def opener(url: str, tasks: int) -> AsyncIterator[Enter]:
        build = builds.pure() if pure else asynclock
        async with build.Locker(url, key_validity=VALIDITY, wait_release=wait_release) as locker:
            yield locker.with_context

    return opener


@contextlib.asynccontextmanager
async def redis_py(url: str, tasks: int) -> AsyncIterator[Enter]:
    """``Redis.lock``. A waiter asks every 0.1 s."""
    from redis.asyncio import Redis

    async with Redis.from_url(url, max_connections=tasks + 1) as client:
        yield lambda name: client.lock(name, timeout=VALIDITY)


@contextlib.asynccontextmanager
async def redis_lock_py(url: str, tasks: int) -> AsyncIterator[Enter]:
    """Does not poll: a waiter subscribes to the name's channel, on a connection of its own."""
    from redis.asyncio import Redis
    from redis_lock.asyncio import RedisLock

    async with Redis.from_url(url, max_connections=2 * tasks + 1) as client:
        yield lambda name: RedisLock(client, name, expire_timeout=int(VALIDITY))


@contextlib.asynccontextmanager
async def pottery(url: str, tasks: int) -> AsyncIterator[Enter]:
    """With one master. A waiter asks after 0 to 0.2 s, at random."""
    from pottery import AIORedlock
    from redis.asyncio import Redis

    async with Redis.from_url(url, max_connections=tasks + 1) as client:
        yield lambda name: AIORedlock(key=name, masters={client}, auto_release_time=VALIDITY)


@contextlib.asynccontextmanager
async def aioredlock(url: str, tasks: int) -> AsyncIterator[Enter]:
    """With one instance, and its watchdog. A waiter asks after 0.1 to 0.3 s, at random; by default it would give up
    after three attempts."""
    from urllib.parse import urlsplit

    from aioredlock import Aioredlock

    where = {"host": "127.0.0.1", "port": urlsplit(url).port, "maxsize": tasks + 1}
    manager = Aioredlock([where], internal_lock_timeout=VALIDITY, retry_count=1_000_000)

    @contextlib.asynccontextmanager
    async def enter(name: str) -> AsyncIterator[None]:
        async with await manager.lock(name):
            yield

    try:
        yield enter
    finally:
        await manager.destroy()


@contextlib.asynccontextmanager
async def coredis(url: str, tasks: int) -> AsyncIterator[Enter]:
    """Sends the commands of several tasks over each of its connections. A waiter asks every 0.1 s."""
    from coredis import Redis
    from coredis.patterns.lock import Lock

    async with Redis.from_url(url, max_connections=tasks + 1) as client:
        yield lambda name: Lock(client, name, timeout=VALIDITY)


@dataclass(frozen=True, slots=True)
class Contestant:
    name: str
    package: str  #: its name for pip
    open: Opener
    poll: float = 0.0  #: longest time between two polls of a waiter, in seconds; 0: it does not poll


ASYNCLOCK = Contestant(OURS, "asynclock", ours())
#: The ways to run asynclock, by what is installed. OURS is the installed build; in a clone that is pure Python.
WAYS = (
    ASYNCLOCK,
    Contestant(f"{OURS}, {SWIFT}", "asynclock", ours(wait_release=False)),
    *(
        (
            Contestant(f"{OURS}, {PURE}", "asynclock", ours(pure=True)),
            Contestant(f"{OURS}, {PURE}, {SWIFT}", "asynclock", ours(pure=True, wait_release=False)),
        )
        if asynclock.compiled
        else ()
    ),
)
PEERS = (
    Contestant("redis-py", "redis", redis_py, poll=0.1),
    Contestant("redis-lock-py", "redis-lock-py", redis_lock_py),
    Contestant("pottery", "pottery", pottery, poll=0.2),
    Contestant("aioredlock", "aioredlock", aioredlock, poll=0.3),
    Contestant("coredis", "coredis", coredis, poll=0.1),
)
CONTESTANTS = {each.name: each for each in (ASYNCLOCK, *PEERS)}


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return NOT_INSTALLED


def why_not(contestant: Contestant, error: Exception) -> str:
    """Why it was not measured, in a line for readers of the table."""
    installed = version(contestant.package)
    if installed == NOT_INSTALLED:
        return f"{NOT_INSTALLED}: pip install -e '.[bench]'"
    if isinstance(error, TimeoutError):
        return f"{installed} did not finish in time"
    return f"{installed} fails here: {type(error).__name__}: {error}".splitlines()[0]
