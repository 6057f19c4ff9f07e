"""Responses that have begun, and WebSockets, of applications with ``Locks``: what a client gets when a lock is lost."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
import websockets
from fastapi import Depends, FastAPI, HTTPException, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.applications import Starlette
from starlette.endpoints import WebSocketEndpoint
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import WebSocketRoute

from asynclock import LockLostError, LockScope
from asynclock.integrations.fastapi import LockOrderWarning, Locks
from asynclock.testing import Server
from tests.integrations.web import answered, client_of, locked, steal, take
from tests.support.apps import raw, serve_asgi
from tests.support.helpers import AT_ONCE, until

pytestmark = [pytest.mark.every_python, pytest.mark.asyncio]

GET = "GET / HTTP/1.1\nHost: localhost\n"


@pytest.fixture
def locks(server: Server) -> Locks:
    return Locks(server.url, timeout=0.2)


async def pass_on(request: Any, call_next: Any) -> Any:
    return await call_next(request)


# Streams


def streaming(locks: Locks, *, swallows: bool = False) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        for each in made:  # nobody else closes a body that is broken off
            await each.aclose()

    app = FastAPI(lifespan=lifespan)
    made: list[AsyncGenerator[bytes, None]] = []

    async def rows() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"row\n"
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            if not swallows:
                raise
        yield b"that was all\n"

    @app.get("/")
    async def endpoint(lock: Annotated[LockScope, locks.lock("anna", scope="request")]) -> StreamingResponse:
        made.append(rows())
        return StreamingResponse(made[-1])

    return app


@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.parametrize("behind", [None, "added before", "added after"])
async def test_a_stream_that_has_begun_is_broken_off(
    locks: Locks, server: Server, swallows: bool, behind: str | None
) -> None:
    """Also behind a BaseHTTPMiddleware, which ends it as if it were whole before it passes the exception on."""
    app = streaming(locks, swallows=swallows)
    if behind == "added before":
        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    locks.install(app)
    if behind == "added after":
        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    async with serve_asgi(app) as port:
        async with raw(port, GET) as connection:
            await connection.until(b"row\n")
            assert locked(server, "anna")
            steal(server, "anna")
            received = await connection.rest(AT_ONCE)
            assert received.count(b"HTTP/1.") == 1
            assert not received.endswith(b"0\r\n\r\n")
            assert b"all" not in received
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            async with client.stream("GET", "/") as response:
                with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
                    async for _ in response.aiter_bytes():
                        if locked(server, "anna"):
                            steal(server, "anna")


async def test_a_stream_keeps_its_lock_until_it_has_been_sent(locks: Locks, server: Server) -> None:
    app = FastAPI()
    locks.install(app)
    seen: list[bool] = []

    async def rows() -> AsyncIterator[bytes]:
        seen.append(locked(server, "anna"))
        yield b"row\n"

    @app.get("/request")
    async def until_sent(lock: Annotated[LockScope, locks.lock("anna", scope="request")]) -> StreamingResponse:
        return StreamingResponse(rows())

    @app.get("/function")
    async def until_returned(lock: Annotated[LockScope, locks.lock("anna")]) -> StreamingResponse:
        return StreamingResponse(rows())

    async with client_of(app) as client:
        assert (await client.get("/request")).text == "row\n"
        assert (await client.get("/function")).text == "row\n"
    assert seen == [True, False]


async def test_a_stream_that_has_not_begun_is_503(
    locks: Locks, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """An endpoint that swallows its cancellation returns a response, whose lock is lost."""
    app = FastAPI()
    locks.install(app)

    @app.get("/")
    async def endpoint(lock: Annotated[LockScope, locks.lock("anna", scope="request")]) -> str:
        steal(server, "anna")
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(30)
        return "all is well"

    async with serve_asgi(app) as port:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            for _ in range(2):  # on one connection
                answered(await client.get("/"), 503)
    assert "Traceback" not in caplog.text


async def test_a_stream_that_is_busy_is_423(locks: Locks, server: Server) -> None:
    app = streaming(locks)
    locks.install(app)
    take(server, "anna")
    async with client_of(app) as client:
        answered(await client.get("/"), 423)


@pytest.mark.parametrize("scope", ["request", "function"])
async def test_server_sent_events(locks: Locks, server: Server, scope: Any) -> None:
    """FastAPI runs the endpoint in a task beside that of the request."""
    sse = pytest.importorskip("fastapi.sse", reason="this version of FastAPI has none")
    app = FastAPI()
    locks.install(app)
    ended: list[BaseException] = []

    @app.get("/", response_class=sse.EventSourceResponse)
    async def endpoint(lock: Annotated[LockScope, locks.lock("anna", scope=scope)]) -> AsyncIterator[bool]:
        try:
            while True:
                yield locked(server, "anna")
                await asyncio.sleep(0.01)
        except BaseException as error:
            ended.append(error)
            raise

    async with serve_asgi(app) as port:
        async with raw(port, GET) as connection:
            await connection.until(b"data: true" if scope == "request" else b"data: false")
            if scope == "request":
                steal(server, "anna")
                received = await connection.rest(AT_ONCE)
                assert received.count(b"HTTP/1.") == 1
                assert not received.endswith(b"0\r\n\r\n")
                assert [type(error) for error in ended] == [asyncio.CancelledError]


# WebSockets


class Entered(WebSocketEndpoint):
    """Starlette's classes, whose errors no route handles."""

    encoding = "text"
    locks: Locks
    accepts_first = False

    async def dispatch(self) -> None:
        websocket = WebSocket(self.scope, self.receive, self.send)
        if self.accepts_first:
            await websocket.accept()
        async with self.locks.hold(websocket, "anna"):
            if not self.accepts_first:
                await websocket.accept()
            await until_it_goes(websocket)


async def until_it_goes(websocket: WebSocket) -> None:
    async for _ in websocket.iter_text():
        """Until the client closes it."""


def websocket_app(locks: Locks, how: str) -> Starlette:
    if how.startswith("starlette"):
        members = {"locks": locks, "accepts_first": how.endswith("accepts first")}
        app = Starlette(routes=[WebSocketRoute("/", type("Endpoint", (Entered,), members))])
        locks.install(app)
        return app
    app = FastAPI()
    locks.install(app)

    if how == "held in the body":

        @app.websocket("/")
        async def in_body(websocket: WebSocket) -> None:
            await websocket.accept()
            async with locks.hold(websocket, "anna"):
                await until_it_goes(websocket)

        return app

    @app.websocket("/")
    async def endpoint(websocket: WebSocket, lock: Annotated[LockScope, locks.lock("anna")]) -> None:
        await websocket.accept()
        try:
            await until_it_goes(websocket)
        except asyncio.CancelledError:
            if how == "closes it itself":
                await websocket.close(1000, "all is well")
            elif how == "sends on":
                await websocket.send_text("all is well")
            if how != "swallows":
                raise

    return app


HOW = [
    "depends",
    "closes it itself",
    "sends on",
    "swallows",
    "held in the body",
    "starlette",
    "starlette, accepts first",
]


@pytest.mark.parametrize("how", HOW)
async def test_a_websocket_is_closed_with_1013(
    locks: Locks, server: Server, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve_asgi(websocket_app(locks, how)) as port:
        async with websockets.connect(f"ws://127.0.0.1:{port}/", proxy=None) as socket:
            await until(lambda: locked(server, "anna"))
            async with websockets.connect(f"ws://127.0.0.1:{port}/", proxy=None) as busy:
                await check_closed(busy)  # after accept: a browser could see the code
            steal(server, "anna")
            await check_closed(socket)
            assert "lost" in str(socket.close_reason)
        async with websockets.connect(f"ws://127.0.0.1:{port}/", proxy=None):
            await until(lambda: locked(server, "anna"))
        await until(lambda: not locked(server, "anna"))
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def check_closed(socket: Any) -> None:
    with pytest.raises(websockets.ConnectionClosed):
        await asyncio.wait_for(socket.recv(), 5)
    assert socket.close_code == 1013


async def test_a_websocket_is_closed_with_1013_while_the_lock_server_is_away(own_server: Server) -> None:
    own_server.kill()
    async with serve_asgi(websocket_app(Locks(own_server.url), "depends")) as port:
        async with websockets.connect(f"ws://127.0.0.1:{port}/", proxy=None, subprotocols=["b", "a"]) as socket:  # type: ignore[list-item]  # they are str
            assert socket.subprotocol == "b"
            await check_closed(socket)


async def test_the_close_code_is_configurable(server: Server) -> None:
    locks = Locks(server.url, timeout=0, close_code=4423)
    take(server, "anna")
    async with serve_asgi(websocket_app(locks, "depends")) as port:
        async with websockets.connect(f"ws://127.0.0.1:{port}/", proxy=None) as socket:
            with pytest.raises(websockets.ConnectionClosed):
                await socket.recv()
            assert socket.close_code == 4423


@pytest.mark.parametrize("streams", [True, False])
async def test_a_response_that_a_middleware_holds_back_is_not_sent_after_the_loss(
    locks: Locks, server: Server, streams: bool
) -> None:
    """It has begun inside, and not outside yet."""
    app = FastAPI()
    locks.install(app)
    made: list[AsyncGenerator[bytes, None]] = []

    async def rows() -> AsyncGenerator[bytes, None]:
        yield b"row\n"
        yield b"that was all\n"

    @app.get("/")
    async def endpoint(lock: Annotated[LockScope, locks.lock("anna", scope="request")]) -> StreamingResponse:
        made.append(rows())
        return StreamingResponse(made[-1])

    @app.middleware("http")
    async def slow(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        steal(server, "anna")
        await asyncio.sleep(0.2)  # for the endpoint's task to end with the loss
        return response if streams else JSONResponse("instead")

    async with client_of(app) as client:
        answered(await client.get("/"), 503)
    await made[0].aclose()


async def test_a_dependency_outside_may_make_something_else_of_a_loss(locks: Locks, server: Server) -> None:
    app = FastAPI()
    locks.install(app)

    async def conflict() -> AsyncIterator[None]:
        try:
            yield
        except LockLostError:
            raise HTTPException(409, "somebody else was faster") from None

    @app.get("/")
    async def endpoint(
        about: Annotated[None, Depends(conflict)], lock: Annotated[LockScope, locks.lock("anna", scope="request")]
    ) -> None:
        steal(server, "anna")
        await asyncio.sleep(30)

    async with client_of(app) as client:
        with pytest.warns(LockOrderWarning, match="conflict"):
            assert (await client.get("/")).status_code == 409
