"""aiohttp: one request at a time for each account, however many processes serve them.

    LOCK_URL=redis://127.0.0.1:6379 python examples/aiohttp_app.py

The second of these answers 423 Locked, after LOCK_WAIT seconds; once the first is through, it answers 200.

    curl -X POST 'http://127.0.0.1:8080/accounts/anna/withdraw?amount=10&seconds=5' &
    sleep 1; curl -iX POST 'http://127.0.0.1:8080/accounts/anna/withdraw?amount=10'
"""

import asyncio
import contextlib
import functools
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from aiohttp import WSCloseCode, web

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
LOCKER = web.AppKey("locker", Locker)
HANG_UP = 1.0  # seconds for a WebSocket's client to answer that it is closed

N = TypeVar("N", int, float)
log = logging.getLogger(__name__)
balances: dict[str, int] = {}  # stands for the database; every account begins with 100


async def open_locker(app: web.Application) -> AsyncIterator[None]:
    # One for the process: all requests share its connection, and queue in it for the same account.
    async with Locker(LOCK_URL) as locker:
        app[LOCKER] = locker
        yield


async def acquire(locker: Locker, name: str) -> LockScope:
    try:
        # Ask once before waiting: a server that is down is told at once (ServerError), and not after the wait.
        return await locker.try_acquire(name)
    except NotLockedError:
        return await locker.acquire(name, timeout=LOCK_WAIT)


@dataclass
class Held:
    """The lock of a request whose handler runs, and what the handler has begun to answer."""

    lock: LockScope
    begun: web.StreamResponse | None = None
    watch: asyncio.Task[None] | None = None


held_here: ContextVar[Held | None] = ContextVar("held_here", default=None)


def one_at_a_time(
    handler: Callable[[web.Request, LockScope], Awaitable[web.StreamResponse]],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Hold the account's lock while the handler runs.

    A lost lock cancels the task that entered the scope, which is the handler's: aiohttp runs
    middlewares, decorators and handlers of a request in one task. A response that the handler
    returns is sent after the lock was given back, so that every loss is a 503. One that it has begun
    itself, with ``prepare()``, cannot be taken back, and no other may follow on its connection: it
    is broken off.
    """

    @functools.wraps(handler)
    async def locked(request: web.Request) -> web.StreamResponse:
        held = None
        try:
            async with await acquire(request.app[LOCKER], f"account:{request.match_info['account']}") as lock:
                held = Held(lock)
                token = held_here.set(held)
                try:
                    response = await handler(request, lock)
                finally:
                    held_here.reset(token)
            return response
        except (AcquireTimeoutError, LockLostError, LockerClosedError, ServerError) as error:
            if held is not None and held.begun is not None and held.watch is not None:
                log.warning("%s: %s", request.path, error)
                await held.watch
                await break_off(request, held.begun)  # a loss that showed only at the release
                return held.begun
            if isinstance(error, AcquireTimeoutError) and not isinstance(error.__cause__, ServerError):
                return await refuse(request, 423, "another request works on this account")
            log.warning("%s: %s", request.path, error)  # names servers and keys: for us, not for the client
            return await refuse(request, 503, "the lock was lost, or cannot be had now")

    return locked


async def refuse(request: web.Request, status: int, detail: str) -> web.StreamResponse:
    """Nothing has been answered yet."""
    offered = [each.strip() for each in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
    websocket = web.WebSocketResponse(protocols=offered, timeout=HANG_UP)
    if websocket.can_prepare(request):
        # Scripts in a browser are shown the code of a WebSocket that is closed, but no status of one that is refused.
        await websocket.prepare(request)
        await websocket.close(code=WSCloseCode.TRY_AGAIN_LATER, message=detail.encode())
        return websocket
    return web.json_response({"detail": detail}, status=status, headers={"Retry-After": "1"})


async def watch_begun(request: web.Request, response: web.StreamResponse) -> None:
    """A response is about to be begun (``on_response_prepare``)."""
    held = held_here.get()
    if held is not None:
        held.begun = response
        held.watch = asyncio.create_task(break_off_when_lost(request, response, held.lock))
        if not held.lock.held:  # it is not to be begun any more: a handler has swallowed its cancellation
            cut(request)


async def break_off_when_lost(request: web.Request, response: web.StreamResponse, lock: LockScope) -> None:
    # At once, before the handler hears of it: what that does in a ``finally``, such as ``write_eof()``
    # or a friendly ``close()``, is not to make a whole answer of a broken one.
    if await lock.wait_lost() is not None:
        await break_off(request, response)


async def break_off(request: web.Request, response: web.StreamResponse) -> None:
    """Close a WebSocket with 1013, and cut the connection under any other response. Twice does no harm."""
    if isinstance(response, web.WebSocketResponse) and response.prepared:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HANG_UP):
                await response.close(code=WSCloseCode.TRY_AGAIN_LATER, message=b"the lock was lost")
        if request.transport is not None:
            request.transport.abort()
    else:
        cut(request)


def cut(request: web.Request) -> None:
    transport = request.transport
    if transport is not None and not transport.is_closing():  # else the client has gone
        # With a reset: HTTP/1.0, which some proxies speak, takes an orderly end for the end of the body.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


def number(request: web.Request, name: str, default: N, low: N, high: N) -> N:
    try:
        value = type(default)(request.query.get(name, default))
    except ValueError as error:
        raise web.HTTPUnprocessableEntity(text=str(error)) from None
    if not low <= value <= high:
        raise web.HTTPUnprocessableEntity(text=f"{name} must be from {low} to {high}")
    return value


@one_at_a_time
async def withdraw(request: web.Request, lock: LockScope) -> web.Response:
    account = request.match_info["account"]
    amount = number(request, "amount", 10, 1, 1000)
    seconds = number(request, "seconds", 0.1, 0.0, 10.0)
    balance = balances.get(account, 100)
    if amount > balance:
        raise web.HTTPConflict(text=f"the balance is {balance}")
    await asyncio.sleep(seconds)  # slow work, such as a call to a bank; cancelled if the lock is lost
    lock.check()  # the last look before the write: costs nothing, and serves after a stretch without await
    balances[account] = balance - amount
    return web.json_response({"balance": balances[account]})


@one_at_a_time
async def statement(request: web.Request, lock: LockScope) -> web.StreamResponse:
    """Lines that are sent one by one, while nobody else changes the account."""
    account = request.match_info["account"]
    lines = number(request, "lines", 3, 1, 1000)
    seconds = number(request, "seconds", 0.1, 0.0, 10.0)
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    for line in range(lines):
        await response.write(f"{line + 1}: {balances.get(account, 100)}\n".encode())
        await asyncio.sleep(seconds)
    await response.write_eof()
    return response


@one_at_a_time
async def teller(request: web.Request, lock: LockScope) -> web.StreamResponse:
    """A WebSocket that has the account to itself, and withdraws what each message says."""
    account = request.match_info["account"]
    websocket = web.WebSocketResponse(heartbeat=20)  # a client that is gone without a word must not keep the lock
    await websocket.prepare(request)
    async for message in websocket:
        lock.check()
        balances[account] = balances.get(account, 100) - int(message.data)
        await websocket.send_str(str(balances[account]))
    return websocket


def make_app() -> web.Application:
    app = web.Application()
    app.cleanup_ctx.append(open_locker)
    app.on_response_prepare.append(watch_begun)
    app.router.add_post("/accounts/{account}/withdraw", withdraw)
    app.router.add_get("/accounts/{account}/statement", statement)
    app.router.add_get("/accounts/{account}/teller", teller)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=int(os.environ.get("PORT", "8080")))
