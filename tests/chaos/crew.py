"""The worker processes: starts, commands, kills, stops and replaces them, and logs when one is not running."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping
from pathlib import Path

from asynclock.testing import Clock

from .logs import Log
from .worker import Spec

ROOT = Path(__file__).parent.parent.parent
CLOSE_LIMIT = 15.0  # seconds for a worker to end after its stdin was closed


class Crew:
    """``places`` workers at any time, except for a moment after one was killed. A worker's name has its place and the
    number of its predecessors there: ``w2-0``, ``w2-1``.
    """

    def __init__(
        self,
        log: Log,
        directory: Path,
        places: int,
        spec: Callable[[int, str], Spec],
        clocks: Mapping[int, Clock] | None = None,
    ) -> None:
        """:param clocks: of the workers in these places"""
        self.clocks = dict(clocks or {})
        self.problems: list[str] = []
        self.started = 0
        self._log = log
        self._directory = directory
        self._spec = spec
        self._places = places
        self._processes: list[Process | None] = [None] * places
        self._names = [""] * places
        self._paused: set[int] = set()

    @property
    def working(self) -> list[int]:
        """The places whose worker runs."""
        return [place for place, process in enumerate(self._processes) if process and place not in self._paused]

    @property
    def empty(self) -> list[int]:
        """The places without a worker."""
        return [place for place, process in enumerate(self._processes) if process is None]

    @property
    def names(self) -> list[str]:
        """The current or last worker of each place."""
        return list(self._names)

    async def start_all(self) -> None:
        for place in range(self._places):
            await self.start(place)

    async def start(self, place: int) -> None:
        who = f"w{place}-{self.started}"
        self.started += 1
        spec = dataclasses.asdict(self._spec(place, who))
        clock = self.clocks.get(place)
        with (self._directory / f"{who}.stderr").open("wb") as stderr:
            self._processes[place] = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-W", "default"),
                *("-m", "tests.chaos.worker"),
                json.dumps(spec),
                stdin=PIPE,
                stdout=stderr,
                stderr=stderr,
                cwd=ROOT,
                env=os.environ | (clock.environment if clock is not None else {}),
                start_new_session=True,  # keeps the terminal's Ctrl-C away
            )
        self._names[place] = who

    def name(self, place: int) -> str:
        return self._names[place]

    def order(self, place: int, line: str) -> None:
        process = self._processes[place]
        assert process is not None and process.stdin is not None
        process.stdin.write(f"{line}\n".encode())

    async def kill(self, place: int) -> None:
        process = self._processes[place]
        assert process is not None
        self._processes[place] = None
        self._paused.discard(place)
        self._log("killed", target=self._names[place])
        process.kill()
        await process.wait()

    def pause(self, place: int) -> None:
        self._paused.add(place)
        self._log("paused", target=self._names[place])
        self._signal(place, signal.SIGSTOP)

    def resume(self, place: int) -> None:
        self._signal(place, signal.SIGCONT)
        self._paused.discard(place)

    async def stop_all(self) -> None:
        """Let them close their lockers and end."""
        for place, process in enumerate(self._processes):
            if process is not None and process.stdin is not None:
                self.resume(place)
                process.stdin.close()
        await asyncio.gather(*(self._stopped(place) for place in range(self._places)))

    async def _stopped(self, place: int) -> None:
        process, who = self._processes[place], self._names[place]
        if process is None:
            return
        try:
            async with asyncio.timeout(CLOSE_LIMIT):
                code = await process.wait()
        except TimeoutError:
            self.problems.append(f"{who} did not end within {CLOSE_LIMIT:g} s of being told to")
            return
        self._processes[place] = None
        if code:
            self.problems.append(f"{who} ended with exit status {code}")

    def look(self) -> None:
        """Report workers that ended by themselves."""
        for place, process in enumerate(self._processes):
            if process is not None and process.returncode is not None:
                self.problems.append(f"{self._names[place]} ended by itself, with exit status {process.returncode}")
                self._log("killed", target=self._names[place])
                self._processes[place] = None

    async def kill_all(self) -> None:
        """Kill all, and wait until they are gone."""
        for process in self._processes:
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    def complaints(self) -> list[str]:
        """What they wrote to stderr: unretrieved exceptions, warnings. It should be nothing."""
        found = []
        for file in sorted(self._directory.glob("*.stderr")):
            if text := file.read_text(errors="replace").strip():
                found.append(f"{file.stem}: {text[-2000:]}")
        return found

    def _signal(self, place: int, number: signal.Signals) -> None:
        process = self._processes[place]
        assert process is not None
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
