"""Lines on stderr. Nothing waits for long for whoever reads them, nor ends because nobody does."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import select
import signal
import sys

PATIENCE = 0.5  # seconds until a line is dropped, since the pipe is full or the terminal is stopped
ATOMIC = 512  # bytes that can always be written to a pipe that has room: POSIX's least PIPE_BUF


def write_line(line: str) -> None:
    """Write it, or drop it."""
    data = f"{line}\n".encode(errors="backslashreplace")
    # Whoever has the terminal may stop all others who write to it (`stty tostop`), unless they block this signal.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
    try:
        with contextlib.suppress(OSError, ValueError):  # it is closed, or nobody reads it any more
            file = _descriptor()
            if file is None:
                print(line, file=sys.stderr)
                return
            for start in range(0, len(data), ATOMIC):
                if not select.select([], [file], [], PATIENCE)[1]:
                    return
                os.write(file, data[start : start + ATOMIC])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _descriptor() -> int | None:
    """That of stderr. None: it is no file, as in tests that capture it."""
    if sys.stderr is None:
        raise OSError
    sys.stderr.flush()
    try:
        return sys.stderr.fileno()
    except io.UnsupportedOperation:
        return None


ALWAYS = ("mixed_layouts",)  # ids of records that show that what a command does or says is not all there is


class LinesOnStderr(logging.Handler):
    """Writes log records of the library like this: those of the level or above, and the ones with an id in
    ``ALWAYS``."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.addFilter(lambda record: record.levelno >= level or getattr(record, "asynclock_message", "") in ALWAYS)

    def emit(self, record: logging.LogRecord) -> None:
        write_line(self.format(record))
