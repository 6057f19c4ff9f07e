"""Locks as FastAPI's dependencies: names, answers, where they work, and what is an error.

Without ``from __future__ import annotations``: FastAPI could not see the locks of a function in them.
"""

import asyncio
import contextlib
import logging
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Cookie, Depends, FastAPI, Header, HTTPException, Query, Request
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.responses import PlainTextResponse

from asynclock import (
    AcquireTimeoutError,
    AlreadyHeldError,
    AsyncLockError,
    ConfigurationError,
    Locker,
    LockLostError,
    LockScope,
)
from asynclock.integrations.fastapi import Locks
from asynclock.testing import Proxy, Server
from tests.integrations.web import answered, client_of, locked, steal, take
from tests.support.helpers import AT_ONCE, until

pytestmark = [pytest.mark.every_python, pytest.mark.asyncio]


def app_of(locks: Locks, **options: Any) -> FastAPI:
    app = FastAPI(**options)
    locks.install(app)
    return app


@pytest.fixture
def locks(server: Server) -> Locks:
    return Locks(server.url, timeout=0.2)


# Names


class Filters(BaseModel):
    tenant: str


async def test_a_name_has_values_of_the_request_as_the_endpoint_declares_them(locks: Locks) -> None:
    app = app_of(locks)

    @app.get("/path/{user}")
    async def path(user: int, lock: Annotated[LockScope, locks.lock("{user}")]) -> str:
        return lock.name

    @app.get("/uuid/{user}")
    async def uuid(user: UUID, lock: Annotated[LockScope, locks.lock("{user}")]) -> str:
        return lock.name

    @app.get("/query")
    async def query(
        lock: Annotated[LockScope, locks.lock("{user}:{page:03}")],
        user: Annotated[str, Query(alias="u")],
        page: int = 7,
    ) -> str:
        return lock.name

    @app.get("/header")
    async def header(x_user: Annotated[int, Header()], lock: Annotated[LockScope, locks.lock("{x_user}")]) -> str:
        return lock.name

    @app.get("/cookie")
    async def cookie(user: Annotated[int, Cookie()], lock: Annotated[LockScope, locks.lock("{user}")]) -> str:
        return lock.name

    @app.get("/model")
    async def model(
        filters: Annotated[Filters, Query()], lock: Annotated[LockScope, locks.lock("{filters.tenant}")]
    ) -> str:
        return lock.name

    async def who(user: int) -> int:
        return user

    @app.get("/dependency")
    async def dependency(
        lock: Annotated[LockScope, locks.lock("{user}")], user: Annotated[int, Depends(who)], filters: str = ""
    ) -> str:
        return lock.name

    async with client_of(app) as client:

        async def name(url: str, **options: Any) -> Any:
            response = await client.get(url, **options)
            assert response.status_code == 200, response.text
            return response.json()

        assert await name("/path/007") == await name("/path/7") == "7"  # one user, one lock
        small = "6a1f4c9e-0c52-4a4c-9b3e-111111111111"
        assert await name(f"/uuid/{small.upper()}") == await name(f"/uuid/{small}") == small
        assert await name("/query?u=anna") == "anna:007"
        assert await name("/header", headers={"X-User": "07"}) == "7"
        assert await name("/cookie", headers={"Cookie": "user=07"}) == "7"
        assert await name("/model?tenant=blue") == "blue"
        assert await name("/dependency?user=07") == "7"


async def test_a_value_that_nobody_declares_is_looked_for(locks: Locks, caplog: pytest.LogCaptureFixture) -> None:
    app = app_of(locks)

    @app.get("/{user}", dependencies=[locks.lock("{user}:{x_tenant}:{day}:{session}")])
    async def endpoint() -> None: ...

    seen: list[str] = []

    @app.get("/int/{user:int}")
    async def converted(lock: Annotated[LockScope, locks.lock("{user}")]) -> str:
        return lock.name

    @app.middleware("http")
    async def look(request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        seen.append(request.url.path)
        return response

    async with client_of(app) as client:
        headers = {"X-Tenant": "blue", "Cookie": "session=1"}
        assert (await client.get("/anna?day=1", headers=headers)).status_code == 200
        assert (await client.get("/int/007")).json() == "7"
        missing = await client.get("/anna?day=1")
        assert missing.status_code == 422
        assert [each["loc"] for each in missing.json()["detail"]] == [["query", "x_tenant"], ["query", "session"]]
        assert "no path, query, header or cookie parameter is declared so" in missing.text
    assert len(seen) == 3
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "is called by: x_tenant, day, session; it is taken from the query" in record.getMessage()


async def test_a_wrong_value_is_422_as_if_there_was_no_lock(locks: Locks, server: Server) -> None:
    app = app_of(locks)

    @app.get("/{user}")
    async def endpoint(user: int, lock: Annotated[LockScope, locks.lock("{user}")]) -> None: ...

    @app.get("/long/text")
    async def text(user: Annotated[str, Header()], lock: Annotated[LockScope, locks.lock("{user}")]) -> None: ...

    async with client_of(app) as client:
        response = await client.get("/anna")
        assert response.status_code == 422
        assert response.json()["detail"][0]["loc"] == ["path", "user"]
        too_long = await client.get("/long/text", headers={"User": "a" * 70_000})
        assert too_long.status_code == 422
        assert "at most" in too_long.text
    assert server.execute("KEYS", "asynclock:*") == []


async def test_the_name_may_be_a_dependency(locks: Locks, server: Server) -> None:
    app = app_of(locks)

    async def mine(user: Annotated[str, Header()]) -> str:
        return f"user:{user}"

    def in_a_thread(user: Annotated[str, Header()]) -> str:
        return f"thread:{user}"

    router = APIRouter(dependencies=[locks.lock(mine, timeout=0)])

    @router.get("/held")
    async def held(lock: Annotated[LockScope, locks.lock(mine, timeout=0)]) -> list[bool]:
        """Equal: the router's, and no second one."""
        return [lock.name == "user:anna", locked(server, lock.name)]

    @router.get("/both")
    async def both(lock: Annotated[LockScope, locks.lock(in_a_thread)]) -> list[bool]:
        return [locked(server, "user:anna"), locked(server, "thread:anna")]

    app.include_router(router)
    async with client_of(app) as client:
        for path in ("/held", "/both"):
            response = await client.get(path, headers={"User": "anna"})
            assert response.json() == [True, True]
        assert (await client.get("/held")).status_code == 422
        take(server, "user:anna")
        since = time.monotonic()
        answered(await client.get("/held", headers={"User": "anna"}), 423)
        assert time.monotonic() - since < 0.2 + AT_ONCE


@pytest.mark.parametrize("name", ["user:{}", "user:{user", 7])
async def test_a_name_that_is_none_is_found_when_the_program_starts(locks: Locks, name: Any) -> None:
    with pytest.raises(ConfigurationError):
        locks.lock(name)


# Answers


async def test_busy_is_423_after_the_timeout_and_others_are_free(locks: Locks, server: Server) -> None:
    app = app_of(locks)

    @app.get("/{user}")
    async def endpoint(user: str, lock: Annotated[LockScope, locks.lock("{user}")]) -> None:
        assert lock.held

    @app.get("/patient/{user}")
    async def patient(user: str, lock: Annotated[LockScope, locks.lock("{user}", timeout=None)]) -> None: ...

    async with client_of(app) as client:
        take(server, "anna")
        since = time.monotonic()
        body = answered(await client.get("/anna"), 423)
        assert 0.2 * 0.9 <= time.monotonic() - since < 0.2 + AT_ONCE
        assert "anna" not in body["detail"] and str(server.port) not in body["detail"]
        assert (await client.get("/bert")).status_code == 200
        waits = asyncio.create_task(client.get("/patient/anna"))
        await asyncio.sleep(0.4)  # longer than the others wait
        assert not waits.done()
        steal(server, "anna")
        assert (await waits).status_code == 200
    assert not locked(server, "anna")


async def test_a_loss_cancels_the_handler_and_is_503(
    locks: Locks, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_of(locks)
    seen: list[str] = []

    async def session(lock: Annotated[LockScope, locks.lock("{user}")]) -> AsyncIterator[None]:
        try:
            yield
        except BaseException as error:
            seen.append(f"session: {type(error).__name__}")
            raise

    @app.get("/{user}", dependencies=[Depends(session, scope="function")])
    async def endpoint(user: str) -> None:
        steal(server, user)
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            seen.append("endpoint: CancelledError")
            raise

    async with client_of(app) as client:
        since = time.monotonic()
        answered(await client.get("/anna"), 503)
        assert time.monotonic() - since < AT_ONCE
    assert seen == ["endpoint: CancelledError", "session: CancelledError"]
    assert "GET /anna: lock 'anna' was lost: another client deleted its key" in caplog.text


async def test_a_loss_that_check_finds_is_503_also_in_tasks(locks: Locks, server: Server) -> None:
    app = app_of(locks)

    @app.get("/check")
    async def check(lock: Annotated[LockScope, locks.lock("anna")]) -> None:
        steal(server, "anna")
        await lock.wait_lost()
        lock.check()

    @app.get("/tasks")
    async def tasks(lock: Annotated[LockScope, locks.lock("anna")]) -> None:
        async def work() -> None:
            await lock.wait_lost()
            lock.check()

        async with asyncio.TaskGroup() as group:
            group.create_task(work())
            steal(server, "anna")
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.5)

    @app.get("/own")
    async def own(lock: Annotated[LockScope, locks.lock("anna")]) -> None:
        steal(server, "anna")
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            raise HTTPException(409, "of the endpoint's own") from None

    async with client_of(app) as client:
        answered(await client.get("/check"), 503)
        answered(await client.get("/tasks"), 503)
        assert (await client.get("/own")).status_code == 409


async def test_the_app_starts_without_the_lock_server_and_finds_it_later(own_server: Server) -> None:
    locks = Locks(own_server.url, timeout=5)
    app = app_of(locks)

    @app.get("/free")
    async def free() -> str:
        return "free"

    @app.get("/locked")
    async def endpoint(lock: Annotated[LockScope, locks.lock("anna")]) -> None: ...

    own_server.kill()
    async with client_of(app) as client:
        assert (await client.get("/free")).status_code == 200
        for _ in range(2):
            since = time.monotonic()
            answered(await client.get("/locked"), 503)
            assert time.monotonic() - since < AT_ONCE  # and not after the wait
        own_server.start()
        assert (await client.get("/locked")).status_code == 200
        own_server.kill()
        answered(await client.get("/locked"), 503)


async def test_a_server_that_dies_during_the_wait_is_503(own_server: Server) -> None:
    locks = Locks(own_server.url, timeout=1)
    app = app_of(locks)

    @app.get("/")
    async def endpoint(lock: Annotated[LockScope, locks.lock("anna")]) -> None: ...

    async with client_of(app) as client:
        take(own_server, "anna")
        waiting = asyncio.create_task(client.get("/"))
        await asyncio.sleep(0.2)  # it waits: nothing on the wire shows that
        own_server.kill()
        answered(await waiting, 503)


@pytest.mark.parametrize("connected", [True, False])
async def test_a_server_that_does_not_answer_in_time_is_503(own_server: Server, connected: bool) -> None:
    locks = Locks(own_server.url, timeout=0.3)
    app = app_of(locks)

    @app.get("/{user}")
    async def endpoint(user: str, lock: Annotated[LockScope, locks.lock("{user}")]) -> None: ...

    async with client_of(app) as client:
        if connected:
            assert (await client.get("/anna")).status_code == 200
        own_server.pause()
        try:
            since = time.monotonic()
            answered(await client.get("/bert"), 503)
            assert time.monotonic() - since < 0.3 + AT_ONCE
        finally:
            own_server.resume()


@pytest.mark.parametrize("timeout", [0, 0.03, 0.1])
async def test_a_server_that_is_far_away_is_not_unavailable(server: Server, timeout: float) -> None:
    """However short a request would wait for somebody else's lock."""
    async with Proxy(server.port) as proxy:
        proxy.delay = 0.02  # there, and as much back
        locks = Locks(proxy.url, timeout=timeout)
        app = app_of(locks)

        @app.get("/{user}")
        async def endpoint(user: str, lock: Annotated[LockScope, locks.lock("{user}")]) -> None: ...

        async with client_of(app) as client:
            assert (await client.get("/anna")).status_code == 200  # it connects for this one
            take(server, "bert")
            answered(await client.get("/bert"), 423)


async def test_statuses_body_and_retry_after_are_configurable(server: Server) -> None:
    def body(error: AsyncLockError, status: int) -> dict[str, Any]:
        return {"problem": type(error).__name__, "status": status}

    locks = Locks(
        server.url,
        timeout=timedelta(seconds=0.3),
        busy_status=409,
        lost_status=500,
        unavailable_status=502,
        retry_after=timedelta(seconds=2.5),
        body=body,
        key_prefix="mine",
    )
    app = app_of(locks)

    @app.get("/")
    async def endpoint(lock: Annotated[LockScope, locks.lock("anna")]) -> None:
        server.execute("DEL", "mine:0:anna")
        await asyncio.sleep(30)

    async with client_of(app) as client:
        lost = await client.get("/")
        assert (lost.status_code, lost.json()) == (500, {"problem": "LockLostError", "status": 500})
        server.execute("SET", "mine:0:anna", "x", "PX", 60_000)
        busy = await client.get("/")
        assert (busy.status_code, busy.json()) == (409, {"problem": "AcquireTimeoutError", "status": 409})
        assert busy.headers["Retry-After"] == "3"
        responses = (await client.get("/openapi.json")).json()["paths"]["/"]["get"]["responses"]
        assert set(responses) == {"200", "409", "500", "502"}
        assert responses["409"]["content"] == {"application/json": {"schema": {}}}
    assert "Retry-After" not in Locks(server.url, retry_after=None).responses[423].get("headers", {})


@pytest.mark.parametrize(
    "options",
    [
        {"busy_status": 200},
        {"retry_after": -1},
        {"retry_after": float("nan")},
        {"retry_after": "1"},
        {"close_code": 1005},
        {"timeout": -1},
        {"key_validity": 0},
        {"nonsense": 1},
    ],
)
async def test_a_wrong_option_is_found_when_the_program_starts(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Locks("redis://127.0.0.1:1", **options)


async def test_errors_of_other_lockers_are_the_applications_own(locks: Locks, server: Server, locker: Locker) -> None:
    app = app_of(locks)

    @app.get("/foreign")
    async def foreign(lock: Annotated[LockScope, locks.lock("anna")]) -> None:
        async with locker.with_context("job", timeout=0):
            """Somebody else holds it."""

    @app.get("/same-name")
    async def same_name(lock: Annotated[LockScope, locks.lock("anna")]) -> None:
        async with Locker(server.url, key_prefix="other") as other, other.with_context("anna"):
            server.execute("DEL", "other:0:anna")
            await asyncio.sleep(30)

    take(server, "job")
    async with client_of(app) as client:
        with pytest.raises(AcquireTimeoutError, match="job"):
            await client.get("/foreign")
        with pytest.raises(LockLostError, match="other:0:anna"):
            await client.get("/same-name")
    assert not locked(server, "anna")


async def test_handlers_of_the_application_stay(locks: Locks, server: Server) -> None:
    app = FastAPI()

    @app.exception_handler(LockLostError)
    async def handler(request: Request, error: Exception) -> Any:
        return httpx_response(418)

    def httpx_response(status: int) -> Any:
        from starlette.responses import Response

        return Response(status_code=status)

    locks.install(app)

    @app.get("/")
    async def endpoint(lock: Annotated[LockScope, locks.lock("anna")]) -> None:
        steal(server, "anna")
        await asyncio.sleep(30)

    async with client_of(app) as client:
        assert (await client.get("/")).status_code == 418


@pytest.mark.parametrize("synchronous", [False, True])
async def test_handlers_for_all_errors_of_asynclock_get_those_of_other_lockers(
    locks: Locks, server: Server, locker: Locker, synchronous: bool
) -> None:
    app = FastAPI()

    def handled(request: Request, error: Exception) -> Any:
        return PlainTextResponse(type(error).__name__, 409)

    async def handled_in_a_coroutine(request: Request, error: Exception) -> Any:
        return handled(request, error)

    app.exception_handler(AsyncLockError)(handled if synchronous else handled_in_a_coroutine)
    locks.install(app)

    @app.get("/foreign")
    async def foreign(lock: Annotated[LockScope, locks.lock("anna")]) -> None:
        async with locker.with_context("job", timeout=0):
            """Somebody else holds it."""

    @app.get("/twice")
    async def twice(lock: Annotated[LockScope, locks.lock("anna")]) -> None:
        raise AlreadyHeldError("job")

    @app.get("/ours")
    async def ours(lock: Annotated[LockScope, locks.lock("job")]) -> None:
        """Never called."""

    take(server, "job")
    async with client_of(app) as client:
        response = await client.get("/foreign")
        assert (response.status_code, response.text) == (409, "AcquireTimeoutError")
        assert (await client.get("/twice")).text == "AlreadyHeldError"
        answered(await client.get("/ours"), 423)


async def test_a_lock_that_was_released_can_be_held_again_in_the_same_task(locks: Locks) -> None:
    app = app_of(locks)

    @app.get("/")
    async def endpoint(request: Request, lock: Annotated[LockScope, locks.lock("anna")]) -> str:
        await lock.release()
        async with locks.hold(request, "anna") as again:
            return again.name

    async with client_of(app) as client:
        assert (await client.get("/")).json() == "anna"


# OpenAPI


async def test_openapi_shows_the_answers_and_each_value_once(locks: Locks) -> None:
    app = app_of(locks)
    user_lock = locks.lock("{user}:{page}:{x_tenant}")

    @app.get("/users/{user}")
    async def endpoint(
        user: int,
        page: int,
        x_tenant: Annotated[str, Header()],
        lock: Annotated[LockScope, user_lock],
    ) -> None: ...

    @app.get("/free")
    async def free() -> None: ...

    @app.get("/said", responses=locks.responses)
    async def said() -> None: ...

    router = APIRouter(prefix="/in", dependencies=[locks.lock("all")])

    @router.post("/side", responses={423: {"description": "of its own"}})
    async def side() -> None: ...

    app.include_router(router, prefix="/{where}")
    for _ in range(2):  # the second is the same, from what is kept
        schema = app.openapi()["paths"]
        operation = schema["/users/{user}"]["get"]
        parameters = [(each["in"], each["name"]) for each in operation["parameters"]]
        assert sorted(parameters) == [("header", "x-tenant"), ("path", "user"), ("query", "page")]
        assert set(operation["responses"]) == {"200", "422", "423", "503"}
        assert operation["responses"]["423"]["headers"]["Retry-After"]["schema"] == {"type": "integer"}
        assert "detail" in operation["responses"]["503"]["content"]["application/json"]["schema"]["properties"]
        assert set(schema["/free"]["get"]["responses"]) == {"200"}
        assert schema["/said"]["get"]["responses"]["423"] == operation["responses"]["423"]
        side_responses = schema["/{where}/in/side"]["post"]["responses"]
        assert side_responses["423"]["description"] == "of its own"
        assert "503" in side_responses


# Where they work


async def test_included_routers_with_handlers_of_the_same_name(locks: Locks) -> None:
    app = app_of(locks)
    lock_of = Annotated[LockScope, locks.lock("{user}")]

    def router(convert: Any) -> APIRouter:
        made = APIRouter(prefix="/{kind}")

        async def pay(user: Any, lock: Any) -> str:
            return str(lock.name)

        pay.__annotations__.update(user=convert, lock=lock_of)
        made.get("/pay")(pay)
        return made

    outer = APIRouter()
    outer.include_router(router(int), prefix="/one/{user}")
    app.include_router(outer)
    app.include_router(router(str), prefix="/two/{user}")
    shared = router(int)
    app.include_router(shared, prefix="/three/{user}")
    app.include_router(shared, prefix="/four")  # there, the same parameter is one of the query
    async with client_of(app) as client:
        for _ in range(2):
            assert (await client.get("/one/007/a/pay")).json() == "7"
            assert (await client.get("/two/007/a/pay")).json() == "007"
            assert (await client.get("/three/007/a/pay")).json() == "7"
            assert (await client.get("/four/a/pay?user=007")).json() == "7"


@pytest.mark.parametrize("installed", [True, False])
async def test_a_mounted_application(locks: Locks, server: Server, installed: bool) -> None:
    app, mounted = app_of(locks), FastAPI()
    if installed:
        locks.install(mounted)

    @mounted.get("/{user}")
    async def endpoint(
        tenant: str, user: int, lock: Annotated[LockScope, locks.lock("{tenant}:{user}", scope="request")]
    ) -> str:
        if user == 13:
            steal(server, lock.name)
            await asyncio.sleep(30)
        return lock.name

    @mounted.get("/query/{user}")
    async def query(user: int, lock: Annotated[LockScope, locks.lock("{tenant}:{user}")]) -> str:
        return lock.name

    app.mount("/tenants/{tenant}", mounted)
    async with client_of(app) as client:
        assert (await client.get("/tenants/blue/query/07")).json() == "blue:7"
        take(server, "blue:7")
        answered(await client.get("/tenants/blue/query/7"), 423)
        answered(await client.get("/tenants/blue/13?tenant=blue"), 503)


async def test_one_locker_serves_all_from_the_first_use_on(server: Server) -> None:
    locks = Locks(server.url)
    app, second = app_of(locks), app_of(locks)

    @app.get("/{user}")
    async def endpoint(
        user: str, lock: Annotated[LockScope, locks.lock("{user}")], locker: Annotated[Locker, Depends(locks.locker)]
    ) -> int:
        return id(locker)

    second.get("/{user}")(endpoint)

    @app.get("/direct/it")
    async def direct(locker: Annotated[Locker, locks.locker]) -> int:
        return id(locker)

    def connections() -> int:
        return str(server.execute("CLIENT", "LIST")).count("id=")

    before = connections()
    async with client_of(app) as client:
        assert connections() == before
        async with client_of(second) as other:
            asked = [each.get(f"/{number}") for number in range(20) for each in (client, other)]
            found = {response.json() for response in await asyncio.gather(*asked)}
            found.add((await client.get("/direct/it")).json())
            assert len(found) == 1
            assert connections() == before + 1
        assert (await client.get("/anna")).status_code == 200  # the other lifespan has not closed it
        assert await locks.locker() is not None
    await until(lambda: connections() == before)
    with pytest.raises(ConfigurationError, match="outside of the lifespan"):
        await locks.locker()


async def test_the_applications_own_lifespan_is_inside(server: Server) -> None:
    locks = Locks(server.url)
    seen: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        locker = await locks.locker()
        async with locker.with_context("migration"):
            seen.append("begin")
        yield {"of": "lifespan"}
        async with locker.with_context("migration"):
            seen.append("end")

    app = app_of(locks, lifespan=lifespan)

    @app.get("/")
    async def endpoint(request: Request) -> Any:
        return request.state.of

    def use() -> None:
        with TestClient(app) as client:
            assert client.get("/").json() == "lifespan"

    await asyncio.to_thread(use)
    assert seen == ["begin", "end"]


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_each_test_client_has_an_event_loop_and_a_locker_of_its_own(locks: Locks, server: Server) -> None:
    app = app_of(locks)

    @app.get("/{user}")
    async def endpoint(user: str, lock: Annotated[LockScope, locks.lock("{user}")]) -> int:
        return threading.get_ident()

    def use() -> None:
        for _ in range(2):
            with TestClient(app) as client:
                assert client.get("/anna").status_code == 200
        with TestClient(app) as one, TestClient(app) as two:
            take(server, "bert")
            assert one.get("/bert").status_code == two.get("/bert").status_code == 423
            assert one.get("/anna").json() != two.get("/anna").json()

    await asyncio.to_thread(use)


async def test_an_application_under_test_may_do_without(locks: Locks, server: Server) -> None:
    app = app_of(locks)

    @app.get("/{user}")
    async def endpoint(user: str, lock: Annotated[LockScope, locks.lock("user:{user}")]) -> bool:
        return lock is None

    app.dependency_overrides[locks.lock("user:{user}").dependency] = lambda: None
    take(server, "user:anna")
    async with client_of(app) as client:
        assert (await client.get("/anna")).json() is True


async def test_without_the_lifespan_the_error_names_the_remedy(locks: Locks) -> None:
    app = app_of(locks)

    @app.get("/")
    async def endpoint(lock: Annotated[LockScope, locks.lock("anna")]) -> None: ...

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        with pytest.raises(ConfigurationError, match=r"with TestClient\(app\) as client"):
            await client.get("/")


async def test_what_is_not_installed_says_so(locks: Locks, locker: Locker) -> None:
    app = FastAPI()
    given = Locks(locker)

    @app.get("/")
    async def endpoint(lock: Annotated[LockScope, given.lock("anna")]) -> None: ...

    async with client_of(app) as client:
        with pytest.raises(ConfigurationError, match=r"locks\.install\(app\)"):
            await client.get("/")
    with pytest.raises(ConfigurationError, match="too late"):
        locks.install(app)


async def test_a_locker_that_is_given_stays_its_makers(locker: Locker) -> None:
    locks = Locks(locker)
    app = app_of(locks)

    @app.get("/")
    async def endpoint(
        lock: Annotated[LockScope, locks.lock("anna")], found: Annotated[Locker, Depends(locks.locker)]
    ) -> bool:
        return found is locker

    for _ in range(2):
        async with client_of(app) as client:
            assert (await client.get("/")).json() is True
    async with locker.with_context("anna"):
        """Still open."""
    with pytest.raises(ConfigurationError, match="key_prefix"):
        Locks(locker, key_prefix="other")


async def test_a_def_endpoint_runs_on_and_looks_at_its_lock(locks: Locks, server: Server) -> None:
    app = app_of(locks)
    lost = threading.Event()
    found: list[type[BaseException]] = []

    @app.get("/held")
    def held(lock: Annotated[LockScope, locks.lock("anna")]) -> bool:
        lock.check()
        return lock.held

    @app.get("/lost")
    def loses(lock: Annotated[LockScope, locks.lock("anna")]) -> None:
        steal(server, "anna")
        try:
            while True:  # nobody can cancel a thread
                lock.check()
                time.sleep(0.001)
        except LockLostError as error:
            found.append(type(error))
            lost.set()
            raise

    async with client_of(app) as client:
        assert (await client.get("/held")).json() is True
        answered(await client.get("/lost"), 503)
        assert await asyncio.to_thread(lost.wait, 5)
    assert found == [LockLostError]


async def test_a_background_task_runs_without_the_lock_and_may_take_its_own(
    locks: Locks, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_of(locks)
    seen: list[bool] = []

    @app.get("/{how}")
    async def endpoint(
        how: str, request: Request, tasks: BackgroundTasks, lock: Annotated[LockScope, locks.lock("anna")]
    ) -> str:
        async def work() -> None:
            seen.append(locked(server, "anna"))
            async with locks.hold(request, "anna" if how == "free" else "bert", timeout=0):
                seen.append(locked(server, "anna"))

        tasks.add_task(work)
        return "accepted"

    async with client_of(app) as client:
        assert (await client.get("/free")).json() == "accepted"
        assert seen == [False, True]
        assert not locked(server, "anna")
        take(server, "bert")
        assert (await client.get("/busy")).json() == "accepted"
        assert seen == [False, True, False]
        assert "GET /busy: lock 'bert' was not acquired" in caplog.text


# Errors of the program


async def test_scope_cancel_leaves_no_request_without_an_answer(locks: Locks) -> None:
    app = app_of(locks)

    @app.get("/")
    async def endpoint(lock: Annotated[LockScope, locks.lock("anna")]) -> None:
        lock.cancel()
        await asyncio.sleep(30)

    async with client_of(app) as client:
        with pytest.raises(ConfigurationError, match="HTTPException"):
            await client.get("/")


async def test_a_request_that_would_wait_for_itself_is_told(locks: Locks) -> None:
    app = app_of(locks)

    @app.get("/")
    async def endpoint(request: Request, lock: Annotated[LockScope, locks.lock("anna")]) -> None:
        async with locks.hold(request, "anna"):
            """Never."""

    @app.get("/tasks")
    async def tasks(request: Request) -> None:
        async def work() -> None:
            async with locks.hold(request, "bert"):
                await asyncio.sleep(0.01)

        await asyncio.gather(work(), work())  # these wait for each other, and not for themselves

    async with client_of(app) as client:
        with pytest.raises(AlreadyHeldError, match="anna"):
            await client.get("/")
        assert (await client.get("/tasks")).status_code == 200


async def test_a_client_that_goes_away_leaves_no_key(locks: Locks, server: Server) -> None:
    app = app_of(locks)
    begun = asyncio.Event()

    @app.get("/")
    async def endpoint(lock: Annotated[LockScope, locks.lock("anna")]) -> None:
        begun.set()
        await asyncio.sleep(30)

    async with client_of(app) as client:
        asked = asyncio.create_task(client.get("/"))
        await begun.wait()
        asked.cancel()  # as a middleware with a time limit does
        with pytest.raises(asyncio.CancelledError):
            await asked
        await until(lambda: not locked(server, "anna"))


async def test_importing_asynclock_imports_no_framework(caplog: pytest.LogCaptureFixture) -> None:
    code = "import sys, asynclock; print({'fastapi', 'starlette', 'pydantic'} & set(sys.modules))"
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
