"""aiohttp: handlers that run under a lock, and what is answered without it.

setup(app, "redis://127.0.0.1:6379")


@locked("user:{user_id}", timeout=1)
async def pay(request: web.Request) -> web.Response:
    request[SCOPE].check()
    return web.Response(text="paid")
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec

import redis.asyncio as redis
from aiohttp import hdrs, web
from redis.asyncio.cluster import RedisCluster

from .._engine.templates import NameTemplate
from ..errors import (
    AlreadyHeldError,
    AsyncLockError,
    ConfigurationError,
    only_tells_of_loss,
)
from ..locker import Locker
from ..messages import about
from ..options import Seconds, check_timeout
from ..scope import LockScope
from ._acquire import acquire
from ._answers import ANSWERED, Answers, Outcome, default_body, outcome

__all__ = ["LOCKER", "SCOPE", "locked", "setup"]

if TYPE_CHECKING:
    RequestKey = web.RequestKey
else:
    RequestKey = getattr(web, "RequestKey", web.AppKey)  # before aiohttp 3.14, requests take any key

log = logging.getLogger("asynclock")
P = ParamSpec("P")

LOCKER: web.AppKey[Locker] = web.AppKey("asynclock.locker", Locker)
"""``app[LOCKER]``, and ``request.config_dict[LOCKER]`` in sub-applications: the :class:`Locker` of ``setup``."""

SCOPE: RequestKey[LockScope] = RequestKey("asynclock.scope", LockScope)
"""``request[SCOPE]``: the :class:`LockScope` of the handler, while it runs."""

CLOSE_TIMEOUT = 1.0  # seconds for a WebSocket's client to answer that it is closed


# Setting it up


def setup(
    app: web.Application,
    servers: Locker | str | redis.Redis | RedisCluster | Sequence[str | redis.Redis],
    *,
    timeout: Seconds | None = 10.0,
    busy_status: int = 423,
    lost_status: int = 503,
    unavailable_status: int = 503,
    retry_after: Seconds | None = 1,
    close_code: int = 1013,
    body: Callable[[AsyncLockError, int], Any] = default_body,
    **options: Any,
) -> Locker:
    """Give the application, and all its sub-applications, a :class:`Locker`: ``app[LOCKER]``. Nothing is sent until the
    first request needs a lock, so the application starts while the servers are away. It is closed with the application.

    :param servers: as of :class:`Locker`; or a :class:`Locker`, which then is yours to close
    :param timeout: seconds that a request waits for its lock, unless ``locked`` says otherwise; ``None``: as long
        as it takes
    :param busy_status: of the answer if somebody else had the lock for that time
    :param lost_status: of the answer if the lock was lost while the handler ran
    :param unavailable_status: of the answer if the servers of the locks are unreachable or refuse, also during the
        wait, or the locker is closed
    :param retry_after: seconds, for the header ``Retry-After`` of these answers; ``None``: no header
    :param close_code: for WebSockets, in all these cases
    :param body: called with the error and the status; returns what is sent as JSON
    :param options: of the :class:`Locker`
    :raises ConfigurationError: an option is wrong, or the application has a locker already

    When the application starts, it raises :class:`ConfigurationError` if a name of ``locked`` needs a value that is
    not in the path of its route.
    """
    if LOCKER in app:
        raise ConfigurationError(f"{app!r} has a locker already: {app[LOCKER]!r}")
    answers = Answers(
        busy_status=busy_status,
        lost_status=lost_status,
        unavailable_status=unavailable_status,
        retry_after=retry_after,
        close_code=close_code,
        body=body,
    )
    settings = _Settings(check_timeout(timeout), answers)
    if isinstance(servers, Locker):
        if options:
            raise ConfigurationError(f"{', '.join(options)}: give options to the Locker itself")
        locker = servers
    else:
        locker = Locker(servers, **options)
    app[LOCKER] = locker
    app[_SETTINGS] = settings
    app.on_response_prepare.append(_begins)

    async def close_in_the_end(app: web.Application) -> AsyncIterator[None]:
        _check_names(app)
        yield
        if locker is not servers:
            await locker.aclose()

    app.cleanup_ctx.append(close_in_the_end)
    return locker


def _check_names(app: web.Application) -> None:
    """:raises ConfigurationError: a path has not what a lock's name needs"""
    for route in app.router.routes():
        handler: Any = route.handler
        methods = [handler]
        if inspect.isclass(handler):
            methods = [getattr(handler, each.lower(), None) for each in hdrs.METH_ALL]
        info = route.get_info()
        known = info["pattern"].groupindex if "pattern" in info else {}
        for method in methods:
            template = getattr(method, _NEEDS, None)
            if template is not None:
                template.check(known, f"the variables of the path {info.get('formatter') or info.get('path')!r}")


# Handlers


def locked(
    name: str | None = None,
    *,
    key: Callable[[web.Request], str | Awaitable[str]] | None = None,
    timeout: Seconds | EllipsisType | None = ...,
) -> Callable[[Callable[P, Awaitable[web.StreamResponse]]], Callable[P, Coroutine[Any, Any, web.StreamResponse]]]:
    """Decorate a handler, or a method of a ``web.View``: it runs while its request holds the lock, which is
    ``request[SCOPE]``, and gives it back before the response that it returns is sent.

    If the lock is not acquired in time, the answer is 423 Locked. If it is lost while the handler runs, the handler is
    cancelled, and the answer is 503, as it is if the servers are unreachable. A response that has begun by then is
    broken off, and a WebSocket is closed with 1013, before or after it is accepted. These answers are for errors of
    other locks that the handler acquires, too.

    :param name: of the lock; variables of the path in braces are filled in: ``"user:{user_id}"``
    :param key: instead of ``name``: a function, or a coroutine function, that makes it from the request
    :param timeout: seconds to wait, ``None``: as long as it takes, 0: one attempt; by default, that of ``setup``
    :raises ConfigurationError: at decoration: neither ``name`` nor ``key``, or both; the name cannot be filled in; this
        is not a coroutine function
    """
    if (name is None) == (key is None):
        raise ConfigurationError("locked() needs a name, as 'user:{user_id}', or key=, a function of the request")
    template = None if name is None else NameTemplate(name)
    seconds = ... if isinstance(timeout, EllipsisType) else check_timeout(timeout)

    def decorate(
        handler: Callable[P, Awaitable[web.StreamResponse]],
    ) -> Callable[P, Coroutine[Any, Any, web.StreamResponse]]:
        what = getattr(handler, "__qualname__", repr(handler))
        if not inspect.iscoroutinefunction(handler):
            hint = "decorate its methods" if inspect.isclass(handler) else "write 'async def'"
            raise ConfigurationError(f"locked() on {what}: it is not a coroutine function; {hint}")

        @functools.wraps(handler)
        async def under_the_lock(*args: P.args, **kwargs: P.kwargs) -> web.StreamResponse:
            request = _request_of(args, what)
            settings = request.config_dict.get(_SETTINGS)
            if settings is None:
                raise ConfigurationError(
                    f"locked() on {what}: its application has no locker; "
                    "call asynclock.integrations.aiohttp.setup(app, 'redis://...') on it, or on the one above it"
                )
            held: _Held | None = None
            response: web.StreamResponse | None = None
            try:
                named = await _name_of(request, template, key)
                wait = settings.timeout if isinstance(seconds, EllipsisType) else seconds
                async with await _acquire(request, named, wait) as scope:
                    held = _Held(scope, settings.answers)
                    with held.by(request):
                        try:
                            response = await handler(*args, **kwargs)
                        except ExceptionGroup as error:
                            if only_tells_of_loss(error, scope.name):  # tasks of the handler have called check()
                                scope.check()
                            raise
            except ANSWERED as error:
                if held is not None and held.begun is not None:
                    _tell(request, error)
                    await held.break_off(request)  # also for a loss that showed only at the release
                    return held.begun
                return await _refuse(request, error, settings.answers)
            if response is None:
                raise RuntimeError(
                    f"{what} has returned no response, or has called cancel() of its scope before it did"
                )
            return response

        if template is not None:
            setattr(under_the_lock, _NEEDS, template)
        return under_the_lock

    return decorate


def _request_of(args: Sequence[object], what: str) -> web.Request:
    """The request of a handler: a function of it, a method with it, or a method of a view, which has it."""
    for each in args:
        if isinstance(each, web.Request):
            return each
        if isinstance(each, web.View):
            return each.request
    raise ConfigurationError(f"locked() on {what}: it was called without a request, or is no method of a web.View")


async def _name_of(
    request: web.Request, template: NameTemplate | None, key: Callable[[web.Request], str | Awaitable[str]] | None
) -> str:
    if template is not None:
        template.check(request.match_info, f"the variables of the path of {request.method} {request.rel_url.raw_path}")
        return template.fill(request.match_info)
    assert key is not None
    made = key(request)
    return made if isinstance(made, str) else await made


async def _acquire(request: web.Request, name: str, timeout: float | None) -> LockScope:
    """As ``_acquire.acquire``. :raises AlreadyHeldError: this request holds the lock already"""
    for held in request.get(_HELD, ()):
        if held.scope.name == name and held.scope.held:
            raise AlreadyHeldError(name)
    return await acquire(request.config_dict[LOCKER], name, timeout)


# Answers without the lock


class _Settings(NamedTuple):
    """What ``setup`` was told."""

    timeout: float | None
    answers: Answers


async def _refuse(request: web.Request, error: AsyncLockError, answers: Answers) -> web.StreamResponse:
    """Answer a request whose handler got no lock: JSON, or a WebSocket that is accepted and closed."""
    if outcome(error) is not Outcome.BUSY:
        _tell(request, error)
    offered = [each.strip() for each in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
    websocket = web.WebSocketResponse(protocols=offered, timeout=CLOSE_TIMEOUT)
    if websocket.can_prepare(request):
        # Scripts in a browser learn the code of a WebSocket that is closed, but no status of one that is refused.
        await websocket.prepare(request)
        await websocket.close(code=answers.close_code, message=answers.reason(error).encode())
        return websocket
    status = answers.status(error)
    return web.json_response(answers.body(error, status), status=status, headers=answers.headers())


def _tell(request: web.Request, error: AsyncLockError) -> None:
    failed = error if isinstance(error.__cause__, BaseExceptionGroup) else None  # tasks, while they were stopped
    path = request.rel_url.raw_path
    log.warning(
        "asynclock: %s %s: %s",
        request.method,
        path,
        error,
        exc_info=failed,
        extra=about("request_failed", method=request.method, path=path, error=type(error).__name__),
    )


# Responses that have begun


class _Held:
    """The lock of a request whose handler runs, and the response that the handler has begun, if any.

    A response that has begun cannot be taken back, and no other may follow on its connection. When the lock is lost, it
    is broken off at once, before the handler hears of it: what that does in a ``finally``, such as ``write_eof()`` or a
    friendly ``close()``, is not to make a whole answer of a broken one.
    """

    __slots__ = ("_answers", "_watch", "begun", "scope")

    def __init__(self, scope: LockScope, answers: Answers) -> None:
        self.scope = scope
        self._answers = answers
        self.begun: web.StreamResponse | None = None
        self._watch: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def by(self, request: web.Request) -> Iterator[None]:
        """The handler runs. It may have other locks around it."""
        request[_HELD] = (*request.get(_HELD, ()), self)
        request[SCOPE] = self.scope
        try:
            yield
        finally:
            # Tasks of one request may have locks side by side, and any may end first.
            request[_HELD] = others = tuple(each for each in request[_HELD] if each is not self)
            if others:
                request[SCOPE] = others[-1].scope
            else:
                del request[SCOPE]

    def begins(self, request: web.Request, response: web.StreamResponse) -> None:
        self.begun = response
        self._watch = asyncio.create_task(self._break_off_when_lost(request, response))
        if self.scope.lost_reason is not None:  # it is not to begin any more: a handler has swallowed its cancellation
            _cut(request)

    async def break_off(self, request: web.Request) -> None:
        assert self.begun is not None and self._watch is not None
        await self._watch
        await self._break_off(request, self.begun)

    async def _break_off_when_lost(self, request: web.Request, response: web.StreamResponse) -> None:
        if await self.scope.wait_lost() is not None:
            await self._break_off(request, response)

    async def _break_off(self, request: web.Request, response: web.StreamResponse) -> None:
        """Close a WebSocket, and cut the connection under any other response. Twice does no harm."""
        if isinstance(response, web.WebSocketResponse) and response.prepared:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await response.close(code=self._answers.close_code, message=Outcome.LOST.value.encode())
            if request.transport is not None:
                request.transport.abort()
        else:
            _cut(request)


async def _begins(request: web.Request, response: web.StreamResponse) -> None:
    """``on_response_prepare``: a response is about to begin."""
    for held in request.get(_HELD, ()):
        held.begins(request, response)


def _cut(request: web.Request) -> None:
    transport = request.transport
    if transport is None or transport.is_closing():
        return  # the client has gone
    connection = transport.get_extra_info("socket")
    if connection is not None:
        # With a reset: HTTP/1.0, which some proxies speak, takes an orderly end for the end of the body.
        linger = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()


_SETTINGS: web.AppKey[_Settings] = web.AppKey("asynclock.settings", _Settings)
_HELD: RequestKey[tuple[_Held, ...]] = RequestKey("asynclock.held", tuple)
_NEEDS = "_asynclock_name"  # an attribute of decorated handlers: the template of the lock's name
