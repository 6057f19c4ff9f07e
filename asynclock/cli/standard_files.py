"""stdin, stdout and stderr, which may have been closed when a command was started."""

from __future__ import annotations

import os
import sys


def open_standard_files() -> None:
    """Open those that are closed, on nothing. Otherwise a connection to a server would take their place, and what this
    process or its children print would go there."""
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
        if getattr(sys, name) is None:
            # It stays open as long as the process, as those that Python makes: hence no context manager, and no
            # ``close``, which would warn at exit.
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115 - see above
