"""What servers refuse for a while: it is waited for where that helps, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from asynclock import AcquireTimeoutError, Locker, ServerError
from asynclock.testing import Server
from tests.support.helpers import AT_ONCE, key, until

SOON = 2.0  # seconds after the end of the refusals within which everything is as it should be


@contextmanager
def set_to(server: Server, option: str, value: str, before: str) -> Iterator[None]:
    server.execute("CONFIG", "SET", option, value)
    try:
        yield
    finally:
        server.execute("CONFIG", "SET", option, before)


@contextmanager
def read_only(server: Server) -> Iterator[None]:
    """A replica of a server that is not there."""
    server.execute("REPLICAOF", "127.0.0.1", "1")
    try:
        yield
    finally:
        server.execute("REPLICAOF", "NO", "ONE")


@contextmanager
def disk_errors(server: Server) -> Iterator[None]:
    """It cannot save, and takes no writes for that (MISCONF)."""
    where = [server.execute("CONFIG", "GET", option) for option in ("dir", "dbfilename")]
    path = Path(*(os.fsdecode(told[1]) for told in where if isinstance(told, list)))
    server.execute("CONFIG", "SET", "save", "3600 1")
    server.execute("SET", "changed", "1")
    path.mkdir()
    try:
        server.execute("BGSAVE")
        end = time.monotonic() + 10
        while b"rdb_last_bgsave_status:err" not in _info(server, "persistence"):
            assert time.monotonic() < end
            time.sleep(0.01)
        yield
    finally:
        path.rmdir()
        server.execute("CONFIG", "SET", "save", "")


@contextmanager
def busy(server: Server) -> Iterator[None]:
    """A script that runs on and on."""
    server.execute("CONFIG", "SET", "lua-time-limit", "1")

    def run() -> None:
        with contextlib.suppress(RuntimeError):  # killed
            server.execute("EVAL", "while true do end", "0")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        end = time.monotonic() + 10
        while True:
            try:
                server.execute("GET", "x")
            except RuntimeError as error:
                assert "BUSY" in str(error)
                break
            assert time.monotonic() < end
        yield
    finally:
        server.execute("SCRIPT", "KILL")
        thread.join(10)


def _info(server: Server, section: str) -> bytes:
    text = server.execute("INFO", section)
    assert isinstance(text, bytes)
    return text


def few_replicas(server: Server) -> AbstractContextManager[None]:
    return set_to(server, "min-replicas-to-write", "1", "0")


def full(server: Server) -> AbstractContextManager[None]:
    return set_to(server, "maxmemory", "1", "0")


Refuses = Callable[[Server], AbstractContextManager[None]]

refusals = pytest.mark.parametrize(
    "refuses",
    [few_replicas, disk_errors, busy, full, read_only],
    ids=["NOREPLICAS", "MISCONF", "BUSY", "OOM", "READONLY"],
)


def free(server: Server, name: str) -> bool:
    return server.execute("EXISTS", key(name)) == 0


@pytest.mark.asyncio
@refusals
async def test_a_release_that_was_refused_is_done_as_soon_as_it_can_be(own_server: Server, refuses: Refuses) -> None:
    async with Locker(own_server.url, key_validity=30) as locker:
        scopes = [await locker.acquire(f"x{number}") for number in range(250)]  # more than are tried at once
        with refuses(own_server):
            since = time.monotonic()
            await asyncio.gather(*(scope.release() for scope in scopes))
            assert time.monotonic() - since < 30 / 2  # no wait for what is refused; but 250 of them
            await asyncio.sleep(1.5)  # longer than the first pauses
        await until(lambda: all(free(own_server, scope.name) for scope in scopes), SOON + AT_ONCE)


@pytest.mark.asyncio
@refusals
async def test_a_wait_that_timed_out_while_it_was_refused_leaves_nothing(own_server: Server, refuses: Refuses) -> None:
    async with Locker(own_server.url, key_validity=30) as locker:
        async with locker.with_context("first"):
            pass
        with refuses(own_server):
            with pytest.raises(AcquireTimeoutError) as caught:
                await locker.acquire("x", timeout=1.0)  # an answer takes a while on a busy machine
            assert isinstance(caught.value.__cause__, ServerError)
        await until(lambda: free(own_server, "x"), SOON + AT_ONCE)
        async with locker.with_context("x"):
            pass


@pytest.mark.asyncio
@refusals
async def test_a_refusal_that_passes_is_waited_for(own_server: Server, refuses: Refuses) -> None:
    async with Locker(own_server.url) as locker:
        async with locker.with_context("first"):
            pass
        with refuses(own_server):
            waiting = asyncio.create_task(locker.acquire("x"))
            since = time.monotonic()
            with pytest.raises(ServerError) as caught:
                await locker.try_acquire("y")
            assert time.monotonic() - since < AT_ONCE
            assert not caught.value.lasting
            await asyncio.sleep(3)
            assert not waiting.done()
        scope = await asyncio.wait_for(waiting, SOON + AT_ONCE)
        await scope.release()


@pytest.mark.asyncio
@refusals
async def test_who_waits_here_for_a_key_that_is_released_late_is_served(own_server: Server, refuses: Refuses) -> None:
    """With NOLOOP nobody tells this process of its own release."""
    async with Locker(own_server.url, key_validity=30, local_handoffs=0) as locker:
        scope = await locker.acquire("x")
        with refuses(own_server):
            await scope.release()
            waiting = asyncio.create_task(locker.acquire("x"))
            await asyncio.sleep(0.3)
        scope = await asyncio.wait_for(waiting, SOON + AT_ONCE)
        await scope.release()


@pytest.mark.asyncio
@refusals
async def test_a_refusal_costs_nobody_a_lock_that_is_extended_in_time(own_server: Server, refuses: Refuses) -> None:
    """Nor a connection: with RESP2 the second one is pinged, and MISCONF refuses even that."""
    url = own_server.url
    async with Locker(url) as locker, Locker(f"{url}?protocol=2") as old:
        scopes = [await locker.acquire("x"), await old.acquire("y")]
        await asyncio.sleep(0.05)
        with refuses(own_server):
            await asyncio.sleep(2.2)
        await asyncio.sleep(0.5)
        if refuses is not read_only:  # there the connection is dropped, to find the primary
            assert all(scope.held for scope in scopes)
        for scope in scopes:
            await scope.release()
        await until(lambda: free(own_server, "x") and free(own_server, "y"), SOON + AT_ONCE)


@pytest.mark.asyncio
async def test_a_lock_is_kept_on_a_server_that_is_full_and_has_forgotten_its_scripts(kind: str) -> None:
    """One that extends by a command, and deletes by a script (Valkey 8.1): neither way back undoes the other."""
    config = {"rename-command DELIFEQ": '""'} if kind.startswith("valkey") else {}
    with Server(kind, config=config) as server:
        async with Locker(server.url, key_validity=1.0) as locker:
            scope = await locker.acquire("x")
            with full(server):
                server.execute("SCRIPT", "FLUSH")
                await asyncio.sleep(2.5)
                assert scope.held
            await scope.release()
            assert free(server, "x")


@pytest.mark.asyncio
async def test_a_lock_is_kept_on_a_server_that_is_full_and_new_ones_are_refused(own_server: Server) -> None:
    async with Locker(own_server.url, key_validity=1.0) as locker:
        scopes = [await locker.acquire(name) for name in ("x", "y")]
        with full(own_server):
            await asyncio.sleep(3.5)  # several extensions
            assert all(scope.held for scope in scopes)
            with pytest.raises(ServerError, match=r"maxmemory.*free memory, or raise maxmemory"):
                await locker.try_acquire("new")
            with pytest.raises(AcquireTimeoutError, match="maxmemory"):
                await locker.acquire("new", timeout=0.2)
            since = time.monotonic()
            with pytest.raises(ServerError, match="maxmemory") as caught:
                await locker.acquire("new")
            assert caught.value.lasting and time.monotonic() - since < 6 + AT_ONCE  # it does not pass by itself
            for scope in scopes:
                await scope.release()
            assert free(own_server, "x") and free(own_server, "y")
        async with locker.with_context("new"):
            pass


@pytest.mark.asyncio
async def test_closing_waits_for_releases_that_are_refused_for_a_moment(own_server: Server) -> None:
    async with Locker(own_server.url, key_validity=30) as locker:
        scopes = [await locker.acquire(f"x{number}") for number in range(5)]
        with few_replicas(own_server):
            for scope in scopes[:3]:
                await scope.release()
            closing = asyncio.create_task(locker.aclose())
            await asyncio.sleep(0.2)
        await asyncio.wait_for(closing, 1 + AT_ONCE)
        assert all(free(own_server, scope.name) for scope in scopes)


@pytest.mark.asyncio
async def test_closing_does_not_wait_for_long(own_server: Server) -> None:
    async with Locker(own_server.url, key_validity=30) as locker:
        _scope = await locker.acquire("x")
        with few_replicas(own_server):
            since = time.monotonic()
            await locker.aclose()
            assert time.monotonic() - since < 1 + AT_ONCE


@pytest.mark.asyncio
async def test_who_may_not_run_scripts_extends_again_once_there_is_memory(own_server: Server, kind: str) -> None:
    if not kind.startswith("valkey"):
        pytest.skip("Redis extends by scripts anyway")
    own_server.execute("ACL", "SETUSER", "locks", "on", ">x", "~*", "+@all", "-eval", "-evalsha")
    url = own_server.url.replace("redis://", "redis://locks:x@")
    async with Locker(url, key_validity=2) as locker:
        scope = await locker.acquire("x")
        with full(own_server):
            await asyncio.sleep(1.3)  # until an extension is refused
        await asyncio.sleep(1.1)
        if not scope.held:  # that could not be helped
            scope = await locker.acquire("x")
        await asyncio.sleep(3)
        assert scope.held
        await scope.release()
