"""Where there is no RESP3: a second connection brings the invalidations, and all else is as ever.

``route``: the user says ``protocol=2``, or something between client and server knows no ``HELLO``.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import redis.asyncio as redis

from asynclock import Locker, LossReason, ServerError
from asynclock.testing import Server
from asynclock.wire.watchdog import max_silence
from tests.support import internals
from tests.support.helpers import AT_ONCE, Body, body, key, until
from tests.support.interceptor import Interceptor, TwoServers

pytestmark = pytest.mark.redis_py


class NoHello(Interceptor):
    """Does not know ``HELLO``, like an old server or a proxy with a list of commands of its own."""

    passes_on = False

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.refusal = b"-ERR unknown command 'HELLO', with args beginning with: '3' \r\n"
        self.refused = 0
        self.knows_hello = False

    def instead(self, command: bytes) -> bytes | None:
        if b"HELLO" not in command.upper() or self.knows_hello:
            return None
        self.refused += 1
        return self.refusal


@pytest_asyncio.fixture(params=["protocol=2", "no HELLO"])
async def route(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[str]:
    """A URL that leads to the server without RESP3."""
    if request.param == "protocol=2":
        yield server.url + "?protocol=2"
    else:
        async with NoHello(server.port) as proxy:
            yield proxy.url


def clients(server: Server) -> dict[str, dict[str, str]]:
    """Our connections as the server sees them: ``main``, ``second``."""
    listed = server.execute("CLIENT", "LIST")
    assert isinstance(listed, bytes)
    found = {}
    for line in listed.decode().splitlines():
        client = dict(field.split("=", 1) for field in line.split(" ") if "=" in field)
        if client["name"].startswith("asynclock-"):
            found["second" if client["sub"] == "1" else "main"] = client
    return found


def kill(server: Server, which: str) -> None:
    assert server.execute("CLIENT", "KILL", "ID", clients(server)[which]["id"]) == 1


OUTSIDE: dict[str, tuple[tuple[str, ...], LossReason]] = {
    "deleted": (("DEL", key("job")), LossReason.DELETED),
    "overwritten": (("SET", key("job"), "mine"), LossReason.OVERWRITTEN),
    "expired at once": (("PEXPIREAT", key("job"), "1"), LossReason.DELETED),
    "flushed": (("FLUSHALL",), LossReason.FLUSHED),
    "db flushed": (("FLUSHDB",), LossReason.FLUSHED),
}


@pytest.mark.asyncio
@pytest.mark.fast
@pytest.mark.parametrize("what", OUTSIDE)
async def test_another_client_takes_it_away(server: Server, route: str, what: str) -> None:
    command, reason = OUTSIDE[what]
    async with Locker(route) as locker:
        holding = await body(await locker.acquire("job"))
        since = time.monotonic()
        server.execute(*command)
        error = await holding.lost_within(AT_ONCE, since)
        assert error.reason == reason


@pytest.mark.asyncio
async def test_forced_take_over(server: Server, route: str) -> None:
    async with Locker(route) as locker, Locker(server.url) as other:
        holding = await body(await locker.acquire("job"))
        since = time.monotonic()
        taken = await other.force_acquire("job")
        error = await holding.lost_within(AT_ONCE, since)
        assert error.reason is LossReason.TAKEN_OVER
        holding = Body(taken)
        since = time.monotonic()
        taken = await locker.force_acquire("job")
        error = await holding.lost_within(AT_ONCE, since)
        assert error.reason is LossReason.TAKEN_OVER
        await taken.release()


@pytest.mark.asyncio
async def test_a_release_elsewhere_wakes_the_waiter(server: Server, route: str) -> None:
    async with Locker(route) as locker, Locker(server.url) as other:
        for round in range(5):
            scope = await other.acquire("job")
            waiting = asyncio.create_task(locker.acquire("job"))
            # The attempts are over, and only the push can end the wait before the TTL, 5 s, does.
            await until(lambda: "job" in internals.rooms(locker) and internals.rooms(locker)["job"].last_failed)
            await asyncio.sleep(0.02 * round)
            since = time.monotonic()
            await scope.release()
            won = await asyncio.wait_for(waiting, 2)
            assert time.monotonic() - since < AT_ONCE
            await won.release()


@pytest.mark.asyncio
async def test_what_it_brings_is_of_now(server: Server) -> None:
    """Not of the time when it last brought an answer: then whoever is woken would ask for what is over already."""
    async with (
        Locker(server.url + "?protocol=2", key_validity=2.0, extend_interval=1.9) as locker,
        Locker(server.url, key_validity=20.0, extend_interval=19.0) as other,  # which is not extended meanwhile
    ):
        scope = await other.acquire("job")
        await asyncio.sleep(2.1)  # more than a validity since the subscription was answered
        waiting = asyncio.create_task(locker.acquire("job"))
        await until(lambda: "job" in internals.rooms(locker) and internals.rooms(locker)["job"].last_failed)
        attempts = sets(server)
        await scope.release()
        won = await asyncio.wait_for(waiting, 2)
        assert sets(server) - attempts == 1
        # Somebody shortens its life: it is over when that says, not at once.
        server.execute("PEXPIRE", key("job"), "1500")
        await until(lambda: won.remaining() < 1.5)
        assert won.held
        await won.release()


def sets(server: Server) -> int:
    """How often SET was called."""
    told = server.execute("INFO", "commandstats")
    assert isinstance(told, bytes)
    (calls,) = re.findall(r"cmdstat_set:calls=(\d+)", told.decode())
    return int(calls)


@pytest.mark.asyncio
async def test_own_writes_are_silent(server: Server, kind: str, route: str) -> None:
    """NOLOOP holds for a redirected connection too. (Redis 6.2 has it not even without a redirect.)"""
    async with Locker(route, extend_interval=0.1) as locker:
        node = internals.node(locker)
        pushes: list[object] = []
        assert node.session is not None and node.session.invalidations is not None
        node.session.invalidations._on_push = lambda *push: pushes.append(push)
        scopes = await asyncio.gather(*(locker.acquire(f"job {number}") for number in range(10)))
        await asyncio.sleep(0.3)
        await asyncio.gather(*(scope.release() for scope in scopes))
        await asyncio.sleep(0.05)
        assert clients(server)["main"]["redir"] == clients(server)["second"]["id"]
        assert bool(pushes) is (kind == "redis-6.2")


@pytest.mark.asyncio
@pytest.mark.parametrize("which", ["main", "second"])
async def test_one_of_the_two_is_killed(server: Server, route: str, which: str) -> None:
    async with Locker(route) as locker:
        holding = await body(await locker.acquire("job"))
        for _ in range(3):
            before = clients(server)
            kill(server, which)
            await until(lambda before=before: _both_new(before, clients(server)))  # type: ignore[misc]
            await until(lambda: internals.node(locker).connection)
            assert holding.scope.held
        await asyncio.sleep(0.05)
        since = time.monotonic()
        server.execute("DEL", key("job"))  # and it is tracked again
        error = await holding.lost_within(AT_ONCE, since)
        assert error.reason == "deleted"


def _both_new(before: dict[str, dict[str, str]], now: dict[str, dict[str, str]]) -> bool:
    return len(now) == 2 and all(now[which]["id"] != before[which]["id"] for which in now)


@pytest.mark.asyncio
async def test_deleted_while_the_second_one_was_gone(server: Server, route: str) -> None:
    async with Locker(route) as locker:
        holding = await body(await locker.acquire("job"))
        since = time.monotonic()
        # In one transaction: whoever hears of the one has missed the other.
        killing = f"redis.call('CLIENT','KILL','ID','{clients(server)['second']['id']}')"
        try:
            server.execute("EVAL", f"{killing} return redis.call('DEL', KEYS[1])", "1", key("job"))
        except RuntimeError:  # no CLIENT in scripts here: back to back, then
            kill(server, "second")
            server.execute("DEL", key("job"))
        error = await holding.lost_within(AT_ONCE, since)
        assert error.reason in ("forgotten", "deleted")


@pytest.mark.asyncio
async def test_the_second_one_hangs(server: Server) -> None:
    """Half open: it looks alive, and brings nothing. The ping finds out, not the next extension."""
    async with NoHello(server.port) as proxy, Locker(proxy.url, key_validity=60, extend_interval=59) as locker:
        node = internals.node(locker)
        holding = await body(await locker.acquire("job"))
        await asyncio.sleep(0.05)  # the first ping is answered
        before = clients(server)["main"]["id"]
        since = time.monotonic()
        proxy.hang(b"SUBSCRIBE")
        server.execute("DEL", key("job"))
        # Pinged within half of it, given up at most one and a half (and an eighth) later.
        error = await holding.lost_within(2.2 * max_silence(node.options) + AT_ONCE, since)
        assert error.reason == "forgotten"
        assert clients(server)["main"]["id"] != before
        again = await body(await locker.acquire("job"))
        since = time.monotonic()
        server.execute("DEL", key("job"))
        assert (await again.lost_within(AT_ONCE, since)).reason == "deleted"


@pytest.mark.asyncio
@pytest.mark.slow
async def test_an_idle_second_one_is_left_alone(server: Server, route: str) -> None:
    async with Locker(route, key_validity=1.0) as locker:
        scope = await locker.acquire("job")
        before = clients(server)
        await asyncio.sleep(3)
        assert {which: client["id"] for which, client in clients(server).items()} == {
            which: client["id"] for which, client in before.items()
        }
        await scope.release()


@pytest.mark.asyncio
async def test_a_blocked_loop_is_no_hang(server: Server) -> None:
    async with Locker(server.url + "?protocol=2", key_validity=60.0, extend_interval=59) as locker:
        node = internals.node(locker)
        before = clients(server)
        for _ in range(2):
            time.sleep(max_silence(node.options) * 1.7)  # noqa: ASYNC251  # blocking is the point
            await asyncio.sleep(0.05)
        assert clients(server)["second"]["id"] == before["second"]["id"]


@pytest.mark.asyncio
async def test_closing_leaves_neither(server: Server, route: str) -> None:
    locker = Locker(route)
    scope = await locker.acquire("job")
    assert set(clients(server)) == {"main", "second"}
    await locker.aclose()
    assert not scope.held
    await until(lambda: not clients(server))
    assert server.execute("KEYS", "*") == []


@pytest.mark.asyncio
async def test_without_tracking_there_is_no_second_connection(server: Server, route: str) -> None:
    async with Locker(route, client_side_caching=False) as locker, locker.with_context("job") as scope:
        assert set(clients(server)) == {"main"}
        assert scope.held


@pytest.mark.asyncio
async def test_unix_socket_and_database(kind: str) -> None:
    with Server(kind, unix_socket=True, config={"requirepass": "s3cret"}) as server:
        client = redis.Redis(
            unix_socket_path=server.unix_url.removeprefix("unix://"), db=3, password="s3cret", protocol=2
        )
        async with Locker(client) as locker:
            holding = await body(await locker.acquire("job"))
            assert {one["db"] for one in clients(server).values()} == {"3"}
            since = time.monotonic()
            server.execute("FLUSHALL")
            assert (await holding.lost_within(AT_ONCE, since)).reason == "flushed"
        await client.aclose()


@pytest.mark.asyncio
@pytest.mark.parametrize("protocol", ["", "?protocol=3"])
@pytest.mark.parametrize(
    "refusal",
    [
        b"-ERR unknown command 'HELLO'\r\n",
        b"-NOPROTO unsupported protocol version\r\n",
        b"-NOPROTO sorry this protocol is not supported\r\n",
    ],
)
async def test_a_refused_hello_is_remembered_and_tried_again_later(
    server: Server, monkeypatch: pytest.MonkeyPatch, protocol: str, refusal: bytes
) -> None:
    async with NoHello(server.port) as proxy:
        proxy.refusal = refusal
        async with Locker(proxy.url + protocol) as locker:
            node = internals.node(locker)
            scope = await locker.acquire("job")

            async def reconnected(which: str) -> None:
                before = clients(server)[which]["id"]
                kill(server, which)
                await until(lambda: clients(server).get(which, {}).get("id", before) != before)
                await until(lambda: node.connection)

            assert proxy.refused == 1
            await reconnected("main")
            assert proxy.refused == 1
            monkeypatch.setattr(node.connector, "_resp3_at", 0.0)  # a minute later
            await reconnected("main")
            assert proxy.refused == 2
            proxy.knows_hello = True
            monkeypatch.setattr(node.connector, "_resp3_at", 0.0)
            await reconnected("main")
            await until(lambda: set(clients(server)) == {"main"})
            assert scope.held
            await scope.release()


@pytest.mark.asyncio
async def test_a_server_without_hello(kind: str) -> None:
    with Server(kind, config={"rename-command": 'HELLO ""', "requirepass": "s3cret"}) as server:
        url = f"redis://:s3cret@127.0.0.1:{server.port}"
        async with Locker(url) as locker:
            holding = await body(await locker.acquire("job"))
            since = time.monotonic()
            server.execute("DEL", key("job"))
            assert (await holding.lost_within(AT_ONCE, since)).reason == "deleted"
        with pytest.raises(ServerError, match="password") as caught:
            await Locker(url.replace("s3cret", "wr0ng")).acquire("job")
        assert caught.value.lasting
        assert "wr0ng" not in str(caught.value)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("right", "words"),
    [
        ("-client", ("CLIENT ID", "client_side_caching=False")),
        ("-subscribe", ("SUBSCRIBE", "&__redis__:invalidate", "client_side_caching=False")),
        ("resetchannels", ("SUBSCRIBE", "&__redis__:invalidate", "client_side_caching=False")),
    ],
)
async def test_a_missing_permission_says_which(server: Server, right: str, words: tuple[str, ...]) -> None:
    server.execute("ACL", "SETUSER", "limited", "reset", "on", ">s3cret", "+@all", "~*", "&*", right)
    try:
        url = f"redis://limited:s3cret@127.0.0.1:{server.port}?protocol=2"
        with pytest.raises(ServerError) as caught:
            await Locker(url).acquire("job")
        assert caught.value.lasting
        assert "s3cret" not in str(caught.value)
        for word in words:
            assert word in str(caught.value)
        async with Locker(url, client_side_caching=False) as locker, locker.with_context("job") as scope:
            assert scope.held
    finally:
        server.execute("ACL", "DELUSER", "limited")


@pytest.mark.asyncio
async def test_no_permission_for_info_is_needed(server: Server) -> None:
    server.execute("ACL", "SETUSER", "limited", "reset", "on", ">s3cret", "+@all", "-info", "~*", "&*")
    try:
        async with Locker(f"redis://limited:s3cret@127.0.0.1:{server.port}?protocol=2") as locker:
            async with locker.with_context("job") as scope:
                assert scope.held
    finally:
        server.execute("ACL", "DELUSER", "limited")


@pytest.mark.asyncio
async def test_an_address_that_leads_to_two_servers(server: Server, kind: str) -> None:
    """The second connection's id would be somebody else's on the first one's server."""
    with Server(kind) as another:
        async with TwoServers(server.port, another.port) as balancer:
            with pytest.raises(ServerError, match="two servers") as caught:
                await Locker(balancer.url + "?protocol=2").acquire("job")
            assert not caught.value.lasting


class OddNumbers(Interceptor):
    """Does not tell the number of a connection."""

    passes_on = False

    def instead(self, command: bytes) -> bytes | None:
        return b"+OK\r\n" if command.upper().endswith(b"\r\nID\r\n") else None


@pytest.mark.asyncio
async def test_an_answer_that_nobody_has_thought_of_is_an_error_not_a_hang(server: Server) -> None:
    async with OddNumbers(server.port) as front:
        with pytest.raises(ServerError, match="cannot be set up: ValueError"):
            await asyncio.wait_for(Locker(f"{front.url}?protocol=2").acquire("job"), 5)
