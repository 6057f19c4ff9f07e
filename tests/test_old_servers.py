"""Servers that lack what newer ones have: ``PXAT``, ``DELIFEQ``, ``SET ... IFEQ``; and what asynclock does instead."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from asynclock import Locker, NotLockedError, ServerError
from asynclock.testing import Server
from tests.support.helpers import AT_ONCE, body, key, until
from tests.support.tap import Rewrite, Tap, without_compare, without_pxat


def without_both(words: list[bytes]) -> list[bytes]:
    return without_compare(without_pxat(words))


MISSING: dict[str, Rewrite] = {
    "nothing": lambda words: words,
    "PXAT": without_pxat,
    "compare": without_compare,
    "both": without_both,
}

each_missing = pytest.mark.parametrize("missing", MISSING)


def pttl(server: Server, name: str) -> int:
    ttl = server.execute("PTTL", name)
    assert isinstance(ttl, int)
    return ttl


@pytest.mark.asyncio
@each_missing
@pytest.mark.parametrize("majority", [1, 2])
async def test_everything_works_all_the_same(server: Server, missing: str, majority: int) -> None:
    keys = [key("job", index) for index in range(2 * majority - 1)]
    async with (
        Tap(server, MISSING[missing]) as tap,
        Locker(tap.url, key_validity=2.4, extend_interval=0.3, key_majority=majority) as locker,
        Locker(tap.url, key_majority=majority) as other,
    ):
        # Acquired, excluded, extended (a key lives longer by the round trip in which the clock was read)
        scope = await locker.acquire("job")
        assert all(1550 < pttl(server, name) <= 2900 for name in keys)
        with pytest.raises(NotLockedError):
            await other.try_acquire("job")
        waiting = asyncio.create_task(other.acquire("job"))
        for _ in range(45):  # 0.9 s: not extended, 1500 ms would be left
            await asyncio.sleep(0.02)
            assert all(1550 < pttl(server, name) <= 2900 for name in keys)
        assert scope.held
        assert not waiting.done()
        # Released, and the waiter is told
        await scope.release()
        since = time.monotonic()
        holding = await body(await asyncio.wait_for(waiting, 2))
        assert time.monotonic() - since < AT_ONCE
        # Taken over, and the loser's release touches nothing
        scope = await locker.force_acquire("job")
        error = await holding.lost_within(AT_ONCE, time.monotonic())
        assert error.reason == "taken over"
        await asyncio.sleep(0.3)  # through an extension of the new holder's
        assert scope.held
        await scope.release()
        assert server.execute("DBSIZE") == 0
        # Lost
        holding = await body(await other.acquire("job"))
        server.execute("DEL", *keys)
        error = await holding.lost_within(AT_ONCE, time.monotonic())
        assert error.reason == "deleted"
        # Expired
        before = time.monotonic()
        for name in keys:
            server.execute("SET", name, "somebody's", "PX", "200")
        since = time.monotonic()
        scope = await asyncio.wait_for(locker.acquire("job"), 2)
        now = time.monotonic()
        assert now - before > 0.19
        assert now - since < 0.2 + AT_ONCE
        await scope.release()
        left = {server.execute("GET", name) for name in keys}
        assert left <= {None, b"somebody's"}  # two of three were enough, the last may have a millisecond to go


@pytest.mark.asyncio
@each_missing
async def test_only_what_the_server_has_is_sent(server: Server, missing: str) -> None:
    """What the server lacks is tried once at connect and not again."""
    options = {"key_validity": 3.0, "extend_interval": 0.2}  # PXAT is for who has read the clock within a validity
    async with Tap(server, MISSING[missing]) as tap, Locker(tap.url, **options) as locker:
        connecting = len(tap.sent)
        scope = await locker.acquire("job")
        await asyncio.sleep(0.3)
        await scope.release()
        await (await locker.force_acquire("job")).release()
        words = {word for seen in tap.sent[connecting:] for word in seen.words}
    if missing in ("PXAT", "both"):
        assert b"PX" in words
        assert b"PXAT" not in words
    else:
        assert b"PXAT" in words  # every server here has it
        assert b"PX" not in words
    if missing in ("compare", "both"):
        assert b"EVALSHA" in words
        assert not words & {b"DELIFEQ", b"DELEX", b"IFEQ"}
    assert not words & {b"EVAL", b"SCRIPT"}


@pytest.mark.asyncio
@pytest.mark.parametrize(("fallback", "expiry"), [(True, b"PX"), (False, b"PXAT"), (None, b"PXAT")])
async def test_fallback_setpx(server: Server, fallback: bool | None, expiry: bytes) -> None:
    options = {"key_validity": 3.0, "extend_interval": 0.2}
    async with Tap(server) as tap, Locker(tap.url, fallback_setpx=fallback, **options) as locker:
        connecting = len(tap.sent)
        scope = await locker.acquire("job")
        await asyncio.sleep(0.5)
        assert scope.held
        assert 2500 < pttl(server, key("job")) <= 3500
        await scope.release()
        await (await locker.force_acquire("job")).release()
        sent = [seen.words for seen in tap.sent if b"PXAT" in seen.words or b"PEXPIREAT" in seen.words]
        if fallback:
            assert not sent  # not even to try it
        sets = [seen.words for seen in tap.sent[connecting:] if seen.words[0] == b"SET"]
        assert len(sets) >= 2
        assert all(expiry in words for words in sets)


async def a_new_cache(server: Server) -> None:
    server.execute("SCRIPT", "FLUSH")


async def a_restart(server: Server) -> None:
    server.restart()
    await until(lambda: "name=asynclock" in str(server.execute("CLIENT", "LIST")), 5)


@pytest.mark.asyncio
@pytest.mark.parametrize("missing", ["nothing", "compare"])
@pytest.mark.parametrize("what", [a_new_cache, a_restart])
async def test_a_server_that_has_forgotten_its_scripts(kind: str, missing: str, what: Callable[[Server], Any]) -> None:
    """Extension and release still work: the script is told again."""
    with Server(kind, persist=True) as server:
        async with (
            Tap(server, MISSING[missing]) as tap,
            Locker(tap.url, key_validity=3, extend_interval=0.3, disconnect_grace=2.5) as locker,
        ):
            scope = await locker.acquire("job")
            await what(server)
            assert scope.held
            before = len(tap.sent)
            since, left = time.monotonic(), pttl(server, key("job"))
            await asyncio.sleep(0.5)  # through an extension, which the wait for a reconnect has brought too
            extensions = [seen for seen in tap.sent[before:] if seen.words[0] in (b"EVALSHA", b"EVAL", b"SET")]
            assert extensions
            assert pttl(server, key("job")) > left - (time.monotonic() - since) * 1000 + 50  # ... which counted
            assert scope.held
            await what(server)
            await scope.release()
            await until(lambda: server.execute("EXISTS", key("job")) == 0, 1)  # it may have to wait for a reconnect
            holding = await body(await locker.acquire("job"))
            server.execute("DEL", key("job"))
            error = await holding.lost_within(AT_ONCE, time.monotonic())
            assert error.reason == "deleted"


@pytest.mark.asyncio
async def test_pxat_that_was_asked_for_and_is_not_there_is_an_error(server: Server) -> None:
    async with Tap(server, MISSING["PXAT"]) as tap:
        with pytest.raises(ServerError, match="leave fallback_setpx=False out"):
            async with Locker(tap.url, fallback_setpx=False):
                pass


def calls(server: Server, command: str) -> int:
    info = server.execute("INFO", "commandstats")
    assert isinstance(info, bytes)
    found = re.search(rf"cmdstat_{command}:calls=(\d+)".encode(), info)
    return int(found[1]) if found else 0


@pytest.mark.asyncio
@pytest.mark.parametrize("flushed_while", ["held", "idle"])
async def test_scripts_are_run_by_their_digests_until_somebody_flushes_them(server: Server, flushed_while: str) -> None:
    async with (
        Tap(server, without_compare) as tap,
        Locker(tap.url, key_validity=0.6, extend_interval=0.2) as locker,
    ):
        digests, told = calls(server, "evalsha"), calls(server, "eval")
        scope = await locker.acquire("job")
        await asyncio.sleep(0.5)  # through two extensions
        assert calls(server, "evalsha") >= digests + 2
        assert calls(server, "eval") == told
        if flushed_while == "idle":
            await scope.release()
        server.execute("SCRIPT", "FLUSH")
        if flushed_while == "idle":
            scope = await locker.acquire("job")
        else:
            await asyncio.sleep(0.7)  # past the validity: extended all the same
            assert scope.held and server.execute("EXISTS", key("job")) == 1
        await scope.release()
        assert server.execute("EXISTS", key("job")) == 0
        assert scope.lost_reason is None
        assert calls(server, "eval") > told
