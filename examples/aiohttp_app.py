"""aiohttp: one request at a time for each account, however many processes serve them.

    LOCK_URL=redis://127.0.0.1:6379 python examples/aiohttp_app.py

The second of these answers 423 Locked, after LOCK_WAIT seconds; once the first is through, it answers 200.

    curl -X POST 'http://127.0.0.1:8080/accounts/anna/withdraw?amount=10&seconds=5' &
    sleep 1; curl -iX POST 'http://127.0.0.1:8080/accounts/anna/withdraw?amount=10'

The database is a file of SQLite, accounts.db; DATABASE_URL is another one.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import TypeVar

from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateTable

from asynclock.integrations.aiohttp import SCOPE, locked, setup

LOCK_URL = os.environ.get("LOCK_URL", "redis://127.0.0.1:6379")
LOCK_WAIT = float(os.environ.get("LOCK_WAIT", "1"))  # seconds until 423; 0: at once
DATABASE_URL = os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///accounts.db")
SESSIONS: web.AppKey[async_sessionmaker[AsyncSession]] = web.AppKey("sessions", async_sessionmaker)

N = TypeVar("N", int, float)


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"
    name: Mapped[str] = mapped_column(primary_key=True)
    balance: Mapped[int]


async def database(app: web.Application) -> AsyncIterator[None]:
    engine = create_async_engine(DATABASE_URL)
    async with engine.begin() as connection:
        # Several processes may start at the same time.
        await connection.execute(CreateTable(Base.metadata.tables["accounts"], if_not_exists=True))
    app[SESSIONS] = async_sessionmaker(engine)
    yield
    await engine.dispose()


def number(request: web.Request, name: str, default: N, low: N, high: N) -> N:
    try:
        value = type(default)(request.query.get(name, default))
    except ValueError as error:
        raise web.HTTPUnprocessableEntity(text=str(error)) from None
    if not low <= value <= high:
        raise web.HTTPUnprocessableEntity(text=f"{name} must be from {low} to {high}")
    return value


async def withdraw_from(request: web.Request, amount: int, seconds: float = 0.0) -> int:
    """Under the lock, from the first read to the commit: so nobody overwrites what another has written."""
    name = request.match_info["account"]
    async with request.app[SESSIONS].begin() as session:
        account = await session.get(Account, name)
        if account is None:
            account = Account(name=name, balance=100)  # everybody begins with 100
            session.add(account)
        balance = account.balance
        if amount > balance:
            raise web.HTTPConflict(text=f"the balance is {balance}")
        await asyncio.sleep(seconds)  # slow work, such as a call to a bank; cancelled if the lock is lost
        account.balance = balance - amount
        request[SCOPE].check()  # the last look before the commit: costs nothing, serves after a stretch without await
    return balance - amount


@locked("account:{account}")
async def withdraw(request: web.Request) -> web.Response:
    amount = number(request, "amount", 10, 1, 1000)
    seconds = number(request, "seconds", 0.1, 0.0, 10.0)
    return web.json_response({"balance": await withdraw_from(request, amount, seconds)})


@locked("account:{account}")
async def statement(request: web.Request) -> web.StreamResponse:
    """Lines that are sent one by one, while nobody else changes the account: so the handler sends them itself."""
    lines = number(request, "lines", 3, 1, 1000)
    seconds = number(request, "seconds", 0.1, 0.0, 10.0)
    async with request.app[SESSIONS]() as session:
        account = await session.get(Account, request.match_info["account"])
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    for line in range(lines):
        await response.write(f"{line + 1}: {100 if account is None else account.balance}\n".encode())
        await asyncio.sleep(seconds)
    await response.write_eof()
    return response


@locked("account:{account}")
async def teller(request: web.Request) -> web.StreamResponse:
    """A WebSocket that has the account to itself, and withdraws what each message says."""
    websocket = web.WebSocketResponse(heartbeat=20)  # a client that is gone without a word must not keep the lock
    await websocket.prepare(request)
    async for message in websocket:
        await websocket.send_str(str(await withdraw_from(request, int(message.data))))
    return websocket


def make_app() -> web.Application:
    app = web.Application()
    setup(app, LOCK_URL, timeout=LOCK_WAIT)
    app.cleanup_ctx.append(database)
    app.router.add_post("/accounts/{account}/withdraw", withdraw)
    app.router.add_get("/accounts/{account}/statement", statement)
    app.router.add_get("/accounts/{account}/teller", teller)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=int(os.environ.get("PORT", "8080")))
