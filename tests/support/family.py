"""The processes that a program has started, found so that none is left."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path


class Family:
    """A process that was started with this environment, and whatever it has started in turn.

    They are known by their temporary directory: it is in their environment, or, as a server writes its title over
    that, they work in it.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self.env = {**os.environ, "TERM": "xterm-256color", "TMPDIR": str(home)}

    def members(self, word: str = "") -> list[int]:
        """Those with this word in their command line."""
        found: list[int] = []
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it is gone, or somebody else's
                known = (directory / "environ").read_bytes() + bytes((directory / "cwd").readlink())
                if bytes(self._home) in known and word.encode() in (directory / "cmdline").read_bytes():
                    found.append(int(directory.name))
        return found

    def gone(self, within: float = 4.0) -> bool:
        """No process is left, and no file."""
        deadline = time.monotonic() + within
        while self.members() or any(self._home.iterdir()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True
