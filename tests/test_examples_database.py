"""A lock around a database session: which ways to write it hold the lock until the commit, and which do not.

The arrangements are those of docs/fastapi.md, right and wrong. What is wrong is tested too: if a version
of FastAPI changes it, the page is to be changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Annotated, Any

import httpx
import pytest
from aiohttp import web
from fastapi import APIRouter, Depends, FastAPI
from fastapi.exceptions import FastAPIError
from fastapi.requests import HTTPConnection
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from asynclock import Locker
from asynclock.integrations.aiohttp import locked, setup
from asynclock.integrations.fastapi import LockOrderWarning
from asynclock.testing import Server
from examples import aiohttp_app, fastapi_app
from examples.fastapi_app import Account, AccountLock, AccountLockUntilSent, AccountSession, locks
from tests.support.apps import Client, Serve, running, serve_aiohttp, serve_asgi
from tests.support.helpers import until

pytestmark = pytest.mark.asyncio

REQUESTS = 20
FREE = "anna"  # a request for her waits for nobody


async def session(connection: HTTPConnection) -> AsyncIterator[AsyncSession]:
    """As in FastAPI's documentation, but that it commits."""
    async with connection.state.sessions.begin() as session:
        yield session


async def session_under_lock(lock: AccountLockUntilSent, connection: HTTPConnection) -> AsyncIterator[AsyncSession]:
    async with connection.state.sessions.begin() as session:
        yield session


async def customer(account: str, session: RequestSession) -> Account | None:
    """Reads before the lock is held, such as a dependency that finds out who it is."""
    found = await session.get(Account, account)
    have_read.append(account)
    return found


have_read: list[str] = []


FunctionSession = Annotated[AsyncSession, Depends(session, scope="function")]
RequestSession = Annotated[AsyncSession, Depends(session, scope="request")]
DefaultSession = Annotated[AsyncSession, Depends(session)]
LOCK = locks.lock("account:{account}")
LOCK_UNTIL_SENT = locks.lock("account:{account}", scope="request")


async def take_one(session: AsyncSession, name: str) -> None:
    """What loses updates unless others are kept out: read, work, write."""
    account = await session.get(Account, name)
    assert account is not None
    balance = account.balance
    await asyncio.sleep(0.002)
    account.balance = balance - 1


async def in_body(account: str, lock: AccountLock, connection: HTTPConnection) -> None:
    async with connection.state.sessions.begin() as session:
        await take_one(session, account)


async def all_in_body(account: str, connection: HTTPConnection) -> None:
    name = f"account:{account}"
    async with locks.hold(connection, name), connection.state.sessions.begin() as session:
        await take_one(session, account)


async def depends(account: str, session: AccountSession) -> None:
    await take_one(session, account)


async def depends_until_sent(
    account: str, session: Annotated[AsyncSession, Depends(session_under_lock, scope="function")]
) -> None:
    await take_one(session, account)


async def depends_both_until_sent(account: str, session: Annotated[AsyncSession, Depends(session_under_lock)]) -> None:
    await take_one(session, account)


async def lock_first(account: str, lock: AccountLock, session: FunctionSession) -> None:
    await take_one(session, account)


async def session_first(account: str, session: FunctionSession, lock: AccountLock) -> None:
    await take_one(session, account)


async def session_of_request(account: str, lock: AccountLock, session: DefaultSession) -> None:
    await take_one(session, account)


async def session_of_request_first(account: str, session: DefaultSession, lock: AccountLockUntilSent) -> None:
    await take_one(session, account)


async def both_of_request(account: str, lock: AccountLockUntilSent, session: DefaultSession) -> None:
    await take_one(session, account)


async def lock_of_request(account: str, session: FunctionSession, lock: AccountLockUntilSent) -> None:
    await take_one(session, account)


async def commits_itself(account: str, session: DefaultSession, lock: AccountLock) -> None:
    await take_one(session, account)
    await session.commit()


async def lock_in_body(account: str, session: DefaultSession, connection: HTTPConnection) -> None:
    async with locks.hold(connection, f"account:{account}"):
        await take_one(session, account)


async def has_read_before(
    account: str, who: Annotated[Account | None, Depends(customer)], lock: AccountLock, session: RequestSession
) -> None:
    await take_one(session, account)
    await session.commit()


async def session_alone(account: str, session: FunctionSession) -> None:
    await take_one(session, account)


async def session_of_request_alone(account: str, session: DefaultSession) -> None:
    await take_one(session, account)


Endpoint = Callable[..., Awaitable[None]]


def route(endpoint: Endpoint, *dependencies: Any) -> APIRouter:
    router = APIRouter()
    router.post("/{account}", dependencies=dependencies)(endpoint)
    return router


def in_router(endpoint: Endpoint, *dependencies: Any) -> APIRouter:
    router = APIRouter(dependencies=dependencies)
    router.post("/{account}")(endpoint)
    return router


def included(endpoint: Endpoint, *dependencies: Any) -> APIRouter:
    router = APIRouter()
    router.include_router(route(endpoint), dependencies=dependencies)
    return router


# Held until the commit: by what name docs/fastapi.md has them, and how they are written.
RIGHT: dict[str, APIRouter] = {
    "session depends on lock": route(depends),
    "session in the body": route(in_body),
    "lock and session in the body": route(all_in_body),
    "lock, then session, both function": route(lock_first),
    "lock request, session function": route(lock_of_request),
    "session depends on lock, lock request": route(depends_until_sent),
    "lock in dependencies= of the route, session function": route(session_alone, LOCK),
    "lock in dependencies= of the router, session function": in_router(session_alone, LOCK),
    "lock in dependencies= of include_router, session function": included(session_alone, LOCK),
}
# ... but 200 is out by then.
LATE: dict[str, APIRouter] = {
    "lock, then session, both request": route(both_of_request),
    "session depends on lock, both request": route(depends_both_until_sent),
    "lock in dependencies=, both request": in_router(session_of_request_alone, LOCK_UNTIL_SENT),
}
# Not held at the commit.
WRONG: dict[str, APIRouter] = {
    "lock function, session request": route(session_of_request),
    "session, then lock, both function": route(session_first),
    "session, then lock, both request": route(session_of_request_first),
    "lock in the body, session request": route(lock_in_body),
    "lock in dependencies=, session request": in_router(session_of_request_alone, LOCK),
    "session before the lock in dependencies=": route(session_alone, Depends(session, scope="function"), LOCK),
}
NOT_SEEN = "lock in the body, session request"  # it may well commit in the body, as nobody can tell


def app_of(router: APIRouter) -> Serve:
    app = FastAPI(lifespan=fastapi_app.lifespan)
    locks.install(app)
    app.include_router(router, prefix="/take")
    return lambda: serve_asgi(app)


class Database:
    """The accounts of the app that runs, looked at from outside, and when a session wrote to them."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.engine = create_async_engine(fastapi_app.DATABASE_URL)
        self.sessions = async_sessionmaker(self.engine)
        self.held: list[bool] = []  # the lock of FREE, at each commit of the app

    async def open_account(self, name: str) -> None:
        async with self.sessions.begin() as session:
            session.add(Account(name=name, balance=100))
        self.held.clear()

    async def balance(self, name: str) -> int:
        async with self.sessions() as session:
            account = await session.get(Account, name)
            assert account is not None
            return account.balance

    def committed(self, _: Session) -> None:
        self.held.append(self.client.locked(FREE))


@contextlib.asynccontextmanager
async def database(client: Client) -> AsyncIterator[Database]:
    database = Database(client)
    event.listen(Session, "after_commit", database.committed)
    try:
        yield database
    finally:
        event.remove(Session, "after_commit", database.committed)
        await database.engine.dispose()


async def take(client: Client, account: str) -> httpx.Response:
    return await client.http.post(f"/take/{account}", timeout=30)


def named(*arrangements: dict[str, APIRouter]) -> Any:
    merged = [pytest.param(router, id=name) for each in arrangements for name, router in each.items()]
    return pytest.mark.parametrize("router", merged)


async def held_at_the_commit(client: Client, database: Database) -> bool:
    """Of a request that meets no other."""
    await database.open_account(FREE)
    assert (await take(client, FREE)).status_code == 200
    await until(lambda: database.held)  # it may be after the response
    (held,) = database.held
    return held


async def counts_down(client: Client, database: Database) -> int:
    """What is left of 100 when everybody has taken one at the same time."""
    await database.open_account("bert")
    responses = await asyncio.gather(*(take(client, "bert") for _ in range(REQUESTS)))
    assert {response.status_code for response in responses} == {200}
    await until(lambda: len(database.held) == REQUESTS)
    return await database.balance("bert")


@pytest.mark.filterwarnings("ignore:.*session.* ends after lock")  # though it commits in the body
@pytest.mark.parametrize("endpoint", [commits_itself])
async def test_a_commit_in_the_body_is_in_time(endpoint: Endpoint, server: Server) -> None:
    async with running(app_of(route(endpoint)), server, wait=30) as client, database(client) as accounts:
        assert await held_at_the_commit(client, accounts)
        assert await counts_down(client, accounts) == 100 - REQUESTS


@named(RIGHT, LATE)
async def test_what_holds_the_lock_until_the_commit_loses_no_update(router: APIRouter, server: Server) -> None:
    async with running(app_of(router), server, wait=30) as client, database(client) as accounts:
        assert await held_at_the_commit(client, accounts)
        assert await counts_down(client, accounts) == 100 - REQUESTS


@named(WRONG)
async def test_what_commits_after_the_release_is_warned_of(
    router: APIRouter, server: Server, recwarn: pytest.WarningsRecorder, request: pytest.FixtureRequest
) -> None:
    async with running(app_of(router), server, wait=30) as client, database(client) as accounts:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            assert not await held_at_the_commit(client, accounts)
        told = [str(each.message) for each in recwarn if each.category is LockOrderWarning]
        if NOT_SEEN in request.node.callspec.id:
            assert told == []
        else:
            (text,) = told
            assert text.startswith("POST /take/{account}: the dependency session() of tests.test_examples_database ")
            assert "lock 'account:{account}'" in text


@pytest.mark.filterwarnings("ignore:.*session.* ends after lock")
async def test_a_session_that_has_read_before_the_lock_writes_what_was_true_then(server: Server) -> None:
    async with running(app_of(route(has_read_before)), server, wait=30) as client, database(client) as accounts:
        assert await held_at_the_commit(client, accounts)
        await accounts.open_account("bert")
        have_read.clear()
        async with Locker(server.url) as locker, locker.with_context("account:bert"):
            two = [asyncio.create_task(take(client, "bert")) for _ in range(2)]
            await until(lambda: len(have_read) == 2)
        assert [response.status_code for response in await asyncio.gather(*two)] == [200, 200]
        assert await accounts.balance("bert") == 99  # each has made 99 of 100


@pytest.mark.parametrize(
    ("router", "told"),
    [pytest.param(router, True, id=name) for name, router in RIGHT.items() if "body" not in name]
    + [pytest.param(router, False, id=name) for name, router in LATE.items()],
)
async def test_a_commit_that_fails_is_told_unless_200_is_out(router: APIRouter, told: bool, server: Server) -> None:
    def refuse(_: Session) -> None:
        raise RuntimeError("the disk is full")

    async with running(app_of(router), server) as client, database(client) as accounts:
        await accounts.open_account(FREE)
        event.listen(Session, "before_commit", refuse)
        try:
            response = await take(client, FREE)
            await until(lambda: not client.locked(FREE))
        finally:
            event.remove(Session, "before_commit", refuse)
        assert response.status_code == (500 if told else 200)
        assert await accounts.balance(FREE) == 100


async def test_fastapi_refuses_a_session_that_outlives_the_lock_that_it_depends_on() -> None:
    async def endpoint(session: Annotated[AsyncSession, Depends(fastapi_app.account_session, scope="request")]) -> None:
        """Never called."""

    with pytest.raises(FastAPIError, match='cannot depend on dependencies with scope "function"'):
        route(endpoint)


async def test_two_scopes_of_one_lock_in_one_request_are_an_error(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """FastAPI keeps what a dependency gave for others that ask for it with the same scope, and only for those. The
    request would wait for itself."""

    async def endpoint(account: str, session: AccountSession, lock: AccountLockUntilSent) -> None:
        """Never called."""

    async def once(account: str, session: AccountSession, lock: AccountLock) -> None:
        assert lock.held

    async with running(app_of(route(endpoint)), server) as client:
        refused = await take(client, FREE)
        assert refused.status_code == 500
        assert "AlreadyHeldError: lock 'account:anna' is held by a block around this call" in caplog.text
        assert not client.locked(FREE)
    async with running(app_of(route(once)), server) as client:
        assert (await take(client, FREE)).status_code == 200


async def test_the_example_counts_with_two_servers_of_one_database(server: Server) -> None:
    async with running("fastapi", server, wait=30) as one, serve_asgi(fastapi_app.app) as port:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            two = Client(http, server, port)
            asked = [(one, two)[i % 2].withdraw(FREE, 1, 0.002) for i in range(REQUESTS)]
            assert {response.status_code for response in await asyncio.gather(*asked)} == {200}
        assert (await one.withdraw(FREE, 1)).json() == {"balance": 100 - REQUESTS - 1}


async def test_a_loss_takes_back_what_the_session_has_done(server: Server) -> None:
    """Also what was flushed by then: the commit is not reached."""

    async def endpoint(account: str, session: AccountSession) -> None:
        await take_one(session, account)
        await session.flush()
        client.take_away(account)
        await asyncio.sleep(30)

    async with running(app_of(route(endpoint)), server) as client, database(client) as accounts:
        await accounts.open_account(FREE)
        assert (await take(client, FREE)).status_code == 503
        assert await accounts.balance(FREE) == 100
        assert not accounts.held


async def test_an_endpoint_that_swallows_the_cancellation_commits_nothing(server: Server) -> None:
    async def endpoint(account: str, session: AccountSession) -> None:
        await take_one(session, account)
        client.take_away(account)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(30)

    async with running(app_of(route(endpoint)), server) as client, database(client) as accounts:
        await accounts.open_account(FREE)
        assert (await take(client, FREE)).status_code == 503
        assert await accounts.balance(FREE) == 100


def aiohttp_app_of(*, session_in_middleware: bool) -> Serve:
    """The decorator of the example, around a handler with a database."""
    sessions_key = web.AppKey("sessions", async_sessionmaker[AsyncSession])
    of_request: ContextVar[AsyncSession] = ContextVar("of_request")

    async def engine(app: web.Application) -> AsyncIterator[None]:
        engine = create_async_engine(fastapi_app.DATABASE_URL)
        app[sessions_key] = async_sessionmaker(engine)
        async with engine.begin() as connection:
            await connection.run_sync(fastapi_app.Base.metadata.create_all)
        yield
        await engine.dispose()

    @web.middleware
    async def with_session(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        async with request.app[sessions_key].begin() as session:
            of_request.set(session)
            return await handler(request)

    @locked("account:{account}")
    async def handler(request: web.Request) -> web.Response:
        account = request.match_info["account"]
        if session_in_middleware:
            await take_one(of_request.get(), account)
        else:
            async with request.app[sessions_key].begin() as session:
                await take_one(session, account)
        return web.Response()

    def make_app() -> web.Application:
        app = web.Application(middlewares=[with_session] if session_in_middleware else [])
        setup(app, aiohttp_app.LOCK_URL, timeout=aiohttp_app.LOCK_WAIT)
        app.cleanup_ctx.append(engine)
        app.router.add_post("/take/{account}", handler)
        return app

    return lambda: serve_aiohttp(make_app())


async def test_aiohttp_with_a_session_in_the_handler_loses_no_update(server: Server) -> None:
    async with (
        running(aiohttp_app_of(session_in_middleware=False), server, wait=30) as client,
        database(client) as accounts,
    ):
        assert await held_at_the_commit(client, accounts)
        assert await counts_down(client, accounts) == 100 - REQUESTS


async def test_aiohttp_with_a_session_in_a_middleware_commits_after_the_release(server: Server) -> None:
    async with (
        running(aiohttp_app_of(session_in_middleware=True), server, wait=30) as client,
        database(client) as accounts,
    ):
        assert not await held_at_the_commit(client, accounts)
