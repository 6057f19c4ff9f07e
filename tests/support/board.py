"""``python -m examples.board`` in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx

from tests.support.helpers import ROOT

LOCKS = ["reports", "invoices", "thumbnails"]
# Seconds. Workers hold a lock for 3 to 8 s, and a thief for 4 s. The rest is for a machine that is busy.
SOON = 30.0


class Program:
    """The running command."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        self._first = process.stdout.readline()
        found = re.match(r"http://127\.0\.0\.1:(\d+)/", self._first)
        assert found, self._first
        self.url = found[0]
        self.port = int(found[1])

    def end(self, number: signal.Signals = signal.SIGINT) -> str:
        """Send the signal, and wait up to 10 s for exit status 0. Returns the output after the first line."""
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=10)
        assert self.process.returncode == 0, output
        return output

    @contextlib.asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """What a browser is told."""
        async with (
            asyncio.timeout(SOON),
            httpx.AsyncClient(trust_env=False, timeout=SOON) as http,
            http.stream("GET", f"{self.url}events") as response,
        ):
            assert response.headers["Content-Type"].startswith("text/event-stream")
            yield (json.loads(line[6:]) async for line in response.aiter_lines() if line.startswith("data: "))


@contextlib.contextmanager
def running(*arguments: str, env: dict[str, str] | None = None) -> Iterator[Program]:
    with subprocess.Popen(
        [sys.executable, "-m", "examples.board", *(arguments or ["--port", "0"])],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield Program(process)
        finally:
            process.kill()
