"""A lock that is held for a request, and which errors are about it."""

from __future__ import annotations

from types import TracebackType

from starlette.requests import HTTPConnection

from ..errors import AsyncLockError, LockLostError, only_tells_of_loss
from ..locker import Locker
from ..options import Seconds
from ..scope import LockScope
from ._acquire import acquire
from ._answers import Answers, claim
from ._exchange import Exchange, add_handlers


class Hold:
    """The block in which a request holds a lock: what ``Locks.hold`` returns."""

    __slots__ = (
        "_answers",
        "_connection",
        "_depended_on",
        "_exchange",
        "_locker",
        "_name",
        "_scope",
        "_timeout",
        "_used",
    )

    _scope: LockScope
    _exchange: Exchange

    def __init__(
        self,
        locker: Locker,
        answers: Answers,
        connection: HTTPConnection,
        name: str,
        timeout: Seconds | None,
        *,
        depended_on: bool = False,
    ) -> None:
        """:param depended_on: made by a dependency of FastAPI: a loss also breaks off a response that has begun"""
        self._locker = locker
        self._answers = answers
        self._connection = connection
        self._name = name
        self._timeout = timeout
        self._depended_on = depended_on
        self._used = False

    async def __aenter__(self) -> LockScope:
        if self._used:
            raise RuntimeError("this context manager was used before; call hold() again")
        self._used = True
        exchange = self._exchange = Exchange.of(self._connection)
        if self._depended_on:
            exchange.watch(self._connection)
        exchange.check_free(self._name, self._answers)
        add_handlers(self._connection)
        try:
            scope = await acquire(self._locker, self._name, self._timeout)
            # No await that suspends from here on: a scope that nobody enters is never left.
            self._scope = await scope.__aenter__()
        except AsyncLockError as error:
            claim(error, self._answers)
            raise
        exchange.add(scope, self._answers)
        return scope

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        scope = self._scope
        try:
            suppressed = await scope.__aexit__(kind, error, traceback)
        except LockLostError as loss:
            self._claim(loss)
            raise
        finally:
            self._exchange.remove(scope)
        if isinstance(error, LockLostError):  # the body has called check()
            self._claim(error)
        elif isinstance(error, ExceptionGroup) and only_tells_of_loss(error, scope.name):
            try:
                scope.check()
            except LockLostError as loss:  # tasks of the body have called check(), and nothing else went wrong
                self._claim(loss)
                raise loss from error
        return suppressed

    def _is_ours(self, error: BaseException) -> bool:
        scope = self._scope  # another locker may have a lock of that name, and lose it
        return isinstance(error, LockLostError) and error.name == scope.name and scope.lost_reason is not None

    def _claim(self, error: LockLostError) -> None:
        if self._is_ours(error):
            claim(error, self._answers)
            if self._depended_on:
                self._exchange.lost(error, self._answers)
