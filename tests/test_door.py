"""The door: what redis-py connects and asynclock takes over. Run at both ends of the pinned range (noxfile)."""

from __future__ import annotations

import asyncio
import gc
import time

import pytest
import redis.asyncio as redis

from asynclock import ConfigurationError, Locker
from asynclock.testing import Server
from tests.helpers import AT_ONCE, body, key, until


@pytest.mark.asyncio
async def test_a_socket_taken_over_from_redis_py(locker: Locker, server: Server) -> None:
    """Replies, pushes, a burst, and the end of the connection all arrive at the new protocol."""
    holding = await body(await locker.acquire("job"))
    gc.collect()  # redis-py's connection object is gone, and took nothing with it
    assert holding.scope.held
    scopes = await asyncio.gather(*(locker.acquire(f"{number} {'x' * 1000}") for number in range(2000)))
    await asyncio.gather(*(scope.release() for scope in scopes))
    (node,) = locker._keeper.topology.nodes
    before = node.wire
    server.execute("CLIENT", "KILL", "TYPE", "normal")
    await until(lambda: node.wire not in (None, before))
    await asyncio.sleep(0.05)  # for the look at the key
    server.execute("DEL", key("job"))
    error = await holding.lost_within(AT_ONCE, time.monotonic())
    assert error.reason == "deleted"


@pytest.mark.asyncio
async def test_a_lost_connection_does_not_wait_for_the_garbage_collector(locker: Locker, server: Server) -> None:
    """redis-py's parser and reader refer to each other; a locker that reconnects for weeks must not grow by that."""

    def readers() -> int:
        return sum(isinstance(each, asyncio.StreamReader) for each in gc.get_objects())

    (node,) = locker._keeper.topology.nodes
    gc.collect()
    before = readers()
    gc.disable()
    try:
        for _ in range(5):
            wire = node.wire
            server.execute("CLIENT", "KILL", "TYPE", "normal")
            await until(lambda wire=wire: node.wire not in (None, wire))
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
        (node,) = locker._keeper.topology.nodes
        assert node.wire is not None
        self.wire = node.wire
        self.transport = node.wire._transport
        self.writes: list[bytes] = []

    def __enter__(self) -> list[bytes]:
        self.wire._transport = self  # type: ignore[assignment]
        return self.writes

    def __exit__(self, *error: object) -> None:
        self.wire._transport = self.transport

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
        (node,) = locker._keeper.topology.nodes
        asked = 0
        connect = node.door.open

        async def counted() -> asyncio.StreamWriter:
            nonlocal asked
            asked += 1
            return await connect()

        node.door.open = counted
        own_server.kill()
        await asyncio.sleep(1.0)
        assert 4 <= asked <= 14  # 10, 20, 40 ... ms, each by chance down to half
        own_server.start()
        scope = await locker.acquire("job", timeout=3)
        await scope.release()


@pytest.mark.asyncio
async def test_a_call_on_a_lost_connection_fails_at_once(own_server: Server) -> None:
    async with Locker(own_server.url) as locker:
        (node,) = locker._keeper.topology.nodes
        wire = node.wire
        assert wire is not None
        own_server.kill()
        await wire.closed
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(wire.call(b"*1\r\n$4\r\nPING\r\n"), 1)
