"""A server, or whatever has taken its place, that turns hostile: a clear error, bounded memory, a loop that
goes on, nothing left behind; and locks elsewhere do not notice. (Those that never were a Redis:
``test_bad_input.py``.)"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import pytest

from asynclock import AcquireTimeoutError, Locker, LockLostError, LockScope, ServerError
from asynclock.testing import Server
from asynclock.topology.opening import _first_connections
from asynclock.wire.commands import Capabilities
from tests.support import internals
from tests.support.fake_server import HELLO, says
from tests.support.helpers import key, until
from tests.support.interceptor import Interceptor, to
from tests.support.watch import Watch, complaints

MB = 1 << 20

# For how long other work in the loop may have to wait: what a busy machine does to a loop by itself (tests
# run beside each other), and far less than any lock's validity.
BLOCKED = 0.5
# By how much memory may grow: hostile bytes under way in both processes' buffers, of which this one has both ends.
GROWN = 64 * MB

KINDS = {
    "an integer": b":5\r\n",
    "a negative integer": b":-7\r\n",
    "a string": b"$1\r\nx\r\n",
    "an empty string": b"$0\r\n\r\n",
    "bytes": b"$4\r\n\xff\x00\r\n\r\n",
    "null": b"_\r\n",
    "an array": b"*2\r\n:1\r\n:2\r\n",
    "an empty array": b"*0\r\n",
    "a nested array": b"*1\r\n*1\r\n*1\r\n*0\r\n",
    "a map": b"%1\r\n+a\r\n+b\r\n",
    "a set": b"~1\r\n+a\r\n",
    "a double": b",1.5\r\n",
    "infinity": b",inf\r\n",
    "not a number": b",nan\r\n",
    "a boolean": b"#t\r\n",
    "a big number": b"(123456789012345678901234567890\r\n",
    "a status": b"+OK\r\n",
    "an error": b"-ERR no\r\n",
    "an error without a word": b"-\r\n",
    "an error that is no text": b"-\xff\xfe\xfd\r\n",
    "another's token": b"$18\r\nasynclock:f:abcd:1\r\n",
}


class Scene(NamedTuple):
    """A lock held and one waited for at a server that may turn hostile, and one held at a server that does not."""

    turncoat: Interceptor
    locker: Locker
    held: LockScope
    waiting: asyncio.Task[LockScope]
    neighbour: LockScope
    complaints: list[object]


@contextlib.asynccontextmanager
async def scene(server: Server, kind: str, validity: float = 2.0) -> AsyncIterator[Scene]:
    """At the end the server is honest again, and every name is to be had: what was held and what was waited for
    too. What the loop had to complain about is looked at then."""
    with Server(kind) as elsewhere, complaints() as heard:
        async with (
            Interceptor(server.port) as turncoat,
            Locker(turncoat.url, key_validity=validity) as locker,
            Locker(server.url) as other,
            Locker(elsewhere.url, key_validity=validity) as beside,
        ):
            neighbour, held = await beside.acquire("neighbour"), await locker.acquire("held")
            busy = await other.acquire("busy")
            waiting = asyncio.create_task(locker.acquire("busy"))
            await asyncio.sleep(0.02)
            try:
                yield Scene(turncoat, locker, held, waiting, neighbour, heard)
                turncoat.answer = None
                await busy.release()
                # Either the waiter heard of it, or it gets the lock. A reconnect is at most a second away.
                with contextlib.suppress(ServerError):
                    await (await asyncio.wait_for(waiting, 5)).release()
                assert neighbour.held
                await held.release()
                for name in ("held", "busy", "new", "used"):
                    await usable(locker, name)
                assert neighbour.held
                await neighbour.release()
            finally:
                waiting.cancel()
                await asyncio.wait([waiting])
    assert heard == []


async def usable(locker: Locker, name: str, seconds: float = 5.0) -> None:
    """It is to be had within that time, whatever a server still has of it. What is known of the
    server may be older than its change of mind, by the second that a reconnect may take."""
    end = time.monotonic() + seconds
    while True:
        try:
            async with locker.with_context(name, timeout=max(0.0, end - time.monotonic())) as scope:
                assert scope.held
                return
        except ServerError:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)


def invalidation(*names: str) -> bytes:
    keys = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in (key(name).encode() for name in names))
    return b">2\r\n$10\r\ninvalidate\r\n*%d\r\n%b" % (len(names), keys)


async def use(locker: Locker, name: str, seconds: float = 0.3) -> None:
    """As a caller would, who knows asynclock's own errors and no others."""
    with contextlib.suppress(AcquireTimeoutError, LockLostError, ServerError):
        async with locker.with_context(name, timeout=seconds):
            pass


@pytest.mark.asyncio
@pytest.mark.parametrize("command", ["GET", "PTTL", "SET", "DELIFEQ", "TIME", "HELLO", "CLIENT"])
async def test_replies_of_another_kind(server: Server, kind: str, command: str) -> None:
    async with scene(server, kind) as (turncoat, locker, *_):
        for reply in KINDS.values():
            turncoat.answer = to(command.encode(), reply)
            turncoat.say(invalidation("held", "busy"))  # so that these are looked at
            await asyncio.gather(use(locker, "new", 0.1), use(locker, "used", 0.1))
            turncoat.answer = None
            await use(locker, "used", 0.1)


NOT_PUSHES = {
    "a kind that is no string": b">2\r\n:1\r\n:2\r\n",
    "a nested kind": b">2\r\n*1\r\n+x\r\n:2\r\n",
    "keys that are an integer": b">2\r\n$10\r\ninvalidate\r\n:5\r\n",
    "keys that are a string": b">2\r\n$10\r\ninvalidate\r\n$3\r\nkey\r\n",
    "keys that are an error": b">2\r\n$10\r\ninvalidate\r\n-ERR\r\n",
    "keys that are a map": b">2\r\n$10\r\ninvalidate\r\n%1\r\n+a\r\n+b\r\n",
    "a key that is an integer": b">2\r\n$10\r\ninvalidate\r\n*1\r\n:5\r\n",
    "a key that is null": b">2\r\n$10\r\ninvalidate\r\n*1\r\n_\r\n",
    "a key that is an array": b">2\r\n$10\r\ninvalidate\r\n*1\r\n*1\r\n:1\r\n",
}

PUSHES = {
    "nothing": b">0\r\n",
    "no keys": b">1\r\n$10\r\ninvalidate\r\n",
    "an unknown kind": b">2\r\n$3\r\nfoo\r\n$3\r\nbar\r\n",
    "a key that is no text": b">2\r\n$10\r\ninvalidate\r\n*1\r\n$15\r\nasynclock:0:\xff\xfe\xfd\r\n",
    "a key without a name": b">2\r\n$10\r\ninvalidate\r\n*1\r\n$12\r\nasynclock:0:\r\n",
    "a key of no such index": b">2\r\n$10\r\ninvalidate\r\n*1\r\n$17\r\nasynclock:99:held\r\n",
    "the key that is held": b">2\r\n$10\r\ninvalidate\r\n*1\r\n$16\r\nasynclock:0:held\r\n",
    "everything": b">2\r\n$10\r\ninvalidate\r\n_\r\n",
    "more than it should": b">4\r\n$10\r\ninvalidate\r\n*0\r\n:1\r\n*0\r\n",
    **NOT_PUSHES,
}


@pytest.mark.asyncio
@pytest.mark.parametrize("push", PUSHES)
async def test_pushes_in_the_middle_of_everything(server: Server, kind: str, push: str) -> None:
    async with scene(server, kind) as (turncoat, locker, held, *_):
        for _ in range(5):
            using = asyncio.gather(*(use(locker, f"{number}", 1.0) for number in range(10)))
            for _ in range(5):
                turncoat.say(PUSHES[push])
                await asyncio.sleep(0.001)
            await using
        # Its key is where it was. (A connection that is given up, and the next one while it is set up: that may
        # be a server that is gone.)
        assert held.held or push in NOT_PUSHES


@pytest.mark.asyncio
async def test_a_reply_inside_of_which_is_a_push_and_a_push_inside_of_a_reply(server: Server, kind: str) -> None:
    async with scene(server, kind) as (turncoat, locker, held, *_):
        turncoat.answer = to(b"GET", b"*2\r\n>2\r\n$10\r\ninvalidate\r\n_\r\n:1\r\n")
        await use(locker, "new")
        turncoat.say(b">1\r\n>1\r\n>0\r\n")
        turncoat.answer = None
        await use(locker, "new")
        assert held.held


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff\xfe garbage",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"$-5\r\n",
        b"*-2\r\n",
        b":99999999999999999999999\r\n",
        b",x\r\n",
        b"#x\r\n",
        b"$99999999999999999999\r\n",
        b"*1\r\n" * 10_000,
        b"%1\r\n*0\r\n:1\r\n",
        b"$3\r\nabcdef\r\n",
    ],
    ids=["bytes", "http", "length", "count", "integer", "double", "boolean", "long", "nested", "map", "longer"],
)
async def test_garbage_in_the_middle(
    server: Server, kind: str, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection is given up, the log says which server it was, and a new one finds the lock where it was."""
    caplog.set_level(logging.INFO, logger="asynclock")
    async with scene(server, kind) as (turncoat, locker, held, *_):
        since = turncoat.connections
        turncoat.say(garbage)
        turncoat.say(b"+OK\r\n" * 10)  # whatever it was taken for, it is over now
        await asyncio.gather(*(use(locker, f"{number}", 1.0) for number in range(10)))
        await asyncio.sleep(0.1)
        assert turncoat.connections > since
        assert held.held
        assert f"127.0.0.1:{turncoat.port}" in caplog.text


@pytest.mark.asyncio
async def test_a_reply_that_nobody_asked_for_among_those_that_are_waited_for(server: Server, kind: str) -> None:
    """It cannot be told from the others, and all that follow belong to other commands than they are taken for:
    until one is left over. What is not the lock's own value is no vote, so nothing is held that is not."""
    async with scene(server, kind) as (turncoat, locker, *_):
        for extra in KINDS.values():
            turncoat.hold()
            turncoat.say(invalidation("held"))  # so that PTTL and GET are asked
            using = asyncio.create_task(use(locker, "new"))
            await asyncio.sleep(0.01)
            turncoat.say(extra)
            turncoat.go_on()
            await using


@pytest.mark.asyncio
async def test_a_reply_that_nobody_asked_for_while_none_is_waited_for(server: Server, kind: str) -> None:
    async with scene(server, kind) as (turncoat, locker, held, *_):
        for extra in KINDS.values():
            await usable(locker, "new")  # all that was asked before it is answered by now
            since = turncoat.connections
            turncoat.say(extra)
            await until(lambda since=since: turncoat.connections > since)
            assert held.held


@pytest.mark.asyncio
@pytest.mark.parametrize("half", [b"$10\r\nabc", b"*2\r\n:1\r\n", b">2\r\n$10\r\ninvalidate\r\n"])
async def test_half_a_reply_and_then_nothing(server: Server, kind: str, half: bytes) -> None:
    """Its silence is noticed in time for the lock to be extended on another connection."""
    async with scene(server, kind) as (turncoat, locker, held, *_):
        turncoat.say(half)
        turncoat.mute()
        since = turncoat.connections
        with pytest.raises(AcquireTimeoutError, match=f"127.0.0.1:{turncoat.port}/0 has not answered"):
            await locker.acquire("new", timeout=0.3)
        while turncoat.connections == since:
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.5)  # past what was left of its validity without an extension
        assert held.held


@pytest.mark.asyncio
@pytest.mark.parametrize("drip", [b"x", b"*1\r\n", b">1\r\n$1\r\nx\r\n"], ids=["bytes", "arrays", "pushes"])
async def test_half_a_reply_for_ever(server: Server, kind: str, drip: bytes) -> None:
    """Bytes keep coming, and no reply is ever whole. That is as good as silence."""
    async with scene(server, kind) as (turncoat, locker, held, *_):
        if drip == b"x":
            turncoat.say(b"$1000000\r\n")
        turncoat.mute()
        using = asyncio.create_task(use(locker, "new", 2.0))
        await asyncio.sleep(0)
        poured = await turncoat.pour(drip, 50, 0.05)
        hung_up = poured < 50 * len(drip)
        await using
        assert hung_up
        await asyncio.sleep(0.5)
        assert held.held


@pytest.mark.asyncio
async def test_a_length_of_512_mb(server: Server, kind: str) -> None:
    """Announced, it costs nothing. Sent, it is not kept: nothing that a lock asks for is that long."""
    async with scene(server, kind) as (turncoat, locker, *_):
        turncoat.mute()
        using = asyncio.create_task(use(locker, "new", 2.0))
        await asyncio.sleep(0)
        async with Watch() as watch:
            turncoat.say(b"$536870912\r\n")
            await asyncio.sleep(0.02)
            announced = watch.grown
            taken = await turncoat.pour(bytes(65536), 512 * 16)
        await using
        assert announced < MB
        assert taken < 512 * MB
        assert watch.grown < GROWN
        assert watch.blocked < BLOCKED


@pytest.mark.asyncio
@pytest.mark.parametrize("header", [b"*100000000\r\n", b">20000000\r\n", b"~100000000\r\n", b"%100000000\r\n"])
async def test_many_elements_announced(server: Server, kind: str, header: bytes) -> None:
    """A dozen bytes must not cost what they announce."""
    async with scene(server, kind) as (turncoat, locker, *_):
        using = asyncio.create_task(use(locker, "new", 2.0))
        async with Watch() as watch:
            turncoat.say(header)
            turncoat.mute()
            await using
            await asyncio.sleep(0.3)
        assert watch.blocked < BLOCKED
        assert watch.grown < GROWN


@pytest.mark.asyncio
async def test_more_elements_than_there_is_memory_for(server: Server, kind: str) -> None:
    async with scene(server, kind) as (turncoat, locker, held, *_):
        turncoat.say(b"*4294967295\r\n")
        await use(locker, "new", 1.0)
        assert held.held


BURSTS: dict[str, Callable[[], tuple[bytes, int]]] = {
    "of others": lambda: (b"".join(invalidation(f"other {number}") for number in range(1000)), 1000),
    "of one that is held": lambda: (invalidation("held") * 1000, 1000),
    "of one that is waited for": lambda: (invalidation("busy") * 1000, 1000),
    "many in a push": lambda: (invalidation(*(f"other {number}" for number in range(10_000))), 100),
    "all in one push": lambda: (invalidation(*(f"other {number}" for number in range(1_000_000))), 1),
    "of everything": lambda: (b">2\r\n$10\r\ninvalidate\r\n_\r\n" * 1000, 1000),
}


@pytest.mark.asyncio
@pytest.mark.slow
@pytest.mark.parametrize("burst", BURSTS)
async def test_a_million_invalidations_in_a_burst(server: Server, kind: str, burst: str) -> None:
    chunk, times = BURSTS[burst]()
    async with scene(server, kind, validity=30.0) as (turncoat, locker, held, _, neighbour, _):
        async with Watch() as watch:
            pouring = asyncio.create_task(turncoat.pour(chunk, times))
            while not pouring.done():
                await use(locker, "used", 5.0)
            await pouring
            await use(locker, "new", 5.0)  # behind all of them
        assert held.held
        assert neighbour.held
        assert watch.grown < GROWN + 4 * len(chunk)
        assert watch.blocked < BLOCKED


@pytest.mark.asyncio
async def test_an_invalidation_in_the_moment_of_an_extension(server: Server) -> None:
    """The key is looked at, and extended all the same: if not then, so after it. The server answers all along, a
    little slowly: that is no reason to lose a lock."""
    async with Interceptor(server.port) as turncoat, Locker(turncoat.url, key_validity=2.0) as locker:
        internals.manager(locker).chance = lambda: 1.0  # the first extension after one second, and no earlier
        held = await locker.acquire("held")
        await asyncio.sleep(0.9)
        turncoat.hold()
        turncoat.say(invalidation("held"))
        await asyncio.sleep(0.2)
        turncoat.go_on()
        await asyncio.sleep(1.0)  # past the validity, counted from when it was acquired
        assert held.held
        await held.release()


@pytest.mark.asyncio
async def test_flushed_a_million_times_with_many_locks(server: Server, kind: str) -> None:
    """Each means a look at every lock."""
    async with scene(server, kind, validity=30.0) as (turncoat, locker, held, *_):
        scopes = [await locker.acquire(f"{number}") for number in range(200)]
        async with Watch() as watch:
            await turncoat.pour(b">2\r\n$10\r\ninvalidate\r\n_\r\n" * 10_000, 1)
            await use(locker, "new", 5.0)
        assert held.held
        assert all(scope.held for scope in scopes)
        for scope in scopes:
            await scope.release()
        assert watch.blocked < BLOCKED


@pytest.mark.asyncio
async def test_an_error_of_many_megabytes(server: Server, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """What a server says is told, and not all of it."""
    async with scene(server, kind) as (turncoat, locker, *_):
        turncoat.answer = to(b"SET", b"-ERR " + b"x" * (8 * MB) + b"\r\n")
        with pytest.raises(ServerError) as caught:
            await locker.acquire("new", timeout=5.0)
        assert f"127.0.0.1:{turncoat.port}" in str(caught.value)
        assert len(str(caught.value)) < 10_000
        assert len(caplog.text) < 100_000


@pytest.mark.asyncio
async def test_a_server_that_is_given_up_each_time_after_it_is_set_up(server: Server, kind: str) -> None:
    """Reconnecting has a pace also where it works: it costs both ends a dozen commands."""

    def answer(command: bytes) -> bytes | None:
        return b"?\r\n" if b"GET" in command and b"held" in command else None

    async with scene(server, kind) as (turncoat, *_):
        turncoat.answer = answer
        turncoat.say(b"?\r\n")
        before = turncoat.connections
        await asyncio.sleep(1.0)
        assert turncoat.connections - before < 20


# While the connection is set up: redis-py reads here, and then the first replies are ours


async def cannot_connect(url: str) -> ServerError:
    """A ServerError that names the server, in time, for everyone who asks; and nothing is left of the attempt."""
    since = time.monotonic()
    with pytest.raises(ServerError) as caught:
        async with Locker(f"{url}?socket_connect_timeout=0.3") as locker:
            await locker.acquire("job")
    assert time.monotonic() - since < 2 * 0.3 + 1.0  # HELLO 3, and RESP2 where that was no answer
    assert "127.0.0.1:" in str(caught.value)
    assert len(str(caught.value)) < 10_000
    return caught.value


@pytest.mark.asyncio
@pytest.mark.parametrize("greets", [False, True], ids=["at once", "after HELLO"])
@pytest.mark.parametrize(
    "answer",
    [
        b"$536870912\r\n" + b"x" * 1000,
        b"*1\r\n" * 10_000,
        b"%1\r\n*0\r\n:1\r\n",
        b"*4294967295\r\n",
        b"*100000000\r\n",
        b">20000000\r\n",
        b"-ERR " + b"x" * 100_000 + b"\r\n",
        b"+" + b"x" * (2 * MB) + b"\r\n",
        b"+OK\r\n" * 100_000,
        b">2\r\n$10\r\ninvalidate\r\n_\r\n" * 10_000,
    ],
    ids=["512 MB", "nested", "map", "out of memory", "array", "push", "long error", "long", "many", "pushes"],
)
async def test_hostile_from_the_start(answer: bytes, greets: bool) -> None:
    def reply(data: bytes) -> bytes | None:
        if greets and b"HELLO\r\n$1\r\n3\r\n" in data:
            return HELLO
        return answer * (data.count(b"*") if len(answer) < MB else 1)

    with complaints() as heard:
        async with says(reply) as url, Watch() as watch:
            await cannot_connect(url)
    assert heard == []
    assert watch.blocked < BLOCKED
    assert watch.grown < GROWN


@pytest.mark.asyncio
@pytest.mark.parametrize("count", [1, 3])
async def test_a_connection_that_is_lost_as_soon_as_it_is_set_up(count: int) -> None:
    class Gone:
        label = "127.0.0.1:1/0"
        connection = None
        abilities = Capabilities()
        trouble = ServerError("127.0.0.1:1/0", "disconnected; reconnecting")

        def start(self) -> asyncio.Future[None]:
            first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            first.set_result(None)  # connected, then
            return first

    with pytest.raises(ServerError, match=r"127\.0\.0\.1:1/0"):
        await _first_connections([Gone() for _ in range(count)], 0.02)  # type: ignore[misc]


@pytest.mark.asyncio
async def test_a_clock_beyond_all_numbers(server: Server) -> None:
    async with Interceptor(server.port) as turncoat:
        turncoat.answer = to(b"TIME", b"*2\r\n$306\r\n%b\r\n$1\r\n0\r\n" % (b"9" * 306))
        with pytest.raises(ServerError, match=f"127.0.0.1:{turncoat.port}"):
            async with Locker(turncoat.url) as locker:
                await locker.acquire("job", timeout=2.0)


@pytest.mark.asyncio
@pytest.mark.parametrize("greets", [False, True], ids=["at once", "after HELLO"])
async def test_drips_from_the_start(greets: bool) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read(65536)
            if greets:
                writer.write(HELLO)
            writer.write(b"$1000000\r\n")
            while not writer.is_closing():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.close()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    error = await cannot_connect(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert "no answer within 0.3 s" in str(error)
    server.close()
    await asyncio.sleep(0.05)


@pytest.mark.asyncio
async def test_one_millisecond_is_no_success(server: Server) -> None:
    """PTTL says in the same words how long a key has left as others that they did what they were to do."""
    async with Interceptor(server.port) as turncoat, Locker(turncoat.url, key_validity=20.0) as locker:
        scope = await locker.acquire("job")
        turncoat.answer = lambda command: b":1\r\n" if b"PTTL" in command else None
        server.execute("PEXPIRE", key("job"), "5000")  # it is looked at again
        await until(lambda: not scope.held)
        assert scope.lost_reason == "expired"


@pytest.mark.asyncio
async def test_a_flush_is_the_reason_though_an_extension_is_answered_right_after_it(server: Server) -> None:
    async with Interceptor(server.port) as turncoat, Locker(turncoat.url, extend_interval=0.2) as locker:
        scope = await locker.acquire("job")
        lease = internals.lease(scope)
        assert lease is not None
        await until(lambda: lease.untracked == 0)
        turncoat.hold()
        server.execute("FLUSHALL")
        await until(lambda: lease.extending)
        await asyncio.sleep(0.05)  # the server has answered
        turncoat.go_on()  # both come at once
        await until(lambda: not scope.held)
        assert scope.lost_reason == "flushed"
