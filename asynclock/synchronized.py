"""``Locker.synchronized``: a coroutine function that runs under a lock, whose name comes from its arguments."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ._engine.templates import NameTemplate
from .errors import ConfigurationError
from .options import Seconds, check_timeout

if TYPE_CHECKING:
    from .locker import Locker

P = ParamSpec("P")
T = TypeVar("T")


def synchronized(
    locker: Locker, name: str, timeout: Seconds | None
) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Callable[P, Coroutine[Any, Any, T]]]:
    """The decorator. Raises as ``Locker.synchronized``."""
    template = NameTemplate(name)
    check_timeout(timeout)

    def decorate(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        what = getattr(function, "__qualname__", repr(function))
        _check(function, f"synchronized({name!r}) on {what}")
        signature = inspect.signature(function)
        template.check(signature.parameters, f"the arguments of {what}()")

        @functools.wraps(function)
        async def under_the_lock(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{what}(): {error}") from None
            bound.apply_defaults()
            async with locker.with_context(template.fill(bound.arguments), timeout=timeout):
                return await function(*args, **kwargs)

        return under_the_lock

    return decorate


def _check(function: object, where: str) -> None:
    """:raises ConfigurationError: it is not a coroutine function"""
    if isinstance(function, classmethod | staticmethod):
        raise ConfigurationError(f"{where}: write @{type(function).__name__} above it, and not below")
    if inspect.isasyncgenfunction(function):
        raise ConfigurationError(
            f"{where}: it is an async generator, and one that is not run to its end would keep the lock; "
            "hold the lock around the loop instead: 'async with locker.with_context(...):', and 'async for' inside"
        )
    if not inspect.iscoroutinefunction(function):
        raise ConfigurationError(
            f"{where}: it is not a coroutine function ('async def'); in a synchronous function, "
            "use 'with locker.with_context(...):' of an asynclock.sync.Locker"
        )
