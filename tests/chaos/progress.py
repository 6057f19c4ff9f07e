"""Shows the progress: a bar on a terminal, otherwise a line from time to time."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

import rich.progress
from rich.console import Console

LINE_EVERY = 15.0  # seconds


class Progress:
    def __init__(self, console: Console, title: str, seconds: float) -> None:
        self._console = console
        self._title = title
        self._said = 0.0
        self._bar = rich.progress.Progress(
            "{task.description}",
            rich.progress.BarColumn(),
            rich.progress.TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
            refresh_per_second=2,
        )
        self._task = self._bar.add_task(title, total=seconds)
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, what: str) -> None:
        passed = time.monotonic() - self._since
        self._bar.update(self._task, completed=passed, description=f"{self._title}: {what}")
        if not self._console.is_terminal and time.monotonic() - self._said > LINE_EVERY:
            self._said = time.monotonic()
            self._console.print(f"{self._title}, {passed:4.0f} s: {what}", highlight=False)
