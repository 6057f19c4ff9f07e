"""What commits after the release is warned of, when a route is used for the first time."""

import functools
import inspect
import logging
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient

from asynclock import LockScope
from asynclock.integrations.fastapi import LockOrderWarning, Locks
from asynclock.testing import Server
from tests.integrations.web import client_of

pytestmark = [pytest.mark.every_python, pytest.mark.asyncio]


async def session() -> AsyncIterator[str]:
    yield "session"


def in_a_thread() -> Iterator[str]:
    yield "session"


class Sessions:
    async def __call__(self) -> AsyncIterator[str]:
        yield "session"


async def plain() -> str:
    return "no session"


async def nested(inner: Annotated[str, Depends(session)]) -> str:
    return inner


@pytest.fixture
def locks(server: Server) -> Locks:
    return Locks(server.url)


async def warned(app: FastAPI, path: str = "/") -> list[str]:
    """Of what, when the route is used twice."""
    found: list[str] = []
    async with client_of(app) as client:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                response = await client.get(path)
                assert response.status_code == 200, response.text
        found += [str(each.message) for each in caught if each.category is LockOrderWarning]
    return found


def app_of(locks: Locks, *dependencies: Any, router: Any = ()) -> FastAPI:
    """With one route that depends on these, in this order."""
    app = FastAPI()
    locks.install(app)
    of = APIRouter(dependencies=router)

    @of.get("/", dependencies=dependencies)
    async def pay() -> None: ...

    app.include_router(of)
    return app


FUNCTION: dict[str, Any] = {"scope": "function"}
REQUEST: dict[str, Any] = {"scope": "request"}


@pytest.mark.parametrize("call", [session, in_a_thread, Sessions(), functools.partial(session)])
async def test_a_request_scope_beside_a_function_scoped_lock(locks: Locks, call: Any) -> None:
    for order in ([0, 1], [1, 0]):
        both = [locks.lock("anna"), Depends(call)]
        (text,) = await warned(app_of(locks, *(both[place] for place in order)))
        assert "lock 'anna'" in text


async def test_what_is_declared_before_the_lock(locks: Locks) -> None:
    (text,) = await warned(app_of(locks, Depends(session, **FUNCTION), locks.lock("anna")))
    assert "session() of tests.integrations.test_fastapi_order" in text
    (text,) = await warned(app_of(locks, Depends(session), locks.lock("anna", **REQUEST)))
    assert "session()" in text
    (text,) = await warned(app_of(locks, locks.lock("anna"), router=[Depends(session, **FUNCTION)]))
    assert "session()" in text


async def test_what_another_dependency_needs(locks: Locks) -> None:
    (text,) = await warned(app_of(locks, locks.lock("anna"), Depends(nested)))
    assert "session()" in text and "nested" not in text


async def test_what_ends_inside(locks: Locks) -> None:
    assert await warned(app_of(locks, locks.lock("anna"), Depends(session, **FUNCTION))) == []
    assert await warned(app_of(locks, locks.lock("anna", **REQUEST), Depends(session))) == []
    assert await warned(app_of(locks, Depends(session, **FUNCTION), locks.lock("anna", **REQUEST))) == []
    assert await warned(app_of(locks, Depends(session, **FUNCTION), router=[locks.lock("anna")])) == []
    assert await warned(app_of(locks, Depends(plain), locks.lock("anna"), locks.lock("bert", **REQUEST))) == []


async def test_a_session_that_depends_on_the_lock_may_be_named_anywhere(locks: Locks) -> None:
    async def under_the_lock(lock: Annotated[LockScope, locks.lock("anna")]) -> AsyncIterator[None]:
        assert lock.held
        yield

    assert await warned(app_of(locks, Depends(under_the_lock, **FUNCTION), locks.lock("anna"))) == []


async def test_what_only_the_name_needs(locks: Locks) -> None:
    """It cannot come later. But whoever uses the same session under the lock reads what was true before."""

    async def mine(found: Annotated[str, Depends(session)]) -> str:
        return found

    assert await warned(app_of(locks, locks.lock(mine))) == []
    (text,) = await warned(app_of(locks, locks.lock(mine), Depends(nested)))
    assert "session()" in text and "lock 'named by " in text and "mine()" in text


async def test_what_is_harmless(server: Server) -> None:
    locks = Locks(server.url, harmless=[session])
    assert await warned(app_of(locks, Depends(session), locks.lock("anna"))) == []


async def test_each_route_is_told_once_and_where_it_is(locks: Locks, caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    locks.install(app)
    lock = locks.lock("anna")

    @app.get("/one")
    async def one(held: Annotated[LockScope, lock], found: Annotated[str, Depends(session)]) -> None: ...

    @app.get("/two")
    async def two(held: Annotated[LockScope, lock], found: Annotated[str, Depends(session)]) -> None: ...

    @app.websocket("/three")
    async def three(
        websocket: WebSocket, held: Annotated[LockScope, lock], found: Annotated[str, Depends(session)]
    ) -> None:
        await websocket.accept()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with client_of(app) as client:
            for path in ("/one", "/two", "/one"):
                assert (await client.get(path)).status_code == 200
    told = [each for each in caught if each.category is LockOrderWarning]
    assert [str(each.message).partition(":")[0] for each in told] == ["GET /one", "GET /two"]
    assert {each.filename for each in told} == {__file__}
    assert told[0].lineno == inspect.unwrap(one).__code__.co_firstlineno
    assert caplog.text.count("asynclock: GET /one: the dependency session()") == 1
    assert [record.levelno for record in caplog.records].count(logging.WARNING) == 2


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_websocket_is_told_too(locks: Locks) -> None:
    app = FastAPI()
    locks.install(app)

    @app.websocket("/")
    async def endpoint(websocket: WebSocket, lock: Annotated[LockScope, locks.lock("anna")]) -> None:
        await websocket.accept()

    @app.websocket("/wrong", dependencies=[Depends(session)])
    async def wrong(websocket: WebSocket, lock: Annotated[LockScope, locks.lock("anna")]) -> None:
        await websocket.accept()

    with TestClient(app) as client:
        with client.websocket_connect("/"):
            """Not told of anything."""
        with pytest.warns(LockOrderWarning, match="WEBSOCKET /wrong: the dependency session"):
            with client.websocket_connect("/wrong"):
                """The first use."""


async def test_warnings_can_be_errors(locks: Locks) -> None:
    """As this suite has it, and an application's tests may."""
    async with client_of(app_of(locks, locks.lock("anna"), Depends(session))) as client:
        with pytest.raises(LockOrderWarning, match="session"):
            await client.get("/")
