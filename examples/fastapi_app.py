"""FastAPI: one withdrawal at a time for each account, however many processes serve them.

    LOCK_URL=redis://127.0.0.1:6379 uvicorn examples.fastapi_app:app        # or: python -m examples.fastapi_app

The second of these answers 423 Locked, after LOCK_WAIT seconds; once the first is through, it answers 200.

    curl -X POST 'http://127.0.0.1:8000/accounts/anna/withdraw?amount=10&seconds=5' &
    sleep 1; curl -iX POST 'http://127.0.0.1:8000/accounts/anna/withdraw?amount=10'
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse

from asynclock import AcquireTimeoutError, Locker, LockLostError, LockScope, NotLockedError, ServerError

LOCK_URL = os.environ.get("LOCK_URL", "redis://127.0.0.1:6379")
LOCK_WAIT = float(os.environ.get("LOCK_WAIT", "1"))  # seconds until 423; 0: at once

log = logging.getLogger(__name__)
balances: dict[str, int] = {}  # stands for the database; every account begins with 100


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Locker]]:
    # One for the process: all requests share its connection, and queue in it for the same account.
    async with Locker(LOCK_URL) as locker:
        yield {"locker": locker}  # becomes request.state.locker


app = FastAPI(lifespan=lifespan)


async def account_lock(account: str, request: Request) -> AsyncIterator[LockScope]:
    """Hold the account's lock while the endpoint runs.

    A lost lock cancels the task that entered the scope. FastAPI runs an async dependency and an
    ``async def`` endpoint in one task, so the endpoint stops. Not so

    - a ``def`` endpoint: it runs on in its thread, and has to call ``lock.check()`` before it writes;
    - an endpoint whose lock is taken in a ``BaseHTTPMiddleware``: that is another task. (As long as
      the lock is taken here, such middleware does no harm.)
    """
    locker: Locker = request.state.locker
    name = f"account:{account}"
    try:
        # Ask once before waiting: this tells a server that is down (ServerError, 503) from an
        # account that is busy. A wait ends with AcquireTimeoutError in both cases.
        scope = await locker.try_acquire(name)
    except NotLockedError:
        scope = await locker.acquire(name, timeout=LOCK_WAIT)
    async with scope:
        yield scope


# scope="function" (FastAPI 0.121 or later): the lock is given back before the response is sent, so a
# loss that shows only then is still a 503; with the default, 200 would be out by then. (A
# StreamingResponse's body and background tasks run later, without the lock.)
AccountLock = Annotated[LockScope, Depends(account_lock, scope="function")]


@app.exception_handler(AcquireTimeoutError)
async def busy(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "another request works on this account"}, 423, {"Retry-After": "1"})


@app.exception_handler(LockLostError)
@app.exception_handler(ServerError)
async def unavailable(request: Request, error: Exception) -> JSONResponse:
    log.warning("%s: %s", request.url.path, error)  # names servers and keys: for us, not for the client
    return JSONResponse({"detail": "the lock was lost, or cannot be had now"}, 503, {"Retry-After": "1"})


@app.post("/accounts/{account}/withdraw")
async def withdraw(
    account: str,
    lock: AccountLock,
    amount: Annotated[int, Query(gt=0)] = 10,
    seconds: Annotated[float, Query(ge=0, le=10)] = 0.1,
) -> dict[str, int]:
    balance = balances.get(account, 100)
    if amount > balance:
        raise HTTPException(409, f"the balance is {balance}")
    await asyncio.sleep(seconds)  # slow work, such as a call to a bank; cancelled if the lock is lost
    lock.check()  # the last look before the write: costs nothing, and serves after a stretch without await
    balances[account] = balance - amount
    return {"balance": balances[account]}


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
