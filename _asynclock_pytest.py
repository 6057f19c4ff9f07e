"""The pytest plugin of asynclock: real locks, and real losses, for the tests of those who use it.

pytest imports this in every run, wherever asynclock is installed, whether its fixtures are used or not. So it stands
beside the package: importing anything inside of it would import redis-py too. Whatever is needed is imported when a
fixture is asked for.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from asynclock import Locker
    from asynclock.testing import LockServer, Proxy

_LOOP_SCOPES = pytest.StashKey[tuple[str, ...]]()  # those of pytest-asyncio, if it is there
_SERVER = pytest.StashKey["LockServer"]()  # once a test has asked for it


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "asynclock_server",
        "the server of the fixture lock_server: valkey-9.1 (default), redis-8.2, redis-6.2, or the name or path of a "
        "redis-server",
        default="valkey-9.1",
    )


@pytest.fixture(scope="session")
def lock_server(request: pytest.FixtureRequest) -> Iterator[LockServer]:
    """A real server on a free port of 127.0.0.1, one for the session, emptied before each test: give your service
    lock_server.url. lock_server.lose("name", "disconnected") makes the holder lose its lock, and
    lock_server.hold("name") holds it as somebody else. See asynclock.testing.LockServer."""
    from asynclock.testing import LockServer

    server = LockServer(request.config.getini("asynclock_server"))
    try:
        server.start()
    except RuntimeError as error:
        server.close()
        if isinstance(error.__cause__, ImportError):
            pytest.fail(
                f"the fixture lock_server starts a server, and {error} ({error.__cause__}). Or name another server in "
                "pytest's configuration: asynclock_server = redis-server",
                pytrace=False,
            )
        raise
    request.config.stash[_SERVER] = server
    try:
        yield server
    finally:
        del request.config.stash[_SERVER]
        server.close()


@pytest.fixture
def locker(request: pytest.FixtureRequest) -> Locker:
    """An open asynclock.Locker on lock_server, in the event loop of the test: with pytest-asyncio, or with anyio's
    pytest plugin."""
    opened: Locker = _in_the_loop_of_the_test(request, "locker")
    return opened


@pytest.fixture
def lock_proxy(request: pytest.FixtureRequest) -> Proxy:
    """An open asynclock.testing.Proxy in front of lock_server, in the event loop of the test: give your service
    lock_proxy.url, and freeze, delay or cut its connections."""
    opened: Proxy = _in_the_loop_of_the_test(request, "lock_proxy")
    return opened


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    server = item.config.stash.get(_SERVER, None)
    if server is not None:
        server.reset()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    # Before the fixtures end, which may need the server. They end in any case.
    server = item.config.stash.get(_SERVER, None)
    try:
        if server is not None:
            server.settle()
    finally:
        yield


# A locker and a proxy belong to an event loop. pytest-asyncio and anyio's plugin each run async fixtures in theirs, and
# each wants them declared in its own way. So each has fixtures of its own below, and the public ones choose.


def _in_the_loop_of_the_test(request: pytest.FixtureRequest, what: str) -> Any:
    config = request.config
    pytest_asyncio = sys.modules.get("pytest_asyncio")
    if config.stash[_LOOP_SCOPES] and pytest_asyncio is not None and pytest_asyncio.is_async_test(request.node):
        if "anyio_backend" in request.fixturenames:
            pytest.fail(
                f"pytest-asyncio runs {request.node.name}, and anyio's plugin its async fixtures, in another event "
                "loop: choose asyncio_mode = strict, or take the mark anyio away",
                pytrace=False,
            )
        return request.getfixturevalue(f"_asynclock_{what}_in_{_loop_scope(request.node)}_loop")
    if "anyio_backend" in request.fixturenames:
        backend = request.getfixturevalue("anyio_backend_name")
        if backend != "asyncio":
            pytest.fail(
                f"the fixture {what} works on asyncio, and this test runs on {backend}: choose the backend with a "
                "fixture of your own, anyio_backend, that returns 'asyncio'",
                pytrace=False,
            )
        return request.getfixturevalue(f"_asynclock_{what}_with_anyio")
    pytest.fail(
        f"the fixture {what} belongs to the event loop of a test, and {request.node.name} has none: mark an async test "
        "with @pytest.mark.asyncio (pip install 'pytest-asyncio>=1.0') or @pytest.mark.anyio; without one, use "
        "lock_server",
        pytrace=False,
    )


def _loop_scope(item: pytest.Item) -> str:
    """In which of pytest-asyncio's event loops the test runs."""
    marker = item.get_closest_marker("asyncio")
    chosen = marker and (marker.kwargs.get("loop_scope") or marker.kwargs.get("scope"))
    return str(chosen or item.config.getini("asyncio_default_test_loop_scope"))


def _opening_locker() -> Callable[[LockServer], AsyncIterator[Locker]]:
    async def opened(lock_server: LockServer) -> AsyncIterator[Locker]:
        from asynclock import Locker

        async with Locker(lock_server.url) as locker:
            yield locker

    return opened


def _opening_proxy() -> Callable[[LockServer], AsyncIterator[Proxy]]:
    async def opened(lock_server: LockServer) -> AsyncIterator[Proxy]:
        from asynclock.testing import Proxy

        async with Proxy(lock_server.port) as proxy:
            yield proxy

    return opened


_OPENING: dict[str, Callable[[], Callable[..., Any]]] = {"locker": _opening_locker, "lock_proxy": _opening_proxy}


def pytest_configure(config: pytest.Config) -> None:
    fixtures = ModuleType("asynclock's fixtures for event loops")
    for what, opening in _OPENING.items():
        name = f"_asynclock_{what}_with_anyio"
        setattr(fixtures, name, pytest.fixture(opening(), name=name))
    config.stash[_LOOP_SCOPES] = ()
    if config.pluginmanager.is_registered(sys.modules.get("pytest_asyncio.plugin")):
        import pytest_asyncio  # it is there already

        declare: Any = pytest_asyncio.fixture
        if "loop_scope" in inspect.signature(declare).parameters:  # else it is older, and is left alone
            config.stash[_LOOP_SCOPES] = ("function", "class", "module", "package", "session")
        for what, opening in _OPENING.items():
            for scope in config.stash[_LOOP_SCOPES]:
                name = f"_asynclock_{what}_in_{scope}_loop"
                setattr(fixtures, name, declare(opening(), loop_scope=scope, name=name))
    config.pluginmanager.register(fixtures, "asynclock-loops")
