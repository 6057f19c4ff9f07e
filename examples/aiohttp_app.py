"""aiohttp: one withdrawal at a time for each account, however many processes serve them.

    LOCK_URL=redis://127.0.0.1:6379 python examples/aiohttp_app.py

The second of these answers 423 Locked, after LOCK_WAIT seconds; once the first is through, it answers 200.

    curl -X POST 'http://127.0.0.1:8080/accounts/anna/withdraw?amount=10&seconds=5' &
    sleep 1; curl -iX POST 'http://127.0.0.1:8080/accounts/anna/withdraw?amount=10'
"""

import asyncio
import functools
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

from asynclock import AcquireTimeoutError, Locker, LockLostError, LockScope, NotLockedError, ServerError

LOCK_URL = os.environ.get("LOCK_URL", "redis://127.0.0.1:6379")
LOCK_WAIT = float(os.environ.get("LOCK_WAIT", "1"))  # seconds until 423; 0: at once
LOCKER = web.AppKey("locker", Locker)

log = logging.getLogger(__name__)
balances: dict[str, int] = {}  # stands for the database; every account begins with 100


async def open_locker(app: web.Application) -> AsyncIterator[None]:
    # One for the process: all requests share its connection, and queue in it for the same account.
    async with Locker(LOCK_URL) as locker:
        app[LOCKER] = locker
        yield


async def acquire(locker: Locker, name: str) -> LockScope:
    try:
        # Ask once before waiting: this tells a server that is down (ServerError, 503) from an
        # account that is busy. A wait ends with AcquireTimeoutError in both cases.
        return await locker.try_acquire(name)
    except NotLockedError:
        return await locker.acquire(name, timeout=LOCK_WAIT)


def one_at_a_time(
    handler: Callable[[web.Request, LockScope], Awaitable[web.Response]],
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Hold the account's lock while the handler runs.

    A lost lock cancels the task that entered the scope, which is the handler's: aiohttp runs
    middlewares, decorators and handlers of a request in one task. The response is sent after the
    lock was given back, so that every loss is told. (A handler that streams, with
    ``response.prepare()``, has sent its status before: it can only break off.)
    """

    @functools.wraps(handler)
    async def locked(request: web.Request) -> web.Response:
        try:
            async with await acquire(request.app[LOCKER], f"account:{request.match_info['account']}") as scope:
                response = await handler(request, scope)
            return response
        except AcquireTimeoutError:
            return answer(423, "another request works on this account")
        except (LockLostError, ServerError) as error:
            log.warning("%s: %s", request.path, error)  # names servers and keys: for us, not for the client
            return answer(503, "the lock was lost, or cannot be had now")

    return locked


def answer(status: int, detail: str) -> web.Response:
    return web.json_response({"detail": detail}, status=status, headers={"Retry-After": "1"})


@one_at_a_time
async def withdraw(request: web.Request, lock: LockScope) -> web.Response:
    account = request.match_info["account"]
    try:
        amount = int(request.query.get("amount", "10"))
        seconds = float(request.query.get("seconds", "0.1"))
    except ValueError as error:
        raise web.HTTPUnprocessableEntity(text=str(error)) from None
    if not (amount > 0 and 0 <= seconds <= 10):
        raise web.HTTPUnprocessableEntity(text="amount must be above 0, seconds from 0 to 10")
    balance = balances.get(account, 100)
    if amount > balance:
        raise web.HTTPConflict(text=f"the balance is {balance}")
    await asyncio.sleep(seconds)  # slow work, such as a call to a bank; cancelled if the lock is lost
    lock.check()  # the last look before the write: costs nothing, and serves after a stretch without await
    balances[account] = balance - amount
    return web.json_response({"balance": balances[account]})


def make_app() -> web.Application:
    app = web.Application()
    app.cleanup_ctx.append(open_locker)
    app.router.add_post("/accounts/{account}/withdraw", withdraw)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=int(os.environ.get("PORT", "8080")))
