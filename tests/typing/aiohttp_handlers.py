"""What users of asynclock.integrations.aiohttp write, and the types that checkers see in it: as api.py."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from aiohttp import web

from asynclock import AsyncLockError, Locker, LockScope
from asynclock.integrations.aiohttp import LOCKER, SCOPE, locked, setup


@locked("user:{user_id}", timeout=1)
async def function(request: web.Request) -> web.Response:
    assert_type(request.app[LOCKER], Locker)
    assert_type(request.config_dict[LOCKER], Locker)
    assert_type(request[SCOPE], LockScope)
    return web.Response()


@locked(key=lambda request: request.path, timeout=None)
async def stream(request: web.Request) -> web.StreamResponse:
    return web.StreamResponse()


async def name(request: web.Request) -> str:
    return "x"


class View(web.View):
    @locked(key=name, timeout=timedelta(seconds=1))
    async def get(self) -> web.StreamResponse:
        return web.Response()


class ByClass:
    @locked("user:{user_id}")
    async def handle(self, request: web.Request) -> web.Response:
        return web.Response()


@web.middleware
@locked("all")
async def middleware(request: web.Request, handler: object) -> web.StreamResponse:
    return web.Response()


@locked("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def not_a_coroutine_function(request: web.Request) -> web.Response:
    return web.Response()


@locked("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def no_response(request: web.Request) -> str:
    return ""


def body(error: AsyncLockError, status: int) -> dict[str, str]:
    return {"error": str(error)}


def making(locker: Locker) -> web.Application:
    app = web.Application()
    assert_type(setup(app, "redis://127.0.0.1:6379", timeout=0.5, key_validity=10, retry_after=None, body=body), Locker)
    setup(app, locker)
    setup(app, ["redis://a", "redis://b", "redis://c"])
    setup(app, 6379)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    setup(app, locker, busy_status="409")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    app.router.add_get("/users/{user_id}", function)
    app.router.add_get("/stream", stream)
    app.router.add_view("/view", View)
    app.router.add_get("/class/{user_id}", ByClass().handle)
    return app
