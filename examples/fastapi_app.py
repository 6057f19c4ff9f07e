"""FastAPI: one request at a time for each account, however many processes serve them.

    LOCK_URL=redis://127.0.0.1:6379 uvicorn examples.fastapi_app:app --workers 2    # or: python -m examples.fastapi_app

The second of these answers 423 Locked, after LOCK_WAIT seconds; once the first is through, it answers 200.

    curl -X POST 'http://127.0.0.1:8000/accounts/anna/withdraw?amount=10&seconds=5' &
    sleep 1; curl -iX POST 'http://127.0.0.1:8000/accounts/anna/withdraw?amount=10'

The database is a file of SQLite, accounts.db, which all workers share; DATABASE_URL is another one.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, TypedDict

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Query, WebSocket
from fastapi.requests import HTTPConnection
from fastapi.responses import StreamingResponse
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateTable

from asynclock import LockScope
from asynclock.integrations.fastapi import Locks

LOCK_URL = os.environ.get("LOCK_URL", "redis://127.0.0.1:6379")
LOCK_WAIT = float(os.environ.get("LOCK_WAIT", "1"))  # seconds until 423; 0: at once
DATABASE_URL = os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///accounts.db")


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"
    name: Mapped[str] = mapped_column(primary_key=True)
    balance: Mapped[int]


class State(TypedDict):
    sessions: async_sessionmaker[AsyncSession]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[State]:
    engine = create_async_engine(DATABASE_URL)
    try:
        async with engine.begin() as connection:
            for table in Base.metadata.sorted_tables:  # every worker does this
                await connection.execute(CreateTable(table, if_not_exists=True))
        yield {"sessions": async_sessionmaker(engine)}  # becomes request.state.sessions
    finally:
        await engine.dispose()


locks = Locks(LOCK_URL, timeout=LOCK_WAIT)
app = FastAPI(lifespan=lifespan)
locks.install(app)

# Until the endpoint has returned. A commit comes before that, if the session depends on the lock.
AccountLock = Annotated[LockScope, locks.lock("account:{account}")]
# Until the response has been sent, for one that is sent bit by bit.
AccountLockUntilSent = Annotated[LockScope, locks.lock("account:{account}", scope="request")]


async def account_session(lock: AccountLock, connection: HTTPConnection) -> AsyncIterator[AsyncSession]:
    """A session that begins after the lock is held, and commits before it is given back: it depends on the lock."""
    async with connection.state.sessions.begin() as session:
        yield session
        lock.check()  # the last look before the commit: costs nothing, and serves after a stretch without await


AccountSession = Annotated[AsyncSession, Depends(account_session, scope="function")]


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

    return StreamingResponse(body(), media_type="text/plain")


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
