"""What was installed from a wheel works. Run by .ci/run and ``nox -s installed``, in a virtual environment that has the
extras embedded and cli and two packages for tests, in a directory where nothing of the repository is: pytest collects
it only if it is named."""

from __future__ import annotations

import asyncio
import importlib.metadata
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import asynclock
from asynclock import Locker, LockLostError
from asynclock.testing import LockServer

PACKAGES = Path(sysconfig.get_path("purelib"))


def test_this_is_the_pure_wheel_and_not_the_source_tree() -> None:
    assert Path(asynclock.__file__).is_relative_to(PACKAGES)
    assert (PACKAGES / "asynclock" / "py.typed").is_file()
    assert asynclock.__version__ == importlib.metadata.version("asynclock")
    assert asynclock.compiled is False


def test_the_command_says_its_version() -> None:
    command = Path(sysconfig.get_path("scripts"), "asynclock")
    said = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    assert said == f"asynclock {asynclock.__version__} (pure Python)\n"


def test_importing_it_imports_nothing_that_is_optional() -> None:
    code = (
        "import sys; before = set(sys.modules); import asynclock; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(said.split()) == {"asynclock", "hiredis", "redis"}


@pytest.mark.asyncio
async def test_the_fixtures_lend_a_server_and_take_a_lock_away(lock_server: LockServer, locker: Locker) -> None:
    states: list[str] = []
    async with lock_server.lose("report", "taken over"):
        with pytest.raises(LockLostError) as lost:
            async with locker.with_context("report", timeout=5):
                states.append("running")
                await asyncio.sleep(60)
                states.append("done")
    assert states == ["running"]
    assert lost.value.reason == "taken over"
