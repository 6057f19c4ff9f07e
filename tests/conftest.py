"""Real servers for the tests, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio

from asynclock import Locker
from asynclock.testing import KINDS, Cluster, Server

pytest_plugins = ["tests.support.leftovers"]

try:
    import uvloop
except ImportError:  # pragma: no cover - in the test extra, except where there is no uvloop
    uvloop = None  # type: ignore[assignment]  # a module otherwise

LOOPS: dict[str, Callable[[], Any]] = {"asyncio": asyncio.new_event_loop}
if uvloop is not None:
    LOOPS["uvloop"] = uvloop.new_event_loop


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--server",
        default="valkey-9.1",
        help=f"which server to test against: {', '.join(KINDS)}, or the path of a redis-server",
    )
    parser.addoption("--loop", choices=LOOPS, help="on this event loop only, instead of on both")
    parser.addoption("--handoffs", type=int, help="local_handoffs for all lockers of tests that do not choose it")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """What ``-n auto`` means, which is the default: the tests mostly wait, so two for each core."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # the user's word; xdist reads it
    if all("::" in argument for argument in config.args):
        return 0  # single tests start sooner without workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(2 * cores, 8)


@pytest.fixture(autouse=True, scope="session")
def handoffs(request: pytest.FixtureRequest) -> Iterator[None]:
    """``--handoffs N``: what ``local_handoffs`` is where a test does not say it."""
    number = request.config.getoption("--handoffs")
    with pytest.MonkeyPatch.context() as patch:
        if number is not None:
            patch.setitem(Locker.__init__.__kwdefaults__, "local_handoffs", number)
        yield


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], Any]]:
    only = config.getoption("--loop")
    chosen = {name: make for name, make in LOOPS.items() if only in (None, name)}
    if item.get_closest_marker("one_loop") is not None:
        return dict(itertools.islice(chosen.items(), 1))
    return chosen


@pytest.fixture(scope="session")
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--server"))


@pytest.fixture(scope="session")
def shared_server(kind: str) -> Iterator[Server]:
    with Server(kind) as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Server:
    """A running server without keys, shared by the tests that do it no harm."""
    shared_server.execute("FLUSHALL")
    return shared_server


@pytest.fixture
def own_server(kind: str) -> Iterator[Server]:
    """A running server of the test's own: to stop, to kill, to restart."""
    with Server(kind) as server:
        yield server


@pytest.fixture(scope="session")
def shared_cluster(kind: str) -> Iterator[Cluster]:
    with Cluster(kind) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """A cluster of three shards without keys, well, and with the roles and slots that the tests before have left."""
    for server in shared_cluster.servers:
        server.start()
    shared_cluster.wait_until_ok()
    for server in shared_cluster.servers:
        with contextlib.suppress(RuntimeError):  # a replica refuses
            server.execute("FLUSHALL")
    return shared_cluster


@pytest_asyncio.fixture
async def locker(server: Server) -> AsyncIterator[Locker]:
    async with Locker(server.url) as locker:
        yield locker


@pytest_asyncio.fixture
async def other(server: Server) -> AsyncIterator[Locker]:
    """Another locker: to the server it is another client, as one in another process would be."""
    async with Locker(server.url) as locker:
        yield locker
