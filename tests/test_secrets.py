"""No password and no lock's value in what is logged, raised or shown, on whatever way things go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import re
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable

import hiredis
import pytest
import redis.asyncio as redis
from redis.credentials import CredentialProvider

from asynclock import AsyncLockError, Locker
from asynclock.testing import Server
from asynclock.wire.capabilities import refused
from asynclock.wire.commands import error_of
from asynclock.wire.connector import Connector
from tests.support import internals
from tests.support.helpers import key, until
from tests.support.interceptor import Interceptor, to

PASSWORD = "pa55-canary"
OTHER = "0ther-canary"
TOKEN = re.compile(rb"asynclock:[nf]:[0-9a-f]{8,}:[0-9a-f]+")


class Listener:
    """Everything that is shown to anybody: ``shown``; and the values that were sent: ``secrets``."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.secrets = {PASSWORD, OTHER}

    def error(self, error: BaseException) -> None:
        self.shown += [str(error), repr(error), repr(error.args), *traceback.format_exception(error)]

    def locker(self, locker: Locker) -> None:
        manager = internals.manager(locker)
        self.shown += [
            repr(each)
            for each in (locker, manager, internals.servers(locker), internals.options(locker), *manager.rooms.values())
        ]
        if manager.life.connected:
            self.shown += [repr(node) for node in manager.topology.nodes]
            self.shown += [str(node.trouble) for node in manager.topology.nodes]

    def check(self) -> None:
        for text in self.shown:
            for secret in self.secrets:
                assert secret not in text, f"{secret} is shown in {text!r:.500}"


class Heard(Interceptor):
    """Collects the values of locks as they are sent."""

    def __init__(self, port: int, listener: Listener) -> None:
        super().__init__(port)
        self._listener = listener

    def heard(self, command: bytes | None, reply: bytes) -> None:
        for found in TOKEN.finditer(command or b""):
            self._listener.secrets.add(found[0].decode())


@pytest.fixture
def listener(caplog: pytest.LogCaptureFixture) -> Listener:
    for name in ("asynclock", "asyncio", "redis"):
        caplog.set_level(logging.DEBUG, logger=name)
    return Listener()


@contextlib.asynccontextmanager
async def guarded(kind: str, listener: Listener, config: dict[str, str] | None = None) -> AsyncIterator[Heard]:
    with Server(kind, config={"requirepass": PASSWORD, **(config or {})}) as server:
        async with Heard(server.port, listener) as heard:
            heard.server = server  # type: ignore[attr-defined]
            yield heard


def with_password(heard: Heard, password: str = PASSWORD) -> str:
    return heard.url.replace("//", f"//:{password}@")


async def use(locker: Locker, listener: Listener, name: str = "job", timeout: float = 0.3) -> None:
    """Every way to acquire, and what comes of it."""
    for context in (
        locker.with_context(name, timeout=timeout),
        locker.try_with_context(name),
        locker.force_with_context(name),
    ):
        try:
            async with context as scope:
                listener.shown.append(repr(scope))
                listener.locker(locker)
                await asyncio.sleep(0.02)
        except AsyncLockError as error:
            listener.error(error)
    listener.locker(locker)


# The ways


async def well(heard: Heard, listener: Listener) -> None:
    async with Locker(with_password(heard)) as locker:
        await use(locker, listener)
    listener.locker(locker)


async def wrong_password(heard: Heard, listener: Listener) -> None:
    for url in (with_password(heard, OTHER), heard.url, heard.url.replace("//", f"//{PASSWORD}:{OTHER}@")):
        locker = Locker(url)
        await use(locker, listener)
        with pytest.raises(AsyncLockError) as caught:
            async with locker:
                pass
        listener.error(caught.value)


async def nobody_there(heard: Heard, listener: Listener) -> None:
    heard.server.kill()  # type: ignore[attr-defined]
    await use(Locker(f"redis://user:{PASSWORD}@127.0.0.1:1/0"), listener)
    await use(Locker(with_password(heard) + "?socket_connect_timeout=0.2"), listener)


async def not_a_url(heard: Heard, listener: Listener) -> None:
    for url in (
        f"redis://:{PASSWORD}@127.0.0.1:port",
        f"http://:{PASSWORD}@127.0.0.1",
        f"redis://:{PASSWORD}@127.0.0.1/zero",
        f"redis://:{PASSWORD}@127.0.0.1?unknown=1",
        f"redis+sentinel://:{PASSWORD}@127.0.0.1",
        f"redis://:{PASSWORD}@[::1",
        f":{PASSWORD}@127.0.0.1",
    ):
        try:
            locker = Locker(url)
        except AsyncLockError as error:
            listener.error(error)
        else:
            await use(locker, listener)


async def taken_away(heard: Heard, listener: Listener) -> None:
    async with Locker(with_password(heard)) as locker, Locker(with_password(heard)) as other:
        client = redis.Redis.from_url(with_password(heard))
        for way in (
            lambda: client.delete(key("job")),
            lambda: client.set(key("job"), "somebody"),
            lambda: client.flushall(),
            lambda: _taken(other),
        ):
            scope = await locker.acquire("job", timeout=2)
            waiting = asyncio.create_task(scope.wait_lost())
            await way()
            await asyncio.wait_for(waiting, 2)
            listener.shown += [repr(scope), str(scope.lost_reason)]
            with pytest.raises(AsyncLockError) as caught:
                scope.check()
            listener.error(caught.value)
            await client.delete(key("job"))
        await client.aclose()


async def _taken(other: Locker) -> None:
    await (await other.force_acquire("job")).release()


async def cut_off(heard: Heard, listener: Listener) -> None:
    async with Locker(with_password(heard), key_validity=1.0, disconnect_grace=0.2) as locker:
        scope = await locker.acquire("job")
        heard.server.kill()  # type: ignore[attr-defined]
        await use(locker, listener, "other")
        await scope.wait_lost()
        listener.shown.append(repr(scope))
        heard.server.start()  # type: ignore[attr-defined]
        await use(locker, listener, "other", timeout=3.0)


async def garbage(heard: Heard, listener: Listener) -> None:
    async with Locker(with_password(heard), key_validity=1.0) as locker:
        for said in (b"?\r\n", b"-NOAUTH x\r\n", b"*100\r\n", b"+OK\r\n" * 5):
            await use(locker, listener)
            heard.say(said)
            await use(locker, listener)


async def no_permission(heard: Heard, listener: Listener) -> None:
    client = redis.Redis.from_url(with_password(heard))
    await client.execute_command("ACL", "SETUSER", "limited", "on", f">{OTHER}", "+@all", "~*")
    async with Locker(heard.url.replace("//", f"//limited:{OTHER}@")) as locker:
        await use(locker, listener)
        for command in ("-set", "-eval", "-evalsha", "-delifeq", "-delex"):
            with contextlib.suppress(redis.ResponseError):  # a command that this server does not have
                await client.execute_command("ACL", "SETUSER", "limited", command)
        await use(locker, listener)
        await client.execute_command("ACL", "SETUSER", "limited", "off")
        await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await use(locker, listener)
    await client.aclose()


async def credentials_that_fail(heard: Heard, listener: Listener) -> None:
    class Provider(CredentialProvider):
        async def get_credentials_async(self) -> tuple[str, str]:
            return ("default", OTHER)

    client = redis.Redis.from_url(heard.url, credential_provider=Provider())
    await use(Locker(client), listener)
    await client.aclose()


async def forgotten(heard: Heard, listener: Listener) -> None:
    async with Locker(with_password(heard)) as locker:
        scope = await locker.acquire("job")
        with pytest.warns(ResourceWarning) as caught:
            del scope
            gc.collect()
        listener.shown += [str(warning.message) for warning in caught]
        await until(lambda: not internals.busy(locker))


def unknown(command: bytes) -> bytes:
    """What Redis and Valkey say of a command that they do not know."""
    words = [word for word in command.split(b"\r\n")[2::2] if word]
    return b"-ERR unknown command '%b', with args beginning with: %b\r\n" % (
        words[0],
        b" ".join(b"'%b'" % word for word in words[1:]),
    )


async def commands_that_are_gone(heard: Heard, listener: Listener) -> None:
    """A server that was exchanged for another, or a proxy that lets less pass: after the connection was set up."""
    async with Locker(with_password(heard), key_validity=1.0) as locker:
        for word in (b"SET", b"GET", b"DELIFEQ", b"EVAL"):
            heard.answer = lambda command, word=word: unknown(command) if to(word, b"")(command) is not None else None
            await use(locker, listener)
            heard.answer = None
            await use(locker, listener)


def repeats(*commands: bytes) -> Callable[[bytes], bytes | None]:
    said = f"-ERR go away, {PASSWORD}\r\n".encode()
    return lambda command: said if any(b"\r\n%b\r\n" % each in command for each in commands) else None


async def repeated(heard: Heard, listener: Listener) -> None:
    """The password itself, in an error of the server's own making: while a connection is set up, and later."""
    for options in ({}, {"min_replicas": 1}, {"fallback_setpx": False}):
        for commands in ((b"SET", b"GET"), (b"DELIFEQ", b"DELEX", b"EVAL", b"EVALSHA"), (b"TIME",), (b"INFO",)):
            heard.answer = repeats(*commands)
            locker = Locker(with_password(heard), **options)
            await use(locker, listener)
            await locker.aclose()
    heard.answer = repeats(b"CLIENT", b"SUBSCRIBE")
    locker = Locker(f"{with_password(heard)}?protocol=2")
    await use(locker, listener)
    await locker.aclose()
    heard.answer = None
    async with Locker(with_password(heard), key_validity=1.0) as locker:
        scope = await locker.acquire("held", timeout=2)
        heard.answer = repeats(b"SET", b"GET", b"PTTL", b"PEXPIRE", b"EVAL", b"EVALSHA", b"TIME")
        await use(locker, listener)
        with contextlib.suppress(AsyncLockError):
            await asyncio.wait_for(scope.wait_lost(), 3)
        with pytest.raises(AsyncLockError) as caught:
            scope.check()
        listener.error(caught.value)
    assert any("it contains a password" in each for each in listener.shown)


async def no_auth_command(heard: Heard, listener: Listener) -> None:
    """A proxy that knows neither HELLO nor AUTH says so, and repeats what it was told."""
    heard.answer = lambda command: unknown(command) if b"HELLO" in command or b"AUTH" in command else None
    await use(Locker(with_password(heard)), listener)


def test_what_is_not_shown_is_still_understood() -> None:
    """A short password is in everything that a server says; errors that pass must not count as lasting for that."""
    connector = Connector(redis.Connection, {"password": "a"})
    for reply, lasting in ((hiredis.ReplyError("LOADING data"), False), (hiredis.ReplyError("ERR bad"), True)):
        error = error_of("server", "SET", "key", reply, connector.redact(reply))
        assert error is not None and error.lasting == lasting and str(reply) not in str(error)
        assert refused(connector, "SET", reply).lasting == lasting


Way = Callable[[Heard, Listener], Awaitable[None]]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "way",
    [
        well,
        wrong_password,
        nobody_there,
        not_a_url,
        taken_away,
        cut_off,
        garbage,
        no_permission,
        credentials_that_fail,
        forgotten,
        commands_that_are_gone,
        repeated,
        no_auth_command,
    ],
)
async def test_no_secret_is_shown(way: Way, kind: str, listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0.0  # every callback is logged, with what it was called with
    async with guarded(kind, listener) as heard:
        await way(heard, listener)
    loop.set_debug(False)
    listener.shown.append(caplog.text)
    listener.check()
