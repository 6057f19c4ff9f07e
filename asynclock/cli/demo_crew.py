"""The demo's worker processes: starts them, hears them, orders, kills and stops them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from asyncio.subprocess import PIPE, STDOUT, Process

from .demo_figures import Log, What

PATIENCE = 2.0  # seconds for workers that were told to stop


class Crew:
    """What the workers say goes to the log; what they should not say or do goes to its problems.

    ``_leaving`` holds those whose end is no surprise. Each process has one task in ``_hearing``, which ends when
    the process has.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._processes: dict[str, Process] = {}
        self._hearing: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[str] = set()

    @property
    def names(self) -> list[str]:
        """Those who work."""
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
        self._hearing[name] = asyncio.create_task(self._hear(name, process))

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
        """Let them end by themselves, as they do when their input ends."""
        names = self.names
        for name in names:
            self._leaving.add(name)
            stdin = self._processes[name].stdin
            assert stdin is not None
            stdin.close()
        if names:
            _, late = await asyncio.wait([self._hearing[name] for name in names], timeout=PATIENCE)
            if late:
                self._log.problems.append(f"{len(late)} workers did not stop within {PATIENCE:g} s.")
        for name in names:
            code = self._processes[name].returncode
            if code:
                self._log.problems.append(f"{name} ended with exit status {code}.")

    async def kill_all(self) -> None:
        """None of them is left afterwards."""
        self._leaving.update(self._processes)
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        if self._hearing:
            done, _ = await asyncio.wait(self._hearing.values())
            for task in done:
                task.result()

    async def _hear(self, name: str, process: Process) -> None:
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
