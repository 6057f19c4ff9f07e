"""Processes that contend for one name, and the statistics of their acquisitions."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from array import array
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Self

from asynclock.testing import Server

from .others import PATIENCE, module

HEAD_START = 0.1  # seconds within which all processes have read when to begin
HANG = 15.0  # seconds after the end within which all must be done: three times the validity


@dataclass(frozen=True, slots=True)
class Acquisition:
    acquired: float
    releasing: float  # just before
    asked: float
    process: int


@dataclass(frozen=True, slots=True)
class Round:
    """All acquisitions of one round by all processes, in the order of their times."""

    seconds: float
    log: Sequence[Acquisition]

    def per_acquisition(self) -> float:
        """µs for each acquisition; those after the end of the round do not count."""
        start = min(each.asked for each in self.log)
        inside = sum(each.acquired <= start + self.seconds for each in self.log)
        return self.seconds / inside * 1e6

    def handovers(self) -> list[float]:
        """µs from just before a release until another process has the lock."""
        return [
            (then.acquired - first.releasing) * 1e6
            for first, then in itertools.pairwise(self.log)
            if first.process != then.process
        ]

    def shares(self, processes: int) -> list[float]:
        """Each process's share of the acquisitions, in per cent."""
        counts = [0] * processes
        for each in self.log:
            counts[each.process] += 1
        return [count / len(self.log) * 100 for count in counts]

    def waits(self) -> list[float]:
        """ms from the request until the lock was acquired, for each acquisition."""
        return [(each.acquired - each.asked) * 1e3 for each in self.log]


class Contention:
    """Several processes that run ``contender.py``."""

    def __init__(self, processes: Sequence[asyncio.subprocess.Process]) -> None:
        self._processes = processes

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, server: Server, loop: str, processes: int, tasks: int, handoffs: int) -> AsyncIterator[Self]:
        started: list[asyncio.subprocess.Process] = []
        try:
            for _ in range(processes):
                started.append(
                    await asyncio.create_subprocess_exec(
                        *module("benchmarks.contender", server.url, loop, str(tasks), str(handoffs)),
                        stdin=asyncio.subprocess.PIPE,
                        stdout=asyncio.subprocess.PIPE,
                    )
                )
            for process in started:
                assert process.stdout is not None
                if await asyncio.wait_for(process.stdout.readline(), PATIENCE) != b"ready\n":
                    raise RuntimeError("a contending process did not start")
            yield cls(started)
        finally:
            for process in started:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.communicate()

    async def contend(self, seconds: float) -> Round:
        """:raises RuntimeError: a process hangs, or two had the lock at once"""
        start = time.monotonic() + HEAD_START
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{start} {start + seconds}\n".encode())
        log: list[Acquisition] = []
        for number, process in enumerate(self._processes):
            try:
                async with asyncio.timeout(HEAD_START + seconds + HANG):
                    its = await self._read(process)
            except TimeoutError:
                raise RuntimeError(f"process {number} still waits {HANG:g} s after the end: it hangs") from None
            rows = zip(its[0::3], its[1::3], its[2::3], strict=True)
            log += [Acquisition(acquired, releasing, asked, number) for asked, acquired, releasing in rows]
        log.sort(key=lambda each: each.acquired)
        for first, then in itertools.pairwise(log):
            if then.acquired < first.releasing:
                raise RuntimeError(f"two had the lock at once: {first} and {then}")
        return Round(seconds, log)

    @staticmethod
    async def _read(process: asyncio.subprocess.Process) -> array[float]:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError("a contending process ended")
        its = array("d")
        its.frombytes(await process.stdout.readexactly(int(line) * 3 * its.itemsize))
        if not its:
            raise RuntimeError("a contending process never had the lock")
        return its
