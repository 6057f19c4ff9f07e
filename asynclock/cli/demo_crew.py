"""The demo's worker processes: starts them, reads what they print, sends orders, kills and stops them."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from subprocess import PIPE, STDOUT
from types import TracebackType

import anyio
from anyio.abc import Process, TaskGroup
from anyio.streams.buffered import BufferedByteReceiveStream

from .demo_figures import Log, What

PATIENCE = 2.0  # seconds for workers to stop once they were told to
LONGEST = 1 << 16  # bytes of a line that a worker prints


class Crew:
    """The events that workers report go to the log; what they should not print or do goes to its problems.

    ``async with`` it: no worker is left when the block ends. Each process has a task that reads what it prints, and
    sets its event in ``_ended`` when the process has ended. ``_leaving`` names those whose end is expected.
    """

    _tasks: TaskGroup

    def __init__(self, log: Log) -> None:
        self._log = log
        self._processes: dict[str, Process] = {}
        self._ended: dict[str, anyio.Event] = {}
        self._leaving: set[str] = set()

    async def __aenter__(self) -> Crew:
        self._tasks = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        with anyio.CancelScope(shield=True):
            await self._kill_all()
        return await self._tasks.__aexit__(kind, error, traceback)

    @property
    def names(self) -> list[str]:
        """The workers that run."""
        return [name for name in self._processes if name not in self._leaving]

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    async def start(self, name: str, url: str) -> None:
        process = await anyio.open_process(
            [sys.executable, "-m", "asynclock.cli.demo_worker", url, name],
            stdin=PIPE,
            stdout=PIPE,
            stderr=STDOUT,
            start_new_session=True,  # keeps the terminal's Ctrl-C away
        )
        self._processes[name] = process
        self._ended[name] = anyio.Event()
        self._tasks.start_soon(self._read, name, process)

    async def order(self, line: str) -> None:
        """Send a line to every worker."""
        for name in self.names:
            stdin = self._processes[name].stdin
            assert stdin is not None
            with contextlib.suppress(anyio.BrokenResourceError):  # it has just ended, and its reader reports that
                await stdin.send(f"{line}\n".encode())

    def kill(self, name: str) -> float:
        """SIGKILL. Returns when it was sent."""
        self._leaving.add(name)
        at = time.monotonic()
        self._processes[name].kill()
        return at

    async def stop(self) -> None:
        """Close the input of the workers: they end by themselves then."""
        names = self.names
        for name in names:
            self._leaving.add(name)
            stdin = self._processes[name].stdin
            assert stdin is not None
            await stdin.aclose()
        with anyio.move_on_after(PATIENCE):
            for name in names:
                await self._ended[name].wait()
        late = [name for name in names if not self._ended[name].is_set()]
        if late:
            self._log.problems.append(f"{len(late)} workers did not stop within {PATIENCE:g} s.")
        for name in names:
            code = self._processes[name].returncode
            if code:
                self._log.problems.append(f"{name} ended with exit status {code}.")

    async def _kill_all(self) -> None:
        self._leaving.update(self._processes)
        for name, process in self._processes.items():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await self._ended[name].wait()
            await process.aclose()

    async def _read(self, name: str, process: Process) -> None:
        assert process.stdout is not None
        lines = BufferedByteReceiveStream(process.stdout)
        try:
            while True:
                self._note(name, await lines.receive_until(b"\n", LONGEST))
        except (anyio.IncompleteRead, anyio.EndOfStream):
            code = await process.wait()
        finally:
            self._ended[name].set()
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
