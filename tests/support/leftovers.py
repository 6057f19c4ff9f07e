"""Fail a test that leaves a task, a timer, a socket or a child process behind, or an error in the event loop."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from asynclock.testing import Server

# What may outlive a test: what belongs to fixtures of a module or of the whole session. A test may kill and restart
# their servers, so the fixtures are remembered, and not only their processes.
_lasting_sockets: set[str] = set()
_lasting_children: set[int] = set()
_lasting: list[object] = []


def pytest_collection_finish() -> None:
    """Keep what was imported and collected out of the garbage collections after each test: they take a tenth then."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
    sockets, children = _sockets(), _children()
    result = yield
    if fixturedef.scope != "function":
        _lasting.append(result)
        _lasting_sockets.update(_sockets() - sockets)
        _lasting_children.update(_children() - children)
    return result


@pytest_asyncio.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    before = asyncio.all_tasks()
    sockets, children = _sockets(), _children()
    yield
    for _ in range(3):
        await asyncio.sleep(0)
    gc.collect()
    await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() - before if not task.done() and task is not asyncio.current_task()]
    assert not left, f"tasks left running: {left}"
    assert not complaints, f"the event loop complained: {complaints}"
    assert not (timers := _timers(loop)), f"timers left: {timers}"
    _lasting_children.update(pid for each in _lasting for pid in _pids(each))
    # A transport closes its socket a little after its own close(), and a killed process takes a moment to die.
    end = time.monotonic() + 2.0
    while (more := _sockets() - sockets - _lasting_sockets - _pairs()) and time.monotonic() < end:
        await asyncio.sleep(0.01)
    assert not more, f"sockets left open: {more}"
    while (others := _children() - children - _lasting_children) and time.monotonic() < end:
        await asyncio.sleep(0.01)
    commands = [command for pid in others if "multiprocessing.resource_tracker" not in (command := _command(pid))]
    assert not commands, f"processes left: {commands}"  # the tracker is Python's own, and stays


def _pids(fixture: object) -> set[int]:
    """The processes of the servers that a fixture is, or consists of."""
    if isinstance(fixture, Server):
        return {fixture.pid} if fixture.running else set()
    parts = fixture if isinstance(fixture, list | tuple) else getattr(fixture, "servers", ())
    return {pid for part in parts for pid in _pids(part)}


def _sockets() -> set[str]:
    """The open sockets of this process, by the kernel's names for them. (Empty where there is no ``/proc``, as on
    macOS.)"""
    found = set()
    for each in Path("/proc/self/fd").glob("*"):
        try:
            name = os.readlink(each)
        except OSError:
            continue  # closed meanwhile, or the descriptor of the listing itself
        if name.startswith("socket:"):
            found.add(name)
    return found


def _pairs() -> set[str]:
    """Unix sockets without a name: the socket pairs of event loops. uvloop makes one whenever it runs."""
    rows = [line.split() for line in _read(Path("/proc/self/net/unix")).splitlines()[1:]]
    return {f"socket:[{row[6]}]" for row in rows if len(row) == 7}


def _children() -> set[int]:
    return {
        int(pid)
        for thread in Path("/proc/self/task").glob("*/children")
        for pid in _read(thread).split()
        if pid.isdigit()
    }


def _timers(loop: asyncio.AbstractEventLoop) -> list[object]:
    """The pending timers of the library: those that call it, or pass something of it to what they call."""
    handles = getattr(loop, "_scheduled", None)
    if handles is None:  # uvloop keeps them in a set that only the garbage collector sees
        example = loop.call_later(600, print)
        example.cancel()
        sets = [each for each in gc.get_referents(loop) if isinstance(each, set)]
        handles = [each for found in sets for each in found if isinstance(each, type(example))]
    return [handle for handle in handles if not handle.cancelled() and any(map(_of_the_library, _called(handle)))]


def _called(handle: Any) -> list[object]:
    if isinstance(handle, asyncio.TimerHandle):
        return [handle._callback, *handle._args]
    parts = gc.get_referents(handle)
    return [each for part in parts for each in (part if isinstance(part, tuple) else (part,))]


def _of_the_library(called: object) -> bool:
    called = getattr(called, "func", called)  # functools.partial
    return callable(called) and str(getattr(called, "__module__", "")).startswith("asynclock")


def _command(pid: int) -> str:
    return f"{pid}: {_read(Path(f'/proc/{pid}/cmdline'))}"


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""
