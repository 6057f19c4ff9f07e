"""``scope.fencing_token()``: a number that is greater than every one that was given out for the name before."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis.asyncio as redis

import asynclock.sync
from asynclock import Locker, LockLostError, ServerError
from asynclock.core.counters import counter_of
from asynclock.core.fencing import MAX_NUMBER
from asynclock.testing import Cluster, Proxy, Sentinels, Server, clock_off
from asynclock.testing.nodes import slot_of
from tests.support.cluster import execute, primaries, spread
from tests.support.helpers import key, until, worker
from tests.support.interceptor import Interceptor
from tests.support.tap import Tap

DAY = 86_400_000  # ms
HOUR = 3600
FAILOVER = 20.0  # seconds; it takes two or three


def counter(name: str = "job", index: int = 0) -> str:
    return counter_of(key(name, index).encode(), b"asynclock", index, name.encode()).decode()


async def token(locker: Locker, name: str = "job") -> int:
    """Of a scope of its own."""
    async with locker.with_context(name) as scope:
        return await scope.fencing_token()


def value(server: Server, index: int = 0, name: str = "job") -> int:
    """Of the counter there; 0: there is none."""
    found = server.execute("GET", counter(name, index))
    assert found is None or isinstance(found, bytes)
    return int(found or 0)


def server_time(server: Server) -> int:
    """In microseconds."""
    seconds, microseconds = server.execute("TIME")  # type: ignore[misc]
    return int(seconds) * 1_000_000 + int(microseconds)


async def lost(waiting: asyncio.Task[int]) -> str:
    """Why that call for a token has ended."""
    with pytest.raises(LockLostError) as caught:
        await asyncio.wait_for(waiting, 10)
    return str(caught.value.reason)


# One server


@pytest.mark.asyncio
@pytest.mark.fast
async def test_it_grows_from_scope_to_scope(server: Server, locker: Locker, other: Locker) -> None:
    tokens = []
    for one in (locker, other, locker, locker, other):
        before = server_time(server)
        tokens.append(await token(one))
        assert before <= tokens[-1] <= MAX_NUMBER
        assert json.loads(json.dumps({"fence": tokens[-1]}))["fence"] == tokens[-1]
    assert tokens == sorted(set(tokens))
    assert await token(locker, "another name") != tokens[-1]


@pytest.mark.asyncio
@pytest.mark.fast
async def test_one_request_a_scope(server: Server) -> None:
    """Also for calls at the same time."""
    async with Tap(server) as tap, Locker(tap.url) as locker, locker.with_context("job") as scope:
        connecting = len(tap.commands("EVAL"))
        tokens = await asyncio.gather(*(scope.fencing_token() for _ in range(20)))
        assert {*tokens, await scope.fencing_token()} == {value(server)}
        assert len(tap.commands("EVAL")) == connecting + 1
        # Nothing of it is on the way of a lock that wants no token.
        sent = len(tap.sent)
    async with Tap(server) as tap, Locker(tap.url) as locker:
        async with locker.with_context("job"):
            pass
        assert not [seen for seen in tap.sent if b":f0:" in b" ".join(seen.words)]
        assert sent


@pytest.mark.asyncio
async def test_the_counter_is_kept_for_a_day(server: Server, locker: Locker) -> None:
    async with locker.with_context("job") as scope:
        await scope.fencing_token()
        ttl = server.execute("PTTL", counter())
        assert isinstance(ttl, int) and DAY - 60_000 < ttl <= DAY
        server.execute("PEXPIRE", counter(), 1000)
    await token(locker)
    ttl = server.execute("PTTL", counter())
    assert isinstance(ttl, int) and DAY - 60_000 < ttl <= DAY
    assert await locker.names() == []  # it is no lock
    assert server.execute("DBSIZE") == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("what", ["deleted", "flushed", "text", "nan", "negative", "a list"])
async def test_whatever_becomes_of_the_counter(server: Server, locker: Locker, what: str) -> None:
    before = await token(locker)
    if what == "flushed":
        server.execute("FLUSHALL")
    else:
        server.execute("DEL", counter())
        if what == "a list":
            server.execute("RPUSH", counter(), "x")
        elif what != "deleted":
            server.execute("SET", counter(), {"text": "x", "nan": "nan", "negative": "-5"}[what])
    after = await token(locker)
    assert before < after == value(server)
    assert after < await token(locker)


@pytest.mark.asyncio
async def test_a_counter_that_is_ahead_of_the_clock(server: Server, locker: Locker) -> None:
    server.execute("SET", counter(), MAX_NUMBER - 2)
    assert [await token(locker), await token(locker)] == [MAX_NUMBER - 1, MAX_NUMBER]
    with pytest.raises(
        ServerError, match=r"the counter is at its end \(delete the key 'asynclock:f0:\{asynclock:0:job\}'"
    ):
        await token(locker)
    server.execute("DEL", counter())
    assert await token(locker) < MAX_NUMBER


@pytest.mark.asyncio
async def test_a_restart_without_the_keys(own_server: Server) -> None:
    async with Locker(own_server.url) as locker:
        before = await token(locker)
        own_server.kill()
        own_server.start()
        assert own_server.execute("DBSIZE") == 0
        assert await token(locker) > before


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """What is written in here is how far the server's clock is off."""
    return tmp_path / "clock"


@pytest.fixture
def skewed(kind: str, clock: Path) -> Iterator[Server]:
    """A server whose clock can be set."""
    environment = clock_off(0)
    del environment["FAKETIME"]
    environment |= {"FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    clock.write_text("+0s\n")
    with Server(kind, environment=environment) as server:
        yield server


@pytest.mark.asyncio
@pytest.mark.skipif(sys.platform != "linux", reason="libfaketime is preloaded as Linux has it")
async def test_a_clock_that_is_set_back(skewed: Server, clock: Path) -> None:
    """The counter goes on from where it is. Only a server that forgets it too gives out smaller numbers, and that is
    what the documentation says."""
    async with Locker(skewed.url) as locker:
        before = await token(locker)
        set_off = clock.with_suffix(".new")
        set_off.write_text(f"-{HOUR}s\n")
        set_off.rename(clock)  # it is never half written
        await until(lambda: server_time(skewed) < before)
        tokens = [await token(locker) for _ in range(3)]
        assert tokens == [before + 1, before + 2, before + 3]
        skewed.execute("DEL", counter())
        assert await token(locker) < before


# The lock is over


@pytest.mark.asyncio
@pytest.mark.fast
async def test_no_token_after_the_end(server: Server, locker: Locker) -> None:
    scope = await locker.acquire("job")
    await scope.release()
    with pytest.raises(LockLostError, match="released"):
        await scope.fencing_token()
    scope = await locker.acquire("job")
    first = await scope.fencing_token()
    server.execute("DEL", key("job"))
    await scope.wait_lost()
    with pytest.raises(LockLostError, match="deleted"):
        await scope.fencing_token()
    assert await token(locker) > first


@pytest.mark.asyncio
async def test_the_server_says_that_it_is_over_before_anything_else_does(server: Server) -> None:
    """Without tracking, nothing is pushed, and the next extension is far. The script finds another value; so the lock
    is lost now, by the usual rules."""
    async with Locker(server.url, client_side_caching=False, key_validity=60) as locker:
        scope = await locker.acquire("job")
        server.execute("SET", key("job"), "somebody", "PX", 60_000)
        assert scope.held
        assert await lost(asyncio.create_task(scope.fencing_token())) == "overwritten"
        assert scope.lost_reason == "overwritten"
        assert value(server) == 0
        server.execute("DEL", key("job"))
        scope = await locker.acquire("job")
        server.execute("DEL", key("job"))
        server.execute("RPUSH", key("job"), "no string")
        assert await lost(asyncio.create_task(scope.fencing_token())) == "overwritten"


@pytest.mark.asyncio
@pytest.mark.every_python
@pytest.mark.parametrize("how", ["released", "left", "cancelled", "closed", "taken over"])
async def test_it_ends_while_the_server_is_silent(own_server: Server, how: str) -> None:
    async with Locker(own_server.url) as locker:
        scope = await locker.acquire("job")
        own_server.pause()
        try:
            waiting = asyncio.create_task(scope.fencing_token())
            await asyncio.sleep(0.05)
            assert not waiting.done()
            if how == "released":
                await scope.release()
            elif how == "left":
                async with scope:
                    pass
            elif how == "cancelled":
                scope.cancel()
            elif how == "closed":
                await locker.aclose()
            else:
                taking = asyncio.create_task(locker.force_acquire("job"))
                await asyncio.sleep(0.05)
                own_server.resume()
                await (await taking).release()
            expected = {"closed": "closed", "taken over": "taken over"}.get(how, "released")
            if how == "taken over" and not waiting.cancelled() and waiting.done() and waiting.exception() is None:
                return  # the server has read the request before it: the number is from before the take-over
            assert await lost(waiting) == expected
        finally:
            own_server.resume()


@pytest.mark.asyncio
async def test_a_silent_server_until_the_lock_expires(own_server: Server) -> None:
    async with Locker(own_server.url, key_validity=0.5) as locker:
        scope = await locker.acquire("job")
        own_server.pause()
        try:
            assert await lost(asyncio.create_task(scope.fencing_token())) == "expired"
        finally:
            own_server.resume()


@pytest.mark.asyncio
@pytest.mark.every_python
async def test_inside_a_block_a_loss_cancels_whoever_waits(own_server: Server) -> None:
    async with Locker(own_server.url, key_validity=0.5) as locker:
        try:
            with pytest.raises(LockLostError, match="validity"):
                async with locker.with_context("job") as scope:
                    own_server.pause()
                    await scope.fencing_token()
        finally:
            own_server.resume()


@pytest.mark.asyncio
@pytest.mark.every_python
async def test_one_of_those_who_wait_is_cancelled(own_server: Server) -> None:
    async with Locker(own_server.url) as locker, locker.with_context("job") as scope:
        own_server.pause()
        first, second, third = (asyncio.create_task(scope.fencing_token()) for _ in range(3))
        await asyncio.sleep(0.05)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled() and not second.done()
        own_server.resume()
        number = await second
        assert await third == number == await scope.fencing_token()


@pytest.mark.asyncio
@pytest.mark.every_python
async def test_all_of_those_who_wait_are_cancelled(own_server: Server) -> None:
    """At any moment, and the next one gets the token."""
    async with Locker(own_server.url) as locker:
        last = 0
        for turns in range(8):
            async with locker.with_context("job") as scope:
                waiting = asyncio.create_task(scope.fencing_token())
                for _ in range(turns):
                    await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.wait([waiting])
                number = await scope.fencing_token()
                assert number == value(own_server) > last
                last = number


@pytest.mark.asyncio
@pytest.mark.every_python
async def test_a_forgotten_scope_is_released_though_a_token_is_on_its_way(own_server: Server) -> None:
    async with Locker(own_server.url) as locker:
        scope = await locker.acquire("job")
        own_server.pause()
        waiting = asyncio.create_task(scope.fencing_token())
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.wait([waiting])
        with pytest.warns(ResourceWarning, match="forgotten"):
            del scope, waiting
            await asyncio.sleep(0.05)
        own_server.resume()
        await until(lambda: own_server.execute("EXISTS", key("job")) == 0)


# Who gets it next


@pytest.mark.asyncio
@pytest.mark.handoff
async def test_each_task_of_a_process_gets_a_greater_one(server: Server, locker: Locker) -> None:
    """Though a hand-off changes nothing on the server."""
    tokens: list[int] = []

    async def one() -> None:
        async with locker.with_context("job") as scope:
            tokens.append(await scope.fencing_token())
            assert await scope.fencing_token() == tokens[-1]

    await asyncio.gather(*(one() for _ in range(50)))
    assert tokens == sorted(set(tokens)) and len(tokens) == 50


@pytest.mark.asyncio
async def test_handed_off_while_a_token_is_on_its_way(own_server: Server) -> None:
    """What arrives then is nobody's."""
    async with Locker(own_server.url, local_handoffs=100) as locker:
        first = await locker.acquire("job")
        next_one = asyncio.create_task(locker.acquire("job"))
        await asyncio.sleep(0.02)
        own_server.pause()
        waiting = asyncio.create_task(first.fencing_token())
        await asyncio.sleep(0.02)
        releasing = asyncio.create_task(first.release())
        await asyncio.sleep(0.02)
        own_server.resume()
        await releasing
        assert await lost(waiting) == "released"
        second = await next_one
        number = await second.fencing_token()
        assert number == value(own_server)
        with pytest.raises(LockLostError):
            await first.fencing_token()
        await second.release()


@pytest.mark.asyncio
async def test_taken_over_by_force(server: Server, locker: Locker, other: Locker) -> None:
    for _ in range(20):
        holding = await locker.acquire("job")
        before = await holding.fencing_token()
        async with other.force_with_context("job") as scope:
            after = await scope.fencing_token()
            assert after > before
            with pytest.raises(LockLostError, match="took it over"):
                await holding.wait_lost()
                await holding.fencing_token()


@pytest.mark.asyncio
@pytest.mark.slow
@pytest.mark.one_loop
@pytest.mark.parametrize("servers", [1, 3])
async def test_many_processes(kind: str, servers: int) -> None:
    """Ten of them, in the order in which they hold the lock."""
    processes, times = 10, 200
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(Server(kind)).url for _ in range(servers)]
        async with contextlib.AsyncExitStack() as workers:
            running = [
                await workers.enter_async_context(
                    worker(",".join(urls), '{"key_validity": 30}', "fence", "job", str(times), urls[0])
                )
                for _ in range(processes)
            ]
            for each in running:
                assert (await each.event(60))["event"] == "ready"
            for each in running:
                each.tell()
            for each in running:
                assert (await each.event(300))["event"] == "through"
        async with redis.Redis.from_url(urls[0]) as client:
            tokens = [int(token) for token in await client.lrange("tokens", 0, -1)]
    assert len(tokens) == processes * times
    assert all(one < next_one for one, next_one in itertools.pairwise(tokens))


# Independent servers


@pytest.fixture(scope="module")
def shared_three(kind: str) -> Iterator[list[Server]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Server(kind)) for _ in range(3)]


@pytest.fixture
def three(shared_three: list[Server]) -> Iterator[list[Server]]:
    for server in shared_three:
        server.start()  # what a test before has killed
        server.execute("FLUSHALL")
    yield shared_three
    for server in shared_three:
        server.resume()


def quorum(servers: list[Server], **options: object) -> Locker:
    return Locker([server.url for server in servers], restart_quarantine=False, **options)


def reached(servers: list[Server], number: int) -> int:
    """How many counters have reached that number."""
    return sum(server.awake and value(server, index) >= number for index, server in enumerate(servers))


async def all_keys(servers: list[Server], name: str = "job") -> None:
    await until(lambda: all(server.execute("EXISTS", key(name, i)) for i, server in enumerate(servers)))


@pytest.mark.asyncio
async def test_a_majority_has_it_before_it_is_given_out(three: list[Server]) -> None:
    async with quorum(three) as locker, quorum(three) as other:
        last = 0
        for _ in range(30):
            for one in (locker, other):
                number = await token(one)
                assert number > last
                assert reached(three, number) >= 2
                last = number
        # A counter that is ahead takes all others along.
        three[1].execute("SET", counter(index=1), last + HOUR * 1_000_000)
        tokens = [await token(locker) for _ in range(20)]
        assert tokens == sorted(set(tokens))
        three[1].execute("DEL", counter(index=1))
        assert await token(other) > tokens[-1]


@pytest.mark.asyncio
async def test_two_round_trips_at_most(three: list[Server]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        taps = [await stack.enter_async_context(Tap(server)) for server in three]
        locker = await stack.enter_async_context(Locker([tap.url for tap in taps], restart_quarantine=False))
        async with locker.with_context("job") as scope:
            await all_keys(three)
            before = [len(tap.commands("EVAL")) for tap in taps]
            await asyncio.gather(*(scope.fencing_token() for _ in range(5)))
            await asyncio.sleep(0.05)
            asked = [len(tap.commands("EVAL")) - count for tap, count in zip(taps, before, strict=True)]
            assert max(asked) <= 2


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["down", "silent", "wiped", "key lost"])
@pytest.mark.parametrize("which", [0, 1, 2])
async def test_a_minority_is_no_obstacle(three: list[Server], how: str, which: int) -> None:
    async with quorum(three, key_validity=10) as locker, quorum(three, key_validity=10) as other:
        before = await token(locker)
        server = three[which]
        scope = await locker.acquire("job")
        await all_keys(three)
        if how == "down":
            server.kill()
        elif how == "silent":
            server.pause()
        elif how == "wiped":
            server.kill()
            server.start()
        else:
            server.execute("SET", key("job", which), "somebody", "PX", 500)
        began = time.monotonic()
        number = await asyncio.wait_for(scope.fencing_token(), 10)
        assert time.monotonic() - began < 2  # nobody waits for that server
        assert number > before
        assert scope.held
        await scope.release()
        assert await asyncio.wait_for(token(other), 10) > number


@pytest.mark.asyncio
async def test_without_a_majority_it_waits_as_long_as_the_lock_is_held(three: list[Server]) -> None:
    async with quorum(three, key_validity=20, disconnect_grace=15) as locker:
        scope = await locker.acquire("job")
        await all_keys(three)
        for server in three[1:]:
            server.pause()
        try:
            waiting = asyncio.create_task(scope.fencing_token())
            await asyncio.sleep(0.1)
            assert not waiting.done() and scope.held
        finally:
            for server in three[1:]:
                server.resume()
        assert reached(three, await asyncio.wait_for(waiting, 10)) >= 2
        await scope.release()

        scope = await locker.acquire("job")
        await all_keys(three)
        for index, server in enumerate(three[1:], 1):
            server.execute("SET", key("job", index), "somebody", "PX", 60_000)
        assert await lost(asyncio.create_task(scope.fencing_token())) == "overwritten"


@pytest.mark.asyncio
async def test_servers_that_come_back_in_time(kind: str, tmp_path: Path) -> None:
    """They have kept their keys, since they write everything to the disk."""
    durable = {"appendonly": "yes", "appendfsync": "always"}
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server(kind, config=durable)) for _ in range(3)]
        async with quorum(servers, key_validity=30, disconnect_grace=25) as locker:
            before = await token(locker)
            async with locker.with_context("job") as scope:
                await all_keys(servers)
                for server in servers[1:]:
                    server.kill()
                waiting = asyncio.create_task(scope.fencing_token())
                await asyncio.sleep(0.3)
                assert not waiting.done() and scope.held
                await asyncio.to_thread(servers[2].start)
                number = await asyncio.wait_for(waiting, 15)
                assert number > before
                assert reached(servers, number) >= 2


@pytest.mark.asyncio
async def test_the_clocks_of_the_servers_differ(kind: str) -> None:
    """By an hour: the one that is ahead is followed, and one that is behind takes nothing back."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server(kind, environment=clock_off(seconds))) for seconds in (0, HOUR, -HOUR)]
        async with quorum(servers) as locker, quorum(servers) as other:
            tokens = []
            for number in range(20):
                servers[number % 3].pause()
                try:
                    tokens.append(await token((locker, other)[number % 2]))
                finally:
                    servers[number % 3].resume()
            assert tokens == sorted(set(tokens))


# Connections


@pytest.mark.asyncio
@pytest.mark.parametrize("when", ["request lost", "answer lost"])
async def test_the_connection_is_lost_meanwhile(server: Server, when: str) -> None:
    """It is asked again after the reconnect."""
    async with Proxy(server.port) as proxy, Locker(proxy.url) as locker:
        before = await token(locker)
        async with locker.with_context("job") as scope:
            if when == "request lost":
                proxy.freeze()
            else:
                proxy.delay = 0.1
            waiting = asyncio.create_task(scope.fencing_token())
            await asyncio.sleep(0.15 if when == "answer lost" else 0.02)
            proxy.delay = 0.0
            proxy.thaw()
            proxy.reset()
            number = await asyncio.wait_for(waiting, 10)
            assert scope.held
            assert number == value(server) > before


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "reply", [b"+OK\r\n", b":-1\r\n", b":9007199254740992\r\n", b"$1\r\n7\r\n", b"_\r\n", b"*0\r\n", b",7.5\r\n"]
)
async def test_a_reply_that_no_server_gives(server: Server, reply: bytes) -> None:
    """The connection is dropped, and the number comes over the next one."""
    async with Interceptor(server.port) as proxy, Locker(proxy.url) as locker:
        async with locker.with_context("job") as scope:

            def lie(command: bytes) -> bytes | None:
                if b":f0:" not in command:
                    return None
                proxy.answer = None
                return reply

            connections = proxy.connections
            proxy.answer = lie
            number = await asyncio.wait_for(scope.fencing_token(), 10)
            assert proxy.connections == connections + 1
            assert number == value(server) == await scope.fencing_token()
            assert scope.held


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "options",
    [{"client_side_caching": False}, {"no_loop_tracking": False}, {"fallback_setpx": True}, {"key_majority": 2}],
    ids=str,
)
async def test_options(server: Server, options: dict[str, object]) -> None:
    async with Locker(server.url, **options) as locker, Locker(server.url, **options) as other:
        tokens = [await token(one) for one in (locker, other) * 10]
        assert tokens == sorted(set(tokens))


@pytest.mark.asyncio
async def test_resp2(server: Server) -> None:
    url = server.url + "?protocol=2"
    async with Locker(url) as locker, Locker(url) as other:
        tokens = [await token(one) for one in (locker, other) * 10]
        assert tokens == sorted(set(tokens))


@pytest.mark.asyncio
async def test_replicas_have_it(kind: str) -> None:
    """With ``min_replicas``, as they have the lock."""
    config = {"repl-diskless-sync": "yes", "repl-diskless-sync-delay": "0"}
    with Server(kind, config=config) as primary:
        follow = {**config, "replicaof": f"127.0.0.1 {primary.port}"}
        with Server(kind, config=follow) as replica:

            def in_sync() -> bool:
                info = primary.execute("INFO", "replication")
                return isinstance(info, bytes) and b"state=online" in info

            await until(in_sync, 20)
            async with Locker(primary.url, min_replicas=1, key_validity=10) as locker:
                async with locker.with_context("job") as scope:
                    number = await scope.fencing_token()
                    assert value(replica) == number
                async with locker.with_context("job") as scope:
                    replica.pause()
                    try:
                        waiting = asyncio.create_task(scope.fencing_token())
                        await asyncio.sleep(0.3)
                        assert not waiting.done()
                    finally:
                        replica.resume()
                    assert await asyncio.wait_for(waiting, 8) > number
                    assert value(replica) == await scope.fencing_token()


# Permissions


@pytest.mark.asyncio
@pytest.mark.parametrize("missing", ["-eval", "-time", "-set"])
async def test_a_permission_is_missing(server: Server, missing: str) -> None:
    """The call says so, the lock goes on, and the next call asks again."""
    server.execute("ACL", "SETUSER", "fenced", "reset", "on", ">secret", "~asynclock:*", "+@all")
    try:
        async with Locker(f"redis://fenced:secret@127.0.0.1:{server.port}/0", fallback_setpx=True) as locker:
            scope = await locker.acquire("job")
            server.execute("ACL", "SETUSER", "fenced", missing)
            for _ in range(2):
                with pytest.raises(
                    ServerError, match=r"need EVAL, GET, SET and TIME on keys like asynclock:\*"
                ) as caught:
                    await scope.fencing_token()
                assert caught.value.lasting and str(server.port) in str(caught.value)
            with pytest.raises(ServerError):
                await asyncio.gather(*(scope.fencing_token() for _ in range(3)))
            server.execute("ACL", "SETUSER", "fenced", missing.replace("-", "+"))
            assert await scope.fencing_token() == value(server)
            await scope.release()
    finally:
        server.execute("ACL", "DELUSER", "fenced")


@pytest.mark.asyncio
async def test_a_permission_is_missing_on_some_of_three(three: list[Server]) -> None:
    """One is no obstacle. Two are, and the call says so."""
    for server in three:
        server.execute("ACL", "SETUSER", "fenced", "reset", "on", ">secret", "~asynclock:*", "+@all")
    try:
        urls = [server.url.replace("redis://", "redis://fenced:secret@") for server in three]
        async with Locker(urls, restart_quarantine=False, fallback_setpx=True, key_validity=10) as locker:
            before = await token(locker)
            scope = await locker.acquire("job")
            await all_keys(three)
            three[0].execute("ACL", "SETUSER", "fenced", "-time")
            assert await scope.fencing_token() > before
            await scope.release()

            scope = await locker.acquire("job")
            await all_keys(three)
            three[2].execute("ACL", "SETUSER", "fenced", "-time")
            with pytest.raises(ServerError, match="need EVAL, GET, SET and TIME"):
                await scope.fencing_token()
            three[0].execute("ACL", "SETUSER", "fenced", "+time")
            assert await scope.fencing_token() > before
            await scope.release()
    finally:
        for server in three:
            server.execute("ACL", "DELUSER", "fenced")


@pytest.mark.asyncio
async def test_a_permission_is_granted_while_the_only_other_server_is_away(three: list[Server]) -> None:
    """The one that refuses is asked again, since a majority may depend on it."""
    three[0].execute("ACL", "SETUSER", "fenced", "reset", "on", ">secret", "~asynclock:*", "+@all")
    try:
        urls = [three[0].url.replace("redis://", "redis://fenced:secret@"), *(server.url for server in three[1:])]
        async with Locker(urls, restart_quarantine=False, fallback_setpx=True, key_validity=10) as locker:
            scope = await locker.acquire("job")
            await all_keys(three)
            three[0].execute("ACL", "SETUSER", "fenced", "-time")
            three[1].kill()
            waiting = asyncio.create_task(scope.fencing_token())
            await asyncio.sleep(0.3)
            assert not waiting.done() and scope.held
            three[0].execute("ACL", "SETUSER", "fenced", "+time")
            assert await asyncio.wait_for(waiting, 5) == value(three[0]) == value(three[2], 2)
            await scope.release()
    finally:
        three[0].execute("ACL", "DELUSER", "fenced")


@pytest.mark.asyncio
async def test_a_server_that_is_full(own_server: Server) -> None:
    """It waits while that may be temporary, and gets its token when there is memory again."""
    async with Locker(own_server.url, key_validity=30) as locker, locker.with_context("job") as scope:
        own_server.execute("CONFIG", "SET", "maxmemory", "1")
        waiting = asyncio.create_task(scope.fencing_token())
        await asyncio.sleep(0.2)
        assert not waiting.done() and scope.held
        own_server.execute("CONFIG", "SET", "maxmemory", "0")
        assert await asyncio.wait_for(waiting, 5) == value(own_server)


# Clusters and Sentinels


@pytest.mark.asyncio
async def test_in_a_cluster(cluster: Cluster) -> None:
    """Each counter is in the slot of its key, whatever the name is."""
    async with Locker(cluster.url) as locker, Locker(cluster.urls[1]) as other:
        for name in (next(spread(cluster)), "with {a tag}", "{}", "a}b", "a{b", "\u00e9"):
            tokens = [await token(one, name) for one in (locker, other) * 3]
            assert tokens == sorted(set(tokens))
            values = [execute(cluster, "GET", counter(name, index)) for index in range(3)]
            assert sum(int(found) >= tokens[-1] for found in values if isinstance(found, bytes)) >= 2
            for index in range(3):
                assert slot_of(counter(name, index)) == slot_of(key(name, index))


@pytest.mark.asyncio
@pytest.mark.parametrize("moment", ["begun", "keys moved", "finished"])
@pytest.mark.parametrize("used", [True, False], ids=["counter there", "no counter yet"])
async def test_while_a_slot_moves(cluster: Cluster, moment: str, used: bool) -> None:
    """With one key for each name, so that all depends on it."""
    async with Locker(cluster.url, key_majority=1, key_validity=10) as locker:
        name = next(spread(cluster))
        slot = cluster.slot_of(key(name))
        source = cluster.owner(slot)
        target = next(server for server in primaries(cluster) if server is not source)
        before = await token(locker, name) if used else 0
        scope = await locker.acquire(name)
        try:
            await asyncio.to_thread(cluster.begin_migration, slot, target)
            if moment != "begun":
                await asyncio.to_thread(cluster.move_keys, slot, target)
            if moment == "finished":
                await asyncio.to_thread(cluster.finish_migration, slot, target)
            waiting = asyncio.create_task(scope.fencing_token())
            await asyncio.wait([waiting], timeout=0.3)
            if used or moment == "finished":
                assert waiting.done()  # else the node has no counter yet, and may make none while the slot moves
            if moment != "finished":
                await asyncio.to_thread(cluster.move_keys, slot, target)
                await asyncio.to_thread(cluster.finish_migration, slot, target)
            number = await asyncio.wait_for(waiting, 10)
            assert number > before
            await scope.release()
            assert await token(locker, name) > number
        finally:
            await asyncio.to_thread(cluster.migrate, slot, source)


@pytest.mark.asyncio
@pytest.mark.slow
async def test_behind_sentinels(kind: str) -> None:
    """Before and after a failover."""
    if kind == "redis-6.2":
        pytest.skip("asynclock.testing has no Sentinels of Redis 6.2")
    with Sentinels(kind) as sentinels:
        async with Locker(sentinels.url) as locker:
            before = await token(locker)
            old = sentinels.primary
            assert old.execute("WAIT", len(sentinels.replicas), 5000) == len(sentinels.replicas)
            old.kill()
            after = await asyncio.wait_for(token(locker), FAILOVER)
            assert after > before
            new = await asyncio.to_thread(sentinels.wait_for_failover, old)
            assert value(new) == after


# Elsewhere


def test_in_threads(server: Server) -> None:
    with asynclock.sync.Locker(server.url) as locker:
        tokens = []
        for _ in range(3):
            with locker.with_context("job") as scope:
                tokens.append(scope.fencing_token())
                assert scope.fencing_token() == tokens[-1]
        assert tokens == sorted(set(tokens))
        with pytest.raises(LockLostError, match="released"):
            scope.fencing_token()
        with pytest.raises(LockLostError, match="deleted"), locker.with_context("job") as scope:
            server.execute("DEL", key("job"))
            scope.wait_lost(timeout=5)
            scope.fencing_token()
        with locker.with_context("job") as scope:
            scope.cancel()
            with pytest.raises(LockLostError, match="released"):
                scope.fencing_token()
