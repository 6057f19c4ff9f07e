"""One scenario in a process of its own: a fresh heap, and no display in the event loop that is measured."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import multiprocessing
import signal
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Literal

from .figures import OURS, Figure, Target

LOOPS = ("asyncio", "uvloop")
LIMIT = 300.0  # seconds for one scenario

LoopName = Literal["asyncio", "uvloop"]


class BrokenError(Exception):
    """A scenario failed; the text says how."""


class NotHereError(Exception):
    """A scenario cannot be measured on this system, and has no figures."""


@dataclass(slots=True)
class Outcome:
    """The figures of a scenario, and the libraries that it could not measure, with the reason."""

    figures: list[Figure] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Run:
    """The parameters of a scenario, and the figures that it records."""

    scenario: str
    kind: str  #: of server, as ``asynclock.testing.Server`` takes it
    loop: LoopName
    quick: bool
    sender: Connection | None = None
    outcome: Outcome = field(default_factory=Outcome)
    _told: float = 0.0

    def times(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def seconds(self, full: float, quick: float) -> float:
        return quick if self.quick else full

    def record(self, what: str, unit: str, values: Sequence[float], *targets: Target, by: str = OURS) -> None:
        self.outcome.figures.append(Figure.of(self.scenario, what, self.loop, unit, values, targets, by))

    def leave_out(self, contestant: str, why: str) -> None:
        """Another library does not run here: record why, and go on."""
        self.outcome.absent.setdefault(contestant, why)

    def step(self, what: str, done: int, total: int) -> None:
        """Report progress. Call it between measurements, and so rarely that it costs nothing."""
        now = time.monotonic()
        if self.sender is not None and (now - self._told > 0.25 or done == 0):
            self._told = now
            self.sender.send((what, done, total))


Scenario = Callable[[Run], Awaitable[None]]
OnStep = Callable[[str, int, int], None]


def loop_factory(name: LoopName) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "asyncio":
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop


def measure(scenario: Scenario, run: Run, limit: float, on_step: OnStep) -> Outcome:
    """Run it in a process of its own.

    :returns: its figures; empty if it cannot be measured on this system
    :raises BrokenError: it raised, exited, left an error in its event loop, or took more than ``limit`` seconds
    """
    spawning = multiprocessing.get_context("spawn")
    receiver, run.sender = spawning.Pipe(duplex=False)
    process = spawning.Process(target=_child, args=(scenario, run), daemon=True)
    process.start()
    run.sender.close()
    end = time.monotonic() + limit
    try:
        while True:
            if not receiver.poll(max(0.0, end - time.monotonic())):
                raise BrokenError(f"not through after {limit:g} s")
            try:
                message: Any = receiver.recv()
            except EOFError:
                process.join(5)
                raise BrokenError(f"its process ended with exit code {process.exitcode}") from None
            if isinstance(message, str):
                raise BrokenError(message)
            if isinstance(message, Outcome):
                process.join(max(0.0, end - time.monotonic()))
                if process.exitcode != 0:
                    raise BrokenError(f"its process did not end well: exit code {process.exitcode}")
                return message
            on_step(*message)
    finally:
        process.kill()
        process.join()
        receiver.close()


def _child(scenario: Scenario, run: Run) -> None:
    assert run.sender is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    try:
        with asyncio.Runner(loop_factory=loop_factory(run.loop)) as runner:
            runner.run(_watched(scenario, run))
    except NotHereError:
        run.sender.send(Outcome())
    except BaseException:
        run.sender.send(traceback.format_exc())
    else:
        run.sender.send(run.outcome)


@contextlib.contextmanager
def not_ours() -> Iterator[None]:
    """Ignore logs, and errors that reach the event loop's exception handler: they are another library's."""
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda loop, context: None)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        gc.collect()  # unretrieved exceptions are reported when their task is collected
        logging.disable(logging.NOTSET)
        loop.set_exception_handler(handler)


async def _watched(scenario: Scenario, run: Run) -> None:
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(str(context)))
    await scenario(run)
    if complaints:
        raise RuntimeError(f"the event loop complained: {complaints}")
    if not run.outcome.figures:
        raise RuntimeError("it has measured nothing")
