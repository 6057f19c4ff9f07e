"""The door: what redis-py connects and asynclock takes over. Run at both ends of the pinned range (noxfile)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import gc
import os
import re
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis._parsers as redis_parsers
import redis.asyncio as redis
import trustme
from redis.credentials import CredentialProvider

import asynclock
from asynclock import AcquireTimeoutError, ConfigurationError, Locker, LockScope, ServerError
from asynclock.testing import Proxy, Server, TLSFront
from asynclock.testing.ports import HeldPort
from asynclock.wire import connector, lookup
from tests.support import internals
from tests.support.helpers import AT_ONCE, body, key, until
from tests.support.interceptor import Interceptor
from tests.support.internals import drop, trouble, up

pytestmark = [pytest.mark.every_python, pytest.mark.redis_py]


def test_the_list_of_redis_pys_private_names_is_complete() -> None:
    """What the docstring of ``connector.py`` lists is used there, and nothing else of redis-py's is used anywhere."""
    private = {
        name
        for file in [*Path(redis.__file__).parent.glob("*.py"), *Path(redis_parsers.__file__).parent.glob("*.py")]
        for name in re.findall(r"\b(?:self\.|def )(_[a-z]\w*)", file.read_text())
    }
    listed = {
        file if "/" in file else f"wire/{file}": set(re.findall(r"``(_\w+)``", names))
        for files, names in re.findall(r"^- (.*?): (.*)", connector.__doc__ or "", re.MULTILINE)
        for file in re.findall(r"``([\w/]+\.py)``", files)
    }
    package = Path(asynclock.__file__).parent
    assert len(listed) == 5
    for file, names in listed.items():
        assert names <= private | {"_force_master_ip"}  # which redis-py 5.2 does not have yet
        assert all(name in (package / file).read_text() for name in names), file
    for path in package.rglob("*.py"):
        text = path.read_text()
        if re.search(r"^(import|from) redis", text, re.MULTILINE):
            used = re.findall(r"""(?<!\bself)(?<!\bcls)\.(_[a-z]\w*)|getattr\(\w+, "(_\w+)""", text)
            foreign = {name for names in used for name in names if name} & private - {"_buffer"}  # asyncio's, see there
            assert foreign <= listed.get(path.relative_to(package).as_posix(), set()), path


@pytest.mark.asyncio
async def test_a_socket_taken_over_from_redis_py(locker: Locker, server: Server) -> None:
    """Replies, pushes, a burst, and the end of the connection all arrive at the new protocol."""
    holding = await body(await locker.acquire("job"))
    gc.collect()  # redis-py's connection object is gone, and took nothing with it
    assert holding.scope.held
    scopes = await asyncio.gather(*(locker.acquire(f"{number} {'x' * 1000}") for number in range(2000)))
    await asyncio.gather(*(scope.release() for scope in scopes))
    node = internals.node(locker)
    before = node.connection
    server.execute("CLIENT", "KILL", "TYPE", "normal")
    await until(lambda: node.connection not in (None, before))
    await asyncio.sleep(0.05)  # for the look at the key
    server.execute("DEL", key("job"))
    error = await holding.lost_within(AT_ONCE, time.monotonic())
    assert error.reason == "deleted"


@pytest.mark.asyncio
async def test_a_lost_connection_does_not_wait_for_the_garbage_collector(locker: Locker, server: Server) -> None:
    """redis-py's parser and reader refer to each other; a locker that reconnects for weeks must not grow by that."""

    def readers() -> int:
        return sum(isinstance(each, asyncio.StreamReader) for each in gc.get_objects())

    node = internals.node(locker)
    gc.collect()
    before = readers()
    gc.disable()
    try:
        for _ in range(5):
            wire = node.connection
            server.execute("CLIENT", "KILL", "TYPE", "normal")
            await until(lambda wire=wire: node.connection not in (None, wire))
        del wire
        await until(lambda: readers() <= before)
    finally:
        gc.enable()


@pytest.mark.asyncio
async def test_unix_socket(kind: str) -> None:
    with Server(kind, unix_socket=True) as server:
        async with Locker(server.unix_url) as locker:
            holding = await body(await locker.acquire("job"))
            server.execute("DEL", key("job"))
            error = await holding.lost_within(AT_ONCE, time.monotonic())
            assert "unix:" in error.detail


@pytest.mark.asyncio
@pytest.mark.parametrize("decode", [False, True])
async def test_a_client_that_the_app_has(server: Server, decode: bool) -> None:
    client = redis.Redis.from_url(server.url[:-1] + "3", decode_responses=decode, client_name="the-app")
    locker = Locker(client)
    assert locker.client is client
    async with locker, locker.with_context("job"):
        assert await client.exists(key("job"))  # its database
        assert server.execute("EXISTS", key("job")) == 0
        assert str(await client.client_list()).count("the-app") == 2  # the app's own connection, and the lock's
    await client.ping()  # it is the app's, and still open
    await client.aclose()


@pytest.mark.asyncio
async def test_a_client_made_by_the_locker_is_closed_by_it(server: Server) -> None:
    async with Locker(server.url) as locker:
        assert await locker.client.ping()
        clients = str(server.execute("CLIENT", "LIST"))
        assert "asynclock-" in clients
    await asyncio.sleep(0.05)
    assert "asynclock-" not in str(server.execute("CLIENT", "LIST"))


class Recording:
    """The transport of a locker's only connection, which remembers what is written."""

    def __init__(self, locker: Locker) -> None:
        node = internals.node(locker)
        assert node.connection is not None
        self.connection = node.connection
        self.transport = node.connection._transport
        self.writes: list[bytes] = []

    def __enter__(self) -> list[bytes]:
        self.connection._transport = self  # type: ignore[assignment]
        return self.writes

    def __exit__(self, *error: object) -> None:
        self.connection._transport = self.transport

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        self.transport.write(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self.transport, name)


@pytest.mark.asyncio
async def test_one_connection_and_one_write_for_each_loop_turn(server: Server) -> None:
    async with Locker(server.url) as locker:
        with Recording(locker) as writes:
            scopes = await asyncio.gather(*(locker.acquire(f"name {number}") for number in range(100)))
            await asyncio.sleep(0.05)  # held for long enough for the first look at the keys
            assert len(writes) == 2
            await asyncio.gather(*(scope.release() for scope in scopes))
            assert len(writes) == 3
        assert str(server.execute("CLIENT", "LIST")).count("asynclock-") == 1


@pytest.mark.asyncio
async def test_what_has_no_company_leaves_at_once(server: Server) -> None:
    async with Locker(server.url) as locker:
        for _ in range(2):  # the first write is that of a connection that was just made
            async with locker.with_context("name"):
                pass
        with Recording(locker) as writes:
            task = asyncio.create_task(locker.acquire("name"))
            await asyncio.sleep(0)
            assert len(writes) == 1  # and not when this turn of the loop has ended
            await (await task).release()
            del writes[:]
            scopes = await asyncio.gather(*(locker.acquire(f"name {number}") for number in range(10)))
            await asyncio.sleep(0.05)
            taken = [data.count(b"SET") for data in writes if b"SET" in data]
            assert taken == [1, 9]  # the first, which did not know of the others
            del writes[:]
            await asyncio.gather(*(scope.release() for scope in scopes))
            assert len(writes) == 1  # there was company a moment ago, and is again


@pytest.mark.asyncio
async def test_a_protocol_that_is_none(server: Server) -> None:
    with pytest.raises(ConfigurationError, match="protocol=4"):
        Locker(server.url + "?protocol=4")


@pytest.mark.asyncio
async def test_reconnects_have_pauses(own_server: Server) -> None:
    """A server that stays away is asked with growing pauses, about once a second in the end."""
    async with Locker(own_server.url, disconnect_grace=30) as locker:
        node = internals.node(locker)
        asked = 0
        connect = node.connector.open

        async def counted() -> asyncio.StreamWriter:
            nonlocal asked
            asked += 1
            return await connect()

        node.connector.open = counted
        own_server.kill()
        await asyncio.sleep(1.0)
        assert 4 <= asked <= 14  # 10, 20, 40 ... ms, each by chance down to half
        own_server.start()
        scope = await locker.acquire("job", timeout=3)
        await scope.release()


@pytest.mark.asyncio
async def test_a_call_on_a_lost_connection_fails_at_once(own_server: Server) -> None:
    async with Locker(own_server.url) as locker:
        node = internals.node(locker)
        wire = node.connection
        assert wire is not None
        own_server.kill()
        await wire.closed
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(wire.call(b"*1\r\n$4\r\nPING\r\n"), 1)


# Trying to connect ends with aclose, or with what is refused for good


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.asyncio
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_no_descriptor_left(server: Server, host: str, caplog: pytest.LogCaptureFixture) -> None:
    async with Locker(f"redis://{host}:{server.port}", key_validity=30) as locker:
        scope = await locker.acquire("job")
        with no_descriptors():
            drop(locker)
            await until(lambda: "open files" in trouble(locker))
            assert scope.held
            with pytest.raises(ServerError, match="open files") as caught:
                await locker.try_acquire("another")
            assert not caught.value.lasting
        await (await locker.acquire("another", timeout=5)).release()
        await scope.release()
    assert len([record for record in caplog.records if "open files" in record.getMessage()]) <= 2  # not at each try


@pytest.mark.asyncio
async def test_no_descriptor_left_at_the_start(server: Server) -> None:
    locker = Locker(server.url)
    with no_descriptors():
        with pytest.raises(ServerError, match="open files"):
            await locker.acquire("job")
        with contextlib.suppress(ServerError):  # some versions of redis-py open a file for a client too
            Locker(server.url)
    async with locker, locker.with_context("job") as scope:
        assert scope.held


class Provider(CredentialProvider):
    """``fails`` is called before each answer."""

    fails: Callable[[], Any] = staticmethod(lambda: None)
    words: Any = ("default", "")

    async def get_credentials_async(self) -> Any:
        if (waits := self.fails()) is not None:
            await waits
        return self.words

    def get_credentials(self) -> Any:
        """What redis-py 5.2 asks, which waits for nothing."""
        waits = self.fails()
        if waits is not None:
            waits.close()
            raise asyncio.CancelledError
        return self.words


def raises(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


async def cancelled() -> None:
    """Somebody else's work, which this waits for, is cancelled."""
    task = asyncio.create_task(asyncio.sleep(60))
    asyncio.get_running_loop().call_soon(task.cancel)
    await task


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.fixture
def user(server: Server) -> Iterator[tuple[str, str]]:
    server.execute("ACL", "SETUSER", "app", "reset", "on", ">s3cret", "+@all", "~*", "&*")
    yield "app", "s3cret"
    server.execute("ACL", "DELUSER", "app")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "fails",
    [
        cancelled,
        raises(asyncio.CancelledError()),
        raises(ConnectionRefusedError(errno.ECONNREFUSED, "no vault")),
        raises(ConnectionResetError(errno.ECONNRESET, "no vault")),
        raises(OSError(errno.EMFILE, "Too many open files")),
        raises(TimeoutError()),
        raises(redis.AuthenticationError("by the vault")),
        raises(redis.ConnectionError("Connection closed by server.")),
        raises(Unspeakable()),
        raises(BaseException("neither")),
        raises(BaseExceptionGroup("group", [asyncio.CancelledError()])),
        lambda: asyncio.sleep(60),
    ],
)
async def test_a_credential_provider_that_fails_once(
    server: Server, user: tuple[str, str], fails: Callable[[], Any]
) -> None:
    """It says nothing of the server: what is held there is held on, and connecting goes on."""
    provider = Provider()
    provider.words = user
    client = redis.Redis(host="127.0.0.1", port=server.port, credential_provider=provider, socket_connect_timeout=0.2)
    locker = Locker(client, key_validity=30)
    provider.fails = fails
    with pytest.raises(ServerError, match="the credential provider failed"):
        await locker.acquire("job")
    provider.fails = lambda: None
    scope = await locker.acquire("job")
    provider.fails = fails
    drop(locker)
    await until(lambda: "the credential provider failed" in trouble(locker))
    await asyncio.sleep(0.1)
    assert scope.held
    with pytest.raises(ServerError, match="the credential provider failed"):
        await locker.try_acquire("another")
    provider.fails = lambda: None
    await (await locker.acquire("another", timeout=5)).release()
    assert scope.held
    provider.fails = lambda: asyncio.sleep(60)
    drop(locker)
    await asyncio.sleep(0.02)
    since = time.monotonic()
    await locker.aclose()  # a cancellation of our own stays one
    assert time.monotonic() - since < AT_ONCE
    await client.aclose()


@pytest.mark.asyncio
@pytest.mark.parametrize("words", [None, (), ("a", "b", "c"), 5, (5, 6), (None, None), "password"])
async def test_a_credential_provider_that_answers_rubbish(server: Server, user: tuple[str, str], words: Any) -> None:
    provider = Provider()
    provider.words = user
    client = redis.Redis(host="127.0.0.1", port=server.port, credential_provider=provider)
    async with Locker(client, key_validity=30) as locker:
        scope = await locker.acquire("job")
        provider.words = words
        drop(locker)
        await asyncio.sleep(0.1)
        assert scope.held
        provider.words = user
        await until(lambda: up(locker))
        await (await locker.acquire("another", timeout=5)).release()
        assert scope.held
        await scope.release()
    await client.aclose()


@pytest.mark.asyncio
async def test_a_password_of_a_provider_is_not_shown(server: Server) -> None:
    """Whoever repeats it: it was told to the server when the connection was set up."""
    provider = Provider()
    provider.words = ("app", "s3cret")
    async with Interceptor(server.port) as turncoat:
        turncoat.answer = lambda command: b"-ERR what is s3cret?\r\n"
        client = redis.Redis(host="127.0.0.1", port=turncoat.port, credential_provider=provider)
        with pytest.raises(ServerError) as caught:
            await Locker(client).acquire("job")
        assert "s3cret" not in str(caught.value) + repr(caught.value)
        await client.aclose()


class Streaming(Provider):
    def on_next(self, callback: Any) -> None:
        raise RuntimeError("no callbacks")


@pytest.mark.asyncio
async def test_a_provider_that_takes_no_callback(
    server: Server, user: tuple[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("redis.credentials.StreamingCredentialProvider", Streaming, raising=False)
    provider = Streaming()
    provider.words = user
    client = redis.Redis(host="127.0.0.1", port=server.port, credential_provider=provider)
    async with Locker(client) as locker, locker.with_context("job") as scope:
        assert scope.held
    assert "takes no callback" in caplog.text
    await client.aclose()


def test_a_client_that_leads_to_no_server() -> None:
    fake = type("FakeConnection", (redis.Connection,), {"__module__": "fakeredis._async"})
    other = type("Other", (), {"__module__": "elsewhere", "__init__": lambda self, **kwargs: None})
    for kind, name in ((fake, "one of fakeredis"), (other, r"one of elsewhere\.Other")):
        client = redis.Redis(connection_pool=redis.ConnectionPool())
        client.connection_pool.connection_class = kind
        with pytest.raises(ConfigurationError, match=f"{name}, whose connections lead to no server"):
            Locker(client)
    client.connection_pool = object()  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match="object"):
        Locker(client)


class Odd(redis.Connection):
    """One of redis-py's, and yet not what it should be."""

    async def _connect(self) -> None:
        await super()._connect()
        self._writer, self.real = Writer(), self._writer  # type: ignore[assignment]


class Writer:
    def write(self, data: bytes) -> None: ...
    def writelines(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...
    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, name: str) -> None: ...


@pytest.mark.asyncio
async def test_a_connection_without_a_transport(server: Server) -> None:
    connections: list[Any] = []

    class Kept(Odd):
        async def _connect(self) -> None:
            connections.append(self)
            await super()._connect()

    client = redis.Redis(
        connection_pool=redis.ConnectionPool(
            Kept, host="127.0.0.1", port=server.port, redis_connect_func=lambda c: None
        )
    )
    for call in ("acquire", "try_acquire"):
        with pytest.raises(ConfigurationError, match="Kept have no transport"):
            await getattr(Locker(client), call)("job")
    for connection in connections:
        connection.real.transport.abort()
    await asyncio.sleep(0)


@pytest.mark.asyncio
async def test_a_connection_class_of_the_users(server: Server) -> None:
    """One that connects in its own way is left to do so."""

    class Mine(redis.Connection):
        used = 0

        async def _connect(self) -> None:
            type(self).used += 1
            await super()._connect()

    client = redis.Redis(connection_pool=redis.ConnectionPool(Mine, host="127.0.0.1", port=server.port))
    async with Locker(client) as locker, locker.with_context("job") as scope:
        assert scope.held and Mine.used == 1
    await client.aclose()


# What proves that a server is gone, and what does not


class Papers:
    def __init__(self, directory: Path, name: str = "127.0.0.1") -> None:
        ca = trustme.CA()
        self.ca = str(directory / "ca.pem")
        ca.cert_pem.write_to_path(self.ca)
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.certificate = ca.issue_cert(name)
        self.certificate.configure_cert(self.server)
        ca.configure_trust(self.server)


async def held_while(
    locker: Locker, happens: Callable[[], Any], what: str, ends: Callable[[], Any], scope: LockScope | None = None
) -> None:
    """The lock is held as long as that is the matter, and afterwards."""
    scope = scope or await locker.acquire("job")
    happens()
    drop(locker)
    await until(lambda: what in trouble(locker))
    for _ in range(3):  # through some more attempts
        await asyncio.sleep(0.05)
        assert scope.held, scope.lost_reason
    ends()
    await until(lambda: up(locker))
    await (await locker.acquire("another", timeout=5)).release()
    assert scope.held
    await scope.release()


@pytest.mark.asyncio
@pytest.mark.parametrize("protocol", [3, 2])
@pytest.mark.parametrize(
    ("says", "what"),
    [
        (b"-ERR max number of clients reached\r\n", "max number of clients"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "oading"),
        (b"-NOAUTH Authentication required.\r\n", "uthentication"),
        (b"-WRONGPASS invalid username-password pair or user is disabled.\r\n", "invalid username"),
        (b"-NOPERM this user has no permissions\r\n", "no permissions"),
        (b"-READONLY You can't write against a read only replica.\r\n", "read only"),
        (b"-MASTERDOWN Link with MASTER is down\r\n", "Link with MASTER"),
        (b"-BUSY Redis is busy running a script.\r\n", "busy"),
        (b"-DENIED Redis is running in protected mode\r\n", "protected mode"),
        (b"-ERR what\r\n", "what"),
        (b"-\r\n", ""),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ""),
        (b"*2\r\n:1\r\n:1\r\n", ""),
        (b"+OK\r\n", ""),
        (b"$-1\r\n", ""),
        (b">2\r\n$1\r\n", ""),
    ],
)
async def test_a_server_that_answers_is_not_gone(server: Server, protocol: int, says: bytes, what: str) -> None:
    async with Interceptor(server.port) as turncoat:
        url = f"{turncoat.url}?protocol={protocol}&socket_connect_timeout=0.3"
        async with Locker(url, key_validity=30) as locker:

            def turn(answer: bytes | None) -> None:
                turncoat.answer = None if answer is None else lambda command: answer

            await held_while(locker, lambda: turn(says), what, lambda: turn(None))


@pytest.mark.asyncio
@pytest.mark.parametrize("protocol", [3, 2])
async def test_too_many_clients(own_server: Server, protocol: int) -> None:
    """A real server says so and hangs up, whatever it was asked: the two race on their way."""
    async with (
        redis.Redis.from_url(own_server.url, single_connection_client=True) as admin,
        Locker(f"{own_server.url}?protocol={protocol}", key_validity=60) as locker,
    ):
        scope = await locker.acquire("job")
        for _ in range(10):
            await admin.config_set("maxclients", 1)  # those that are there stay
            drop(locker)
            await until(lambda: "max number" in trouble(locker))
            await asyncio.sleep(0.1)  # some more attempts
            assert scope.held, scope.lost_reason
            await admin.config_set("maxclients", 100)
            await until(lambda: up(locker))
        assert scope.held
        await scope.release()


@pytest.mark.asyncio
async def test_a_server_that_is_silent_is_not_gone(server: Server) -> None:
    async with Proxy(server.port) as proxy:
        async with Locker(f"{proxy.url}?socket_connect_timeout=0.1", key_validity=30) as locker:
            await held_while(locker, proxy.freeze, "no answer within 0.1 s", proxy.thaw)


@pytest.mark.asyncio
async def test_another_certificate(server: Server, tmp_path: Path) -> None:
    papers = Papers(tmp_path)
    stranger = trustme.CA().issue_cert("127.0.0.1")
    with TLSFront(server.port, papers.server) as front:
        async with Locker(f"rediss://127.0.0.1:{front.port}/0?ssl_ca_certs={papers.ca}", key_validity=30) as locker:
            await held_while(
                locker,
                lambda: stranger.configure_cert(papers.server),
                "certificate was refused",
                lambda: papers.certificate.configure_cert(papers.server),
            )


@pytest.fixture
def nobody() -> Iterator[HeldPort]:
    """A port that refuses connections."""
    held = HeldPort()
    yield held
    held.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("protocol", [3, 2])
@pytest.mark.parametrize("between_them", [Interceptor, Proxy])  # with an orderly end, and with a reset
async def test_a_server_that_ends_every_connection_is_gone(
    server: Server, protocol: int, between_them: Any, nobody: HeldPort
) -> None:
    async with between_them(server.port) as between:
        url = f"redis://127.0.0.1:{between.port}/0?protocol={protocol}"
        async with Locker(url, key_validity=30) as locker:
            holding = await body(await locker.acquire("job"))
            between.target_port = nobody.number if between_them is Proxy else 0
            since = time.monotonic()
            drop(locker)
            assert (await holding.lost_within(AT_ONCE, since)).reason == "disconnected"
            between.target_port = server.port
            await (await locker.acquire("another", timeout=5)).release()


@pytest.mark.asyncio
@pytest.mark.parametrize("removed", [False, True])
async def test_a_unix_socket_without_a_server_is_gone(kind: str, removed: bool) -> None:
    with Server(kind, unix_socket=True) as server:
        async with Locker(server.unix_url, key_validity=30) as locker:
            holding = await body(await locker.acquire("job"))
            since = time.monotonic()
            server.kill()
            if removed:
                os.unlink(server.unix_url.removeprefix("unix://").partition("?")[0])
            assert (await holding.lost_within(AT_ONCE, since)).reason == "disconnected"
            with pytest.raises(AcquireTimeoutError):
                await locker.acquire("job", timeout=0.05)


# Names are looked up in threads of asynclock's own


class Names:
    """A resolver: ``known`` names have these addresses, and ``hangs`` is waited for before each answer."""

    no_way: Any = None  # an address more, before them

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **known: list[str]) -> None:
        self.known = known
        self.hangs: dict[str, threading.Event] = {}
        self.asked: list[str] = []
        self._ask = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self.getaddrinfo)

    def getaddrinfo(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in self.known:
            return self._ask(host, port, *args, **kwargs)
        if kwargs.get("flags"):
            raise socket.gaierror(socket.EAI_NONAME, "a name")
        self.asked.append(threading.current_thread().name)
        if host in self.hangs:
            self.hangs[host].wait()
        if not self.known[host]:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        found = [found for address in self.known[host] for found in self._ask(address, port, *args, **kwargs)]
        return [self.no_way, *found] if self.no_way else found


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("asynclock")]


@pytest.mark.asyncio
async def test_the_default_executor_is_full(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application's threads work for long, and the connection to a named host drops."""
    names = Names(monkeypatch, **{"redis.test": ["127.0.0.1"]})
    ends = threading.Event()
    loop = asyncio.get_running_loop()
    executor = concurrent.futures.ThreadPoolExecutor(1)
    loop.set_default_executor(executor)
    async with Locker(f"redis://redis.test:{server.port}", key_validity=30) as locker:
        scope = await locker.acquire("job")
        work = asyncio.create_task(asyncio.to_thread(ends.wait))
        await asyncio.sleep(0)
        drop(locker)
        await until(lambda: up(locker))
        await (await locker.acquire("another", timeout=5)).release()
        assert scope.held
        await scope.release()
    ends.set()
    await work
    assert names.asked == ["asynclock name look-up"] * 2
    await until(lambda: not threads())


@pytest.mark.asyncio
async def test_a_name_that_cannot_be_looked_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch, **{"redis.test": ["127.0.0.1"]})
    async with Locker(f"redis://redis.test:{server.port}", key_validity=30) as locker:

        def known(*addresses: str) -> None:
            names.known["redis.test"] = [*addresses]

        await held_while(locker, known, "Temporary failure", lambda: known("127.0.0.1"))


@pytest.mark.asyncio
async def test_a_look_up_that_hangs(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds nobody else up, has one thread however often it is asked for, and a locker closes all the same."""
    names = Names(monkeypatch, **{"redis.test": ["127.0.0.1"], "hangs.test": ["127.0.0.1"]})
    names.hangs["hangs.test"] = threading.Event()
    urls = [f"redis://{host}:{server.port}/{n}" for n, host in enumerate(["redis.test", "hangs.test", "redis.test"])]
    try:
        async with Locker([f"{url}?socket_connect_timeout=0.1" for url in urls]) as locker:
            async with locker.with_context("job") as scope:
                await asyncio.sleep(0.5)  # and it is tried again
                assert scope.held
            since = time.monotonic()
        assert time.monotonic() - since < AT_ONCE
        assert len(threads()) == 1
        with pytest.raises(ServerError, match=r"no answer within 0.1 s"):
            await Locker(f"{urls[1]}?socket_connect_timeout=0.1").acquire("job")
        assert len(threads()) == 1
    finally:
        names.hangs["hangs.test"].set()
    await until(lambda: not threads())
    async with Locker(urls[1]) as locker, locker.with_context("job") as scope:
        assert scope.held


@pytest.mark.asyncio
async def test_a_socket_that_is_connected_to_itself_is_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens there, and the kernel may give the client that very port."""
    port, socket_of_python = HeldPort(), socket.socket

    def bound(*arguments: Any) -> socket.socket:
        sock = socket_of_python(*arguments)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port.number))
        return sock

    with contextlib.closing(port), monkeypatch.context() as patch:
        patch.setattr(lookup.socket, "socket", bound)
        with pytest.raises(ConnectionRefusedError):
            await lookup.connect("127.0.0.1", port.number, 1.0)


@pytest.mark.asyncio
async def test_each_address_is_tried(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch, **{"redis.test": ["::1", "127.0.0.2", "127.0.0.1"]})
    async with Locker(f"redis://redis.test:{server.port}", key_validity=30) as locker:  # it listens on the last one
        holding = await body(await locker.acquire("job"))
        assert "redis.test" in repr(locker)
        since = time.monotonic()
        server.execute("DEL", key("job"))
        await holding.lost_within(AT_ONCE, since)


@pytest.mark.asyncio
async def test_every_address_refuses(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch, **{"redis.test": ["::1", "127.0.0.1"]})
    names.no_way = (127, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))  # a family that is unknown here
    async with Locker(f"redis://redis.test:{own_server.port}", key_validity=30) as locker:
        holding = await body(await locker.acquire("job"))
        since = time.monotonic()
        own_server.kill()
        assert (await holding.lost_within(2 * AT_ONCE, since)).reason == "disconnected"


@pytest.mark.asyncio
async def test_tls_checks_the_name_and_not_the_address(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Names(monkeypatch, **{"redis.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]})
    papers = Papers(tmp_path, "redis.test")
    asked: list[str] = []
    papers.server.sni_callback = lambda _, name, context: asked.append(name)
    with TLSFront(server.port, papers.server) as front:
        rest = f"{front.port}?ssl_ca_certs={papers.ca}"
        async with Locker(f"rediss://redis.test:{rest}") as locker, locker.with_context("job") as scope:
            assert scope.held and asked == ["redis.test"]
        for host in ("other.test", "127.0.0.1"):
            with pytest.raises(ServerError, match="certificate was refused"):
                await Locker(f"rediss://{host}:{rest}").acquire("job")
