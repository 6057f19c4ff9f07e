"""A server whose clock is wrong."""

import functools
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

_DEBIAN = "/usr/lib"
_HOW_TO_GET_IT = "pip install libfaketime, or on Debian: apt install faketime"


def clock_off(seconds: float) -> Mapping[str, str]:
    """The environment of a process whose time of day is so many seconds ahead (or, negative, behind)::

        Server(environment=clock_off(+3600))

    Its monotonic clock is as always, and time passes as fast as ever. By the library libfaketime, which
    ``pip install libfaketime`` brings, or Debian's package ``faketime``. Linux only.

    :raises RuntimeError: there is none, or not one for this machine; the message says how to get it.
    """
    return {
        "LD_PRELOAD": _library(),
        "FAKETIME": f"{seconds:+.3f}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",  # as older ones call it
    }


@functools.cache
def _library() -> str:
    if sys.platform != "linux":
        raise RuntimeError("a server with a wrong clock needs Linux")
    package = find_spec("libfaketime")  # found, not imported: that changes the process that does it
    places = [
        Path(place) / "vendor/libfaketime/src" for place in (package and package.submodule_search_locations) or ()
    ]
    places += Path(_DEBIAN).glob("*/faketime")
    found = [str(place / "libfaketime.so.1") for place in places if (place / "libfaketime.so.1").is_file()]
    for path in found:
        # The loader passes over what it cannot load, and says so.
        loaded = subprocess.run(["/bin/true"], env={"LD_PRELOAD": path}, capture_output=True, check=False)
        if loaded.returncode == 0 and not loaded.stderr:
            return path
    what = f"none of {', '.join(found)} can be loaded here" if found else "libfaketime is not installed"
    raise RuntimeError(f"{what}: {_HOW_TO_GET_IT}")
