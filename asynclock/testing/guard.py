"""A temporary directory, and the server that works in it: neither outlives this Python process."""

import contextlib
import os
import subprocess
import tempfile
import weakref
from pathlib import Path

# A shell that lives a moment longer than this process. It reads the server's pid from its input, and its input ends
# however this process ends, also by SIGKILL. PR_SET_PDEATHSIG would be simpler, but it needs code between fork and
# exec, and kills the server when the *thread* that started it ends.
_SCRIPT = """
pid=
while read -r line && [ "$line" != end ]; do pid=$line; done
[ -n "$pid" ] && kill -KILL "-$pid"
rm -rf -- "$1"
"""


class Guard:
    """Creates ``directory``. Removes it, and kills the process group that it watches, at ``close()``, when it is
    garbage-collected, or when this process ends.

    A process that was forked from this one without an exec shares the guard's input: while it lives, the guard does
    not notice that this process has died.
    """

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="asynclock-"))
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "asynclock-guard", str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            start_new_session=True,
        )
        self.close = weakref.finalize(self, _end, self._shell, os.getpid())

    def watch(self, pid: int | None) -> None:
        """Watch this process group instead of the last one. None: watch none."""
        _tell(self._shell, str(pid or ""))


def _tell(shell: subprocess.Popen[bytes], line: str) -> None:
    assert shell.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        shell.stdin.write(f"{line}\n".encode())


def _end(shell: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork has inherited the finalizer, but not the server
    _tell(shell, "end")
    assert shell.stdin is not None
    shell.stdin.close()
    shell.wait()
