"""The logs of the workers and of the injector: a file for each, a JSON line for each event, with times on the system's
monotonic clock, which all processes share."""

from __future__ import annotations

import heapq
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

now = time.monotonic

WITH_ANOTHER = "released with another, which was lost"  # the end of a hold in a scope of several names
LEFT = ("released", "cancelled", "closed")  # ends of holds whose scope was not lost
KEPT = (*LEFT, WITH_ANOTHER)  # ends of holds that were not lost
INJECTOR = "injector"  # its file has the faults, and the times at which workers were killed


def slot_name(semaphore: str, slot: int) -> str:
    """What a slot of a semaphore is called in a run: a permit is a lock on it."""
    return f"{semaphore}#{slot}"


def semaphore_of(name: str) -> str:
    """The semaphore of the slot that is called that; empty: it is a lock."""
    semaphore, slot, _ = name.partition("#")
    return semaphore if slot else ""


class Event(NamedTuple):
    at: float
    who: str  # which process, of all that there were in a run
    what: str
    details: dict[str, Any]


class Log:
    """Each event is in the file, for other processes to see, when the call returns. So nothing is lost when the process
    is killed."""

    def __init__(self, directory: Path, who: str) -> None:
        self._file = os.open(directory / f"{who}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def __call__(self, what: str, *, at: float | None = None, **details: Any) -> None:
        line = json.dumps({"at": now() if at is None else at, "what": what, **details}, separators=(",", ":"))
        os.write(self._file, f"{line}\n".encode())

    def close(self) -> None:
        os.close(self._file)


def read(path: Path) -> Iterator[Event]:
    with path.open() as lines:
        for line in lines:
            if not line.endswith("\n"):
                return  # the process was killed during the write
            details = json.loads(line)
            yield Event(details.pop("at"), path.stem, details.pop("what"), details)


def merged(directory: Path) -> Iterator[Event]:
    """The events of all logs of a run, in the order of their times."""
    files: Iterable[Path] = sorted(directory.glob("*.jsonl"))
    yield from heapq.merge(*(read(file) for file in files), key=lambda event: event.at)
