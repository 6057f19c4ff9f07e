"""Servers whose clocks are wrong or jump."""

import functools
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from .guard import Guard
from .started import Started

_DEBIAN = "/usr/lib"
_HOW_TO_GET_IT = "pip install libfaketime, or on Debian: apt install faketime"


def clock_off(seconds: float) -> Mapping[str, str]:
    """The environment of a process whose time of day is wrong by a constant::

        Server(environment=clock_off(+3600))

    The process's monotonic clock is unaffected, and its time passes at the usual speed. Uses the library
    libfaketime, from the pip package ``libfaketime`` or Debian's package ``faketime``. Linux only.

    :param seconds: how far its clock is ahead; negative: behind
    :raises RuntimeError: libfaketime is missing or does not work on this machine; the message says how to get it
    """
    return {"FAKETIME": f"{seconds:+.3f}"} | _environment()


class Clock(Started):
    """A time of day that can be changed, any number of times, while the processes that use it run::

        with Clock() as clock, Server(environment=clock.environment) as server:
            clock.set(+3600)

    Otherwise like :func:`clock_off`. Reading the time costs those processes a few microseconds more.
    """

    def __init__(self) -> None:
        self._guard: Guard | None = None

    def start(self) -> None:
        """Create the clock; it shows the right time. Raises as :func:`clock_off`."""
        if self._guard is None:
            _library()
            self._guard = Guard()
            self.set(0.0)

    def close(self) -> None:
        """Remove the clock. Call it after the processes that use it have ended. Does nothing the second time."""
        if self._guard is not None:
            self._guard.close()
            self._guard = None

    def set(self, seconds: float) -> None:
        """Make the clock jump.

        :param seconds: how far it is ahead of the real time from now on; negative: behind
        :raises RuntimeError: called before :meth:`start`
        """
        # Replaced in one step, since the processes may read it at any time.
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+.3f}")
        new.replace(self._file)

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment variables of a process that uses this clock. Raises as :meth:`set`."""
        return {"FAKETIME_TIMESTAMP_FILE": str(self._file), "FAKETIME_NO_CACHE": "1"} | _environment()

    @property
    def _file(self) -> Path:
        if self._guard is None:
            raise RuntimeError("the clock has no file before start()")
        return self._guard.directory / "faketimerc"


def _environment() -> dict[str, str]:
    return {
        "LD_PRELOAD": _library(),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",  # its name in older versions
    }


@functools.cache
def _library() -> str:
    if sys.platform != "linux":
        raise RuntimeError("a server with a wrong clock needs Linux")
    package = find_spec("libfaketime")  # found, not imported: importing it changes this process
    places = [
        Path(place) / "vendor/libfaketime/src" for place in (package and package.submodule_search_locations) or ()
    ]
    places += Path(_DEBIAN).glob("*/faketime")
    found = [str(place / "libfaketime.so.1") for place in places if (place / "libfaketime.so.1").is_file()]
    for path in found:
        # The loader ignores a library that it cannot load, and prints a warning.
        loaded = subprocess.run(["/bin/true"], env={"LD_PRELOAD": path}, capture_output=True, check=False)
        if loaded.returncode == 0 and not loaded.stderr:
            return path
    what = f"none of {', '.join(found)} can be loaded here" if found else "libfaketime is not installed"
    raise RuntimeError(f"{what}: {_HOW_TO_GET_IT}")
