"""The example apps over real HTTP: 200, 423 and 503, and no key left behind, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
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
from tests.helpers import AT_ONCE, key, until

WORK = 8.0  # seconds: of work that is to be cut short

pytestmark = pytest.mark.asyncio


@contextlib.asynccontextmanager
async def serve_asgi(app: ASGIApp) -> AsyncIterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", ws="none", log_config=None))
        serving = asyncio.create_task(server.serve([listening]))
        try:
            await until(lambda: server.started or serving.done())
            yield port
        finally:
            server.should_exit = True
            await serving


@contextlib.asynccontextmanager
async def serve_aiohttp(*, handler_cancellation: bool = False) -> AsyncIterator[int]:
    runner = web.AppRunner(aiohttp_app.make_app(), handler_cancellation=handler_cancellation)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


SERVE: dict[str, Callable[[], AbstractAsyncContextManager[int]]] = {
    "fastapi": lambda: serve_asgi(fastapi_app.app),
    "fastapi in a BaseHTTPMiddleware": lambda: serve_asgi(
        BaseHTTPMiddleware(fastapi_app.app, dispatch=lambda request, call_next: call_next(request))
    ),
    "aiohttp": serve_aiohttp,
    "aiohttp with handler_cancellation": lambda: serve_aiohttp(handler_cancellation=True),
}
each_app = pytest.mark.parametrize("name", ["fastapi", "aiohttp"])


class Client:
    """An HTTP client of one app, whose locks are on ``server``."""

    def __init__(self, http: httpx.AsyncClient, server: Server) -> None:
        self.http = http
        self.server = server

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
        """A request that works for long under the account's lock, at the latest until the block is left."""
        task = asyncio.create_task(self.withdraw(account, seconds=WORK))
        await until(lambda: self.locked(account) or task.done())
        try:
            yield task
        finally:
            if not task.done() and self.server.running:
                self.take_away(account)
            await asyncio.wait([task])


@contextlib.asynccontextmanager
async def running(
    name: str, server: Server, *, wait: float = 0.1, balances: dict[str, int] | None = None
) -> AsyncIterator[Client]:
    module = fastapi_app if name.startswith("fastapi") else aiohttp_app
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LOCK_URL", server.url)
        patch.setattr(module, "LOCK_WAIT", wait)
        patch.setattr(module, "balances", {} if balances is None else balances)
        async with (
            SERVE[name]() as port,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http,
        ):
            yield Client(http, server)


def check_refused(response: httpx.Response, status: int) -> None:
    assert response.status_code == status, response.text
    assert int(response.headers["Retry-After"]) > 0
    assert response.json()["detail"]


def connection(response: httpx.Response) -> object:
    """The client's address: the same for requests on one connection."""
    return response.extensions["network_stream"].get_extra_info("client_addr")


@each_app
async def test_a_request_holds_the_lock_and_gives_it_back(name: str, server: Server) -> None:
    async with running(name, server) as client:
        task = asyncio.create_task(client.withdraw("anna", seconds=0.1))
        await until(lambda: client.locked("anna"))
        response = await task
        assert not client.locked("anna")  # given back before the response was sent
        assert (response.status_code, response.json()) == (200, {"balance": 90})


@each_app
async def test_requests_for_one_account_take_turns(name: str, server: Server) -> None:
    async with running(name, server, wait=20) as client:
        responses = await asyncio.gather(*(client.withdraw("anna", seconds=0.05) for _ in range(3)))
        # Each reads the balance, works, and writes the balance: none has overwritten another's.
        assert sorted(response.json()["balance"] for response in responses) == [70, 80, 90]
        assert not client.locked("anna")


@each_app
async def test_a_busy_account_is_423_and_another_one_is_free(name: str, server: Server) -> None:
    wait = 0.1
    async with running(name, server, wait=wait) as client, client.working("anna") as first:
        since = time.monotonic()
        check_refused(await client.withdraw("anna"), 423)
        assert wait * 0.9 <= time.monotonic() - since < wait + AT_ONCE
        assert (await client.withdraw("bert")).status_code == 200
        assert not first.done()


async def test_the_two_apps_keep_each_other_out(server: Server) -> None:
    async with running("fastapi", server) as fast, running("aiohttp", server) as aio:
        async with fast.working("anna"):
            check_refused(await aio.withdraw("anna"), 423)
        async with aio.working("anna"):
            check_refused(await fast.withdraw("anna"), 423)


@pytest.mark.parametrize("name", ["fastapi", "fastapi in a BaseHTTPMiddleware", "aiohttp"])
async def test_a_loss_during_the_work_is_503_at_once(name: str, server: Server) -> None:
    async with running(name, server) as client, client.working("anna") as task:
        since = time.monotonic()
        client.take_away("anna")
        response = await task
        assert time.monotonic() - since < AT_ONCE
        check_refused(response, 503)
        again = await client.withdraw("anna")
        assert again.json() == {"balance": 90}  # the one that lost its lock has withdrawn nothing
        assert connection(again) == connection(response)


@each_app
async def test_a_loss_that_shows_at_the_release_is_503(name: str, server: Server) -> None:
    class Balances(dict[str, int]):
        def __setitem__(self, account: str, balance: int) -> None:
            super().__setitem__(account, balance)
            client.take_away(account)  # after the last look at the lock

    async with running(name, server, balances=Balances()) as client:
        check_refused(await client.withdraw("anna"), 503)


@each_app
async def test_a_server_that_dies_during_the_work_is_503_at_once(name: str, own_server: Server) -> None:
    async with running(name, own_server) as client, client.working("anna") as task:
        since = time.monotonic()
        own_server.kill()
        check_refused(await task, 503)
        assert time.monotonic() - since < AT_ONCE


@each_app
async def test_a_server_that_is_down_is_503_until_it_is_back(name: str, own_server: Server) -> None:
    async with running(name, own_server, wait=5) as client:
        own_server.kill()
        for _ in range(2):
            since = time.monotonic()
            check_refused(await client.withdraw("anna"), 503)
            assert time.monotonic() - since < AT_ONCE  # and not after the wait
        own_server.start()
        async with asyncio.timeout(10):
            while True:
                response = await client.withdraw("anna")
                if response.status_code != 503:
                    break
                await asyncio.sleep(0.05)
        assert response.status_code == 200


@each_app
async def test_the_handlers_own_exception_comes_out_and_the_lock_is_released(name: str, server: Server) -> None:
    async with running(name, server) as client:
        response = await client.withdraw("anna", amount=101)
        assert response.status_code == 409
        assert "the balance is 100" in response.text
        assert not client.locked("anna")
        assert (await client.withdraw("anna", amount=0)).status_code == 422
        assert not client.locked("anna")
        assert (await client.withdraw("anna", amount=100)).json() == {"balance": 0}


@each_app
@pytest.mark.parametrize("during", ["the work", "the wait"])
async def test_a_client_that_goes_away_leaves_no_key(name: str, during: str, server: Server) -> None:
    """Both frameworks let the handler go on to its end."""
    async with running(name, server, wait=20) as client:
        async with client.working("anna") if during == "the wait" else contextlib.nullcontext():
            with pytest.raises(httpx.ReadTimeout):
                await client.withdraw("anna", seconds=0.2, timeout=0.1)
        response = await client.withdraw("anna")  # its turn comes after the one that nobody waits for
        assert response.json() == {"balance": 80}
        assert not client.locked("anna")


async def test_aiohttp_can_stop_the_work_of_a_client_that_goes_away(server: Server) -> None:
    async with running("aiohttp with handler_cancellation", server) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.withdraw("anna", seconds=WORK, timeout=0.1)
        since = time.monotonic()
        await until(lambda: not client.locked("anna"))
        assert time.monotonic() - since < AT_ONCE
        assert (await client.withdraw("anna")).json() == {"balance": 90}


@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("command", [["-m", "examples.fastapi_app"], ["examples/aiohttp_app.py"]], ids=" ".join)
async def test_they_run_as_their_first_lines_say(command: list[str], server: Server) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "LOCK_URL": server.url, "PORT": str(port)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with (
            asyncio.timeout(30),
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http,
        ):
            while True:
                try:
                    response = await Client(http, server).withdraw("anna")
                    break
                except httpx.ConnectError:
                    assert process.returncode is None, "it ended by itself"
                    await asyncio.sleep(0.05)
        assert response.json() == {"balance": 90}
        process.send_signal(signal.SIGINT)
        output, _ = await asyncio.wait_for(process.communicate(), 10)
        assert process.returncode == 0, output.decode()
        assert b"Traceback" not in output
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
