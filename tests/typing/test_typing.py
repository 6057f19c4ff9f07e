"""Both type checkers accept what users write, see the same types in it, and refuse what is wrong (the other files).

This directory is no package: scripts in the one above would take it for the standard library's ``typing``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.serverless

ROOT = Path(__file__).parents[2]
FILES = sorted(each for each in Path(__file__).parent.glob("*.py") if each != Path(__file__))
SCOPES = [file for file in FILES if "assert_type(scope.held, bool)" in file.read_text()]


def mypy(file: Path) -> list[str]:
    return [
        "mypy",
        "--strict",
        "--no-incremental",
        "--config-file",
        "",
        str(file),
    ]  # none of this repository's settings


def pyright(file: Path) -> list[str]:
    """basedpyright is pyright with a Node.js to run it, for pip."""
    settings = {
        "include": [str(file)],
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": True,
        "enableTypeIgnoreComments": False,  # those are mypy's
        "reportDeprecated": False,  # of the standard library
        "extraPaths": [str(ROOT)],
    }
    return ["basedpyright", "--pythonpath", sys.executable, "--project", json.dumps(settings)]


def check(command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    if command[-2] == "--project":
        (directory / "pyrightconfig.json").write_text(command[-1])
        command[-1] = str(directory)
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("checker", [mypy, pyright])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_users_write(checker: Callable[[Path], list[str]], file: Path, tmp_path: Path) -> None:
    """As it is: where it says that an error is expected, there has to be one."""
    done = check(checker(file), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("checker", [mypy, pyright])
@pytest.mark.parametrize("file", SCOPES, ids=lambda file: file.stem)
def test_a_wrong_type_is_found(checker: Callable[[Path], list[str]], file: Path, tmp_path: Path) -> None:
    """So that nothing passes because nothing was looked at."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(file.read_text().replace("assert_type(scope.held, bool)", "assert_type(scope.held, str)"))
    done = check(checker(wrong), tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("error:") == 1, done.stdout
