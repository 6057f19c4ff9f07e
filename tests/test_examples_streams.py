"""Responses of the example apps that have begun, and WebSockets, when the lock is lost: what is on the wire."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import httpx
import pytest
from aiohttp import web
from fastapi import BackgroundTasks, FastAPI, WebSocket
from fastapi.responses import StreamingResponse

from asynclock import LockScope
from asynclock.integrations.aiohttp import CLOSE_TIMEOUT, LOCKER, SCOPE, locked, setup
from asynclock.testing import Server
from examples import aiohttp_app, fastapi_app
from examples.fastapi_app import AccountLock, AccountLockUntilSent
from tests.support.apps import Client, Raw, Serve, check_refused, running, serve_aiohttp, serve_asgi
from tests.support.helpers import AT_ONCE, until

pytestmark = pytest.mark.asyncio

STATEMENT = "GET /accounts/anna/statement?lines=1000&seconds=0.02 HTTP/1.1\nHost: localhost\n"
TELLER = (
    "GET /accounts/anna/teller HTTP/1.1\nHost: localhost\nConnection: Upgrade\nUpgrade: websocket\n"
    "Sec-WebSocket-Version: 13\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\n"
)
TRY_AGAIN_LATER = (1013).to_bytes(2, "big")

each_app = pytest.mark.parametrize("name", ["fastapi", "aiohttp"])
each_way = pytest.mark.parametrize("name", ["fastapi", "aiohttp", "aiohttp with handler_cancellation"])

Handler = Callable[[web.Request, LockScope], Awaitable[web.StreamResponse]]


def aiohttp_with(handler: Handler) -> Serve:
    """An app with the locks of the example, and one handler."""

    @locked("account:{account}")
    async def under_the_lock(request: web.Request) -> web.StreamResponse:
        return await handler(request, request[SCOPE])

    def make_app() -> web.Application:
        app = web.Application()
        setup(app, aiohttp_app.LOCK_URL, timeout=aiohttp_app.LOCK_WAIT)
        app.router.add_get("/{account}", under_the_lock)
        return app

    return lambda: serve_aiohttp(make_app())


def fastapi_with(endpoint: Callable[..., object], *, websocket: bool = False) -> Serve:
    app = FastAPI(lifespan=fastapi_app.lifespan)
    fastapi_app.locks.install(app)
    (app.websocket if websocket else app.get)("/{account}")(endpoint)
    return lambda: serve_asgi(app)


GET = "GET /anna HTTP/1.1\nHost: localhost\n"


def check_broken_off(received: bytes) -> None:
    """One answer, which has begun, and does not end as if it were whole."""
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.count(b"HTTP/1.") == 1
    assert b"transfer-encoding: chunked" in received.lower()
    assert not received.endswith(b"0\r\n\r\n")
    assert b"lock was lost" not in received


async def lose(client: Client, connection: Raw) -> bytes:
    since = time.monotonic()
    client.take_away("anna")
    received = await connection.rest()
    assert time.monotonic() - since < AT_ONCE
    return received


# Streams


@each_way
async def test_a_response_that_has_begun_is_broken_off(name: str, server: Server) -> None:
    async with running(name, server) as client, client.raw(STATEMENT) as connection:
        await connection.until(b"2: 100\n")
        assert client.locked("anna")
        check_broken_off(await lose(client, connection))


async def test_a_base_http_middleware_makes_a_broken_response_look_whole(server: Server) -> None:
    """What docs/services.md warns of: it ends the response before it passes the exception on."""
    async with running("fastapi in a BaseHTTPMiddleware", server) as client, client.raw(STATEMENT) as connection:
        await connection.until(b"2: 100\n")
        received = await lose(client, connection)
        assert received.count(b"HTTP/1.") == 1
        assert received.endswith(b"0\r\n\r\n")


@each_app
async def test_a_response_that_is_not_cut_short_is_whole(name: str, server: Server) -> None:
    async with running(name, server) as client:
        for _ in range(2):
            response = await client.http.get("/accounts/anna/statement", params={"lines": 3, "seconds": 0.01})
            assert (response.status_code, response.text) == (200, "1: 100\n2: 100\n3: 100\n")
            await until(lambda: not client.locked("anna"))


@each_app
async def test_others_are_kept_out_until_the_last_line(name: str, server: Server) -> None:
    async with running(name, server) as client, client.raw(STATEMENT) as connection:
        await connection.until(b"2: 100\n")
        check_refused(await client.withdraw("anna"), 423)
        check_broken_off(await lose(client, connection))
        assert (await client.withdraw("anna")).json() == {"balance": 90}


@each_way
async def test_after_a_broken_response_the_same_client_goes_on(name: str, server: Server) -> None:
    async with running(name, server) as client:
        query = {"lines": 1000, "seconds": 0.02}
        with pytest.raises(httpx.TransportError):
            async with client.http.stream("GET", "/accounts/anna/statement", params=query) as response:
                assert response.status_code == 200
                async for line in response.aiter_lines():
                    if line == "2: 100":
                        client.take_away("anna")
        assert (await client.withdraw("anna")).json() == {"balance": 90}
        response = await client.http.get("/accounts/anna/statement", params={"lines": 1, "seconds": 0})
        assert response.text == "1: 90\n"


async def test_aiohttp_resets_the_connection_of_a_client_that_takes_its_end_for_the_end(server: Server) -> None:
    """HTTP/1.0 has no chunks: a body ends with the connection."""
    request = STATEMENT.replace("HTTP/1.1", "HTTP/1.0")
    async with running("aiohttp", server) as client, client.raw(request) as connection:
        await connection.until(b"2: 100\n")
        received = await lose(client, connection)
        assert received.count(b"HTTP/1.") == 1
        assert connection.reset


@each_app
async def test_a_client_that_does_not_read_keeps_no_handler(
    name: str, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """The handler waits for its client to take more, and is cancelled there."""
    sent = 0

    async def rows() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield bytes(1 << 20)

    async def endpoint(account: str, lock: AccountLockUntilSent) -> StreamingResponse:
        return StreamingResponse(rows())

    async def handler(request: web.Request, lock: LockScope) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for chunk in rows():
            await response.write(chunk)
        return response

    async with running(fastapi_with(endpoint) if name == "fastapi" else aiohttp_with(handler), server) as client:
        async with client.raw(GET) as connection:
            connection.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's can
            before = -1
            while sent > before:  # until all buffers on the way are full
                before = sent
                await asyncio.sleep(0.1)
            client.take_away("anna")
            await until(lambda: "was lost" in caplog.text, AT_ONCE)


async def test_a_stream_that_swallows_the_cancellation_is_broken_off_all_the_same_fastapi(server: Server) -> None:
    async def rows() -> AsyncIterator[str]:
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                yield "row\n"
                await asyncio.sleep(0.02)
        yield "that was all\n"

    async def endpoint(account: str, lock: AccountLockUntilSent) -> StreamingResponse:
        return StreamingResponse(rows())

    async with running(fastapi_with(endpoint), server) as client, client.raw(GET) as connection:
        await connection.until(b"row")
        received = await lose(client, connection)
        check_broken_off(received)
        assert b"all" not in received


async def rows_until_cancelled(response: web.StreamResponse) -> None:
    while True:
        await response.write(b"row\n")
        await asyncio.sleep(0.02)


async def ends_it_in_finally(request: web.Request, lock: LockScope) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        await rows_until_cancelled(response)
    finally:
        await response.write_eof(b"that was all\n")
    return response


async def swallows_and_ends_it(request: web.Request, lock: LockScope) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(asyncio.CancelledError):
        await rows_until_cancelled(response)
    with contextlib.suppress(ConnectionError):
        await response.write_eof(b"that was all\n")
    return response


async def swallows_and_returns(request: web.Request, lock: LockScope) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(asyncio.CancelledError):
        await rows_until_cancelled(response)
    return response


async def returns_another_one(request: web.Request, lock: LockScope) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(asyncio.CancelledError):
        await rows_until_cancelled(response)
    return web.Response(text="that was all\n")


@pytest.mark.parametrize(
    "handler", [ends_it_in_finally, swallows_and_ends_it, swallows_and_returns, returns_another_one]
)
async def test_a_stream_that_swallows_the_cancellation_is_broken_off_all_the_same_aiohttp(
    handler: Handler, server: Server
) -> None:
    async with running(aiohttp_with(handler), server) as client, client.raw(GET) as connection:
        await connection.until(b"row")
        received = await lose(client, connection)
        check_broken_off(received)
        assert b"all" not in received


async def test_aiohttp_begins_no_response_after_the_loss(server: Server) -> None:
    async def handler(request: web.Request, lock: LockScope) -> web.StreamResponse:
        client.take_away("anna")
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(30)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write_eof(b"that was all\n")
        return response

    async with running(aiohttp_with(handler), server) as client, client.raw(GET) as connection:
        assert await connection.rest() == b""


async def test_a_loss_that_shows_when_the_stream_was_sent_adds_nothing_to_it_aiohttp(server: Server) -> None:
    async def handler(request: web.Request, lock: LockScope) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"row\n")
        await response.write_eof()
        client.take_away("anna")
        return response

    async with running(aiohttp_with(handler), server) as client, client.raw(GET) as connection:
        received = await connection.rest()
        assert received.count(b"HTTP/1.") == 1
        assert b"lock was lost" not in received


async def test_a_loss_that_shows_when_the_stream_was_sent_adds_nothing_to_it_fastapi(server: Server) -> None:
    async def rows() -> AsyncIterator[str]:
        yield "row\n"

    async def endpoint(account: str, lock: AccountLockUntilSent) -> StreamingResponse:
        async def takes_it_away() -> None:
            client.take_away("anna")

        response = StreamingResponse(rows())
        response.background = BackgroundTasks()
        response.background.add_task(takes_it_away)
        return response

    async with running(fastapi_with(endpoint), server) as client, client.raw(GET) as connection:
        received = await connection.rest()
        assert received.count(b"HTTP/1.") == 1
        assert received.endswith(b"\r\n0\r\n\r\n")
        assert b"lock was lost" not in received


async def test_other_errors_after_the_beginning_are_no_second_response_either(server: Server) -> None:
    """Such as that of a lock inside the handler, which is not to be had."""

    async def handler(request: web.Request, lock: LockScope) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"row\n")
        async with request.app[LOCKER].with_context("account:anna", timeout=0.05):
            raise AssertionError("it is held")

    async with running(aiohttp_with(handler), server) as client, client.raw(GET) as connection:
        check_broken_off(await connection.rest())
        assert not client.locked("anna")


@each_app
async def test_without_the_lock_until_sent_a_stream_has_none(name: str, server: Server) -> None:
    """What docs/services.md warns of: the body of a response that the handler returns is sent after the release."""
    seen: list[bool] = []

    async def rows() -> AsyncIterator[bytes]:
        seen.append(client.locked("anna"))
        yield b"row\n"

    async def endpoint(account: str, lock: AccountLock) -> StreamingResponse:
        return StreamingResponse(rows())

    async def handler(request: web.Request, lock: LockScope) -> web.StreamResponse:
        return web.Response(body=rows())

    async with running(fastapi_with(endpoint) if name == "fastapi" else aiohttp_with(handler), server) as client:
        assert (await client.http.get("/anna")).text == "row\n"
        assert seen == [False]


# Background tasks of FastAPI


@pytest.mark.parametrize("until_sent", [False, True])
async def test_background_tasks_run_under_a_lock_until_sent_only(until_sent: bool, server: Server) -> None:
    seen: list[bool] = []

    async def look() -> None:
        seen.append(client.locked("anna"))

    async def endpoint(account: str, lock: AccountLock, background: BackgroundTasks) -> None:
        background.add_task(look)

    async def endpoint_until_sent(account: str, lock: AccountLockUntilSent, background: BackgroundTasks) -> None:
        background.add_task(look)

    async with running(fastapi_with(endpoint_until_sent if until_sent else endpoint), server) as client:
        assert (await client.http.get("/anna")).status_code == 200
        await until(lambda: seen)
        assert seen == [until_sent]
        await until(lambda: not client.locked("anna"))


async def test_a_background_task_is_stopped_by_a_loss_and_the_client_hears_nothing_of_it(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    stopped = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            stopped.set()

    async def endpoint(account: str, lock: AccountLockUntilSent, background: BackgroundTasks) -> None:
        background.add_task(work)

    async with running(fastapi_with(endpoint), server) as client, client.raw(GET) as connection:
        await connection.until(b"null")
        client.take_away("anna")
        await asyncio.wait_for(stopped.wait(), AT_ONCE)
        await until(lambda: "GET /anna: lock 'account:anna' was lost" in caplog.text)
        assert connection.seen.count(b"HTTP/1.") == 1
        assert "Traceback" not in caplog.text


async def test_a_background_task_that_loses_its_lock_costs_the_client_nothing(server: Server) -> None:
    """It is the same connection on which the client waits for its next answer by then."""
    asked = asyncio.Event()

    async def endpoint(account: str, lock: AccountLockUntilSent, background: BackgroundTasks) -> None:
        if account == "bert":
            asked.set()
        background.add_task(asyncio.sleep, 30)
        if account == "bert":
            await asyncio.sleep(30)

    async with running(fastapi_with(endpoint), server) as client, client.raw(GET) as connection:
        await connection.until(b"null")
        connection.writer.write(GET.replace("anna", "bert").replace("\n", "\r\n").encode() + b"\r\n")
        await asyncio.wait_for(asked.wait(), 5)
        client.take_away("anna")
        await until(lambda: client.locked("bert"))
        client.take_away("bert")
        await connection.until(b"503")
        assert connection.seen.startswith(b"HTTP/1.1 200 ")
        assert connection.seen.count(b"HTTP/1.1 503 ") == 1


# WebSockets


@contextlib.asynccontextmanager
async def connected(
    client: Client, path: str = "/accounts/anna/teller", protocols: tuple[str, ...] = ()
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{client.port}") as session:
        async with session.ws_connect(path, protocols=protocols) as socket:
            yield socket


async def check_closed(socket: aiohttp.ClientWebSocketResponse) -> None:
    message = await socket.receive(timeout=AT_ONCE)
    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1013), message
    assert message.extra


@each_app
async def test_a_websocket_has_the_account_to_itself(name: str, server: Server) -> None:
    async with running(name, server) as client:
        async with connected(client) as socket:
            for balance in ("90", "80"):
                await socket.send_str("10")
                assert (await socket.receive_str(timeout=5)) == balance
            check_refused(await client.withdraw("anna"), 423)
        await until(lambda: not client.locked("anna"))
        assert (await client.withdraw("anna")).json() == {"balance": 70}


@each_way
async def test_a_websocket_whose_lock_is_lost_is_closed_with_1013(name: str, server: Server) -> None:
    async with running(name, server) as client, connected(client) as socket:
        await socket.send_str("10")
        assert (await socket.receive_str(timeout=5)) == "90"
        client.take_away("anna")
        await check_closed(socket)


@each_way
@pytest.mark.parametrize("answers", [True, False])
async def test_nothing_follows_the_close_of_a_websocket(name: str, answers: bool, server: Server) -> None:
    async with running(name, server) as client, client.raw(TELLER) as connection:
        await connection.until(b"\r\n\r\n")
        assert connection.seen.startswith(b"HTTP/1.1 101 ")
        await until(lambda: client.locked("anna"))
        client.take_away("anna")
        await connection.until(TRY_AGAIN_LATER, AT_ONCE)
        if answers:
            connection.writer.write(b"\x88\x82\0\0\0\0" + TRY_AGAIN_LATER)
        elif name == "fastapi":
            connection.writer.write_eof()  # uvicorn waits for an answer until its pings are not answered either
        received = await connection.rest(CLOSE_TIMEOUT + AT_ONCE)
        frame = received.partition(b"\r\n\r\n")[2]
        assert frame[:1] == b"\x88"
        assert frame[2:4] == TRY_AGAIN_LATER
        assert len(frame) == 2 + frame[1]
        assert received.count(b"HTTP/1.") == 1


@each_way
@pytest.mark.parametrize("protocols", [(), ("teller.v2", "teller.v1")])
async def test_a_websocket_is_closed_with_1013_when_the_account_is_busy(
    name: str, protocols: tuple[str, ...], server: Server
) -> None:
    async with running(name, server) as client, client.working("anna"):
        async with connected(client, protocols=protocols) as socket:
            assert socket.protocol == next(iter(protocols), None)  # a browser would show no code otherwise
            await check_closed(socket)


@each_app
async def test_a_websocket_is_closed_with_1013_when_the_lock_server_is_down(name: str, own_server: Server) -> None:
    async with running(name, own_server) as client:
        own_server.kill()
        async with connected(client) as socket:
            await check_closed(socket)


async def swallows_once(request: web.Request, lock: LockScope) -> web.StreamResponse:
    websocket = web.WebSocketResponse()
    await websocket.prepare(request)
    with contextlib.suppress(asyncio.CancelledError):
        await websocket.receive()
    await asyncio.sleep(30)
    return websocket


async def closes_it_in_finally(request: web.Request, lock: LockScope) -> web.StreamResponse:
    websocket = web.WebSocketResponse()
    await websocket.prepare(request)
    try:
        await asyncio.sleep(30)
    finally:
        await websocket.close()
    return websocket


async def swallows_and_returns_it(request: web.Request, lock: LockScope) -> web.StreamResponse:
    websocket = web.WebSocketResponse()
    await websocket.prepare(request)
    with contextlib.suppress(asyncio.CancelledError):
        async for _ in websocket:
            pass
    return websocket


@pytest.mark.parametrize("handler", [swallows_once, closes_it_in_finally, swallows_and_returns_it])
async def test_a_websocket_that_swallows_the_cancellation_is_closed_all_the_same_aiohttp(
    handler: Handler, server: Server
) -> None:
    async with running(aiohttp_with(handler), server) as client, connected(client, "/anna") as socket:
        await until(lambda: client.locked("anna"))
        client.take_away("anna")
        await check_closed(socket)


@pytest.mark.parametrize("goes_on", [True, False])
async def test_a_websocket_that_swallows_the_cancellation_is_closed_all_the_same_fastapi(
    goes_on: bool, server: Server
) -> None:
    async def endpoint(websocket: WebSocket, account: str, lock: AccountLock) -> None:
        await websocket.accept()
        with contextlib.suppress(asyncio.CancelledError):
            await websocket.receive_text()
        if goes_on:
            await asyncio.sleep(30)

    async with (
        running(fastapi_with(endpoint, websocket=True), server) as client,
        connected(client, "/anna") as socket,
    ):
        await until(lambda: client.locked("anna"))
        client.take_away("anna")
        await check_closed(socket)


async def test_a_websocket_that_is_closed_by_its_endpoint_is_not_closed_again(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async def endpoint(websocket: WebSocket, account: str, lock: AccountLock) -> None:
        await websocket.accept()
        await websocket.close(1000)
        client.take_away("anna")

    async with (
        running(fastapi_with(endpoint, websocket=True), server) as client,
        connected(client, "/anna") as socket,
    ):
        assert (await socket.receive(timeout=5)).data == 1000
        await until(lambda: "was lost" in caplog.text)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@each_app
@pytest.mark.parametrize("orderly", [True, False])
async def test_the_lock_of_a_websocket_whose_client_goes_away_is_given_back(
    name: str, orderly: bool, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(name, server) as client:
        async with client.raw(TELLER) as connection:
            await connection.until(b"\r\n\r\n")
            await until(lambda: client.locked("anna"))
            if not orderly:
                connection.writer.transport.abort()
        await until(lambda: not client.locked("anna"))
        assert (await client.withdraw("anna")).status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@each_way
@pytest.mark.parametrize("lines", [TELLER, STATEMENT.replace("lines=1000", "lines=10")], ids=["websocket", "stream"])
async def test_a_client_that_goes_away_while_it_waits_for_the_lock_leaves_nothing(
    name: str, lines: str, server: Server
) -> None:
    async with running(name, server, wait=20) as client:
        async with client.working("anna"):
            async with client.raw(lines):
                await asyncio.sleep(0.1)  # for the request to arrive, and to wait: nothing on the wire shows that
        await until(lambda: not client.locked("anna"))
        assert (await client.withdraw("anna")).json() == {"balance": 90}
        assert not client.locked("anna")
