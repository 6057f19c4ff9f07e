"""What a route of FastAPI depends on, and in which order that begins and ends."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from starlette.types import Scope


class LockOrderWarning(UserWarning):
    """A dependency with ``yield`` ends when the lock is released already: what it commits then, nothing protects."""


def dependant_of(scope: Scope) -> Any:
    """FastAPI's tree of what the route depends on, or None: the request is in no route of FastAPI."""
    return getattr(_route(scope), "dependant", None)


def _route(scope: Scope) -> Any:
    route = scope.get("route")
    # Newer versions share a route among all routers that include it, and keep apart what each of them adds to it.
    context = scope.get("fastapi", {}).get("effective_route_context")
    return context if context is not None and context.original_route is route else route


def routes_of(app: Any) -> list[Any]:
    """All routes of an application, those of included routers too."""
    try:  # versions that share a route, as above
        from fastapi.routing import iter_route_contexts
    except ImportError:
        return list(app.routes)
    return list(iter_route_contexts(app.routes))


class Use(NamedTuple):
    """A dependency of a route, in the order in which FastAPI calls them."""

    call: Callable[..., Any]
    scope: str  #: "function": ends after the endpoint; "request": ends when the response has been sent
    ends: bool  #: it has a part after its ``yield``
    within: tuple[Callable[..., Any], ...]  #: the dependencies that it is called for, the outermost first


def uses(dependant: Any, within: tuple[Callable[..., Any], ...] = ()) -> Iterator[Use]:
    for each in dependant.dependencies:
        yield from uses(each, (*within, each.call))
        yield Use(each.call, each.scope or "request", has_yield(each.call), within)


def has_yield(call: Any) -> bool:
    for each in (call, getattr(call, "__call__", None)):  # noqa: B004  # not whether it can be called, but what is called
        while isinstance(each, functools.partial):
            each = each.func
        for function in (each, inspect.unwrap(each)) if callable(each) else ():
            if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
                return True
        if inspect.isclass(each):
            return False
    return False


def ends_outside(
    dependant: Any, lock: Callable[..., Any], harmless: Collection[Any], is_lock: Callable[[object], bool]
) -> list[Callable[..., Any]]:
    """The dependencies that end when ``lock`` has been released: what they commit then, nothing protects.

    Not those that only the lock's name depends on: they cannot come later.
    """
    order: dict[tuple[Any, str], Use] = {}  # as FastAPI calls each once
    free: set[Any] = set()  # what something else than the lock depends on, too
    for use in uses(dependant):
        order.setdefault((use.call, use.scope), use)
        if lock not in use.within:
            free.add((use.call, use.scope))
    found = []
    before = True
    scope = next(use.scope for use in order.values() if use.call == lock)
    for key, use in order.items():
        before = before and use.call != lock
        ends_later = (before and use.scope == scope) or (use.scope == "request" and scope == "function")
        if use.ends and ends_later and key in free and not (use.call in harmless or is_lock(use.call)):
            found.append(use.call)
    return found
