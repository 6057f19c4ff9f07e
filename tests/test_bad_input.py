"""Bad input: each gets a clear error from the errors table, at once, and leaves nothing running."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import re
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import redis.asyncio as redis
from redis.asyncio.cluster import ClusterNode, RedisCluster

from asynclock import AcquireTimeoutError, AsyncLockError, ConfigurationError, Locker, LockerClosedError, ServerError
from asynclock.testing import Server
from asynclock.testing.resp import encode_command
from tests.support import internals
from tests.support.fake_server import HELLO, says
from tests.support.helpers import AT_ONCE, key

pytestmark = [pytest.mark.every_python, pytest.mark.redis_py]

URL = "redis://127.0.0.1:1"


@pytest.mark.fast
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("key_prefix", ""),
        ("key_prefix", None),
        ("key_prefix", "\ud800"),
        ("key_validity", 0),
        ("key_validity", -1),
        ("key_validity", 0.001),
        ("key_validity", "5"),
        ("key_validity", True),
        ("key_validity", float("nan")),
        ("key_validity", timedelta(0)),
        ("extend_interval", 0),
        ("extend_interval", 5),
        ("extend_interval", 4.99),
        ("extend_interval", 6.0),
        ("try_next_after", 0),
        ("try_next_after", -0.1),
        ("key_majority", 0),
        ("key_majority", 1.5),
        ("disconnect_grace", -1),
        ("disconnect_grace", float("inf")),
        ("local_handoffs", -1),
        ("local_handoffs", 2.5),
        ("min_replicas", -1),
        ("client_side_caching", None),
        ("no_loop_tracking", 1),
        ("fallback_setpx", "yes"),
        ("restart_quarantine", 0),
        ("spread_keys", None),
        ("spread_keys", 1),
        ("wait_release", None),
        ("owner", "a" * 65),
        ("owner", "ä" * 33),
        ("owner", "new\nline"),
        ("owner", "\x1b[2J"),
        ("owner", 7),
        ("owner", b"web"),
        ("warn_after", 0),
        ("warn_after", "soon"),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_rule(option: str, value: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Locker(URL, **{option: value})
    assert f"{option}={value!r}" in str(caught.value)
    assert "must be" in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.fast
def test_an_unknown_keyword_is_named_with_what_was_meant() -> None:
    with pytest.raises(ConfigurationError, match=r"key_valdity=3.*did you mean 'key_validity'"):
        Locker(URL, key_valdity=3)
    with pytest.raises(ConfigurationError, match="unknown option zzz"):
        Locker(URL, zzz=3)


def test_options_take_timedeltas_and_have_gos_defaults() -> None:
    locker = Locker(URL, key_validity=timedelta(seconds=3), extend_interval=timedelta(seconds=1))
    assert (internals.options(locker).key_validity, internals.options(locker).extend_interval) == (3.0, 1.0)
    options = internals.options(Locker(URL))
    assert (options.key_validity, options.extend_interval, options.try_next_after) == (5.0, 2.5, 0.02)
    assert (options.key_prefix, options.key_majority, options.disconnect_grace) == ("asynclock", None, 0.0)
    assert (options.client_side_caching, options.min_replicas, options.no_loop_tracking) == (True, 0, None)


def test_no_server() -> None:
    with pytest.raises(ConfigurationError, match="servers: an empty list"):
        Locker([])


@pytest.mark.asyncio
async def test_an_even_number_of_servers(server: Server) -> None:
    """They might be nodes of one cluster, so it takes a connection to know. One is enough for that."""
    for urls in ([server.url, URL], [URL, server.url], [server.url] * 4):
        for _ in range(2):
            with pytest.raises(ConfigurationError, match=f"servers: {len(urls)} of them.*odd number"):
                await Locker(urls).acquire("job")
    with pytest.raises(ServerError, match="none of 2 servers"):
        await Locker([URL, URL]).acquire("job")
    client = RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", port) for port in (server.port, 1)])
    with pytest.raises(ConfigurationError, match=r"servers: 2 of them.*odd number"):
        await Locker(client).acquire("job")


@pytest.mark.parametrize("servers", [None, 5, object(), ["redis://127.0.0.1", 5, "redis://127.0.0.1"]])
def test_servers_that_are_none(servers: object) -> None:
    with pytest.raises(ConfigurationError, match="servers"):
        Locker(servers)


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("", "scheme is unknown"),
        ("127.0.0.1:6379", "scheme is unknown"),
        ("http://127.0.0.1", "scheme is unknown"),
        ("redis:/127.0.0.1", "scheme is unknown"),
        ("redis://:s3cret@127.0.0.1:x/0", "host:port"),
        ("redis://:s3cret@127.0.0.1:0", "the port"),
        ("redis://:s3cret@127.0.0.1:65536", "the port"),
        ("redis://:s3cret@127.0.0.1:1,127.0.0.1:2", "host:port"),
        ("redis://:s3cret@a,b", "several servers"),
        ("redis://:s3cret@::1/0", "host:port"),
        ("redis://:s3cret@a..b/0", "host name"),
        (f"redis://:s3cret@{'a' * 64}/0", "host name"),
        ("redis://:s3cret@%2Ftmp%2Fsocket", "host name"),
        # Locks in database 0, in silence, or in another one.
        ("redis://:s3cret@h/abc", "database"),
        ("redis://:s3cret@h/1/2", "database"),
        ("redis://:s3cret@h/-1", "database"),
        ("redis://:s3cret@h/+1", "database"),
        ("redis://:s3cret@h/1_0", "database"),
        ("redis://:s3cret@h/0x1", "database"),
        ("redis://:s3cret@h/\u0661", "database"),
        ("redis://:s3cret@h?db=abc", "database"),
        ("redis://:s3cret@h?db=1_0", "database"),
        ("redis://:s3cret@h?db=-1", "database"),
        ("redis://:s3cret@h?db=", "the option db has no value"),
        ("redis://:s3cret@h/1?db=2", "the option db is given twice"),
        ("redis://:s3cret@h?db=1&db=2", "the option db is given twice"),
        ("unix://:s3cret@/socket?db=one", "database"),
        # What would be dropped.
        ("redis://:s3cret@h/0#1", "'#'"),
        ("redis://:s3cret@h/0?host=other", "the option host is given twice"),
        ("redis://:s3cret@h/0?protocol", "the option protocol has no value"),
        ("redis://:s3\ncret@h/0", "white space"),
        ("redis://:s3cret@h o/0", "white space"),
        ("unix://:s3cret@run/socket", "unix:///path"),
        ("unix://:s3cret@/socket#1", "'#'"),
        # What would be misread.
        ("redis://:s3cret@h?socket_keepalive=off", "neither true nor false"),
        ("rediss://:s3cret@h?ssl_check_hostname=nope", "neither true nor false"),
        ("redis://:s3cret@h?decode_responses=false", "leave it out"),
        ("redis://:s3cret@h?socket_timeout=nan", "seconds"),
        ("redis://:s3cret@h?socket_connect_timeout=-1", "seconds"),
        ("redis://:s3cret@h?socket_connect_timeout=soon", "seconds"),
        ("redis://:s3cret@h?credential_provider=mine", "redis.asyncio client"),
        ("redis://:s3cret@h?protocol=three", "redis-py|protocol=three"),
        ("redis://:s3cret@h?client_name=%ff", "not UTF-8"),
        ("redis://:s3cret%ff@h", "not UTF-8"),
        # What redis-py refuses, but not before it connects.
        ("redis://:s3cret@h?ssl_ca_certs=ca.pem", "ssl_ca_certs"),
        ("redis://:s3cret@h?no_such_option=1", "no_such_option"),
        ("rediss://:s3cret@h?ssl_cert_reqs=CERT_NONE", "CERT_NONE"),
        # Passwords that are not percent-encoded, and what they make of the rest.
        ("redis://user:1/s3cret@h", "percent-encoded"),
        ("redis://user:1?s3cret@h", "percent-encoded"),
        ("redis://user:1?s3cret=1@h", "percent-encoded"),
        ("redis://user:1#s3cret@h", "'#'"),
        ("redis://user:s3cret/@h", "percent-encoded"),
        ("unix://user:s3cret/s3cret@/socket", "unix:///path"),
    ],
)
def test_a_url_that_is_none_keeps_its_secret(url: str, what: str) -> None:
    for scheme in ("redis", "valkey"):
        with pytest.raises(ConfigurationError, match=what) as caught:
            Locker(url.replace("redis", scheme, 1))
        assert str(caught.value).startswith("servers: ")
        assert "s3" not in str(caught.value) and "cret" not in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None  # redis-py's may show some of it


@pytest.mark.fast
@pytest.mark.parametrize(
    ("url", "label"),
    [
        ("redis://", "localhost:6379/0"),
        ("redis://h", "h:6379/0"),
        ("redis://h:/", "h:6379/0"),
        ("redis://h/3/", "h:6379/3"),
        ("redis://h?db=3", "h:6379/3"),
        ("redis://u:p%23%2F%3F%40@h:1/3?client_name=a+b&socket_keepalive=No", "h:1/3"),
        ("redis://[::1]:1/3", "::1:1/3"),
        ("REDIS://h/0\n", "h:6379/0"),
        ("valkey://h:1/3", "h:1/3"),
        ("Valkey://h", "h:6379/0"),
        ("valkeys://h:1/3?ssl_cert_reqs=none", "h:1/3"),
        ("unix:///run/a@b.sock?db=2", "unix:/run/a@b.sock/2"),
        ("unix://u:p@/run/socket", "unix:/run/socket/0"),
        ("valkey+sentinel://h/m/4", "redis+sentinel://h:26379/m/4"),
        ("valkeys+sentinel://h/m", "redis+sentinel://h:26379/m/0"),
    ],
)
def test_what_a_url_means(url: str, label: str) -> None:
    locker = Locker(url)
    assert repr(locker) == f"<Locker {label} new>"
    kind = locker.client.connection_pool.connection_class
    assert issubclass(kind, redis.SSLConnection) is url.startswith("valkeys")


@pytest.mark.asyncio
async def test_a_valkey_url(server: Server) -> None:
    async with Locker(server.url.replace("redis://", "valkey://")) as locker, locker.with_context("job") as scope:
        assert scope.held and server.execute("EXISTS", key("job")) == 1
        assert await locker.client.ping()


@pytest.mark.parametrize("option", ["socket_timeout", "socket_connect_timeout"])
@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "5"])
def test_a_clients_timeout_that_is_none(option: str, seconds: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{option}="):
        Locker(redis.Redis(**{option: seconds}))


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["", None, 5, b"bytes", "\udcff", "x" * 70_000])
async def test_a_name_that_is_none(name: Any, locker: Locker) -> None:
    for call in (locker.acquire, locker.try_acquire, locker.force_acquire):
        with pytest.raises(ConfigurationError, match="name"):
            await call(name)
    with pytest.raises(ConfigurationError, match="name"):
        async with locker.with_context(name):
            pytest.fail("no such lock")


@pytest.mark.asyncio
@pytest.mark.parametrize("timeout", [-1, "1", float("nan"), True])
async def test_a_timeout_that_is_none(timeout: Any, locker: Locker) -> None:
    with pytest.raises(ConfigurationError, match="timeout="):
        await locker.acquire("job", timeout=timeout)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("at_least", "rule"),
    [
        (0, "more than 0 seconds"),
        (-1, "more than 0 seconds"),
        (timedelta(seconds=-1), "more than 0 seconds"),
        ("1", "a number of seconds or a timedelta"),
        (True, "a number of seconds or a timedelta"),
        (float("nan"), "a number of seconds or a timedelta"),
        (float("inf"), "a number of seconds or a timedelta"),
        (366 * 86400 + 1, "at most 31622400 s, which is 366 days"),
        (timedelta(days=367), "at most 31622400 s, which is 366 days"),
    ],
)
async def test_a_least_time_that_is_none(at_least: Any, rule: str, locker: Locker, server: Server) -> None:
    """Whoever gives it: nothing is sent."""
    said = re.escape(f"at_least={at_least!r}: must be {rule}")
    for call in (locker.acquire, locker.try_acquire, locker.force_acquire):
        with pytest.raises(ConfigurationError, match=said):
            await call("job", at_least=at_least)
    for context in (locker.with_context, locker.try_with_context, locker.force_with_context):
        with pytest.raises(ConfigurationError, match=said):
            async with context("job", at_least=at_least):
                pytest.fail("no such lock")
    assert server.execute("DBSIZE") == 0


@pytest.mark.asyncio
async def test_the_shortest_and_the_longest_least_time(locker: Locker, server: Server) -> None:
    async with locker.with_context("job", at_least=1e-9):
        pass
    assert server.execute("DBSIZE") == 0
    for at_least in (timedelta(days=366), 366 * 86400):
        async with locker.force_with_context("job", at_least=at_least):
            pass
        ttl = server.execute("PTTL", key("job"))
        assert isinstance(ttl, int) and 365.9 < ttl / 86_400_000 <= 366


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["a:b", "0:x", "{tag}", "new\nline", "nul\0", "שלום", "🔒", " ", "*", "x" * 65_536])
async def test_names_may_be_anything_else(name: str, locker: Locker, other: Locker, server: Server) -> None:
    async with locker.with_context(name) as scope:
        assert scope.name == name
        assert server.execute("KEYS", "*") == [key(name).encode()]
        waiting = asyncio.create_task(other.acquire(name))
        await asyncio.sleep(0.02)
        assert not waiting.done()
    await (await asyncio.wait_for(waiting, 2)).release()
    assert server.execute("DBSIZE") == 0


# Servers


async def refused(locker: Locker, *words: str, seconds: float = 2.0) -> ServerError:
    """Both ways to connect fail alike, in time, with an error that says all of these words."""
    since = time.monotonic()
    with pytest.raises(ServerError) as caught:
        await locker.acquire("job")
    with pytest.raises(ServerError):
        await locker.try_acquire("job")
    with pytest.raises(ServerError):
        async with locker:
            pytest.fail("connected")
    assert time.monotonic() - since < seconds
    for word in words:
        assert word.lower() in str(caught.value).lower(), str(caught.value)
    with pytest.raises(LockerClosedError):
        await locker.acquire("job")
    return caught.value


@pytest.mark.asyncio
async def test_an_unreachable_server() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        error = await refused(Locker(f"redis://user:s3cret@127.0.0.1:{port}/2"), f"127.0.0.1:{port}/2", "running")
        assert "s3cret" not in str(error)
    await refused(Locker("redis://no-such-host.invalid"), "no-such-host.invalid", seconds=15)
    await refused(Locker("unix:///no/such/socket"), "unix:/no/such/socket")


@pytest.mark.asyncio
async def test_a_wrong_password(kind: str) -> None:
    with Server(kind, config={"requirepass": "right"}) as server:
        port = server.port
        error = await refused(Locker(f"redis://:wr0ng@127.0.0.1:{port}"), "password", str(port))
        assert "wr0ng" not in str(error)
        assert "wr0ng" not in repr(error)
        await refused(Locker(f"redis://127.0.0.1:{port}"), "password", str(port))
        async with Locker(f"redis://:right@127.0.0.1:{port}") as locker, locker.with_context("job") as scope:
            assert scope.held


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("rights", "words"),
    [
        (("+@all", "-client|tracking", "~*"), ("CLIENT TRACKING", "client_side_caching=False")),
        (("+@all", "-set", "~*"), ("permission", "SET")),
        (("+@all", "-get", "~*"), ("permission", "GET")),
        (("+@all", "-pttl", "~*"), ("permission", "PTTL")),
        (("+@all", "~elsewhere:*"), ("permission", "key")),
    ],
)
async def test_a_missing_permission_says_which(
    server: Server, kind: str, rights: tuple[str, ...], words: tuple[str, ...]
) -> None:
    if rights[1] == "-client|tracking" and kind == "redis-6.2":
        # Subcommands can be taken away since 7.0; before, only a whole command.
        rights = ("+@all", "-client", "~*")
    server.execute("ACL", "SETUSER", "limited", "reset", "on", ">s3cret", *rights)
    try:
        error = await refused(Locker(f"redis://limited:s3cret@127.0.0.1:{server.port}"), *words)
        assert "s3cret" not in str(error)
    finally:
        server.execute("ACL", "DELUSER", "limited")


@pytest.mark.asyncio
async def test_a_missing_permission_for_the_release_shows_at_connect(server: Server) -> None:
    async with Locker(server.url) as locker:
        node = internals.node(locker)
        command = node.capabilities.delete.decode()
    server.execute("ACL", "SETUSER", "limited", "reset", "on", ">s3cret", "+@all", f"-{command.lower()}", "~*")
    try:
        await refused(Locker(f"redis://limited:s3cret@127.0.0.1:{server.port}"), "permission", command)
    finally:
        server.execute("ACL", "DELUSER", "limited")


@pytest.mark.asyncio
async def test_a_permission_for_some_keys_only(server: Server) -> None:
    """The prefix is allowed, and nothing else: enough. A permission taken away later is told to whoever waits."""
    server.execute("ACL", "SETUSER", "limited", "reset", "on", ">s3cret", "+@all", "~asynclock:*")
    try:
        async with Locker(f"redis://limited:s3cret@127.0.0.1:{server.port}") as locker:
            async with locker.with_context("job") as scope:
                assert scope.held
            server.execute("ACL", "SETUSER", "limited", "-set")
            with pytest.raises(ServerError, match=r"SET on key 'asynclock:0:job'.*NOPERM"):
                await locker.acquire("job")
            with pytest.raises(ServerError):
                await locker.try_acquire("job")
            with pytest.raises(ServerError):
                await locker.force_acquire("job")
    finally:
        server.execute("ACL", "DELUSER", "limited")


@pytest.mark.asyncio
async def test_without_the_client_command_there_is_client_side_caching_false(server: Server) -> None:
    server.execute("ACL", "SETUSER", "limited", "reset", "on", ">s3cret", "+@all", "-client", "~*")
    try:
        url = f"redis://limited:s3cret@127.0.0.1:{server.port}"
        async with Locker(url, client_side_caching=False) as locker, locker.with_context("job") as scope:
            assert scope.held
    finally:
        server.execute("ACL", "DELUSER", "limited")


@pytest.mark.asyncio
async def test_a_server_below_6(kind: str) -> None:
    """One without HELLO is spoken to in RESP2 (test_resp2.py). One that cannot track keys either is too old."""
    with Server(kind, config={"rename-command": 'HELLO ""\nrename-command CLIENT ""'}) as server:
        await refused(Locker(server.url), "6.0", "client_side_caching=False", str(server.port))
        async with Locker(server.url, client_side_caching=False) as locker, locker.with_context("job") as scope:
            assert scope.held


@pytest.mark.asyncio
async def test_a_read_only_replica(own_server: Server) -> None:
    own_server.execute("REPLICAOF", "127.0.0.1", "1")
    await refused(Locker(own_server.url), "read-only replica")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "answer",
    [
        lambda data: b"HTTP/1.1 400 Bad Request\r\n\r\n",
        lambda data: b"\x00\xff garbage without an end",
        lambda data: b"+OK\r\n" * 50,
        lambda data: b"*1\r\n" * 200,
        lambda data: None,
        lambda data: HELLO if b"\r\n3\r\n" in data else b"?what\r\n",
        lambda data: HELLO if b"\r\n3\r\n" in data else b"+fine\r\n" * (data.count(b"*")),
        lambda data: HELLO if b"HELLO" in data else b"$-9\r\n",
    ],
    ids=["http", "bytes", "ok", "nested", "hangs up", "garbage later", "wrong types", "bad length"],
)
async def test_a_server_that_answers_garbage(answer: Callable[[bytes], bytes | None]) -> None:
    async with says(answer) as url:
        client = redis.Redis.from_url(url, socket_connect_timeout=0.3, socket_timeout=0.3)
        await refused(Locker(client), "127.0.0.1", seconds=4)
        await client.aclose()


@pytest.mark.asyncio
async def test_a_server_that_says_nothing(own_server: Server) -> None:
    own_server.pause()
    locker = Locker(own_server.url + "?socket_connect_timeout=0.3")
    since = time.monotonic()
    with pytest.raises(AcquireTimeoutError):
        await locker.acquire("job", timeout=0.1)
    assert time.monotonic() - since < AT_ONCE
    await refused(locker, "no answer within 0.3 s", seconds=2)
    own_server.resume()


# Used where it was not made


def test_another_event_loop(server: Server) -> None:
    locker = Locker(server.url)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        scope = first.run(locker.acquire("job"))
        for call in (locker.acquire("other"), locker.try_acquire("other"), locker.aclose()):
            with pytest.raises(ConfigurationError, match="another event loop"):
                second.run(call)
        assert scope.held
        first.run(scope.release())
        first.run(locker.aclose())


def test_a_new_loop_after_one_that_could_not_connect() -> None:
    locker = Locker(URL)
    for _ in range(2):
        with pytest.raises(ServerError):
            asyncio.run(locker.acquire("job"))


def test_after_a_fork(server: Server) -> None:
    locker = Locker(server.url)

    def child(locker: Locker, scope: Any, result: Any) -> None:
        errors = []
        for call in (lambda: locker.acquire("other"), lambda: locker.try_acquire("job")):
            try:
                asyncio.run(call())
            except AsyncLockError as error:
                errors.append(f"{type(error).__name__}: {error}")
        assert not scope.held
        assert scope.remaining() == 0.0
        try:
            scope.check()
        except AsyncLockError as error:
            errors.append(f"{type(error).__name__}: {error}")
        asyncio.run(locker.aclose())
        asyncio.run(scope.release())
        result.send(errors)

    async def main() -> list[str]:
        scope = await locker.acquire("job")
        receive, send = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=child, args=(locker, scope, send))
        process.start()
        while not receive.poll():
            await asyncio.sleep(0.01)
        errors: list[str] = receive.recv()
        process.join()
        scope.check()  # what the child did changed nothing here
        assert server.execute("EXISTS", key("job")) == 1
        await scope.release()
        await locker.aclose()
        return errors

    if not hasattr(os, "fork"):
        pytest.skip("this platform has no fork")
    errors = asyncio.run(main())
    assert len(errors) == 3
    assert all(error.startswith("ConfigurationError") and "fork" in error for error in errors), errors


@pytest.mark.asyncio
async def test_a_closed_locker(server: Server) -> None:
    locker = Locker(server.url)
    async with locker:
        waiting = asyncio.create_task(locker.acquire("held"))
        held = await waiting
        waiting = asyncio.create_task(locker.acquire("held"))
        await asyncio.sleep(0.01)
    with pytest.raises(LockerClosedError):
        await waiting
    assert held.lost_reason == "closed"
    await locker.aclose()
    for call in (locker.acquire, locker.try_acquire, locker.force_acquire):
        with pytest.raises(LockerClosedError):
            await call("job")
    with pytest.raises(LockerClosedError):
        async with locker:
            pytest.fail("closed")


@pytest.mark.asyncio
async def test_no_secret_in_logs_and_reprs(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Server(kind, config={"requirepass": "s3cret"}) as server:
        async with Locker(f"redis://:s3cret@127.0.0.1:{server.port}", disconnect_grace=5) as locker:
            scope = await locker.acquire("job")
            value = server_value = await locker.client.get(key("job"))
            server.kill()
            await asyncio.sleep(0.1)
            server.start()
            with contextlib.suppress(AcquireTimeoutError):
                await (await locker.acquire("other", timeout=2)).release()
            texts = [
                repr(locker),
                str(locker),
                repr(scope),
                caplog.text,
                repr(internals.servers(locker)),
                repr(internals.manager(locker)),
            ]
            await scope.release()
    assert server_value
    assert "asynclock: connected to" in caplog.text
    for text in texts:
        assert "s3cret" not in text
        assert value.decode() not in text


@pytest.mark.asyncio
async def test_a_password_that_is_changed_is_told_to_those_who_wait(own_server: Server) -> None:
    async with Locker(own_server.url, disconnect_grace=30) as locker:
        own_server.execute("SET", key("job"), "somebody")
        waiting = asyncio.create_task(locker.acquire("job"))
        await asyncio.sleep(0.05)
        own_server.execute("CONFIG", "SET", "requirepass", "changed")
        with contextlib.suppress(RuntimeError):
            own_server.execute("ACL", "SETUSER", "default", "on", ">changed")
        killer = redis.Redis.from_url(own_server.url, password="changed")
        await killer.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        since = time.monotonic()
        with pytest.raises(ServerError, match="authentication") as caught:
            await asyncio.wait_for(waiting, 5)
        assert caught.value.lasting
        with pytest.raises(ServerError):
            await locker.acquire("other")
        assert time.monotonic() - since < 2
        await killer.execute_command("CONFIG", "SET", "requirepass", "")
        await killer.aclose()
        await asyncio.sleep(1.1)  # the longest pause between two reconnects
        async with locker.with_context("other", timeout=2) as scope:
            assert scope.held


@pytest.mark.asyncio
async def test_a_credential_provider_that_fails(server: Server) -> None:
    class Failing(redis.CredentialProvider if hasattr(redis, "CredentialProvider") else object):  # type: ignore[misc]
        def get_credentials(self) -> tuple[str, str]:  # what redis-py asks before 5.3
            raise KeyError("no such secret")

        async def get_credentials_async(self) -> tuple[str, str]:
            raise KeyError("no such secret")

    client = redis.Redis.from_url(server.url, credential_provider=Failing())
    await refused(Locker(client), "credential provider failed", "no such secret")
    await client.aclose()


@pytest.mark.asyncio
async def test_a_timeout_says_what_the_server_has_said(own_server: Server) -> None:
    """A server that is busy with a script refuses everything: that is why, and not another holder."""
    own_server.execute("CONFIG", "SET", "lua-time-limit", 20)
    async with Locker(own_server.url) as locker:
        with socket.create_connection(("127.0.0.1", own_server.port)) as busy:
            busy.sendall(encode_command("EVAL", "while true do end", 0))
            await asyncio.sleep(0.1)
            # A server in a script answers only now and then. If it has been silent for too long, the locker connects
            # anew, and just then the error says that instead.
            said = ""
            for _ in range(5):
                with pytest.raises(AcquireTimeoutError) as failure:
                    await locker.acquire("job", timeout=1.5)
                assert isinstance(failure.value.__cause__, ServerError)
                assert "somebody else" not in str(failure.value)
                said += str(failure.value)
                if "BUSY" in said:
                    break
            assert "BUSY" in said
            with socket.create_connection(("127.0.0.1", own_server.port)) as killer:
                killer.sendall(encode_command("SCRIPT", "KILL"))
                assert killer.recv(100) == b"+OK\r\n"
        async with locker.with_context("job", timeout=5):
            pass


def test_the_default_owner_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("h" * 64, "ö" * 64, "a\x1bb"):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        owner = internals.options(Locker("redis://127.0.0.1:1")).owner_or_default()
        assert owner.endswith(f":{os.getpid()}") and owner.isprintable() and len(owner.encode()) <= 64
