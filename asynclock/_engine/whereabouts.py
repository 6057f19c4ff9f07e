"""Where the block of a scope is: below its task, or in an async generator that is suspended beside it.

An async generator can be left in the middle of a block, at its ``yield``, and the task that has entered the block
runs other code then. That may be the body of a context manager around it (``contextlib.asynccontextmanager``), of
``async with aclosing(...)`` or of an ``async for``, and belong to the block; or the program has lost interest in the
generator, and what it does is none of its business. What tells them apart is whether some ``async with`` or
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

MAX_PARTS = 500  # objects of the context managers of a frame that are looked at
MAX_LEVELS, MAX_KEEPERS = 10, 100  # of what keeps something: of more than that, others may know
MAX_SHARE = 0.1  # of the time, for searches: each goes through all objects that there are


class Home:
    """Where the block of ``scope``, which has been entered, is. It never moves."""

    __slots__ = ("_generator", "_known", "_scope", "_since")

    def __init__(self, scope: object) -> None:
        self._scope = weakref.ref(scope)
        self._since = time.monotonic()
        self._generator: weakref.ref[object] | None = None
        self._known = False

    def is_beside(self, task: asyncio.Task[Any]) -> bool:
        """Is it in a generator, and ``task``, which is suspended, in other code? Also while that is not known yet."""
        scope = self._scope()
        if scope is None or (self._known and self._generator is None):
            return False
        kind = type(scope)
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
    """The generators with blocks in them. One search serves all who have been waiting for it."""

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
    """While a generator is being closed: the exception for which that is done, as far as an ``__aexit__`` on the stack
    was told of one (that of ``aclosing``, or of an ``AsyncExitStack``)."""
    frame = sys._getframe(1).f_back
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__aexit__":
            variables = frame.f_locals
            for name in code.co_varnames[: code.co_argcount + bool(code.co_flags & inspect.CO_VARARGS)]:
                value = variables.get(name)
                for each in value if type(value) is tuple else (value,):
                    if issubclass(type(each), BaseException) and type(each) is not GeneratorExit:
                        return each  # type: ignore[no-any-return]  # it is one
        frame = frame.f_back
    return None


def may_be_used_by_others(thing: object, task: asyncio.Task[Any], ours: Sequence[object]) -> bool:
    """May anybody but ``task``, which is running, have hold of it?

    It is that task's alone if only the frames on the stack keep it (as far as the garbage collector is shown them, in
    coroutines that run), or things that nothing else keeps. ``ours`` are weak references to it that nobody uses
    to end the lock, and what keeps one. The search goes through all objects that there are: it blocks the loop for
    about 0.1 s per million.
    """
    level: list[object] = [thing]
    level += (each for each in weakref.getweakrefs(thing) if not any(each is own for own in ours))
    if len(level) > 2 or _in_other_threads(thing):  # one, which all share that want no callback
        return True
    mark = object()  # by which the arguments of the question are known, which are found too in Python 3.13
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
    """Does a function that runs in another thread have it, or a method of it, in a variable?"""
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
            rest += [part.__self__ for part in parts if type(part) is types.MethodType and _is_exit(part)]
            rest += _iterated(each, [part for part in parts if type(part) is types.AsyncGeneratorType])
        else:
            rest[:0] = [part for part in parts[:MAX_PARTS] if not issubclass(type(part), _NO_PARTS)]


def _is_exit(method: object) -> bool:
    """Is it what an ``async with`` is going to call?"""
    return getattr(method, "__name__", "") in ("__aexit__", "__exit__")


def _iterated(awaited: Any, generators: list[object]) -> list[object]:
    """Those of the generators that a suspended frame keeps otherwise than in a variable."""
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
