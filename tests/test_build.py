"""The two builds: pure Python, and the hot modules compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
