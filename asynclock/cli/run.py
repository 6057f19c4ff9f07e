"""``asynclock run``: holds locks while a command runs, and ends the command when one of them is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asynclock import (
    AcquireTimeoutError,
    AsyncLockError,
    ConfigurationError,
    Locker,
    LockLostError,
    LockScope,
    NotLockedError,
    ServerError,
)
from asynclock.options import MAX_AT_LEAST

from .exit_status import FAILED, LOST, NOT_ACQUIRED, NOT_FOUND, NOT_RUNNABLE
from .run_command import PASSED_ON, Command, is_ignored
from .run_terminal import Terminal
from .servers import Servers
from .standard_files import open_standard_files
from .stderr import LinesOnStderr, write_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The arguments of the command line. Times are in seconds."""

    names: Sequence[str]
    command: Sequence[str]
    timeout: float | None = None  #: how long to wait for all locks together; ``None``: without a limit
    conflict_exit_code: int = NOT_ACQUIRED
    at_least: float = 0.0
    kill_after: float = 5.0
    verbose: bool = False

    def check(self) -> None:
        """:raises ConfigurationError: something in it cannot be right"""
        if not self.names:
            raise ConfigurationError("give the name of a lock: asynclock run NAME -- COMMAND")
        if not self.command:
            raise ConfigurationError("give a command, after --: asynclock run NAME -- COMMAND")
        for number, name in enumerate(self.names):
            if name in self.names[:number]:
                raise ConfigurationError(f"lock {name!r} is given twice")
        for option in ("timeout", "at_least", "kill_after"):
            seconds = getattr(self, option)
            if seconds is not None and not 0 <= seconds < math.inf:
                raise ConfigurationError(f"--{option.replace('_', '-')}: must be 0 or more seconds")
        if self.at_least > MAX_AT_LEAST:
            raise ConfigurationError(f"--at-least: must be at most {MAX_AT_LEAST:.0f} seconds, which is 366 days")


def run(plan: Plan, servers: Servers) -> int:
    """Run it. Returns the exit status."""
    open_standard_files()
    try:
        plan.check()
        mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, [*PASSED_ON, signal.SIGCHLD, signal.SIGCONT])
        with contextlib.closing(Terminal()) as terminal:
            one = Run(plan, servers, terminal, mask)
            status = asyncio.run(one.run())
            if one.interrupted and terminal.exists:
                # Ctrl-C is for the script, too, that this is in. A shell goes on after an exit with status 130, and
                # stops if SIGINT has ended this, as it would have ended the command.
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
                signal.raise_signal(signal.SIGINT)
            return status
    except ConfigurationError as error:
        say(str(error))
        return FAILED
    except Exception:
        say("failed:", traceback.format_exc().rstrip())
        return FAILED


def say(*words: str) -> None:
    """On stderr, in a line of its own."""
    write_line(f"asynclock run: {' '.join(words)}")


class Run:
    """One run: acquires the locks, runs the command, and releases the locks.

    A signal calls ``_on_signal``, which each phase sets for itself. It is called by the event loop, and not in a task:
    so it works in every state of the task.
    """

    def __init__(self, plan: Plan, servers: Servers, terminal: Terminal, mask: set[int]) -> None:
        self._plan = plan
        self._servers = servers
        self._terminal = terminal
        self._mask = mask
        self._last: int | None = None  # the signal that came last
        self._given_up: int | None = None  # the one that ended the wait for the locks
        self._on_signal: Callable[[int], None] = self._give_up
        self._scopes: list[LockScope] = []
        self._tokens: dict[str, int] | None = None  # the fencing token of each lock, if the servers permit them
        self._loss_told = False
        self.interrupted = False  #: SIGINT came, and ended the command or the wait for the locks

    async def run(self) -> int:
        try:
            return await self._run()
        finally:
            # What comes now is too late: the event loop must not get it while it is closed, nor may it end this
            # process, whose exit status is that of the command.
            signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        for number in PASSED_ON:
            if not is_ignored(number):
                loop.add_signal_handler(number, self._signal, number)
        self._configure_logging()
        try:
            async with contextlib.aclosing(self._servers.locker()) as locker:
                return await self._locked(locker)
        except LockLostError as error:
            if not self._loss_told:
                say(str(error))
            return LOST
        except NotLockedError as error:
            return self._not_acquired(f"lock {error.name!r} was not acquired: {error.why}{_held_by(error)}")
        except AcquireTimeoutError as error:
            what = f"lock {error.name!r} was not acquired within {self._plan.timeout:g} s: {error.why}{_held_by(error)}"
            if not isinstance(error.__cause__, ServerError):
                return self._not_acquired(what)
            say(what)
            return FAILED
        except AsyncLockError as error:
            say(str(error))
            return FAILED
        except asyncio.CancelledError:
            if self._given_up is None:
                raise
            self.interrupted = self._given_up == signal.SIGINT
            return 128 + self._given_up

    def _signal(self, number: int) -> None:
        self._last = number
        self._on_signal(number)

    def _give_up(self, number: int) -> None:
        """While it waits for the locks."""
        if self._given_up is None:
            self._given_up = number
            self._tell(f"{signal.Signals(number).name}: stops waiting")
            assert self._task is not None
            self._task.cancel()

    async def _locked(self, locker: Locker) -> int:
        async with contextlib.AsyncExitStack() as locks:
            await self._acquire(locker, locks)
            if self._given_up is not None:  # the signal came when the last lock had been acquired
                raise asyncio.CancelledError
            # No ``await`` from here to the start.
            try:
                command = Command(self._plan.command, self._environment(), self._mask, self._terminal, self._still_held)
            except OSError as error:
                return self._not_started(error)
            self._on_signal = command.send
            began = time.monotonic()
            if self._plan.at_least:  # not before: where the command cannot be run, nothing is to stay
                for scope in self._scopes:
                    scope._stay(self._plan.at_least)
            self._tell(f"command started, with pid {command.pid}")
            try:
                code = await command.wait()
            except asyncio.CancelledError:
                command.ask_to_end()  # before anything that may take long
                self._tell_loss()
                raise
            finally:
                await to_its_end(command.end(self._plan.kill_after))
            status = code if code >= 0 else 128 - code
            self._tell(f"command ended, with status {status}")
            self.interrupted = self._last == signal.SIGINT == -code
            if (left := began + self._plan.at_least - time.monotonic()) > 0:
                self._tell(f"the lock stays for {left:.1f} s more")
            return status
        raise AssertionError  # no block above swallows an exception

    async def _acquire(self, locker: Locker, locks: contextlib.AsyncExitStack) -> None:
        """Acquire all locks, in an order that is the same for everybody, so that no two runs wait for each other."""
        began = time.monotonic()
        timeout = self._plan.timeout
        for name in sorted(self._plan.names, key=lambda name: name.encode(errors="surrogateescape")):
            self._tell(f"waits for lock {name!r} on {self._servers.public_urls()}")
            left = None if timeout is None else max(0.0, began + timeout - time.monotonic())
            entering = locker.try_with_context(name) if timeout == 0 else locker.with_context(name, timeout=left)
            self._scopes.append(await locks.enter_async_context(entering))
            self._tell(f"acquired lock {name!r} after {time.monotonic() - began:.3f} s")
        try:
            self._tokens = {scope.name: await scope.fencing_token() for scope in self._scopes}
        except ServerError as error:  # most commands need none
            self._tell(f"no fencing tokens: {error}")

    def _still_held(self) -> bool:
        return all(scope.held for scope in self._scopes)

    def _tell_loss(self) -> None:
        """At once, and not when the command has ended."""
        try:
            for scope in self._scopes:
                scope.check()
        except LockLostError as error:
            self._loss_told = True
            say(str(error))

    def _environment(self) -> Mapping[str, str]:
        environment = {
            **os.environ,
            "ASYNCLOCK_NAME": "\n".join(self._plan.names),
            "ASYNCLOCK_URL": self._servers.public_urls(),
        }
        environment.pop("ASYNCLOCK_FENCING_TOKEN", None)  # that of a run around this one
        if self._tokens is not None:
            environment["ASYNCLOCK_FENCING_TOKEN"] = "\n".join(str(self._tokens[name]) for name in self._plan.names)
        return environment

    def _not_acquired(self, what: str) -> int:
        status = self._plan.conflict_exit_code
        if status == 0:  # it is no error
            self._tell(what)
        else:
            say(what)
        return status

    def _not_started(self, error: OSError) -> int:
        say(f"{self._plan.command[0]}: {error.strerror}")
        if error.filename is None:  # no process could be made
            return FAILED
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUNNABLE

    def _tell(self, what: str) -> None:
        if self._plan.verbose:
            say(what)

    def _configure_logging(self) -> None:
        """What the library logs about its servers: all of it with -v, and errors without."""
        handler = LinesOnStderr(logging.INFO if self._plan.verbose else logging.ERROR)
        log = logging.getLogger("asynclock")
        log.addHandler(handler)
        log.setLevel(logging.INFO)


def _held_by(error: NotLockedError | AcquireTimeoutError) -> str:
    return "" if error.holder is None else f" (held by {error.holder})"


async def to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await it. It is not cancelled with this task, as by the loss of a second lock: then that is raised at its end."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
