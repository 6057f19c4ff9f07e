"""The two builds: pure Python, and the hot modules compiled. And what the wheel and the sdist consist of."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest

import asynclock

pytestmark = [pytest.mark.serverless, pytest.mark.every_python]

ROOT = Path(__file__).parent.parent


def interface(pure: bool) -> dict[str, Any]:
    environment = {**os.environ, "ASYNCLOCK_PURE": "1" if pure else ""}
    output = subprocess.run(
        [sys.executable, "-m", "tests.support.interface"], env=environment, cwd=ROOT, capture_output=True, check=True
    )
    found: dict[str, Any] = json.loads(output.stdout)
    return found


@pytest.mark.fast
def test_the_source_can_be_run_in_either_build() -> None:
    assert interface(pure=True)["compiled"] is False


@pytest.mark.skipif(not asynclock.compiled, reason="this build is pure Python: there is no other one to compare with")
def test_both_builds_have_the_same_interface() -> None:
    compiled, pure = interface(pure=False), interface(pure=True)
    assert compiled["compiled"]
    assert compiled["interface"] == pure["interface"]
    assert compiled["refusals"] == pure["refusals"]


def test_the_command_says_which_build_runs() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "asynclock", "--version"], capture_output=True, text=True, check=True
    ).stdout
    build = "compiled" if asynclock.compiled else "pure Python"
    assert said == f"asynclock {asynclock.__version__} ({build})\n"


# What is built. As `python -m build` does it: the sdist from the tree, the wheel from the sdist.

JUNK = (
    ".hypothesis/x",
    ".nox/tests/bin/python",
    ".pytest_cache/x",
    ".venv/bin/python",
    ".venv-ci/dist/x.whl",
    "accounts.db",
    "asynclock/__pycache__/locker.cpython-311.pyc",
    "asynclock/core/room.cpython-311-x86_64-linux-gnu.so",  # of the compiled build, which may lie beside the source
    "asynclock/core/room.cp311-win_amd64.pyd",
    "asynclock__mypyc.cpython-311-x86_64-linux-gnu.so",
    "dist/x.whl",
    "site/index.html",
)


def build(kind: str, tree: Path, into: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(into)]
    environment = {**os.environ, "ASYNCLOCK_COMPILE": ""}
    done = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # pip install hatchling, if that is missing
    (built,) = into.iterdir()
    return built


def files(tree: Path) -> set[str]:
    return {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as git has it."""
    tree = tmp_path_factory.mktemp("repository") / "asynclock"
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()]
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", *ignored))
    return tree


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked, of a tree in which people have worked."""
    worked_in = tmp_path_factory.mktemp("worked-in") / "asynclock"
    shutil.copytree(checkout, worked_in)
    for each in JUNK:
        (worked_in / each).parent.mkdir(parents=True, exist_ok=True)
        (worked_in / each).touch()
    built = build("sdist", worked_in, tmp_path_factory.mktemp("sdist"))
    with tarfile.open(built) as archive:
        archive.extractall(built.parent, filter="data")
    return built.parent / f"asynclock-{asynclock.__version__}"


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", sdist, tmp_path_factory.mktemp("wheel"))


def test_the_sdist_is_the_repository_without_what_git_ignores(checkout: Path, sdist: Path) -> None:
    assert files(sdist) == files(checkout) | {"PKG-INFO"}


def test_the_wheel_has_the_package_and_the_pytest_plugin_and_nothing_else(checkout: Path, wheel: Path) -> None:
    assert wheel.name == f"asynclock-{asynclock.__version__}-py3-none-any.whl"
    package = {f"asynclock/{file}" for file in files(checkout / "asynclock")}
    assert {name for name in package if not name.endswith(".py")} == {"asynclock/py.typed"}
    info = f"asynclock-{asynclock.__version__}.dist-info"
    metadata = {f"{info}/{file}" for file in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")}
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) == package | {"_asynclock_pytest.py"} | metadata
        entry_points = ConfigParser()
        entry_points.read_string(archive.read(f"{info}/entry_points.txt").decode())
    assert {section: dict(entry_points[section]) for section in entry_points.sections()} == {
        "console_scripts": {"asynclock": "asynclock.cli:main"},
        "pytest11": {"asynclock": "_asynclock_pytest"},
    }


@pytest.mark.fast
def test_each_supported_python_is_tested_and_has_compiled_wheels() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    supported = re.findall(r"Python :: (3\.\d+)", " ".join(settings["project"]["classifiers"]))
    wheels = settings["tool"]["cibuildwheel"]["build"].split()
    assert [f"3.{each.removeprefix('cp3').removesuffix('-*')}" for each in wheels] == supported
    listed = re.findall(r"^PYTHONS = (.*)$", (ROOT / "noxfile.py").read_text(), re.M)
    assert re.findall(r"3\.\d+", " ".join(listed)) == supported
    listed = re.findall(r"\$\(find_python (3\.\d+)|for with in (.*); do", (ROOT / ".ci" / "run").read_text())
    assert {"3.11", *re.findall(r"3\.\d+", str(listed))} == {*supported}  # .ci/run begins with python3: 3.11, or later
