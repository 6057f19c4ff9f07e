"""Locks in Starlette, without FastAPI."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from asynclock import AcquireTimeoutError, ConfigurationError
from asynclock.integrations.fastapi import Locks
from asynclock.testing import Server
from tests.integrations.web import answered, client_of, locked, steal, take
from tests.support.helpers import ROOT

pytestmark = [pytest.mark.every_python, pytest.mark.asyncio]


async def test_a_block_in_the_endpoint_holds_a_lock(server: Server) -> None:
    locks = Locks(server.url, timeout=0.1)

    async def pay(request: Request) -> JSONResponse:
        name = f"user:{request.path_params['user']}"
        async with locks.hold(request, name) as scope:
            if "lose" in request.query_params:
                steal(server, name)
                await asyncio.sleep(30)
            return JSONResponse([scope.name, locked(server, name)])

    async def tries(request: Request) -> JSONResponse:
        try:
            async with locks.hold(request, "user:7", timeout=0):
                return JSONResponse("got it")
        except AcquireTimeoutError:
            return JSONResponse("did without")

    async def gives_up(request: Request) -> JSONResponse:
        async with locks.hold(request, "user:8") as scope:
            scope.cancel()
            await asyncio.sleep(30)
        return JSONResponse("gave up")

    routes = [Route("/{user}/pay", pay), Route("/tries", tries), Route("/gives-up", gives_up)]
    app = Starlette(routes=[*routes, Mount("/in", app=Starlette(routes=routes))])
    locks.install(app)
    async with client_of(app) as client:
        for prefix in ("", "/in"):
            assert (await client.get(f"{prefix}/7/pay")).json() == ["user:7", True]
            answered(await client.get(f"{prefix}/7/pay?lose=1"), 503)
            assert (await client.get(f"{prefix}/gives-up")).json() == "gave up"
            take(server, "user:7")
            answered(await client.get(f"{prefix}/7/pay"), 423)
            assert (await client.get(f"{prefix}/tries")).json() == "did without"
            steal(server, "user:7")


async def test_the_app_starts_without_the_lock_server(own_server: Server) -> None:
    locks = Locks(own_server.url)

    async def endpoint(request: Request) -> JSONResponse:
        async with locks.hold(request, "user:7"):
            return JSONResponse(None)

    app = Starlette(routes=[Route("/", endpoint)])
    locks.install(app)
    own_server.kill()
    async with client_of(app) as client:
        answered(await client.get("/"), 503)
        own_server.start()
        assert (await client.get("/")).status_code == 200


async def test_without_install_the_error_names_the_remedy(server: Server) -> None:
    locks = Locks(server.url)

    async def endpoint(request: Request) -> JSONResponse:
        async with locks.hold(request, "user:7"):
            return JSONResponse(None)

    async with client_of(Starlette(routes=[Route("/", endpoint)])) as client:
        with pytest.raises(ConfigurationError, match=r"locks\.install\(app\)"):
            await client.get("/")


ALONE = """
import sys
sys.modules["fastapi"] = None  # as if it was not installed
from starlette.applications import Starlette
from starlette.requests import Request
from asynclock.integrations.fastapi import Locks
locks = Locks("redis://127.0.0.1:1")
locks.install(Starlette())
locks.hold
locks.locker
try:
    locks.lock("user:7")
except ValueError as error:
    print(error)
"""


async def test_fastapi_need_not_be_there() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-W", "error", "-c", ALONE], capture_output=True, text=True, env=environment
    )
    assert done.stdout == "locks.lock() needs FastAPI; with Starlette alone, use locks.hold()\n", done.stderr
    assert done.stderr == ""
