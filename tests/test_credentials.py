"""Credentials that change: redis-py's providers, asked at each connect, or announcing new ones themselves."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis.asyncio as redis
from redis.credentials import CredentialProvider

from asynclock import Locker, LossReason, ServerError
from asynclock.testing import Server
from asynclock.wire.credentials import Credentials
from asynclock.wire.node import Node
from tests.support import internals
from tests.support.helpers import AT_ONCE, body, key, until

pytestmark = pytest.mark.redis_py

try:
    from redis.auth.token import SimpleToken
    from redis.credentials import StreamingCredentialProvider
except ImportError:
    StreamingCredentialProvider = object  # type: ignore[assignment,misc]  # a class otherwise
    announces = False
else:
    announces = True

streaming = pytest.mark.skipif(not announces, reason="before redis-py 5.3 no provider announces new credentials")


@pytest.fixture
def users(server: Server) -> Iterator[Server]:
    """A server with two users; each one's password is its name with ``-s3cret``."""
    for user in ("app", "next"):
        server.execute("ACL", "SETUSER", user, "reset", "on", f">{user}-s3cret", "+@all", "~*", "&*")
    yield server
    server.execute("ACL", "DELUSER", "app", "next")


class Asked(CredentialProvider):
    def __init__(self, user: str = "app") -> None:
        self.credentials = (user, f"{user}-s3cret")
        self.asked = 0

    def get_credentials(self) -> tuple[str, str]:
        self.asked += 1
        return self.credentials

    async def get_credentials_async(self) -> tuple[str, str]:
        return self.get_credentials()


class Streaming(Asked, StreamingCredentialProvider):
    """One callback, as real ones have it."""

    callback: Callable[[Any], Any]

    def on_next(self, callback: Callable[[Any], Any]) -> None:
        self.callback = callback

    def on_error(self, callback: Callable[[Exception], Any]) -> None: ...

    def is_streaming(self) -> bool:
        return True

    def token(self, user: str, password: str | None = None) -> Any:
        self.credentials = (user, password or f"{user}-s3cret")
        return SimpleToken(self.credentials[1], -1, 0, {"oid": user})

    async def announce(self, user: str, password: str | None = None) -> None:
        await self.callback(self.token(user, password))


def client_of(server: Server, provider: CredentialProvider, **options: Any) -> redis.Redis:
    return redis.Redis(host="127.0.0.1", port=server.port, credential_provider=provider, **options)


def users_of(server: Server) -> dict[str, str]:
    """Who is logged in on which of the lockers' connections."""
    listed = server.execute("CLIENT", "LIST")
    assert isinstance(listed, bytes)
    clients = [dict(field.split("=", 1) for field in line.split(" ")) for line in listed.decode().splitlines()]
    return {client["id"]: client["user"] for client in clients if client["name"].startswith("asynclock-")}


async def whoami(client: redis.Redis) -> str:
    """Who the app's own connection is: some versions of redis-py answer text, some bytes."""
    user = await client.acl_whoami()
    return user.decode() if isinstance(user, bytes) else user


def kill(server: Server) -> None:
    for id in users_of(server):
        server.execute("CLIENT", "KILL", "ID", id)


@pytest.mark.asyncio
async def test_a_provider_is_asked_at_each_connect(users: Server) -> None:
    provider = Asked()
    client = client_of(users, provider)
    async with Locker(client) as locker:
        scope = await locker.acquire("job")
        for number in range(3):
            users.execute("ACL", "SETUSER", "app", "resetpass", f">changed-{number}")
            provider.credentials = ("app", f"changed-{number}")
            before, asked = users_of(users), provider.asked
            kill(users)
            await until(lambda before=before: users_of(users) and not users_of(users).keys() & before.keys())  # type: ignore[misc]
            await asyncio.sleep(0.05)
            assert provider.asked > asked
            assert scope.held
        await scope.release()
    await client.aclose()


@pytest.mark.asyncio
async def test_a_password_that_is_not_renewed_is_reported(users: Server, caplog: pytest.LogCaptureFixture) -> None:
    provider = Asked()
    client = client_of(users, provider)
    with caplog.at_level(logging.DEBUG, "asynclock"):
        async with Locker(client, key_validity=1.0) as locker:
            holding = await body(await locker.acquire("job"))
            users.execute("ACL", "SETUSER", "app", "resetpass", ">changed")
            since = time.monotonic()
            kill(users)
            error = await holding.lost_within(1.0 + AT_ONCE, since)
            assert error.reason is LossReason.EXPIRED  # a server that answers is not gone
            assert "check username and password" in str(error)
            with pytest.raises(ServerError, match="password"):
                await locker.acquire("job")
    assert "check username and password" in caplog.text
    assert "s3cret" not in caplog.text + str(error) + repr(error)
    await client.aclose()


@streaming
@pytest.mark.asyncio
@pytest.mark.parametrize("protocol", [3, 2])
@pytest.mark.parametrize("how", ["client", "from_url"])
async def test_new_credentials_without_a_reconnect(users: Server, protocol: int, how: str) -> None:
    provider = Streaming()
    if how == "client":
        client = client_of(users, provider, protocol=protocol)
    else:
        client = redis.Redis.from_url(f"{users.url}?protocol={protocol}", credential_provider=provider)
    await client.ping()  # the app's pool has a connection of its own
    async with Locker(client) as locker, Locker(client) as second:
        holding = await body(await locker.acquire("job"))
        scopes = [await second.acquire(f"job {number}") for number in range(10)]
        before = users_of(users)
        assert set(before.values()) == {"app"}
        assert len(before) == (2 if protocol == 3 else 4)
        await provider.announce("next")
        await until(lambda: users_of(users) == dict.fromkeys(before, "next"))
        assert await whoami(client) == "next"  # the pool was not robbed of it
        assert holding.scope.held
        assert all(scope.held for scope in scopes)
        users.execute("ACL", "DELUSER", "app")  # which ends the connections of that user, if there are any
        await asyncio.sleep(0.05)
        assert users_of(users) == dict.fromkeys(before, "next")
        since = time.monotonic()
        users.execute("DEL", key("job"))
        assert (await holding.lost_within(AT_ONCE, since)).reason == "deleted"
        for scope in scopes:
            await scope.release()
    await client.aclose()


@streaming
@pytest.mark.asyncio
async def test_new_credentials_for_the_connection_that_waits_for_replicas(users: Server) -> None:
    provider = Streaming()
    client = client_of(users, provider)
    async with Locker(client, min_replicas=1) as locker:
        with pytest.raises(ServerError, match="min_replicas"):  # there are none
            await locker.try_acquire("job")
        before = users_of(users)
        assert list(before.values()) == ["app", "app"]
        await provider.announce("next")
        await until(lambda: users_of(users) == dict.fromkeys(before, "next"))
    await client.aclose()


@streaming
@pytest.mark.asyncio
async def test_deleted_while_the_subscriber_logs_in(users: Server) -> None:
    """RESP2: whatever was not told in that moment is found all the same."""
    provider = Streaming()
    client = client_of(users, provider, protocol=2)
    async with Locker(client) as locker:
        node = internals.node(locker)
        holding = await body(await locker.acquire("job"))
        await until(lambda: not internals.rooms(locker)["job"].holder.untracked)
        assert node.session is not None and node.session.invalidations is not None
        node.session.invalidations._on_push = lambda push, now: None  # as if lost
        since = time.monotonic()
        users.execute("DEL", key("job"))
        await asyncio.sleep(0.02)
        assert holding.scope.held
        await provider.announce("next")
        await holding.lost_within(AT_ONCE, since)
    await client.aclose()


@streaming
@pytest.mark.asyncio
async def test_twice_within_one_round_trip(users: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """RESP2: the subscriber was away twice, and what was to be told meanwhile is looked for after each time."""
    provider = Streaming()
    client = client_of(users, provider, protocol=2)
    async with Locker(client) as locker, locker.with_context("job") as scope:
        before = users_of(users)
        assert len(before) == 2
        looks = []
        reconnected = internals.manager(locker).reconnected

        def look(node: Any) -> None:
            looks.append(node)
            reconnected(node)

        monkeypatch.setattr(internals.manager(locker), "reconnected", look)
        await asyncio.gather(provider.announce("app"), provider.announce("next"))
        await until(lambda: users_of(users) == dict.fromkeys(before, "next"))
        await until(lambda: len(looks) == 2)
        await provider.announce("app")  # and it goes on as before
        await until(lambda: users_of(users) == dict.fromkeys(before, "app"))
        await until(lambda: len(looks) == 3)
        assert scope.held
    await client.aclose()


@streaming
@pytest.mark.asyncio
@pytest.mark.parametrize("protocol", [3, 2])
async def test_refused_new_credentials_lead_to_a_reconnect(
    users: Server, protocol: int, caplog: pytest.LogCaptureFixture
) -> None:
    provider = Streaming()
    client = client_of(users, provider, protocol=protocol)
    with caplog.at_level(logging.DEBUG, "asynclock"):
        async with Locker(client, disconnect_grace=2) as locker:
            scope = await locker.acquire("job")
            before = users_of(users)
            refused = provider.token("next", "wr0ng-s3cret")
            provider.credentials = ("next", "next-s3cret")  # whoever asks gets good ones
            await provider.callback(refused)
            await until(lambda: users_of(users) and not users_of(users).keys() & before.keys())
            await until(lambda: set(users_of(users).values()) == {"next"})
            assert scope.held
            await provider.announce("next", "wr0ng-s3cret")  # and now not even that
            node = internals.node(locker)
            await until(lambda: node.trouble is not None and node.trouble.lasting)
            assert "check username and password" in str(node.trouble)
    assert "new credentials were refused" in caplog.text
    assert "s3cret" not in caplog.text
    await client.aclose()


@streaming
@pytest.mark.asyncio
async def test_new_credentials_from_another_thread(users: Server) -> None:
    provider = Streaming()
    client = client_of(users, provider)
    async with Locker(client) as locker, locker.with_context("job") as scope:
        before = users_of(users)
        thread = threading.Thread(target=lambda: asyncio.run(provider.announce("next")))
        thread.start()
        await until(lambda: users_of(users) == dict.fromkeys(before, "next"))
        thread.join()
        assert scope.held
    await client.aclose()


@streaming
@pytest.mark.asyncio
async def test_new_credentials_while_a_connection_is_set_up(users: Server) -> None:
    provider = Streaming()
    client = client_of(users, provider)
    locker = Locker(client)
    connector = internals.connector(locker)
    connect = connector.open

    async def slow() -> asyncio.StreamWriter:
        writer = await connect()  # with the old ones
        await provider.announce("next")
        await asyncio.sleep(0.01)
        return writer

    connector.open = slow
    async with locker:
        await until(lambda: set(users_of(users).values()) == {"next"})
    await client.aclose()


@streaming
@pytest.mark.asyncio
async def test_after_close_only_the_apps_pool_hears(users: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Streaming()
    client = client_of(users, provider)
    heard: list[object] = []
    reauthenticate = Node._reauthenticate

    def hear(node: Node, credentials: Credentials) -> bool:
        heard.append(credentials)
        return reauthenticate(node, credentials)

    monkeypatch.setattr(Node, "_reauthenticate", hear)
    async with Locker(client):
        await client.ping()
        await provider.announce("next")
        await until(lambda: heard)
    heard.clear()
    await provider.announce("app")
    await asyncio.sleep(0.01)
    await provider.announce("next")
    await asyncio.sleep(0.01)
    assert await whoami(client) == "next"
    assert not heard
    assert not users_of(users)
    async with Locker(client):  # and one made later is heard of again
        before = users_of(users)
        await provider.announce("app")
        await until(lambda: users_of(users) == dict.fromkeys(before, "app"))
        assert await whoami(client) == "app"
    await client.aclose()
