"""Real servers for the tests, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from asynclock import Locker, sync
from asynclock.testing import KINDS, Cluster, Server
from tests.support.family import Family
from tests.support.proofs import proofs

pytest_plugins = ["tests.support.leftovers", "tests.support.shell"]

try:
    import uvloop
except ImportError:  # pragma: no cover - in the test extra, except where there is no uvloop
    uvloop = None  # type: ignore[assignment]  # a module otherwise

# How long an example takes says nothing on a machine that is busy with other tests.
settings.register_profile("asynclock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("asynclock")

# In the background of a shell and under nohup, these are ignored, and would be by the programs that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.platform != "win32":
    for each in (signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(each) is signal.SIG_IGN:
            signal.signal(each, signal.SIG_DFL)

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
    parser.addoption("--guarantee", type=int, help="only the tests that docs/proofs.md names for this guarantee")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """What ``-n auto`` means, which is the default: the tests mostly wait, so three for each core."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # the user's word; xdist reads it
    if all("::" in argument for argument in config.args):
        return 0  # single tests start sooner without workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(3 * cores, 8)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """``-m fast``: do not even import modules without such tests, which would take most of the time."""
    if config.option.markexpr != "fast" or not collection_path.match("test_*.py"):
        return None
    return True if "pytest.mark.fast" not in collection_path.read_text() else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """``--guarantee N``: leave out all other tests."""
    number = config.getoption("--guarantee")
    if number is None:
        return
    chosen = {(proof.file, proof.test) for proof in proofs() if proof.guarantee == number}
    if not chosen:
        raise pytest.UsageError(f"docs/proofs.md has no tests for guarantee {number}")

    def is_chosen(item: pytest.Item) -> bool:
        file = item.path.relative_to(config.rootpath).as_posix()
        return isinstance(item, pytest.Function) and (file, item.originalname) in chosen

    config.hook.pytest_deselected(items=[item for item in items if not is_chosen(item)])
    items[:] = [item for item in items if is_chosen(item)]


@pytest.fixture(autouse=True, scope="session")
def handoffs(request: pytest.FixtureRequest) -> Iterator[None]:
    """``--handoffs N``: what ``local_handoffs`` is where a test does not say it."""
    number = request.config.getoption("--handoffs")
    with pytest.MonkeyPatch.context() as patch:
        if number is not None:
            for each in (Locker, sync.Locker):
                patch.setitem(each.__init__.__kwdefaults__, "local_handoffs", number)
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


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Family]:
    if sys.platform != "linux":
        pytest.skip("finds processes in /proc")
    family = Family(tmp_path)
    yield family
    for pid in family.members():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
