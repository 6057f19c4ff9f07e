"""The lock, and the locker, as dependencies of FastAPI."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any

from fastapi import params
from starlette.requests import HTTPConnection

from .._engine.templates import NameTemplate
from ..errors import ConfigurationError
from ..locker import Locker
from ..messages import about
from ..scope import LockScope
from ._hold import Hold
from ._names import RouteNames
from ._routes import LockOrderWarning, dependant_of, ends_outside, uses

log = logging.getLogger("asynclock")

TakeLock = Callable[[HTTPConnection, str], Hold]


class LockDependency:
    """Holds a lock from when FastAPI calls it until the end of its scope.

    Two that are equal are one to FastAPI: it calls the first, and gives its lock to whoever depends on the other.
    """

    def __init__(
        self,
        name: NameTemplate | Callable[..., Any],
        take: TakeLock,
        owner: object,
        timeout: object,
        harmless: Collection[Any],
    ) -> None:
        """
        :param name: with values of the request, or a dependency that returns it
        :param take: makes the block
        :param owner: the ``Locks``
        :param harmless: dependencies that may end outside
        """
        self._name = name
        self._take = take
        self._harmless = harmless
        self.owner = owner
        self._key = (owner, name.text if isinstance(name, NameTemplate) else name, timeout)
        self._routes: dict[int, tuple[Any, RouteNames | None]] = {}  # by id() of their trees, which are kept with it
        self.text = name.text if isinstance(name, NameTemplate) else f"named by {called(name)}"
        self.__name__ = f"lock {self.text!r}"
        parameters = [inspect.Parameter("connection", inspect.Parameter.KEYWORD_ONLY, annotation=HTTPConnection)]
        if not isinstance(name, NameTemplate):
            of_name = params.Depends(name)
            parameters.append(inspect.Parameter("name", inspect.Parameter.KEYWORD_ONLY, default=of_name))
        self.__signature__ = inspect.Signature(parameters)  # what FastAPI looks at

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LockDependency) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    async def __call__(self, connection: HTTPConnection, name: str | None = None) -> AsyncIterator[LockScope]:
        names = self._route(connection)
        if names is not None:
            name = names.of(connection)
        assert name is not None
        went_on = False
        async with self._take(connection, name) as scope:
            yield scope
            went_on = True
        if not went_on:  # FastAPI would go on without a response
            raise ConfigurationError(
                f"lock {name!r}: scope.cancel() stopped the endpoint before it had answered; raise an HTTPException"
            )

    def _route(self, connection: HTTPConnection) -> RouteNames | None:
        """What is known of the route; its order is looked at when it is used for the first time."""
        dependant = dependant_of(connection.scope)
        known = self._routes.get(id(dependant))
        if known is None:
            if dependant is not None:
                self._check_order(connection, dependant)
            names = RouteNames(self._name, dependant) if isinstance(self._name, NameTemplate) else None
            if names is not None and (missing := names.undeclared(connection)):
                log.warning(
                    "asynclock: %s %s: %s needs a value that no parameter of the route is called by: %s; it is taken "
                    "from the query, headers or cookies as it is sent. Declare it, or correct the name",
                    connection.scope.get("method", "WEBSOCKET"),
                    connection.scope["path"],
                    self.__name__,
                    ", ".join(missing),
                    extra=about("name_undeclared", path=connection.scope["path"], lock=self.__name__),
                )
            known = self._routes[id(dependant)] = dependant, names
        return known[1]

    def _check_order(self, connection: HTTPConnection, dependant: Any) -> None:
        if not any(use.call == self for use in uses(dependant)):
            return  # it stands in for another dependency (dependency_overrides), or is called by hand
        for each in ends_outside(dependant, self, self._harmless, is_lock):
            other = called(each)
            text = (
                f"{connection.scope.get('method', 'WEBSOCKET')} {dependant.path}: the dependency {other} ends after "
                f'{self.__name__} was released, so what it commits then is not protected. Give it scope="function", '
                f"and let it depend on the lock or come after it. If it has nothing to do with what the lock protects, "
                f"name it in Locks(harmless=[{each_name(each)}])"
            )
            log.warning("asynclock: %s", text, extra=about("lock_order", path=connection.scope["path"]))
            code = getattr(inspect.unwrap(dependant.call), "__code__", None)
            file, line = ("<unknown>", 0) if code is None else (code.co_filename, code.co_firstlineno)
            warnings.warn_explicit(text, LockOrderWarning, file, line)


def is_lock(call: object) -> bool:
    return isinstance(call, LockDependency)


def called(call: Any) -> str:
    return f"{each_name(call)}() of {getattr(call, '__module__', '?')}"


def each_name(call: Any) -> str:
    return str(getattr(call, "__qualname__", None) or getattr(call, "__name__", None) or type(call).__qualname__)


def depends_on_lock(dependant: Any, of: object) -> bool:
    """Does the route depend on a lock of these ``Locks``?"""
    return any(isinstance(use.call, LockDependency) and use.call.owner is of for use in uses(dependant))


class LockerDependency(params.Depends):
    """The locker, as ``Depends(locks.locker)`` and as ``Annotated[Locker, locks.locker]``."""

    def __init__(self, current: Callable[[], Awaitable[Locker]]) -> None:
        super().__init__(dependency=current)

    # A dependency must have a hash. A ``Depends`` has none in some versions of FastAPI.

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    async def __call__(self) -> Locker:
        assert self.dependency is not None
        locker: Locker = await self.dependency()
        return locker
