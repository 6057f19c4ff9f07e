"""That what a test leaves behind is found: one of each is planted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PLANTS = """
import asyncio, functools, socket, subprocess, sys
import pytest
from asynclock import Locker

pytestmark = pytest.mark.asyncio
kept = []

async def test_nothing():
    kept.append(asyncio.get_running_loop().call_later(600, Locker.aclose))
    kept[-1].cancel()
    kept.append(asyncio.get_running_loop().call_later(600, print))  # nobody's business
    await asyncio.create_task(asyncio.sleep(0))
    subprocess.run([sys.executable, "-c", ""], check=True)
    socket.socket().close()

async def test_task():
    kept.append(asyncio.create_task(asyncio.sleep(600)))

async def test_socket():
    kept.append(socket.socket())

async def test_process():
    kept.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))

async def test_timer():
    kept.append(asyncio.get_running_loop().call_later(600, Locker.aclose))

async def test_timer_by_the_loop():
    kept.append(asyncio.get_running_loop().call_later(600, asyncio.get_running_loop().call_soon, Locker.aclose))

async def test_timer_by_functools():
    kept.append(asyncio.get_running_loop().call_later(600, functools.partial(Locker.aclose)))

async def test_complaint():
    async def fail():
        raise RuntimeError
    asyncio.ensure_future(fail())
    await asyncio.sleep(0)
"""

FOUND = {
    "test_task": "tasks left running",
    "test_socket": "sockets left open",
    "test_process": "processes left",
    "test_timer": "timers left",
    "test_timer_by_the_loop": "timers left",
    "test_timer_by_functools": "timers left",
    "test_complaint": "the event loop complained",
}


@pytest.mark.slow
def test_one_of_each_is_found(tmp_path: Path) -> None:
    plants = tmp_path / "test_plants.py"
    plants.write_text(PLANTS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-n", "0", "-c", str(ROOT / "pyproject.toml")]
    command += ["-p", "no:cacheprovider", "--tb=line", str(plants)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    errors = [line for line in done.stdout.splitlines() if line.startswith("ERROR ")]
    found = {
        (test, loop)
        for test in FOUND
        for loop in ("asyncio", "uvloop")
        for line in errors
        if f"::{test}[{loop}] - AssertionError: {FOUND[test]}" in line
    }
    assert found == {(test, loop) for test in FOUND for loop in ("asyncio", "uvloop")}, done.stdout
    assert len(errors) == len(found), done.stdout
    assert "FAILED" not in done.stdout
