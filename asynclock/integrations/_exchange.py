"""What has been sent for a request or on a WebSocket, and the locks that are held for it: so that nothing is sent once
one of them is lost, and no second response ever."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from contextlib import AsyncExitStack
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import AlreadyHeldError, AsyncLockError, ConfigurationError, LockLostError
from ..messages import about
from ..scope import LockScope
from ._answers import ANSWERED, Answers, Outcome, claim, claimed, outcome

log = logging.getLogger("asynclock")

_KEY = "asynclock"  # in the ASGI scope


class Exchange:
    """One request, or one WebSocket, from the side of the server.

    Invariants: a flag is set before its message is passed on. Nothing of ours is sent after ``ended``. A scope is in
    ``_held`` while its block is entered, and no longer. ``_broken`` is set when the block of a dependency was left by a
    loss, and unset when that is answered: what is sent while it is set is the rest of a response that was begun before.
    """

    __slots__ = (
        "_broken",
        "_connected",
        "_held",
        "_opened",
        "_receive",
        "_responding",
        "_scope",
        "_send",
        "begun",
        "ended",
        "replaced",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun = False  #: a response has begun
        self.ended = False  #: it has been sent completely; or the WebSocket is closed
        self.replaced = False  #: the response of the application was replaced by ours
        self._connected = False  # the application has been told that a WebSocket wants to connect
        self._opened = False  # and has accepted it
        self._responding = False  # the endpoint has returned
        self._broken: tuple[AsyncLockError, Answers] | None = None
        self._held: list[tuple[LockScope, Answers, asyncio.Task[Any] | None]] = []
        self._scope, self._receive, self._send = scope, receive, send

    @classmethod
    def of(cls, connection: HTTPConnection) -> Exchange:
        exchange = connection.scope.get(_KEY)
        if not isinstance(exchange, Exchange):
            raise ConfigurationError(
                "the locks are not installed in this application: call locks.install(app) when the app is made. "
                "(In a mounted application, its parent's is enough.)"
            )
        return exchange

    # Locks

    def check_free(self, name: str, answers: Answers) -> None:
        """:raises AlreadyHeldError: this task holds it in a block around this one, and would wait for itself"""
        task = asyncio.current_task()
        for scope, of, holder in self._held:
            if scope.name == name and of is answers and holder is task and scope.held:
                raise AlreadyHeldError(name)

    def add(self, scope: LockScope, answers: Answers) -> None:
        self._held.append((scope, answers, asyncio.current_task()))

    def remove(self, scope: LockScope) -> None:
        self._held = [each for each in self._held if each[0] is not scope]

    def watch(self, connection: HTTPConnection) -> None:
        """Notice when FastAPI's endpoint has returned: what is sent from then on is its response."""
        stack = connection.scope.get("fastapi_function_astack")
        if isinstance(stack, AsyncExitStack):
            stack.push(self._returned)

    def _returned(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._responding = self._responding or error is None

    def lost(self, error: AsyncLockError, answers: Answers) -> None:
        """A dependency has ended with a loss. A BaseHTTPMiddleware would end a response that has begun as if it were
        whole, before it passes the error on."""
        if self._scope["type"] == "http" and (self.begun or self._responding) and not self.ended:
            self._broken = error, answers

    def answered(self) -> None:
        self._broken = None

    def _loss(self) -> tuple[AsyncLockError, Answers] | None:
        for scope, answers, _ in self._held:
            if scope.lost_reason is not None:
                try:
                    scope.check()
                except LockLostError as error:
                    claim(error, answers)
                    return error, answers
        return None

    # What the application sends and receives

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "websocket.connect":
            self._connected = True
        elif message["type"] == "websocket.disconnect":
            self.ended = True
        return message

    async def send(self, message: Message) -> None:
        loss = self._broken or (self._loss() if self._held else None)
        kind = message["type"]
        if loss is not None:
            if kind == "http.response.start":
                await self._replace(*loss)
            elif kind != "websocket.close":
                # What is raised here comes out of the application, and makes the server close the connection, though
                # an endpoint may have swallowed its cancellation, and send on.
                try:
                    raise loss[0]
                finally:
                    del loss  # no cycle through its traceback
            error, answers = loss  # an endpoint closes it in a ``finally``, or swallows the cancellation
            message = {**message, "code": answers.close_code, "reason": answers.reason(error)}
        match kind:
            case "http.response.start":
                self.begun = True
            case "http.response.body" | "http.response.pathsend" | "http.response.zerocopysend":
                self.ended = not message.get("more_body", False)
            case "websocket.accept":
                self._opened = True
            case "websocket.close" | "websocket.http.response.start":
                self.ended = True
        await self._send(message)

    async def _replace(self, error: AsyncLockError, answers: Answers) -> None:
        """Nothing has been sent yet: send the answer to ``error``, and stop the application."""
        self.replaced = True
        tell(self._scope, error)
        await response(error, answers)(self._scope, self._receive, self._send)
        raise error

    def over(self) -> None:
        """The server has nothing more to do with it. A task that still runs may keep it, but no cycle does."""
        self._scope = {key: self._scope.get(key) for key in ("type", "method", "path")}
        self._receive, self._send = _gone, _refuse
        self._broken = None
        self.ended = True

    async def close(self, code: int, reason: str) -> None:
        """Close the WebSocket. A script in a browser learns the code only if it was accepted before."""
        if self.ended:
            return
        with contextlib.suppress(OSError):  # the client has gone
            if not self._connected:
                await self.receive()
            if not self._opened and not self.ended:
                # Without one of the protocols that it offers, a browser reports a failure instead of the code.
                offered = next(iter(self._scope.get("subprotocols") or ()), None)
                self._opened = True
                await self._send({"type": "websocket.accept", "subprotocol": offered, "headers": []})
            if not self.ended:
                self.ended = True
                await self._send({"type": "websocket.close", "code": code, "reason": reason})


async def _gone() -> Message:
    return {"type": "http.disconnect"}


async def _refuse(message: Message) -> None:
    raise OSError("the request is over, and its client has gone")


class Guard:
    """The outermost middleware of an application, outside of what would end a broken response as if it were whole."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or _KEY in scope:  # _KEY: in an application that is mounted
            await self.app(scope, receive, send)
            return
        exchange = scope[_KEY] = Exchange(scope, receive, send)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except Exception as error:
            ours = _ours(error, exchange)
            if ours is None:
                raise
            if exchange.replaced:
                return
            if exchange.ended:  # a background task. Nothing is wrong with what the client has got
                tell(scope, ours, always=True)
                return
            if ours is error:
                raise
            raise ours from None
        finally:
            exchange.over()


def _ours(error: Exception, exchange: Exchange) -> AsyncLockError | None:
    begun = exchange.begun or exchange.replaced
    cause = error.__cause__ if type(error) is RuntimeError and begun else None  # Starlette's "response already started"
    for each in (error, cause):
        if isinstance(each, AsyncLockError) and claimed(each) is not None:
            return each
    return None


# The answers


def add_handlers(connection: HTTPConnection) -> None:
    """Register ``answer`` for our errors, with the innermost application that the connection is in: one that is mounted
    has handlers of its own. Handlers that it has for these errors stay."""
    handlers, _ = connection.scope.get("starlette.exception_handlers", ({}, {}))
    for kind in ANSWERED:
        handlers.setdefault(kind, answer)


async def answer(connection: HTTPConnection, error: Exception) -> Response | None:
    """An exception handler of Starlette, called only while no response has begun."""
    answers = claimed(error)
    if answers is None:  # of another locker, and for the application to handle
        return await _handled_otherwise(connection, error)
    assert isinstance(error, AsyncLockError)
    tell(connection.scope, error)
    exchange = Exchange.of(connection)
    exchange.answered()
    if connection.scope["type"] != "websocket":
        return response(error, answers)
    await exchange.close(answers.close_code, answers.reason(error))
    return None


async def _handled_otherwise(connection: HTTPConnection, error: Exception) -> Response | None:
    """By the application's own handler, which Starlette would have found if there were none of ours."""
    handlers, _ = connection.scope["starlette.exception_handlers"]
    for kind in type(error).__mro__:
        handler = handlers.get(kind, answer)
        if handler is not answer:
            in_loop = inspect.iscoroutinefunction(handler)  # Starlette runs the others in threads, too
            handled = handler(connection, error) if in_loop else await run_in_threadpool(handler, connection, error)
            found: Response | None = await handled if inspect.isawaitable(handled) else handled
            return found
    raise error


def response(error: AsyncLockError, answers: Answers) -> Response:
    status = answers.status(error)
    return JSONResponse(answers.body(error, status), status, answers.headers())


def tell(scope: Scope, error: AsyncLockError, *, always: bool = False) -> None:
    """The log is told what clients are not: which lock, and which server."""
    if always or outcome(error) is not Outcome.BUSY:
        method = scope.get("method", "WEBSOCKET")
        log.warning(
            "asynclock: %s %s: %s",
            method,
            scope["path"],
            error,
            extra=about("request_failed", method=method, path=scope["path"], error=type(error).__name__),
        )
