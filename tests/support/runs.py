"""``asynclock run`` in a process of its own, on pipes or on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from asynclock.testing import Server

from .shell import own

RUN = [sys.executable, "-m", "asynclock", "run"]
LIMIT = 20.0  # seconds in which anything here is over; generous, for a machine that is busy with other tests
URLS = ("ASYNCLOCK_URL", "ASYNCLOCK_CONFIG", "ASYNCLOCK_PASSWORD")


def eventually(condition: Callable[[], object], seconds: float = LIMIT) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not true within {seconds} s"
        time.sleep(0.01)


def run(*arguments: str, env: dict[str, str], **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end, without the terminal that these tests may have."""
    settings = {"capture_output": True, "text": True, "timeout": LIMIT, "start_new_session": True} | settings
    done = subprocess.run([*RUN, *arguments], env=env, check=False, **settings)
    if isinstance(done.stderr, str):
        done.stderr = own(done.stderr)
    return done


class Started:
    """A run that goes on, without the terminal that these tests may have. Its stderr goes to its stdout."""

    def __init__(self, arguments: Sequence[str], env: dict[str, str], **settings: Any) -> None:
        self.process = subprocess.Popen(
            [*RUN, *arguments],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **settings,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def until(self, word: str) -> str:
        """Read until there is a line with this word, and return that line."""
        assert self.process.stdout is not None
        late = threading.Timer(LIMIT, self.process.kill)  # which ends its output
        late.start()
        try:
            for line in self.process.stdout:
                if word in line:
                    return line
        finally:
            late.cancel()
        raise AssertionError(f"it ended with {self.process.wait()} without a line with {word!r}")

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> tuple[int, str]:
        """Wait until it ends. Returns the exit status, and the rest of what was printed."""
        rest = self.process.communicate(timeout=LIMIT)[0]
        return self.process.returncode, rest


@contextlib.contextmanager
def started(*arguments: str, env: dict[str, str], **settings: Any) -> Iterator[Started]:
    job = Started(arguments, env, **settings)
    with job.process:
        try:
            yield job
        finally:
            if job.process.poll() is None:
                job.process.kill()


class Terminal:
    """A program that leads a session on a pseudo terminal."""

    def __init__(self, arguments: Sequence[str], env: dict[str, str], size: tuple[int, int] = (24, 80)) -> None:
        self._master, slave = pty.openpty()
        self.resize(*size)
        self._seen = ""
        self.process = subprocess.Popen(
            arguments,
            env=env,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, pattern: str, seconds: float = LIMIT) -> re.Match[str]:
        """Read until this is on the screen, after all that was found before."""
        end = time.monotonic() + seconds
        while (found := re.search(pattern, self._seen)) is None:
            if not self._read(end):
                raise AssertionError(f"no {pattern!r} on the terminal, but {self._seen!r}")
        self._seen = self._seen[found.end() :]
        return found

    def _read(self, end: float) -> bool:
        if not select.select([self._master], [], [], max(0.0, end - time.monotonic()))[0]:
            return False
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # Linux says so when the last one has closed the other side
            return False
        self._seen += piece.decode(errors="replace")
        return bool(piece)

    def end(self) -> int:
        """Wait until the program ends. Returns its exit status."""
        end = time.monotonic() + LIMIT
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it has not ended; on the terminal: {self._seen!r}"
            self._read(time.monotonic() + 0.02)
        return self.process.returncode

    @property
    def foreground(self) -> int:
        return os.tcgetpgrp(self._master)

    @property
    def modes(self) -> list[Any]:
        return termios.tcgetattr(self._master)

    def hang_up(self) -> None:
        os.close(self._master)
        self._master = -1

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        if self._master >= 0:
            self.hang_up()


@contextlib.contextmanager
def terminal(*arguments: str, env: dict[str, str]) -> Iterator[Terminal]:
    with contextlib.closing(Terminal(arguments, env)) as screen:
        yield screen


def keys(server: Server) -> list[bytes]:
    """All but the counters of fencing tokens, which stay."""
    found = server.execute("KEYS", "*")
    assert isinstance(found, list)
    return [key for key in found if isinstance(key, bytes) and not key.startswith(b"asynclock:f")]
