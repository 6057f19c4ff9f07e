"""asynclock.integrations.aiohttp: whose lock a request holds, what it answers without one, and what is refused.

What is on the wire when a response has begun is in test_aiohttp_begun.py; the example application has tests of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from asynclock import AsyncLockError, ConfigurationError, Locker, LockLostError
from asynclock.integrations._acquire import ANSWER
from asynclock.integrations.aiohttp import LOCKER, SCOPE, locked, setup
from asynclock.testing import Server
from tests.support.apps import serve_aiohttp
from tests.support.helpers import AT_ONCE, key, until

pytestmark = [pytest.mark.every_python, pytest.mark.serverless, pytest.mark.asyncio]

AWAY = "redis://127.0.0.1:1"
Handler = Callable[[web.Request], Any]


@contextlib.asynccontextmanager
async def client_of(app: web.Application) -> AsyncIterator[aiohttp.ClientSession]:
    async with serve_aiohttp(app) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
        yield client


def app_of(servers: Any, handler: Any, path: str = "/users/{user_id}", **options: Any) -> web.Application:
    app = web.Application()
    setup(app, servers, **options)
    app.router.add_route("*", path, handler)
    return app


@locked("user:{user_id}", timeout=0.1)
async def held(request: web.Request) -> web.Response:
    assert request[SCOPE].held
    return web.json_response({"name": request[SCOPE].name})


@locked("user:{user_id}", timeout=0.1)
async def works(request: web.Request) -> web.Response:
    await asyncio.sleep(30)
    return web.Response()


def is_locked(server: Server, name: str) -> bool:
    return server.execute("EXISTS", key(name)) == 1


async def check_refused(response: aiohttp.ClientResponse, status: int) -> None:
    assert response.status == status, await response.text()
    assert response.headers["Retry-After"] == "1"
    body = await response.json()
    assert list(body) == ["detail"]
    assert "user:" not in body["detail"] and "127.0.0.1" not in body["detail"]


# Whose lock, and what handlers can be decorated


class ByClass:
    @locked("user:{user_id}")
    async def handle(self, request: web.Request) -> web.Response:
        return web.json_response({"name": request[SCOPE].name})


class View(web.View):
    @locked("user:{user_id}")
    async def get(self) -> web.Response:
        return web.json_response({"name": self.request[SCOPE].name})


@locked(key=lambda request: f"user:{request.query['id']}")
async def by_query(request: web.Request) -> web.Response:
    return web.json_response({"name": request[SCOPE].name})


async def who(request: web.Request) -> str:
    await asyncio.sleep(0)
    if "Authorization" not in request.headers:
        raise web.HTTPUnauthorized
    return f"user:{request.headers['Authorization']}"


@locked(key=who)
async def by_coroutine(request: web.Request) -> web.Response:
    return web.json_response({"name": request[SCOPE].name})


@locked("user:{user_id}")
async def with_more(number: int, request: web.Request, *, word: str) -> web.Response:
    return web.json_response({"name": request[SCOPE].name})


@pytest.mark.parametrize(
    "handler",
    [held, ByClass().handle, View, by_query, by_coroutine, functools.partial(with_more, 1, word="x")],
    ids=["function", "method", "view", "key", "key coroutine", "partial"],
)
async def test_a_handler_holds_the_lock_that_is_named_after_its_request(handler: Any, server: Server) -> None:
    async with client_of(app_of(server.url, handler)) as client:
        response = await client.get("/users/7%2F8", params={"id": "7/8"}, headers={"Authorization": "7/8"})
        assert (response.status, await response.json()) == (200, {"name": "user:7/8"})
        assert not is_locked(server, "user:7/8")


async def test_so_does_a_middleware(server: Server) -> None:
    @web.middleware
    @locked("user:{user_id}")
    async def one_for_each_user(request: web.Request, handler: Handler) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        return response

    async def plain(request: web.Request) -> web.Response:
        return web.json_response({"name": request[SCOPE].name})

    app = app_of(server.url, plain)
    app.middlewares.append(one_for_each_user)
    async with client_of(app) as client:
        response = await client.get("/users/7")
        assert await response.json() == {"name": "user:7"}


async def test_the_lock_is_given_back_before_the_response_is_sent(server: Server) -> None:
    seen: list[bool] = []

    @locked("user:{user_id}")
    async def handler(request: web.Request) -> web.Response:
        seen.append(is_locked(server, "user:7"))
        return web.Response()

    app = app_of(server.url, handler)

    async def prepared(request: web.Request, response: web.StreamResponse) -> None:
        seen.append(is_locked(server, "user:7"))
        assert SCOPE not in request

    app.on_response_prepare.append(prepared)
    async with client_of(app) as client:
        assert (await client.get("/users/7")).status == 200
    assert seen == [True, False]


async def test_a_name_of_the_key_function_that_raises_is_its_own_answer(server: Server) -> None:
    async with client_of(app_of(server.url, by_coroutine)) as client:
        assert (await client.get("/users/7")).status == 401


async def test_requests_of_one_name_take_turns_and_others_do_not(server: Server) -> None:
    running: set[str] = set()
    together = 0

    @locked("user:{user_id}", timeout=None)
    async def handler(request: web.Request) -> web.Response:
        nonlocal together
        name = request.match_info["user_id"]
        assert name not in running
        running.add(name)
        together = max(together, len(running))
        await asyncio.sleep(0.02)
        running.remove(name)
        return web.Response()

    async with client_of(app_of(server.url, handler)) as client:
        responses = await asyncio.gather(*(client.get(f"/users/{turn % 2}") for turn in range(8)))
        assert {response.status for response in responses} == {200}
        assert together == 2


# Sub-applications


async def test_sub_applications_share_it(server: Server) -> None:
    async def looks(request: web.Request) -> web.Response:
        assert request.config_dict[LOCKER] is app[LOCKER]
        return web.Response()

    inner = web.Application()
    inner.router.add_get("/users/{user_id}", held)
    inner.router.add_get("/looks", looks)
    middle = web.Application()
    middle.add_subapp("/inner", inner)
    app = app_of(server.url, held)
    app.add_subapp("/middle", middle)
    async with client_of(app) as client:
        assert await (await client.get("/middle/inner/users/7")).json() == {"name": "user:7"}
        assert (await client.get("/middle/inner/looks")).status == 200


async def test_a_sub_application_may_have_its_own(server: Server) -> None:
    @locked("user:{user_id}")
    async def keys(request: web.Request) -> web.Response:
        found = server.execute("KEYS", "*")
        assert isinstance(found, list)
        return web.json_response([each.decode() for each in found])

    inner = web.Application()
    setup(inner, server.url, key_prefix="inner")
    inner.router.add_get("/{user_id}", keys)
    app = app_of(server.url, keys)
    app.add_subapp("/inner", inner)
    async with client_of(app) as client:
        assert await (await client.get("/inner/7")).json() == ["inner:0:user:7"]
        assert await (await client.get("/users/7")).json() == ["asynclock:0:user:7"]


# Not acquired in time


@pytest.mark.parametrize(
    ("timeout", "own", "seconds"),
    [(0.1, ..., 0.1), (5, 0.1, 0.1), (None, 0.1, 0.1), (5, 0, 0.0), (0, ..., 0.0)],
)
async def test_a_lock_that_somebody_else_has_is_423(
    timeout: float | None, own: Any, seconds: float, server: Server, other: Locker
) -> None:
    @locked("user:{user_id}", timeout=own)
    async def handler(request: web.Request) -> web.Response:
        raise AssertionError("entered")

    async with other.with_context("user:7"), client_of(app_of(server.url, handler, timeout=timeout)) as client:
        since = time.monotonic()
        await check_refused(await client.get("/users/7"), 423)
        assert seconds * 0.9 <= time.monotonic() - since < seconds + AT_ONCE


async def test_none_waits_as_long_as_it_takes(server: Server, other: Locker) -> None:
    @locked("user:{user_id}", timeout=None)
    async def handler(request: web.Request) -> web.Response:
        return web.Response()

    async with client_of(app_of(server.url, handler, timeout=0)) as client:
        async with other.with_context("user:7"):
            waiting = asyncio.create_task(client.get("/users/7"))
            await asyncio.sleep(0.2)
            assert not waiting.done()
        assert (await waiting).status == 200


# Lost


async def test_a_loss_stops_the_handler_and_is_503(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    stopped = asyncio.Event()

    @locked("user:{user_id}")
    async def handler(request: web.Request) -> web.Response:
        try:
            await asyncio.sleep(30)
        finally:
            stopped.set()
        return web.Response()

    async with client_of(app_of(server.url, handler)) as client:
        asked = asyncio.create_task(client.get("/users/7%0Ax", params={"secret": "s3cret"}))
        await until(lambda: is_locked(server, "user:7\nx"))
        since = time.monotonic()
        server.execute("DEL", key("user:7\nx"))
        await check_refused(await asked, 503)
        assert time.monotonic() - since < AT_ONCE
        assert stopped.is_set()
    lost, *told = [record.getMessage() for record in caplog.records if record.name == "asynclock"]
    assert lost.startswith("asynclock: lock 'user:7\\nx' was lost after ")
    assert len(told) == 1
    assert told[0].startswith("asynclock: GET /users/7%0Ax: lock 'user:7\\nx' was lost: another client deleted its key")


@pytest.mark.parametrize("swallows", [False, True])
async def test_a_loss_that_shows_when_the_handler_is_through_is_503(swallows: bool, server: Server) -> None:
    @locked("user:{user_id}")
    async def handler(request: web.Request) -> web.Response:
        server.execute("DEL", key("user:7"))
        if swallows:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(30)
        return web.Response(text="done")

    async with client_of(app_of(server.url, handler)) as client:
        await check_refused(await client.get("/users/7"), 503)


async def test_what_check_raises_is_the_loss(server: Server) -> None:
    @locked("user:{user_id}")
    async def handler(request: web.Request) -> web.Response:
        server.execute("DEL", key("user:7"))
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(30)
        request[SCOPE].check()
        raise AssertionError("held")

    async with client_of(app_of(server.url, handler)) as client:
        await check_refused(await client.get("/users/7"), 503)


async def test_what_check_raises_in_the_handlers_own_tasks_is_the_loss(server: Server) -> None:
    async def works(request: web.Request, error: Exception | None) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(30)
        if error is not None:
            raise error
        request[SCOPE].check()

    def handler_of(error: Exception | None) -> Any:
        @locked("user:{user_id}")
        async def handler(request: web.Request) -> web.Response:
            async with asyncio.TaskGroup() as group:
                group.create_task(works(request, None))
                group.create_task(works(request, error))
                await asyncio.sleep(0)
                server.execute("DEL", key("user:7"))
                await asyncio.sleep(30)
            return web.Response()

        return handler

    async with client_of(app_of(server.url, handler_of(None))) as client:
        await check_refused(await client.get("/users/7"), 503)
    async with client_of(app_of(server.url, handler_of(ZeroDivisionError("a bug")))) as client:
        assert (await client.get("/users/7")).status == 500


async def test_tasks_of_one_request_may_hold_locks_side_by_side(server: Server) -> None:
    """Each may end first, and the others' locks stay those of the request."""

    @locked("a")
    async def first(request: web.Request, ends: asyncio.Event) -> web.StreamResponse:
        await ends.wait()
        return web.Response()

    @locked("b")
    async def second(request: web.Request, ends: asyncio.Event) -> web.StreamResponse:
        await ends.wait()
        return web.Response()

    @locked("user:{user_id}")
    async def handler(request: web.Request) -> web.Response:
        mine = request[SCOPE].name
        one, two = asyncio.Event(), asyncio.Event()
        tasks = [asyncio.create_task(first(request, one)), asyncio.create_task(second(request, two))]
        await until(lambda: is_locked(server, "a") and is_locked(server, "b"))
        one.set()
        await tasks[0]
        two.set()
        await tasks[1]
        return web.Response(text=f"{mine} {request[SCOPE].name}")

    async with client_of(app_of(server.url, handler)) as client:
        assert await (await client.get("/users/7")).text() == "user:7 user:7"


async def test_tasks_that_fail_while_they_are_stopped_are_logged(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            raise ZeroDivisionError("of a task")

    @locked("user:{user_id}")
    async def handler(request: web.Request) -> web.Response:
        request[SCOPE].create_task(fails())
        await asyncio.sleep(0)
        server.execute("DEL", key("user:7"))
        await asyncio.sleep(30)
        return web.Response()

    async with client_of(app_of(server.url, handler)) as client:
        await check_refused(await client.get("/users/7"), 503)
    assert "ZeroDivisionError: of a task" in caplog.text


# Servers that are away


async def test_it_starts_while_the_server_is_away_and_serves_what_needs_no_lock(own_server: Server) -> None:
    async def plain(request: web.Request) -> web.Response:
        return web.Response(text="served")

    own_server.stop()
    app = app_of(own_server.url, held)
    app.router.add_get("/", plain)
    async with client_of(app) as client:
        assert await (await client.get("/")).text() == "served"
        for _ in range(2):
            since = time.monotonic()
            await check_refused(await client.get("/users/7"), 503)
            assert time.monotonic() - since < AT_ONCE
        own_server.start()
        async with asyncio.timeout(10):
            while (response := await client.get("/users/7")).status == 503:
                await asyncio.sleep(0.05)
        assert await response.json() == {"name": "user:7"}


async def test_a_server_that_dies_while_the_handler_runs_is_503(own_server: Server) -> None:
    async with client_of(app_of(own_server.url, works)) as client:
        asked = asyncio.create_task(client.get("/users/7"))
        await until(lambda: is_locked(own_server, "user:7"))
        own_server.kill()
        since = time.monotonic()
        await check_refused(await asked, 503)
        assert time.monotonic() - since < AT_ONCE


@pytest.mark.parametrize("how", ["dies", "hangs"])
async def test_a_server_that_goes_away_during_the_wait_is_503_and_not_423(how: str, own_server: Server) -> None:
    async with Locker(own_server.url) as other, client_of(app_of(own_server.url, held, timeout=1)) as client:
        scope = await other.acquire("user:7")
        asked = asyncio.create_task(client.get("/users/7"))
        await asyncio.sleep(0.05)  # it has asked once, and waits: nothing on the wire shows that
        assert not asked.done()
        try:
            if how == "dies":
                own_server.kill()
            else:
                os.kill(own_server.pid, signal.SIGSTOP)
            since = time.monotonic()
            await check_refused(await asked, 503)
            assert time.monotonic() - since < 0.1 + ANSWER + AT_ONCE
        finally:
            if how == "hangs":
                os.kill(own_server.pid, signal.SIGCONT)
        await scope.release()


async def test_a_server_that_hangs_is_503(own_server: Server) -> None:
    async with client_of(app_of(own_server.url, held)) as client:
        assert (await client.get("/users/7")).status == 200
        os.kill(own_server.pid, signal.SIGSTOP)
        try:
            since = time.monotonic()
            await check_refused(await client.get("/users/7"), 503)
            assert time.monotonic() - since < ANSWER + AT_ONCE
        finally:
            os.kill(own_server.pid, signal.SIGCONT)
        async with asyncio.timeout(10):
            while (await client.get("/users/7")).status == 503:
                await asyncio.sleep(0.05)


async def test_a_locker_that_is_closed_is_503(server: Server) -> None:
    app = app_of(server.url, works)
    async with client_of(app) as client:
        asked = asyncio.create_task(client.get("/users/7"))
        await until(lambda: is_locked(server, "user:7"))
        await app[LOCKER].aclose()
        await check_refused(await asked, 503)
        await check_refused(await client.get("/users/7"), 503)


# What is configured


def told(error: AsyncLockError, status: int) -> object:
    return {"status": status, "kind": type(error).__name__}


async def test_statuses_retry_after_and_body_are_those_of_setup(own_server: Server) -> None:
    app = app_of(
        own_server.url,
        held,
        busy_status=409,
        lost_status=502,
        unavailable_status=504,
        retry_after=2.5,
        body=told,
    )
    app.router.add_get("/works/{user_id}", works)

    async def check(response: aiohttp.ClientResponse, status: int, kind: str) -> None:
        assert (response.status, await response.json()) == (status, {"status": status, "kind": kind})
        assert response.headers["Retry-After"] == "3"

    async with client_of(app) as client:
        asked = asyncio.create_task(client.get("/works/7"))
        await until(lambda: is_locked(own_server, "user:7"))
        await check(await client.get("/users/7"), 409, "AcquireTimeoutError")
        own_server.execute("DEL", key("user:7"))
        await check(await asked, 502, "LockLostError")
        own_server.kill()
        await check(await client.get("/users/7"), 504, "ServerError")


async def test_retry_after_may_be_left_out(server: Server, other: Locker) -> None:
    app = app_of(server.url, held, retry_after=None)
    async with other.with_context("user:7"), client_of(app) as client:
        response = await client.get("/users/7")
        assert response.status == 423
        assert "Retry-After" not in response.headers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"busy_status": 200}, "busy_status=200: must be an HTTP status"),
        ({"lost_status": "503"}, "lost_status='503'"),
        ({"unavailable_status": True}, "unavailable_status=True"),
        ({"retry_after": -1}, "retry_after=-1"),
        ({"retry_after": float("inf")}, "retry_after=inf"),
        ({"close_code": 200}, "close_code=200"),
        ({"timeout": -1}, "timeout=-1"),
        ({"key_validty": 5}, "did you mean 'key_validity'"),
    ],
)
async def test_wrong_options_are_told_at_once(options: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        setup(web.Application(), AWAY, **options)


async def test_it_is_set_up_once(server: Server) -> None:
    app = web.Application()
    locker = setup(app, AWAY)
    assert app[LOCKER] is locker
    with pytest.raises(ConfigurationError, match="has a locker already"):
        setup(app, AWAY)


async def test_a_locker_that_was_given_is_not_closed(server: Server) -> None:
    with pytest.raises(ConfigurationError, match="key_validity: give options to the Locker"):
        setup(web.Application(), Locker(AWAY), key_validity=3)
    async with Locker(server.url) as locker:
        for _ in range(2):  # two applications share it
            app = app_of(locker, held)
            assert app[LOCKER] is locker
            async with client_of(app) as client:
                assert (await client.get("/users/7")).status == 200
        async with locker.with_context("job"):
            assert is_locked(server, "job")


async def test_one_that_was_made_here_is_closed_with_the_application(server: Server) -> None:
    app = app_of(server.url, held)
    async with client_of(app) as client:
        assert (await client.get("/users/7")).status == 200
    assert "closed" in repr(app[LOCKER])


# Errors of the program


@pytest.mark.parametrize("handler", [held, View, ByClass().handle])
@pytest.mark.parametrize("below", [False, True])
async def test_a_name_that_a_path_does_not_give_is_an_error_at_the_start(handler: Any, below: bool) -> None:
    app = web.Application()
    setup(app, AWAY)
    inner = web.Application()
    (inner if below else app).router.add_route("*", "/accounts/{account}", handler)
    if below:
        app.add_subapp("/inner", inner)
    with pytest.raises(ConfigurationError, match=r"'user:{user_id}' needs 'user_id', .*/accounts/{account}': account"):
        async with serve_aiohttp(app):
            raise AssertionError("started")


async def test_or_with_the_request_where_the_route_does_not_show_it(server: Server) -> None:
    app = app_of(server.url, functools.partial(with_more, 1, word="x"), "/accounts/{account}")
    async with client_of(app) as client:
        assert (await client.get("/accounts/7")).status == 500


async def test_without_setup_the_error_names_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    app = web.Application()
    app.router.add_get("/users/{user_id}", held)
    async with client_of(app) as client:
        assert (await client.get("/users/7")).status == 500
    assert "call asynclock.integrations.aiohttp.setup(app, 'redis://...')" in caplog.text


def synchronous(request: web.Request) -> web.Response:
    raise AssertionError("called")


@pytest.mark.parametrize(
    ("arguments", "handler", "message"),
    [
        ({}, held, "needs a name"),
        ({"name": "x", "key": lambda request: "x"}, held, "or key="),
        ({"name": "user:{}"}, held, "a value without a name"),
        ({"name": 7}, held, "must be a str"),
        ({"name": "x", "timeout": -1}, held, "timeout=-1"),
        ({"name": "x"}, synchronous, "on synchronous: it is not a coroutine function; write 'async def'"),
        ({"name": "x"}, View, "on View: it is not a coroutine function; decorate its methods"),
    ],
)
async def test_what_cannot_be_decorated(arguments: Any, handler: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        locked(**arguments)(handler)


async def test_a_function_that_gets_no_request(server: Server) -> None:
    with pytest.raises(ConfigurationError, match="it was called without a request"):
        await locked("x")(synchronous_in_name_only)()


async def synchronous_in_name_only() -> web.Response:
    raise AssertionError("called")


async def test_the_handlers_own_answers_and_errors_come_out(server: Server) -> None:
    @locked("user:{user_id}")
    async def handler(request: web.Request) -> web.Response:
        if request.match_info["user_id"] == "7":
            raise web.HTTPConflict(text="not enough money")
        raise ZeroDivisionError

    async with client_of(app_of(server.url, handler)) as client:
        response = await client.get("/users/7")
        assert (response.status, await response.text()) == (409, "not enough money")
        assert (await client.get("/users/8")).status == 500
        assert server.execute("DBSIZE") == 0


async def test_a_handler_that_cancels_its_scope_has_no_answer(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    @locked("user:{user_id}")
    async def handler(request: web.Request) -> web.Response:
        request[SCOPE].cancel()
        await asyncio.sleep(30)
        return web.Response()

    async with client_of(app_of(server.url, handler)) as client:
        assert (await client.get("/users/7")).status == 500
        assert server.execute("DBSIZE") == 0
    assert "has called cancel() of its scope" in caplog.text


# Several locks


def nested(name: str, then: Handler) -> Handler:
    @locked(name, timeout=0.1)
    async def outer(request: web.Request) -> web.StreamResponse:
        scope = request[SCOPE]
        try:
            response: web.StreamResponse = await then(request)
            return response
        finally:
            assert request[SCOPE] is scope

    return outer


@pytest.mark.parametrize("lost", ["shop", "user:7"])
async def test_each_of_two_locks_counts(lost: str, server: Server, other: Locker) -> None:
    async with client_of(app_of(server.url, nested("shop", works))) as client:
        asked = asyncio.create_task(client.get("/users/7"))
        await until(lambda: server.execute("DBSIZE") == 2)
        server.execute("DEL", key(lost))
        await check_refused(await asked, 503)
        assert server.execute("DBSIZE") == 0
        async with other.with_context(lost):
            await check_refused(await client.get("/users/7"), 423)
            assert server.execute("DBSIZE") == 1


async def test_a_request_does_not_wait_for_itself(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    async with client_of(app_of(server.url, nested("user:{user_id}", works))) as client:
        since = time.monotonic()
        assert (await client.get("/users/7")).status == 500
        assert time.monotonic() - since < AT_ONCE
    assert "AlreadyHeldError" in caplog.text


async def test_errors_of_locks_that_the_handler_acquires_are_answered_too(server: Server, other: Locker) -> None:
    @locked("user:{user_id}")
    async def handler(request: web.Request) -> web.Response:
        locker = request.app[LOCKER]
        async with locker.with_context("stock", timeout=0.05):
            server.execute("DEL", key("stock"))
            await asyncio.sleep(30)
        return web.Response()

    async with client_of(app_of(server.url, handler)) as client:
        async with other.with_context("stock"):
            await check_refused(await client.get("/users/7"), 423)
        await check_refused(await client.get("/users/7"), 503)


async def test_the_last_attempt_after_the_wait_may_succeed(server: Server, other: Locker) -> None:
    """... if the lock is released in that moment. Then nothing is left behind."""
    async with client_of(app_of(server.url, held)) as client:
        statuses = set()
        for turn in range(30):
            scope = await other.acquire("user:7", timeout=5)
            asked = asyncio.create_task(client.get("/users/7"))
            await asyncio.sleep(0.097 + turn / 5000)  # it waits for 0.1 s
            with contextlib.suppress(LockLostError):
                await scope.release()
            statuses.add((await asked).status)
            assert server.execute("DBSIZE") == 0
        assert statuses <= {200, 423}


# Clients and the end of the process


@pytest.mark.parametrize("during", ["the work", "the wait"])
async def test_a_client_that_goes_away_leaves_nothing(during: str, server: Server, other: Locker) -> None:
    app = app_of(server.url, works, timeout=30)
    async with (
        serve_aiohttp(app, handler_cancellation=True) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
    ):
        async with other.with_context("user:7") if during == "the wait" else contextlib.nullcontext():
            asked = asyncio.create_task(client.get("/users/7"))
            await (asyncio.sleep(0.2) if during == "the wait" else until(lambda: is_locked(server, "user:7")))
            asked.cancel()
            await asyncio.wait([asked])
        await until(lambda: server.execute("DBSIZE") == 0)


async def test_asynclock_alone_imports_nothing_of_it() -> None:
    code = "import sys, asynclock, asynclock.integrations; assert 'aiohttp' not in sys.modules"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0
