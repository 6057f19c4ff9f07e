"""FastAPI: one request at a time for each account, however many processes serve them.

    LOCK_URL=redis://127.0.0.1:6379 uvicorn examples.fastapi_app:app        # or: python -m examples.fastapi_app

The second of these answers 423 Locked, after LOCK_WAIT seconds; once the first is through, it answers 200.

    curl -X POST 'http://127.0.0.1:8000/accounts/anna/withdraw?amount=10&seconds=5' &
    sleep 1; curl -iX POST 'http://127.0.0.1:8000/accounts/anna/withdraw?amount=10'

The database is a file of SQLite, accounts.db; DATABASE_URL is another one.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, TypedDict, TypeVar

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Query, WebSocket
from fastapi.requests import HTTPConnection
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.websockets import WebSocketState
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from asynclock import (
    AcquireTimeoutError,
    Locker,
    LockerClosedError,
    LockLostError,
    LockScope,
    NotLockedError,
    ServerError,
)

LOCK_URL = os.environ.get("LOCK_URL", "redis://127.0.0.1:6379")
LOCK_WAIT = float(os.environ.get("LOCK_WAIT", "1"))  # seconds until 423; 0: at once
DATABASE_URL = os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///accounts.db")

log = logging.getLogger(__name__)
T = TypeVar("T")


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"
    name: Mapped[str] = mapped_column(primary_key=True)
    balance: Mapped[int]


class State(TypedDict):
    locker: Locker
    sessions: async_sessionmaker[AsyncSession]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[State]:
    # One for the process: all requests share its connection, and queue in it for the same account.
    async with Locker(LOCK_URL) as locker:
        engine = create_async_engine(DATABASE_URL)
        try:
            async with locker.with_context("accounts: make the table"), engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
            yield {"locker": locker, "sessions": async_sessionmaker(engine)}  # become request.state.locker, .sessions
        finally:
            await engine.dispose()


app = FastAPI(lifespan=lifespan)


async def account_lock(account: str, connection: HTTPConnection) -> AsyncIterator[LockScope]:
    """Hold the account's lock while the endpoint runs.

    A lost lock cancels the task that entered the scope. FastAPI runs an async dependency and an
    ``async def`` endpoint in one task, so the endpoint stops. Not so

    - a ``def`` endpoint: it runs on in its thread, and has to call ``lock.check()`` before it writes;
    - an endpoint whose lock is taken in a ``BaseHTTPMiddleware``: that is another task. (As long as
      the lock is taken here, such middleware does no harm.)
    """
    locker: Locker = connection.state.locker
    name = f"account:{account}"
    try:
        # Ask once before waiting: a server that is down is told at once (ServerError), and not after the wait.
        scope = await locker.try_acquire(name)
    except NotLockedError:
        scope = await locker.acquire(name, timeout=LOCK_WAIT)
    async with scope:
        yield scope


# scope="function" (FastAPI 0.121.1 or later): the lock is given back before the response is sent, so a
# loss that shows only then is still a 503; with the other, 200 would be out by then.
AccountLock = Annotated[LockScope, Depends(account_lock, scope="function")]
# scope="request": the lock is held until the response has been sent, for one that is sent bit by bit.
AccountLockUntilSent = Annotated[LockScope, Depends(account_lock, scope="request")]


async def account_session(lock: AccountLock, connection: HTTPConnection) -> AsyncIterator[AsyncSession]:
    """A session that commits under the lock.

    It depends on the lock: so it begins after the lock is held, and commits before that is given
    back, in whatever order an endpoint names the two. A session that depends on no lock commits
    after it, if it is not of scope="function", or stands before it: then updates are lost.
    """
    async with connection.state.sessions.begin() as session:
        yield session
        lock.check()  # the last look before the commit: costs nothing, and serves after a stretch without await


AccountSession = Annotated[AsyncSession, Depends(account_session, scope="function")]


@app.exception_handler(AcquireTimeoutError)
async def busy(connection: HTTPConnection, error: AcquireTimeoutError) -> JSONResponse | None:
    if isinstance(error.__cause__, ServerError):  # nobody has it: the server went away meanwhile
        return await unavailable(connection, error)
    return await refuse(connection, 423, "another request works on this account")


@app.exception_handler(LockLostError)
@app.exception_handler(LockerClosedError)
@app.exception_handler(ServerError)
async def unavailable(connection: HTTPConnection, error: Exception) -> JSONResponse | None:
    log.warning("%s: %s", connection.url.path, error)  # names servers and keys: for us, not for the client
    return await refuse(connection, 503, "the lock was lost, or cannot be had now")


async def refuse(connection: HTTPConnection, status: int, detail: str) -> JSONResponse | None:
    """Not called for a response that has begun: that is broken off, since what an endpoint raises then
    makes the server close the connection."""
    if not isinstance(connection, WebSocket):
        return JSONResponse({"detail": detail}, status, {"Retry-After": "1"})
    # Scripts in a browser are shown the code of a WebSocket that is closed, but no status of one that is refused.
    if connection.application_state is WebSocketState.CONNECTING:
        await connection.accept(next(iter(connection.scope["subprotocols"]), None))
    if connection.application_state is connection.client_state is WebSocketState.CONNECTED:
        await connection.close(1013, detail)  # try again later
    return None


async def withdraw_from(session: AsyncSession, name: str, amount: int, seconds: float = 0.0) -> int:
    account = await session.get(Account, name)
    if account is None:
        account = Account(name=name, balance=100)  # everybody begins with 100
        session.add(account)
    balance = account.balance
    if amount > balance:
        raise HTTPException(409, f"the balance is {balance}")
    await asyncio.sleep(seconds)  # slow work, such as a call to a bank; cancelled if the lock is lost
    account.balance = balance - amount
    return account.balance


@app.post("/accounts/{account}/withdraw")
async def withdraw(
    account: str,
    session: AccountSession,
    amount: Annotated[int, Query(gt=0)] = 10,
    seconds: Annotated[float, Query(ge=0, le=10)] = 0.1,
) -> dict[str, int]:
    return {"balance": await withdraw_from(session, account, amount, seconds)}


async def while_locked(lock: LockScope, chunks: AsyncIterator[T]) -> AsyncIterator[T]:
    """For the body of a response: whatever ``chunks`` does with a cancellation, nothing is sent after
    the loss, and an answer that is cut short does not end like a whole one."""
    async for chunk in chunks:
        lock.check()
        yield chunk
    lock.check()


@app.get("/accounts/{account}/statement")
async def statement(
    account: str,
    lock: AccountLockUntilSent,
    connection: HTTPConnection,
    lines: Annotated[int, Query(gt=0, le=1000)] = 3,
    seconds: Annotated[float, Query(ge=0, le=10)] = 0.1,
) -> StreamingResponse:
    """Lines that are sent one by one, while nobody else changes the account."""
    async with connection.state.sessions() as session:
        found = await session.get(Account, account)

    async def body() -> AsyncIterator[str]:
        # No "async with" around a yield: nobody closes a generator that is not run to its end.
        for line in range(lines):
            yield f"{line + 1}: {100 if found is None else found.balance}\n"
            await asyncio.sleep(seconds)

    return StreamingResponse(while_locked(lock, body()), media_type="text/plain")


@app.websocket("/accounts/{account}/teller")
async def teller(websocket: WebSocket, account: str, lock: AccountLock) -> None:
    """A WebSocket that has the account to itself, and withdraws what each message says."""
    await websocket.accept()
    async for message in websocket.iter_text():
        async with websocket.state.sessions.begin() as session:
            balance = await withdraw_from(session, account, int(message))
            lock.check()
        await websocket.send_text(str(balance))


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
