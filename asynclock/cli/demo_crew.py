"""The demo's worker processes: starts them, reads their events, sends commands, kills and stops them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from asyncio.subprocess import PIPE, STDOUT, Process

from .demo_figures import Log, What

STOP_TIMEOUT = 2.0  # seconds for workers to end after their stdin was closed


class Crew:
    """Events of the workers go to the log; anything unexpected goes to its problems.

    State: ``_leaving`` are the workers that are expected to end. Each process has one task in ``_reading``, which ends
    when the process has ended.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._processes: dict[str, Process] = {}
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[str] = set()

    @property
    def names(self) -> list[str]:
        """The workers that are expected to run."""
        return [name for name in self._processes if name not in self._leaving]

    async def start(self, name: str, url: str) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "asynclock.cli.demo_worker",
            url,
            name,
            stdin=PIPE,
            stdout=PIPE,
            stderr=STDOUT,
            start_new_session=True,  # keeps the terminal's Ctrl-C away
        )
        self._processes[name] = process
        self._reading[name] = asyncio.create_task(self._read(name, process))

    def order(self, line: str) -> None:
        for name in self.names:
            stdin = self._processes[name].stdin
            assert stdin is not None
            stdin.write(f"{line}\n".encode())

    def kill(self, name: str) -> float:
        """SIGKILL. Returns when it was sent."""
        self._leaving.add(name)
        at = time.monotonic()
        self._processes[name].kill()
        return at

    async def stop(self) -> None:
        """Close their stdin, and wait until they have ended."""
        names = self.names
        for name in names:
            self._leaving.add(name)
            stdin = self._processes[name].stdin
            assert stdin is not None
            stdin.close()
        if names:
            _, late = await asyncio.wait([self._reading[name] for name in names], timeout=STOP_TIMEOUT)
            if late:
                self._log.problems.append(f"{len(late)} workers did not stop within {STOP_TIMEOUT:g} s.")
        for name in names:
            code = self._processes[name].returncode
            if code:
                self._log.problems.append(f"{name} ended with exit status {code}.")

    async def kill_all(self) -> None:
        """Kill all workers, and wait until they are gone."""
        self._leaving.update(self._processes)
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        if self._reading:
            done, _ = await asyncio.wait(self._reading.values())
            for task in done:
                task.result()

    async def _read(self, name: str, process: Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self._note(name, line)
        code = await process.wait()
        if name not in self._leaving:
            self._leaving.add(name)
            self._log.add(time.monotonic(), What.DIED, name)
            self._log.problems.append(f"{name} ended by itself, with exit status {code}.")

    def _note(self, name: str, line: bytes) -> None:
        try:
            said = json.loads(line)
            event = said["event"]
            if event == "error":
                self._log.problems.append(f"{name} reports an error: {said['reason']}")
            else:
                self._log.add(said["at"], What(event), name, said.get("reason", ""), said.get("hold", 0.0))
        except (ValueError, KeyError, TypeError):
            self._log.problems.append(f"{name} printed: {line.decode(errors='replace').rstrip()}")
