"""README.md claims only what runs: its first example, its commands, its tables."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import asynclock
from asynclock import Locker, LockScope
from asynclock.options import Options
from asynclock.testing import Server
from tests.support.helpers import key

pytestmark = [pytest.mark.every_python, pytest.mark.serverless]

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_first_example(server: Server) -> None:
    code = blocks("python")[0].replace("redis://127.0.0.1:6379", server.url)
    process = subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "still mine\n"
        server.execute("DEL", key("my_lock"))
        since = time.monotonic()
        rest = process.communicate(timeout=5)[0]
        assert time.monotonic() - since < 2
        assert rest.startswith("stopped: lock 'my_lock' was lost: another client deleted its key")
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.fast
def test_ci_runs_the_two_commands_as_they_stand() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    shell = [block.strip() for block in blocks("sh")]
    demo, tests = (next(line for line in shell if word in line) for word in ("asynclock demo", "pytest"))
    for command in (demo, tests):
        quiet = command.replace("pip install", "pip install --quiet")
        assert quiet in ci or quiet.replace("asynclock demo", "asynclock demo --plain") in ci, command


@pytest.mark.fast
def test_every_option_error_and_method_is_in_the_tables() -> None:
    for option in Options.__slots__:
        assert f"`{option}`" in README
    for name in asynclock.__all__:
        if name.endswith("Error"):
            assert f"| `{name}` |" in README
    for of, owner in ((Locker, "locker"), (LockScope, "scope")):
        for name, _ in inspect.getmembers(of, callable):
            if not name.startswith("_"):
                assert f"{owner}.{name}(" in README or f".{name}(" in README, name
    for reason in asynclock.LossReason:
        if reason != "released":
            assert f"`{reason}`" in README
