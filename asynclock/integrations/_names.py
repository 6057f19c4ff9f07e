"""The name of a lock from the values of a request: of its path, query, headers and cookies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from fastapi.dependencies.utils import request_params_to_args
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from starlette.requests import HTTPConnection

from .._engine.templates import NameTemplate
from ..errors import ConfigurationError
from ..options import check_name

PLACES = ("path", "query", "header", "cookie")


class Declared(NamedTuple):
    place: str  #: one of PLACES
    field: Any  #: FastAPI's description of the parameter


class RouteNames:
    """Names for the requests of one route.

    A value is what the route makes of it: where the endpoint declares ``user_id: int``, then ``/users/7`` and
    ``/users/007`` are the same user, and need the same lock. What nobody declares is taken as it was sent.
    """

    def __init__(self, template: NameTemplate, dependant: Any) -> None:
        """:param dependant: FastAPI's of the route, or None"""
        self._template = template
        self._declared = {name: _find(dependant, name) for name in template.fields}

    def undeclared(self, connection: HTTPConnection) -> list[str]:
        """The names of values that the route neither declares nor has in its path: one may be mistyped."""
        return [name for name, found in self._declared.items() if found is None and name not in connection.path_params]

    def of(self, connection: HTTPConnection) -> str:
        """:raises RequestValidationError: a value is missing or wrong; answered with 422, a WebSocket closed"""
        values: dict[str, object] = {}
        errors: list[Any] = []
        for name, declared in self._declared.items():
            if declared is not None:
                found, wrong = request_params_to_args([declared.field], _sent(connection, declared.place))
                errors += wrong
                values[name] = found.get(declared.field.name)
            else:
                sent = _undeclared(connection, name)
                values[name] = sent
                if sent is None:
                    errors.append(self._missing(name))
        if not errors:
            name = self._template.fill(values)
            try:
                check_name(name)
            except ConfigurationError as error:  # too long, for example: the client's fault
                errors.append({"type": "lock_name", "loc": ("lock",), "msg": str(error), "input": None})
            else:
                return name
        if connection.scope["type"] == "websocket":
            raise WebSocketRequestValidationError(errors)
        raise RequestValidationError(errors)

    def _missing(self, name: str) -> dict[str, Any]:
        why = f"lock {self._template.text!r} needs it, and no path, query, header or cookie parameter is declared so"
        return {"type": "missing", "loc": ("query", name), "msg": f"Field required ({why})", "input": None}


def _find(dependant: Any, name: str) -> Declared | None:
    """The parameter of this name. The endpoint's own come first, then those of its dependencies."""
    rest = [] if dependant is None else [dependant]
    for alias in (False, True):
        for each in _breadth_first(rest):
            for place in PLACES:
                for field in getattr(each, f"{place}_params"):
                    if name == (field.alias if alias else field.name):
                        return Declared(place, field)
    return None


def _breadth_first(level: list[Any]) -> Iterator[Any]:
    while level:
        yield from level
        level = [each for dependant in level for each in dependant.dependencies]


def _sent(connection: HTTPConnection, place: str) -> Any:
    match place:
        case "path":
            return connection.path_params
        case "query":
            return connection.query_params
        case "header":
            return connection.headers
    return connection.cookies


def _undeclared(connection: HTTPConnection, name: str) -> object:
    for place in PLACES:
        found = _sent(connection, place).get(name.replace("_", "-") if place == "header" else name)
        if found is not None:
            return found
    return None
