"""``asynclock run`` in trouble: several losses, and a stderr that nobody reads."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from asynclock.testing import Server
from tests.support.family import Family
from tests.support.helpers import key
from tests.support.runs import RUN, URLS, started

pytestmark = [pytest.mark.serverless, pytest.mark.one_loop]


@pytest.fixture
def env(server: Server, family: Family) -> dict[str, str]:
    rest = {name: value for name, value in family.env.items() if name not in URLS}
    return rest | {"ASYNCLOCK_URL": server.url, "COLUMNS": "80", "PYTHONWARNINGS": "ignore"}


def age(file: Path) -> float:
    """Seconds since the command has written there: it does so ten times a second while it works."""
    return time.time() - file.stat().st_mtime


# Losses

STUBBORN = "trap '' TERM; (trap '' TERM; while :; do touch {file}; sleep 0.1; done) & echo ready; wait; sleep 60"


@pytest.mark.parametrize("apart", [0.0, 0.5])
def test_run_kills_a_command_that_loses_two_locks(
    server: Server, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory, apart: float
) -> None:
    file = tmp_path_factory.mktemp("alive") / "alive"
    with started("--kill-after", "2", "a", "b", "--", "sh", "-c", STUBBORN.format(file=file), env=env) as job:
        job.until("ready")
        began = time.monotonic()
        if apart:
            server.execute("DEL", key("a"))
            time.sleep(apart)
            server.execute("DEL", key("b"))
        else:
            server.execute("FLUSHALL")
        assert job.process.wait(timeout=10) == 75
        took = time.monotonic() - began
        time.sleep(1)
        worked = age(file)
    assert worked > 0.5, f"status 75 after {took:.1f} s, and what the command has started goes on, without the locks"


@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
def test_run_gives_the_command_its_time_to_clean_up(
    server: Server, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    """With one lock, the command has --kill-after seconds; with two that are lost one after the other, none."""
    file = tmp_path_factory.mktemp("clean") / "clean"
    command = f"trap 'sleep 1; touch {file}; exit' TERM; echo ready; while :; do sleep 0.05; done"
    with started("--kill-after", "5", *names, "--", "sh", "-c", command, env=env) as job:
        job.until("ready")
        for name in names:
            server.execute("DEL", key(name))
            time.sleep(0.3)
        assert job.process.wait(timeout=15) == 75
    assert file.exists(), "the command was killed while it cleaned up"


# A stderr that nobody reads


def test_run_ends_the_command_though_nobody_reads_stderr(
    server: Server, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """``asynclock run report -- ./report 2>&1 | less``: the pipe is full as soon as less shows the first page."""
    file = tmp_path_factory.mktemp("alive") / "alive"
    reading, writing = os.pipe()
    command = f"yes & while :; do touch {file}; sleep 0.1; done"
    process = subprocess.Popen(
        [*RUN, "--kill-after", "1", "a", "--", "sh", "-c", command],
        env=env,
        stdout=writing,
        stderr=writing,
        start_new_session=True,
    )
    os.close(writing)
    try:
        end = time.monotonic() + 15
        while not file.exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(1)  # the pipe is full
        server.execute("SET", key("a"), "somebody else", "PX", 60_000)
        time.sleep(5)
        assert age(file) > 0.5, "5 s after the loss, the command works on: not even SIGTERM was sent"
    finally:
        os.close(reading)  # then whoever writes goes on
        process.wait(timeout=15)


def test_run_extends_its_lock_though_nobody_reads_stderr(
    server: Server, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With -v: a dropped connection, which loses nothing, is logged by the event loop, and that waits for a reader."""
    file = tmp_path_factory.mktemp("alive") / "alive"
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [*RUN, "-v", "a", "--", "sh", "-c", f"yes & while :; do touch {file}; sleep 0.1; done"],
        env=env,
        stdout=writing,
        stderr=writing,
        start_new_session=True,
    )
    os.close(writing)
    try:
        end = time.monotonic() + 15
        while not file.exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(1)  # the pipe is full
        server.execute("CLIENT", "KILL", "TYPE", "normal")
        time.sleep(6)  # more than key_validity
        held, works = server.execute("EXISTS", key("a")), age(file) < 0.5
        assert held or not works, "the lock has expired, and the command works on"
    finally:
        os.close(reading)
        process.terminate()
        process.wait(timeout=15)


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_that_come_too_late_change_nothing(server: Server, env: dict[str, str], number: int) -> None:
    """The command has ended, and asynclock run is about to. So there is always one that comes in the last moment."""
    with started("-v", "job", "--", "sh", "-c", "exit 4", env=env) as job:
        job.until("command ended")
        while job.process.poll() is None:
            job.send(number)
            time.sleep(0.0001)
        status, output = job.end()
    assert (status, output) == (4, "")
