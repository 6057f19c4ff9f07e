"""Locks for FastAPI and Starlette: held as long as a request needs them, with the answers when they cannot be had, or
are lost. See https://asynclock.github.io/asynclock/fastapi/."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Literal

import redis.asyncio as redis
from redis.asyncio.cluster import RedisCluster
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp

from .._engine.templates import NameTemplate
from ..errors import AsyncLockError, ConfigurationError
from ..locker import Locker
from ..options import Seconds, check_timeout
from ..scope import LockScope
from ._answers import Answers, default_body
from ._exchange import Guard
from ._hold import Hold
from ._routes import LockOrderWarning, routes_of

if TYPE_CHECKING:
    from fastapi import params

try:
    import fastapi
except ImportError:  # Starlette alone
    fastapi = None  # type: ignore[assignment]  # a module otherwise
else:
    from ._dependency import LockDependency, LockerDependency, depends_on_lock

__all__ = ["LockOrderWarning", "Locks"]


class Locks:
    """Locks for the requests of an application.

    :param servers: as for :class:`Locker`; one is made for each process (for each lifespan, to be exact), connects
        when the first lock is asked for, and is closed at the end. Or a ``Locker``, which remains yours to close
    :param timeout: seconds that a request waits for a lock; ``None``: as long as it takes
    :param busy_status: HTTP status if the lock was not acquired in time
    :param lost_status: if it was lost while the request was under way
    :param unavailable_status: if its servers are unavailable, or became so during the wait
    :param retry_after: seconds, for the header ``Retry-After``; ``None``: no such header
    :param close_code: for WebSockets, in all these cases
    :param body: called with the error and the status; returns what is sent as JSON
    :param harmless: dependencies with ``yield`` that have nothing to do with what locks protect: they may end after
        the release, without a ``LockOrderWarning``
    :param options: for ``Locker``
    :raises ConfigurationError: an option is wrong

    It can be made when a module is imported: it connects to nothing.
    """

    def __init__(
        self,
        servers: Locker | str | redis.Redis | RedisCluster | Sequence[str | redis.Redis],
        *,
        timeout: Seconds | None = 10.0,
        busy_status: int = 423,
        lost_status: int = 503,
        unavailable_status: int = 503,
        retry_after: Seconds | None = 1,
        close_code: int = 1013,
        body: Callable[[AsyncLockError, int], Any] = default_body,
        harmless: Collection[Callable[..., Any]] = (),
        **options: Any,
    ) -> None:
        self._answers = Answers(
            busy_status=busy_status,
            lost_status=lost_status,
            unavailable_status=unavailable_status,
            retry_after=retry_after,
            close_code=close_code,
            body=body,
        )
        check_timeout(timeout)
        self._timeout = timeout
        self._harmless = tuple(harmless)
        self._open: dict[asyncio.AbstractEventLoop, tuple[Locker, int]] = {}  # and how many lifespans use it
        self._servers = servers
        self._options = options
        if not isinstance(servers, Locker):
            self._make(servers)  # so that what is wrong with it is found now
        elif options:
            raise ConfigurationError(f"{', '.join(options)}: give these to your Locker, and not to Locks")
        self._locker_dependency = self._current if fastapi is None else LockerDependency(self._current)

    # In endpoints

    def lock(
        self,
        name: str | Callable[..., Any],
        *,
        timeout: Seconds | EllipsisType | None = ...,
        scope: Literal["function", "request"] = "function",
    ) -> params.Depends:
        """A dependency that holds a lock: ``Annotated[LockScope, locks.lock("user:{user_id}")]``, or in
        ``dependencies=[…]``.

        :param name: with the names of values in braces: those of the path, query, headers and cookies, as the route
            declares them. Or a dependency that returns the name
        :param timeout: instead of that of ``Locks``; 0: one attempt
        :param scope: ``"function"``: until the endpoint has returned; ``"request"``: until the response has been sent,
            and its background tasks are done

        Dependencies with equal arguments share one lock in a request.

        :raises ConfigurationError: the name, the timeout or the scope is wrong, or FastAPI is not installed
        """
        if fastapi is None:
            raise ConfigurationError("locks.lock() needs FastAPI; with Starlette alone, use locks.hold()")
        if scope not in ("function", "request"):
            raise ConfigurationError(f"scope={scope!r}: must be 'function' or 'request'")
        named: Any = name
        if isinstance(named, fastapi.params.Depends):
            named = named.dependency
        if isinstance(named, str):
            named = NameTemplate(named)
        elif not callable(named):
            raise ConfigurationError(f"the name of a lock must be a str or a dependency that returns one: {named!r}")
        if not isinstance(timeout, EllipsisType):
            check_timeout(timeout)

        def take(connection: HTTPConnection, name: str) -> Hold:
            return Hold(self._here(), self._answers, connection, name, self._seconds(timeout), depended_on=True)

        return fastapi.params.Depends(LockDependency(named, take, self, timeout, self._harmless), scope=scope)

    def hold(
        self, connection: HTTPConnection, name: str, *, timeout: Seconds | EllipsisType | None = ...
    ) -> AbstractAsyncContextManager[LockScope]:
        """``async with locks.hold(request, "user:7") as scope:`` holds a lock in the block, in Starlette or in the body
        of an endpoint.

        :param connection: the ``Request`` or ``WebSocket``
        :param timeout: as in :meth:`lock`
        :raises AcquireTimeoutError, LockLostError, ServerError, LockerClosedError: as ``Locker.with_context``. If it
            comes out of the endpoint, it is answered
        :raises AlreadyHeldError: this task holds it for this request already
        :raises ConfigurationError: ``install`` was not called, or the lifespan does not run
        """
        return Hold(self._here(), self._answers, connection, name, self._seconds(timeout))

    @property
    def locker(self) -> Callable[[], Awaitable[Locker]]:
        """The locker, as a dependency: ``Annotated[Locker, Depends(locks.locker)]``, or by ``await locks.locker()``, in
        a background task or a lifespan. What it raises is answered like any other error, with 500."""
        return self._locker_dependency

    @property
    def responses(self) -> dict[int | str, dict[str, Any]]:
        """For ``responses=`` of routes, routers and applications: what is answered without the lock, for OpenAPI."""
        return self._answers.responses()

    def _seconds(self, timeout: Seconds | EllipsisType | None) -> Seconds | None:
        return self._timeout if isinstance(timeout, EllipsisType) else timeout

    def _make(self, servers: Any) -> Locker:
        return Locker(servers, **self._options)

    async def _current(self) -> Locker:
        return self._here()

    def _here(self) -> Locker:
        if isinstance(self._servers, Locker):
            return self._servers
        found = self._open.get(asyncio.get_running_loop())
        if found is None:
            raise ConfigurationError(
                "the locks are used outside of the lifespan of an application that they are installed in. Call "
                "locks.install(app) when the app is made; in tests, write `with TestClient(app) as client:`, or "
                "`async with app.router.lifespan_context(app):` around a client with httpx.ASGITransport; do not "
                "start uvicorn with --lifespan off. A mounted application has no lifespan: install them in its parent"
            )
        return found[0]

    # Around an application

    def install(self, app: Starlette) -> None:
        """Make the locks ready for the routes of ``app`` (FastAPI or Starlette): opened before its own lifespan begins,
        closed after that has ended, their errors answered, and their answers described in OpenAPI.

        What is mounted in ``app`` may use the locks, too. Handlers that ``app`` has for errors of asynclock stay.

        :raises ConfigurationError: ``app`` has been started
        """
        if app.middleware_stack is not None:
            raise ConfigurationError("locks.install(app) comes too late: the application has been started")
        own_lifespan = app.router.lifespan_context
        own_stack = app.build_middleware_stack

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[Any]:
            async with self._lifespan(), own_lifespan(app) as state:
                yield state

        def stack() -> ASGIApp:
            return Guard(own_stack())

        app.router.lifespan_context = lifespan
        app.build_middleware_stack = stack  # type: ignore[method-assign]  # a middleware added here would be inside of those that are added later
        if fastapi is not None and isinstance(app, fastapi.FastAPI):
            self._describe(app)

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        """One locker for an event loop, however many applications in it use the locks."""
        if isinstance(self._servers, Locker):
            yield
            return
        loop = asyncio.get_running_loop()
        locker, users = self._open.get(loop) or (self._make(self._servers), 0)
        self._open[loop] = locker, users + 1
        try:
            yield
        finally:
            locker, users = self._open[loop]
            if users > 1:
                self._open[loop] = locker, users - 1
            else:
                del self._open[loop]
                await locker.aclose()

    def _describe(self, app: Any) -> None:
        make = app.openapi

        def openapi() -> dict[str, Any]:
            schema: dict[str, Any] = make()
            for route in routes_of(app):
                dependant = getattr(route, "dependant", None)
                if dependant is None or not depends_on_lock(dependant, self):
                    continue
                operations = schema.get("paths", {}).get(getattr(route, "path_format", ""), {})
                for method in getattr(route, "methods", None) or ():
                    with contextlib.suppress(KeyError):  # not in the schema
                        responses = operations[method.lower()].setdefault("responses", {})
                        for status, described in self.responses.items():
                            responses.setdefault(str(status), described)
            return schema

        app.openapi = openapi
