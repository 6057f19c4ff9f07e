"""asynclock.integrations.aiohttp: a response that has begun when the lock is lost (more: test_examples_streams.py)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web

from asynclock import Locker
from asynclock.integrations.aiohttp import SCOPE, locked, setup
from asynclock.testing import Server
from tests.support.apps import raw, serve_aiohttp
from tests.support.helpers import key, until

pytestmark = [pytest.mark.every_python, pytest.mark.serverless, pytest.mark.asyncio]


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(1000):
        await response.write(b"row\n")
        await asyncio.sleep(0.02)
    return response


@locked("user:{user_id}", timeout=0.1)
async def locked_stream(request: web.Request) -> web.StreamResponse:
    return await stream(request)


@locked("shop", timeout=0.1)
async def twice_locked_stream(request: web.Request) -> web.StreamResponse:
    return await locked_stream(request)


class View(web.View):
    @locked("user:{user_id}")
    async def get(self) -> web.StreamResponse:
        return await stream(self.request)


@locked("shop", timeout=0.1)
async def twice_locked_socket(request: web.Request) -> web.StreamResponse:
    return await locked_socket(request)


@locked("user:{user_id}", timeout=0.1)
async def locked_socket(request: web.Request) -> web.StreamResponse:
    websocket = web.WebSocketResponse()
    await websocket.prepare(request)
    async for _ in websocket:
        pass
    return websocket


def app_of(server: Server, handler: Any, **options: Any) -> web.Application:
    app = web.Application()
    setup(app, server.url, **options)
    app.router.add_get("/users/{user_id}", handler)
    inner = web.Application()
    inner.router.add_get("/users/{user_id}", handler)
    app.add_subapp("/inner", inner)
    return app


def request_of(path: str) -> str:
    return f"GET {path} HTTP/1.1\nHost: localhost\n"


@pytest.mark.parametrize(
    ("handler", "lost"),
    [(locked_stream, "user:7"), (View, "user:7"), (twice_locked_stream, "user:7"), (twice_locked_stream, "shop")],
)
@pytest.mark.parametrize("path", ["/users/7", "/inner/users/7"])
async def test_it_is_broken_off_with_one_line_in_the_log(
    handler: Any, lost: str, path: str, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve_aiohttp(app_of(server, handler)) as port, raw(port, request_of(path)) as connection:
        await connection.until(b"row\n")
        server.execute("DEL", key(lost))
        received = await connection.rest()
        assert received.count(b"HTTP/1.") == 1
        assert not received.endswith(b"0\r\n\r\n")
        assert connection.reset
        await until(lambda: server.execute("DBSIZE") == 0)
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert {(record.name, record.levelname) for record in told} == {("asynclock", "WARNING")}, told
    assert [record.asynclock_message for record in told] == ["lock_lost", "request_failed"]  # type: ignore[attr-defined]


async def test_so_it_is_under_tls(server: Server) -> None:
    authority = trustme.CA()
    there, here = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(there)
    authority.configure_trust(here)
    runner = web.AppRunner(app_of(server, locked_stream))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=there).start()
        port = runner.addresses[0][1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=here, server_hostname="localhost")
        writer.write(request_of("/users/7").replace("\n", "\r\n").encode() + b"\r\n")
        received = await asyncio.wait_for(reader.readuntil(b"row\n"), 5)
        server.execute("DEL", key("user:7"))
        with contextlib.suppress(ConnectionError):
            while more := await asyncio.wait_for(reader.read(65536), 5):
                received += more
        assert not received.endswith(b"0\r\n\r\n")
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()
    finally:
        await runner.cleanup()


async def test_what_a_handler_has_released_itself_is_not_lost(server: Server) -> None:
    @locked("user:{user_id}")
    async def handler(request: web.Request) -> web.StreamResponse:
        await request[SCOPE].release()
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"row\n")
        await response.write_eof()
        return response

    async with serve_aiohttp(app_of(server, handler)) as port, aiohttp.ClientSession() as client:
        response = await client.get(f"http://127.0.0.1:{port}/users/7")
        assert (response.status, await response.text()) == (200, "row\n")


async def test_a_handler_that_cancels_its_scope_breaks_its_answer_off(server: Server) -> None:
    @locked("user:{user_id}")
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"row\n")
        request[SCOPE].cancel()
        await asyncio.sleep(30)
        return response

    async with serve_aiohttp(app_of(server, handler)) as port, raw(port, request_of("/users/7")) as connection:
        received = await connection.rest()
        assert received.count(b"HTTP/1.") == 1
        assert not received.endswith(b"0\r\n\r\n")


# WebSockets


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client, client.ws_connect("/users/7") as socket:
        yield socket


async def check_closed(socket: aiohttp.ClientWebSocketResponse, code: int = 1013) -> None:
    message = await socket.receive(timeout=5)
    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, code), message
    assert message.extra


@pytest.mark.parametrize(
    ("handler", "lost"),
    [(locked_socket, "user:7"), (twice_locked_socket, "user:7"), (twice_locked_socket, "shop")],
)
async def test_a_websocket_is_closed_with_1013(handler: Any, lost: str, server: Server) -> None:
    async with serve_aiohttp(app_of(server, handler)) as port, connected(port) as socket:
        await until(lambda: server.execute("EXISTS", key("user:7")))
        server.execute("DEL", key(lost))
        await check_closed(socket)
        await until(lambda: server.execute("DBSIZE") == 0)


@pytest.mark.parametrize("busy", ["shop", "user:7"])
async def test_so_is_one_that_gets_no_lock(busy: str, server: Server, other: Locker) -> None:
    async with serve_aiohttp(app_of(server, twice_locked_socket)) as port, other.with_context(busy):
        async with connected(port) as socket:
            await check_closed(socket)
        await until(lambda: server.execute("DBSIZE") == 1)


async def test_the_code_is_that_of_setup(server: Server, other: Locker) -> None:
    async with serve_aiohttp(app_of(server, locked_socket, close_code=4001)) as port:
        async with other.with_context("user:7"), connected(port) as socket:
            await check_closed(socket, 4001)
        async with connected(port) as socket:
            await until(lambda: server.execute("EXISTS", key("user:7")))
            server.execute("DEL", key("user:7"))
            await check_closed(socket, 4001)
