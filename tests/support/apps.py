"""The example apps, and apps built from their parts, served over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx
import pytest
import uvicorn
from aiohttp import web
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp

from asynclock.testing import Server
from examples import aiohttp_app, fastapi_app
from tests.support.helpers import key, until
from tests.support.internals import locks_on

WORK = 8.0  # seconds of work, in requests that are interrupted


@contextlib.asynccontextmanager
async def serve_asgi(app: ASGIApp) -> AsyncIterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None))
        serving = asyncio.create_task(server.serve([listening]))
        try:
            await until(lambda: server.started or serving.done())
            yield port
        finally:
            server.should_exit = True
            await serving


@contextlib.asynccontextmanager
async def serve_aiohttp(app: web.Application, *, handler_cancellation: bool = False) -> AsyncIterator[int]:
    runner = web.AppRunner(app, handler_cancellation=handler_cancellation)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


Serve = Callable[[], AbstractAsyncContextManager[int]]
SERVE: dict[str, Serve] = {
    "fastapi": lambda: serve_asgi(fastapi_app.app),
    "fastapi in a BaseHTTPMiddleware": lambda: serve_asgi(
        BaseHTTPMiddleware(fastapi_app.app, dispatch=lambda request, call_next: call_next(request))
    ),
    "aiohttp": lambda: serve_aiohttp(aiohttp_app.make_app()),
    "aiohttp with handler_cancellation": lambda: serve_aiohttp(aiohttp_app.make_app(), handler_cancellation=True),
}


class Client:
    """An HTTP client of an app whose locks are on ``server``."""

    def __init__(self, http: httpx.AsyncClient, server: Server, port: int) -> None:
        self.http = http
        self.server = server
        self.port = port

    async def withdraw(
        self, account: str, amount: int = 10, seconds: float = 0.0, timeout: float = 30.0
    ) -> httpx.Response:
        query = {"amount": amount, "seconds": seconds}
        return await self.http.post(f"/accounts/{account}/withdraw", params=query, timeout=timeout)

    def locked(self, account: str) -> bool:
        return self.server.execute("EXISTS", key(f"account:{account}")) == 1

    def take_away(self, account: str) -> None:
        assert self.server.execute("DEL", key(f"account:{account}")) == 1

    @contextlib.asynccontextmanager
    async def working(self, account: str) -> AsyncIterator[asyncio.Task[httpx.Response]]:
        """A request that works for ``WORK`` seconds under the account's lock; it ends with the block if not before."""
        task = asyncio.create_task(self.withdraw(account, seconds=WORK))
        await until(lambda: self.locked(account) or task.done())
        try:
            yield task
        finally:
            if not task.done() and self.server.running:
                self.take_away(account)
            await asyncio.wait([task])

    def raw(self, request: str) -> AbstractAsyncContextManager[Raw]:
        """A separate connection, on which a request of these lines has been sent."""
        return raw(self.port, request)


@contextlib.asynccontextmanager
async def running(serve: str | Serve, server: Server, *, wait: float = 0.1) -> AsyncIterator[Client]:
    """Serve an example app, given by its name, or an app built from their parts."""
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as directory,
        locks_on(fastapi_app.locks, server.url, wait),
    ):
        patch.setattr(aiohttp_app, "LOCK_URL", server.url)
        patch.setattr(aiohttp_app, "LOCK_WAIT", wait)
        for module in (fastapi_app, aiohttp_app):
            patch.setattr(module, "DATABASE_URL", f"sqlite+aiosqlite:///{Path(directory, 'accounts.db')}")
        async with (
            (SERVE[serve] if isinstance(serve, str) else serve)() as port,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http,
        ):
            yield Client(http, server, port)


class Raw:
    """A connection, and every byte that was received on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.seen = b""
        self.reset = False  # did it end with a reset?

    async def until(self, wanted: bytes, seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            while wanted not in self.seen:
                more = await self.reader.read(65536)
                assert more, f"the connection ended after {self.seen!r}"
                self.seen += more

    async def rest(self, seconds: float = 10.0) -> bytes:
        """Everything that was received until the server closed the connection."""
        async with asyncio.timeout(seconds):
            try:
                while more := await self.reader.read(65536):
                    self.seen += more
            except ConnectionResetError:
                self.reset = True
        return self.seen


@contextlib.asynccontextmanager
async def raw(port: int, request: str) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write("\r\n".join([*request.splitlines(), "", ""]).encode())
        yield Raw(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def check_refused(response: httpx.Response, status: int) -> None:
    assert response.status_code == status, response.text
    assert int(response.headers["Retry-After"]) > 0
    assert response.json()["detail"]
