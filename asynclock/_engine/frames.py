"""What a suspended task is doing, as far as Python shows it: where it is suspended, which tasks it waits for, and
whether it handles a cancellation.

"Frame" means a coroutine or generator here: the objects that the garbage collector finds in one are those that its
frame keeps, the exception that it handles included.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import sys
import types
from collections.abc import Iterator
from typing import Any

MAX_DEPTH = 1000  # frames that await each other

# Types are looked up with issubclass(type(x), ...): isinstance(x, ...) asks the object, which may be a proxy that
# stands for nothing now.


def frames(task: asyncio.Task[Any]) -> Iterator[Any]:
    """The frames that are suspended in each other, from the outermost inwards, and what wraps one or awaits a future.
    The last one is the future, if the task waits for one."""
    each: Any = None if task.done() else task.get_coro()  # Python 3.12.1 crashes for a task that has ended eagerly
    for _ in range(MAX_DEPTH):
        if each is None:
            break
        yield each
        each = _awaited_by(each)


def _awaited_by(frame: Any) -> Any:
    if _is_future(frame):
        return None
    for name in ("cr_await", "gi_yieldfrom", "ag_await"):
        if (awaited := getattr(frame, name, None)) is not None:
            return awaited
    if type(frame) in (types.CoroutineType, types.AsyncGeneratorType):
        return None  # it has not begun
    # What drives an async generator (async for, asynccontextmanager) or a coroutine (__await__), or awaits a future.
    for each in gc.get_referents(frame):
        if type(each) is types.AsyncGeneratorType and not each.ag_running:
            return None  # as aclose() in a task that has not begun: the generator is still suspended at its yield
        if _is_future(each) or hasattr(type(each), "send") or hasattr(type(each), "asend"):
            return each
    return None


def waits_for(task: asyncio.Task[Any]) -> set[asyncio.Task[Any]]:
    """The tasks that must end before ``task`` goes on, and that asyncio cancels if it is cancelled: at once those that
    it awaits, itself or with a gather; those of a TaskGroup and of ``wait_for`` when that has got the cancellation."""
    found: set[asyncio.Task[Any]] = set()
    rest: list[Any] = []
    for frame in frames(task):
        if _is_future(frame):
            rest.append(frame)
        elif getattr(frame, "cr_code", None) in _PASS_ON:
            for part in gc.get_referents(frame):
                rest += [part] if _is_future(part) else _members(part)
    while rest:
        each = rest.pop()
        if not issubclass(type(each), asyncio.Task):
            rest += _members(each)
        elif each is not task and not each.done():
            found.add(each)
    return found


def _members(thing: object) -> list[Any]:
    """The futures in a gather or a group of asyncio's."""
    if type(thing).__module__ != asyncio.gather.__module__ and not issubclass(type(thing), asyncio.TaskGroup):
        return []
    parts = gc.get_referents(thing)
    parts += gc.get_referents(*[part for part in parts if type(part) is dict])
    return [
        each for each in gc.get_referents(*[part for part in parts if type(part) in (list, set)]) if _is_future(each)
    ]


def handles_cancellation(task: asyncio.Task[Any]) -> bool:
    """Is ``task`` inside an ``except`` or ``finally`` that a cancellation has entered?"""
    return any(shows_cancellation(frame) for frame in frames(task))


def handling_cancellation() -> bool:
    """The same for the code that runs now."""
    error = sys.exception()
    while error is not None:
        if isinstance(error, asyncio.CancelledError):
            return True
        error = error.__context__
    return False


def shows_cancellation(frame: Any) -> bool:
    """Does it handle a cancellation, or keep one in a variable?"""
    for error in gc.get_referents(frame):
        while issubclass(type(error), BaseException):
            if isinstance(error, asyncio.CancelledError):
                return True
            error = error.__context__
    return False


def has_greenlets(task: asyncio.Task[Any]) -> bool:
    """Does part of it run in a greenlet, as with SQLAlchemy? What that one handles is in none of the frames."""
    kind = getattr(sys.modules.get("greenlet"), "greenlet", ())
    return any(issubclass(type(part), kind) for frame in frames(task) for part in gc.get_referents(frame))


# asyncio.wait_for of Python 3.11 (python/cpython#86296)


def in_wait_for(task: asyncio.Task[Any]) -> bool:
    """Is ``task`` suspended in a ``wait_for`` that may drop a cancellation?"""
    return _waited_for(task) is not None


def _waited_for(task: asyncio.Task[Any]) -> asyncio.Future[Any] | None:
    """What this ``wait_for`` waits for. If that is done when the task is resumed, a cancellation is dropped."""
    if sys.version_info >= (3, 12):
        return None
    frame, _, waiter = [None, None, None, *frames(task)][-3:]
    if getattr(frame, "cr_code", None) is not asyncio.wait_for.__code__ or not _is_future(waiter):
        return None
    future: asyncio.Future[Any] = frame.cr_frame.f_locals["fut"]
    return None if future is waiter else future  # without a timeout, it awaits it as everybody does


def drops_cancellation(task: asyncio.Task[Any]) -> bool:
    """Would a cancellation be dropped for certain? The task is resumed in a turn or two of the loop then."""
    future = _waited_for(task)
    return future is not None and future.done()


def cancel(task: asyncio.Task[Any], message: str) -> None:
    """``task.cancel(message)``. If it waits for another task that has yet to begin, cancel that one as well: most
    commands of redis-py have been sent when that has run once, so ``wait_for`` would not get to it in time."""
    future = _waited_for(task)
    task.cancel(message)
    if isinstance(future, asyncio.Task):
        coroutine = future.get_coro()
        if inspect.iscoroutine(coroutine) and inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
            future.cancel(message)


def _is_future(thing: object) -> bool:
    return issubclass(type(thing), asyncio.Future)


_PASS_ON = (asyncio.TaskGroup.__aexit__.__code__, asyncio.wait_for.__code__)
