"""Applications of a test's own, with their locks on its server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
from starlette.applications import Starlette

from asynclock.testing import Server
from tests.support.helpers import key


@contextlib.asynccontextmanager
async def client_of(app: Starlette, *, raises: bool = True) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the application, in this process, with its lifespan around.

    :param raises: what the application raises and does not answer. Else it is 500, as from a server
    """
    transport = httpx.ASGITransport(app, raise_app_exceptions=raises)
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30) as client:
            yield client


def take(server: Server, name: str) -> None:
    """Somebody else holds the lock from now on."""
    assert server.execute("SET", key(name), "somebody else's", "NX", "PX", 60_000) == "OK"


def steal(server: Server, name: str) -> None:
    """Whoever holds the lock loses it."""
    assert server.execute("DEL", key(name)) == 1


def locked(server: Server, name: str) -> bool:
    return server.execute("EXISTS", key(name)) == 1


def answered(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert int(response.headers["Retry-After"]) == 1
    body: dict[str, Any] = response.json()
    assert body["detail"]
    return body
