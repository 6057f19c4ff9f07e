"""Where the block of a scope is: below its task, or in an async generator that is suspended beside the task.

An async generator can be left in the middle of a block, at its ``yield``. The task that entered the block then runs
other code. That code belongs to the block if it is the body of a context manager around the generator
(``contextlib.asynccontextmanager``), of ``async with aclosing(...)`` or of an ``async for``. Otherwise the program may
have abandoned the generator, and the code has nothing to do with the lock. The difference: some ``async with`` or
``async for``, in a frame of the task, leads to the block.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import math
import sys
import threading
import time
import types
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from .frames import frames, waits_for

MAX_PARTS = 500  # objects that are looked at, of the context managers of a frame
MAX_LEVELS, MAX_KEEPERS = 10, 100  # of references to an object; if there are more, others may use it
MAX_SHARE = 0.1  # of the time, for searches: each goes through all objects of the process


class Whereabouts:
    """Where the block of ``scope`` is, once it has been entered. It never moves."""

    __slots__ = ("_generator", "_kind", "_known", "_scope", "_since")

    def __init__(self, scope: object, kind: type) -> None:
        """:param kind: the class of all scopes"""
        self._scope = weakref.ref(scope)
        self._kind = kind
        self._since = time.monotonic()
        self._generator: weakref.ref[object] | None = None
        self._known = False

    def is_beside(self, task: asyncio.Task[Any]) -> bool:
        """Is the block in a generator, and ``task``, which is suspended, in other code? True while it is not known."""
        scope = self._scope()
        if scope is None or (self._known and self._generator is None):
            return False
        kind = self._kind
        tasks = task, *waits_for(task)
        if any(each is scope for task in tasks for frame in frames(task) for each in _in(frame, kind)):
            return False
        if not self._known:
            if not _search.done_since(self._since, kind):
                return True
            self._known = True
            self._generator = _search.found.get(scope)
        return self._generator is not None and self._generator() is not None


class _Search:
    """Finds the generators with blocks in them. One search serves all blocks that were entered before it."""

    def __init__(self) -> None:
        self.found: weakref.WeakKeyDictionary[object, weakref.ref[object]] = weakref.WeakKeyDictionary()
        self._at = self._again = -math.inf

    def done_since(self, since: float, kind: type) -> bool:
        now = time.monotonic()
        if self._at < since and now >= self._again:
            self._at = now
            self._go_through(gc.get_objects(), kind)
            now = time.monotonic()
            self._again = now + (now - self._at) / MAX_SHARE
        return self._at >= since

    def _go_through(self, objects: list[object], kind: type) -> None:
        # The body of a context manager belongs to the block, wherever the manager is kept.
        managers = (each for each in objects if type(each) is contextlib._AsyncGeneratorContextManager)
        managed = {id(getattr(each, "gen", None)) for each in managers}
        for each in objects:
            if type(each) is types.AsyncGeneratorType and id(each) not in managed:
                for scope in _in(each, kind):
                    self.found[scope] = weakref.ref(each)


_search = _Search()


def on_its_way() -> BaseException | None:
    """The exception because of which a generator is being closed: the one that was passed to an ``__aexit__`` on the
    stack (of ``aclosing``, or of an ``AsyncExitStack``)."""
    frame = sys._getframe(1).f_back
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__aexit__":
            variables = frame.f_locals
            for name in code.co_varnames[: code.co_argcount + bool(code.co_flags & inspect.CO_VARARGS)]:
                value = variables.get(name)
                for each in value if type(value) is tuple else (value,):
                    if issubclass(type(each), BaseException) and type(each) is not GeneratorExit:
                        found: BaseException = each
                        return found
        frame = frame.f_back
    return None


def may_be_used_by_others(thing: object, task: asyncio.Task[Any], ours: Sequence[object]) -> bool:
    """May anything but ``task``, which is running, use ``thing``?

    The task is the only one if all references come from the frames on the stack (as far as the garbage collector sees
    the frames of running coroutines), or from objects that nothing else refers to. The search goes through all objects
    of the process, and so blocks the loop for about 0.1 s per million objects.

    :param ours: weak references to ``thing`` that nobody uses to end the lock, and objects that keep one
    """
    level: list[object] = [thing]
    level += (each for each in weakref.getweakrefs(thing) if not any(each is own for own in ours))
    if len(level) > 2 or _in_other_threads(thing):  # one reference: all that want no callback share it
        return True
    mark = object()  # tells the arguments of the question, which Python 3.13 finds too
    seen = {id(thing), id(task), *map(id, level), *map(id, ours)}
    for _ in range(MAX_LEVELS):
        found = gc.get_referrers(*level, mark)
        asking = {id(level), *(id(each) for each in found if type(each) is tuple and each and each[-1] is mark)}
        level = [each for each in found if id(each) not in seen and id(each) not in asking]
        del found
        seen.update(map(id, level))
        level = [each for each in level if not (type(each) is types.CoroutineType and each.cr_running)]
        if not level:
            return False
        if len(seen) > MAX_KEEPERS or any(issubclass(type(each), asyncio.Future | asyncio.Handle) for each in level):
            return True
    return True


def _in_other_threads(thing: object) -> bool:
    """Is it, or a method of it, in a variable of a function that runs in another thread?"""
    here = threading.get_ident()
    for ident, frame in sys._current_frames().items():
        depth: types.FrameType | None = frame if ident != here else None
        while depth is not None:
            for value in list(depth.f_locals.values()):
                inside = value if type(value) in (tuple, list) else value.values() if type(value) is dict else (value,)
                if any(each is thing or getattr(each, "__self__", None) is thing for each in list(inside)):
                    return True
            depth = depth.f_back
    return False


def _in(frame: Any, kind: type) -> Iterator[object]:
    """The scopes (those are the ``kind``) that a suspended frame is inside of: by an ``async with`` of them or of
    something that has entered them, or by an ``async for`` over a generator that is."""
    rest = [frame]
    seen: set[int] = set()
    while rest and len(seen) < MAX_PARTS:
        each = rest.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if issubclass(type(each), kind):  # not isinstance: it asks the object, which may be a proxy
            yield each
            continue
        parts = gc.get_referents(each)
        if each is frame or type(each) in _FRAMES:
            rest += _entered(parts)
            rest += _iterated(each, [part for part in parts if type(part) is types.AsyncGeneratorType])
        else:
            rest[:0] = [part for part in parts[:MAX_PARTS] if not issubclass(type(part), _NO_PARTS)]


def _entered(parts: list[Any]) -> list[object]:
    """The context managers of the blocks that a suspended frame is inside of. On the frame's stack is what each block
    calls in the end: a bound method or, from Python 3.14 on, a function and behind it what it is called for."""
    found = []
    for part, behind in zip(parts, [*parts[1:], None], strict=True):
        name = getattr(part, "__name__", "")
        if name in ("__aexit__", "__exit__"):
            if type(part) is types.MethodType:
                found.append(part.__self__)
            elif getattr(type(behind), name, None) is part:
                found.append(behind)
    return found


def _iterated(awaited: Any, generators: list[object]) -> list[object]:
    """The generators that a suspended frame keeps, but not in a variable: an ``async for`` runs over them."""
    frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
    if not generators or frame is None:
        return []
    variables = frame.f_locals
    for name in set(frame.f_code.co_varnames).difference(frame.f_code.co_cellvars):
        value = variables.get(name)
        if any(value is each for each in generators):
            del generators[next(index for index, each in enumerate(generators) if each is value)]
    if sys.version_info < (3, 13):
        variables.clear()  # a copy, and the frame keeps it: what is in there would live on
    return generators


_FRAMES = (types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType)
_NO_PARTS = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.CodeType,
    types.FrameType,
    types.TracebackType,
    asyncio.AbstractEventLoop,
    asyncio.Future,
)
