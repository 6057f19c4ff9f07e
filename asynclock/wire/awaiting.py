"""What compiled coroutines await: something interpreted, behind an iterator that takes what they throw."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any, TypeVar

T = TypeVar("T")


class Passing(Generator[Any, Any, T]):
    """Awaits ``awaitable``, and passes on what is thrown in as an exception alone.

    A compiled coroutine throws a type, an exception and a traceback, which futures and interpreted coroutines deprecate
    from Python 3.12 on: where warnings are errors, a cancellation would come out as a DeprecationWarning.
    """

    __slots__ = ("_inner",)

    def __init__(self, awaitable: Awaitable[T]) -> None:
        self._inner = awaitable.__await__()

    def __await__(self) -> Generator[Any, Any, T]:
        return self

    def send(self, value: Any) -> Any:
        return self._inner.send(value)

    def throw(self, kind: Any, error: Any = None, traceback: object = None, /) -> Any:
        try:
            return self._inner.throw(kind if error is None else error)
        finally:
            del kind, error, traceback  # no cycle through the traceback

    def close(self) -> None:
        self._inner.close()
