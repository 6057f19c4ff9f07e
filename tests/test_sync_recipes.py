"""The examples for Flask, Django and Celery, as they are run in production: gunicorn --preload with several workers and
threads, and Celery's pool of forked processes. 20 of 100 are withdrawn at the same time: 80 must be left."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from asynclock.sync import Locker
from asynclock.testing import Server
from tests.support.helpers import ROOT, key

pytestmark = [pytest.mark.slow, pytest.mark.serverless]
START = 60.0  # seconds that workers may need to start, beside other tests

# Beside the application, what makes it harder: the process that is forked uses locks, too.
PRELOADED = """
from examples.{name} import app, locker

scope = locker.acquire("of the master")
scope.check()
"""


def until(condition: Callable[[], object], seconds: float = START) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not true within {seconds} s"
        time.sleep(0.02)


@contextlib.contextmanager
def running(command: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """In the end, asked to end; it must do so without a complaint in its log."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, log.read_text()
        except BaseException:
            print(log.read_text())
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert "Traceback" not in log.read_text()
    assert "ResourceWarning" not in log.read_text()


@contextlib.contextmanager
def gunicorn(name: str, server: Server, directory: Path) -> Iterator[httpx.Client]:
    (directory / "preloaded.py").write_text(PRELOADED.format(name=name))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    paths = f"{directory}{os.pathsep}{ROOT}"
    command = ["gunicorn", "--preload", "--workers", "2", "--threads", "4", "--bind", f"127.0.0.1:{port}"]
    environment = {"LOCK_URL": server.url, "DATABASE": str(directory / "accounts.db"), "PYTHONPATH": paths}
    environment["PYTHONWARNINGS"] = "default::ResourceWarning"
    with (
        running([*command, "preloaded:app"], directory / "log", **environment) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client,
    ):

        def answers() -> bool:
            assert process.poll() is None
            with contextlib.suppress(httpx.ConnectError):
                return client.get("/").status_code == 404
            return False

        until(answers)
        yield client


@pytest.mark.parametrize("name", ["flask_app", "django_app"])
def test_withdrawals_take_turns(name: str, server: Server, tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    pytest.importorskip(name.partition("_")[0])
    database = tmp_path / "accounts.db"
    if name == "django_app":
        prepare = [sys.executable, "-m", "examples.django_app"]
        subprocess.run(
            prepare, cwd=ROOT, env={**os.environ, "DATABASE": str(database)}, check=True, capture_output=True
        )
    with gunicorn(name, server, tmp_path) as client, ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda _: client.post("/accounts/anna/withdraw"), range(20)))
        assert [answer.status_code for answer in answers] == [200] * 20, answers[0].text
        assert sorted(answer.json()["balance"] for answer in answers) == list(range(80, 100))
        assert server.execute("KEYS", "*") == [key("of the master").encode()]
        with Locker(server.url) as locker, locker.with_context("account:anna"):
            busy = client.post("/accounts/anna/withdraw")
        assert (busy.status_code, busy.headers["Retry-After"]) == (423, "1")
    assert server.execute("KEYS", "*") == []  # also that of the master


def test_celery(server: Server, tmp_path: Path) -> None:
    pytest.importorskip("celery")
    (tmp_path / "preloaded.py").write_text(
        PRELOADED.format(name="celery_app")
        + f"folders = dict.fromkeys(('data_folder_in', 'data_folder_out', 'control_folder'), {str(tmp_path)!r})\n"
        + "app.conf.broker_transport_options = folders\n"
        + "app.conf.task_ignore_result = True\n"
    )
    environment = {
        "BROKER_URL": "filesystem://",
        "DATABASE": str(tmp_path / "accounts.db"),
        "LOCK_URL": server.url,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "PYTHONWARNINGS": "default::ResourceWarning",
        "C_FORCE_ROOT": "1",
    }
    send = "import preloaded; from examples.celery_app import withdraw; [withdraw.delay('anna') for _ in range(20)]"
    subprocess.run([sys.executable, "-c", send], cwd=ROOT, env={**os.environ, **environment}, check=True)

    def balance() -> int | None:
        with (
            contextlib.suppress(sqlite3.OperationalError),
            contextlib.closing(sqlite3.connect(tmp_path / "accounts.db")) as db,
        ):
            for (left,) in db.execute("SELECT balance FROM accounts"):
                return int(left)
        return None

    worker = ["celery", "-A", "preloaded", "worker", "--concurrency", "4", "--pool", "prefork"]
    with running(worker, tmp_path / "log", **environment):
        until(lambda: balance() == 80)
        time.sleep(0.5)
        assert balance() == 80
    assert server.execute("KEYS", "*") == []


@pytest.mark.fast
def test_the_page_shows_what_is_run() -> None:
    page = (ROOT / "docs" / "threads.md").read_text()
    shown = re.findall(r"^```py\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(shown) >= 4
    examples = [(ROOT / "examples" / f"{name}_app.py").read_text() for name in ("flask", "django", "celery")]
    for block in shown:
        assert any(block in example for example in examples), block
