"""Whose turn it is at the terminal: the command's process group, or that of ``run``.

The command has a process group of its own, so that signals for it reach what it has started, and nobody else. The
kernel sends Ctrl-C, Ctrl-Z and changes of the window's size to one group only, the foreground group, and stops
everybody else who reads from the terminal. There are two ways:

- ``run`` is a job of its own: what a shell started it for, and not a part of a pipeline or a script. The command gets
  the terminal at once, and nothing of ``run`` is between the two.
- Others share the group of ``run``: the script that it is in, or the rest of a pipeline (``… | less``). They keep the
  terminal, and ``run`` passes on what it gets of it. The command gets it if it asks for it, by reading.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import termios
from typing import Any


class Terminal:
    """The controlling terminal, if there is one. ``_command`` is the process group that we have given it to."""

    def __init__(self) -> None:
        self._file: int | None = None
        self._modes: list[Any] | None = None
        self._command: int | None = None
        self.wanted = False  #: should the command have it whenever ``run`` is in the foreground?
        with contextlib.suppress(OSError):  # there is none
            self._file = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
            self.wanted = os.getpgrp() == os.getpid() and not any(map(_is_pipe, (0, 1)))

    @property
    def exists(self) -> bool:
        return self._file is not None

    @property
    def given(self) -> bool:
        """Has the command got it?"""
        return self._command is not None

    def may_give(self) -> bool:
        """Is it ours to give? Not in the background."""
        return self._file is not None and self._foreground() == os.getpgrp()

    def remember(self) -> None:
        """Remember its modes, before the command gets it for the first time."""
        if self._file is not None and self._modes is None:
            with contextlib.suppress(termios.error):  # the line was hung up; so in all that follows
                self._modes = termios.tcgetattr(self._file)

    def give(self, group: int) -> None:
        """Make this process group the foreground group. In the new process, too, so that it has it before it reads."""
        if self._file is not None:
            self._command = group
            with contextlib.suppress(OSError):
                _set_foreground(self._file, group)

    def take_back(self) -> None:
        """Make our own group the foreground group, if the command has got the terminal."""
        if self._file is not None and self._command is not None:
            self._command = None
            with contextlib.suppress(OSError):
                _set_foreground(self._file, os.getpgrp())

    def restore(self) -> None:
        """Set the modes that it had before, for a command that was killed, and could not do so itself."""
        if self._file is not None and self._modes is not None and self.may_give():
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._file, termios.TCSANOW, self._modes)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _foreground(self) -> int:
        try:
            return os.tcgetpgrp(self._file) if self._file is not None else -1
        except OSError:
            return -1


def _set_foreground(file: int, group: int) -> None:
    """The kernel stops a background process that does this, unless it blocks SIGTTOU."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
    try:
        os.tcsetpgrp(file, group)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _is_pipe(file: int) -> bool:
    try:
        mode = os.fstat(file).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
