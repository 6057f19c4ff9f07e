"""One worker process: takes locks, works under them, gives them back, and writes down what it knew when.

    python -m tests.chaos.worker SPEC

SPEC is JSON (see ``Spec``). Obeys lines on stdin: ``block 1.5`` blocks the event loop for so many seconds, ``force
NAME`` takes a lock over, ``swell 1.0`` fills the server's memory for so many seconds, ``without descriptors 1.0`` and
``without names 1.0`` leave the process without file descriptors, and without an answer to who has which address, for
so long, ``reopen`` closes the locker and opens another, ``hurry`` makes every hold short from then
on. The end of stdin closes the locker, and that ends the process.

What it writes: ``held`` as soon as it knows that it holds a lock, and ``ended`` as soon as it knows that it no longer
does: its body was cancelled, a check failed, or it is about to release. ``acted`` in there is the last time that it
was told that it still had the lock, ``due`` the deadline that it was told then, and ``votes`` are those of its keys.
``stall`` is a time in which its loop did not run, for whatever reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import random
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from asynclock import (
    AcquireTimeoutError,
    AsyncLockError,
    Locker,
    LockerClosedError,
    LockLostError,
    LockScope,
    NotLockedError,
)
from tests.support import internals

from .connecting import Servers
from .logs import KEPT, Log, now
from .planted import PLANTED

STEP = 0.02  # seconds between two checks of a worker that works under a lock
TICK = 0.005  # seconds between two looks at whether the loop runs
STALL = 0.012  # seconds between two of them that count as one that it did not
SELF = 5.0  # seconds between two looks at its own memory and descriptors
CROWD_HOLD = (1.0, 4.0)  # seconds
DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)
LOOK_UP = socket.getaddrinfo
BIG = "y" * 2000  # in the name of a lock whose key takes much memory
CLOSE_LIMIT = 10.0  # seconds that closing may take


@dataclass
class Spec:
    who: str
    directory: str
    seed: str
    servers: dict[str, Any]  # see connecting.py
    options: dict[str, Any]  # of the locker
    names: list[tuple[str, tuple[float, float]]]  # and for how many seconds each is held
    tasks: int  # for each name; with ``roam`` for all of them
    rest: tuple[float, float]  # seconds between turns
    roam: bool = False  # every turn takes any name
    crowd: list[str] = field(default_factory=list)  # more names,
    crowd_tasks: int = 0  # ... any of which so many tasks take
    uvloop: bool = False
    patience: float = field(default=0.3)  # of those who do not wait for ever
    planted: str = ""  # a fault of the library (see planted.py)


class Worker:
    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.log = Log(Path(spec.directory), spec.who)
        self.random = random.Random(spec.seed)
        self.locker: Locker
        self.servers: Servers
        self._closing = False
        self._hurry = False
        self._holds = 0
        self._started = asyncio.Event()
        self._lost: dict[asyncio.Task[Any], float] = {}  # when whose lock was
        self._beside: set[asyncio.Task[None]] = set()  # what was ordered, and is under way
        self._without_descriptors = False

    # Turns

    async def take_turns(self, names: list[tuple[str, tuple[float, float]]]) -> None:
        """Every turn takes any of them."""
        await self._started.wait()
        while not self._closing:
            name, hold = self.random.choice(names)
            await self.turn(name, self.random.uniform(*hold), self.random.random())
            await asyncio.sleep(self.random.uniform(*self.spec.rest))

    async def turn(self, name: str, hold: float, how: float) -> None:
        since = now()
        locker = self.locker
        try:
            if how < 0.6:
                async with locker.with_context(name) as scope:
                    await self.work(scope, hold, since)
            elif how < 0.7:
                await self.interrupted(locker, name, hold, since)
            elif how < 0.82:
                async with locker.with_context(name, timeout=self.spec.patience) as scope:
                    await self.work(scope, hold, since)
            elif how < 0.9:
                async with locker.try_with_context(name) as scope:
                    await self.work(scope, hold, since)
            else:
                await self.by_hand(await locker.acquire(name), hold, since)
        except LockLostError:
            self.left(name)
        except LockerClosedError:
            self.log("turned away", name=name, waited=now() - since)
        except (AcquireTimeoutError, NotLockedError) as error:
            self.log("refused", name=name, why=type(error).__name__, waited=now() - since)
        except AsyncLockError as error:
            self.log("refused", name=name, why=type(error).__name__, waited=now() - since, text=str(error))
            await asyncio.sleep(0.05)
        except Exception:
            self.log("error", text=traceback.format_exc())

    async def interrupted(self, locker: Locker, name: str, hold: float, since: float) -> None:
        """A cancellation from outside, while it waits, acquires, holds or releases."""
        try:
            async with asyncio.timeout(self.random.uniform(0.0, self.spec.patience)):
                async with locker.with_context(name) as scope:
                    await self.work(scope, hold, since)
        except TimeoutError:
            pass
        task = asyncio.current_task()
        if task is None or task.cancelling():
            self.log("error", text=f"{name}: the task counts as cancelled after its block was left")

    def left(self, name: str) -> None:
        """A block, after a loss that was written down where it was noticed."""
        if (task := asyncio.current_task()) in self._lost:
            self.log("left", name=name, since=self._lost.pop(task))

    async def by_hand(self, scope: LockScope, hold: float, since: float) -> None:
        try:
            await self.work(scope, hold, since, told=scope.wait_lost())
        finally:
            await scope.release()

    async def force(self, name: str) -> None:
        since = now()
        try:
            async with self.locker.force_with_context(name) as scope:
                await self.work(scope, 0.05, since, forced=True)
        except LockLostError:
            self.left(name)
        except AsyncLockError as error:
            self.log("refused", name=name, why=type(error).__name__, waited=now() - since)
        except Exception:
            self.log("error", text=traceback.format_exc())

    async def swell(self, seconds: float) -> None:
        """Keys that take much memory, more and more of them."""
        until, number = now() + seconds, 0
        scopes: list[LockScope] = []
        while now() < until:
            number += 1
            with contextlib.suppress(AsyncLockError):
                scopes.append(await self.locker.try_acquire(f"{self.spec.who} {number} {BIG}"))
            await asyncio.sleep(STEP)
        for scope in scopes:
            await scope.release()

    async def work(
        self, scope: LockScope, seconds: float, since: float, told: Any = None, forced: bool = False
    ) -> None:
        """In a block it is cancelled when the lock is lost; with ``told`` it waits for that itself."""
        self._holds += 1
        hold = self._holds
        task = asyncio.current_task()
        assert task is not None
        self._lost.pop(task, None)  # of a block that ended otherwise
        at = acted = now()
        due, votes = at + scope.remaining(), _votes(scope)
        more = {"forced": True} if forced else {}
        self.log("held", at=at, name=scope.name, hold=hold, waited=at - since, due=due, votes=votes, **more)
        told = told and asyncio.ensure_future(told)
        why = "released"
        try:
            while (left := at + seconds - now()) > 0 and not self._hurry:
                if told is None:
                    await asyncio.sleep(min(left, STEP))
                else:
                    await asyncio.wait([told], timeout=min(left, STEP))
                looked = now()
                scope.check()
                acted, due, votes = looked, looked + scope.remaining(), _votes(scope)
        except LockLostError as error:
            why = error.reason
            raise
        except asyncio.CancelledError:
            why = scope.lost_reason or "cancelled"
            raise
        finally:
            if why not in KEPT:
                self._lost[task] = now()
            self.log("ended", name=scope.name, hold=hold, why=why, acted=acted, due=due, votes=votes)
            if told is not None:
                told.cancel()

    # Its own state

    async def watch_loop(self) -> None:
        loop = asyncio.get_running_loop()
        last = now()

        def tick() -> None:
            nonlocal last
            at = now()
            if at - last > STALL:
                self.log("stall", at=at, since=last)
            last = at
            loop.call_later(TICK, tick)

        tick()

    async def watch_self(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while True:
            await asyncio.sleep(SELF)
            if self._without_descriptors:
                continue
            with open("/proc/self/statm") as sizes:  # noqa: ASYNC230 - it is memory
                resident = int(sizes.read().split()[1]) * page
            open_files = len(os.listdir("/proc/self/fd")) - 1  # less the one that lists them
            self.log("self", resident=resident, files=open_files, tasks=len(asyncio.all_tasks()))

    # Orders

    async def obey(self) -> None:
        """Returns when there will be no more orders."""
        loop = asyncio.get_running_loop()
        orders = asyncio.StreamReader()
        pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
        while line := await orders.readline():
            match line.decode().split():
                case ["block", seconds]:
                    time.sleep(float(seconds))  # noqa: ASYNC251 - this is what it is for
                case ["force", name]:
                    self.beside(self.force(name))
                case ["swell", seconds]:
                    self.beside(self.swell(float(seconds)))
                case ["without", "descriptors", seconds]:
                    self.without_descriptors(float(seconds))
                case ["without", "names", seconds]:
                    self.without_names(float(seconds))
                case ["reopen"]:
                    before = self.locker, self.servers
                    self.open()
                    await self.close(*before)
                case ["hurry"]:
                    self._hurry = True
                case _:
                    raise ValueError(line)
        pipe.close()

    def beside(self, what: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(what)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    def without_descriptors(self, seconds: float) -> None:
        """Those that there are stay."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, DESCRIPTORS[1]))
        self._without_descriptors = True

        def end() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, DESCRIPTORS)
            self._without_descriptors = False

        asyncio.get_running_loop().call_later(seconds, end)

    def without_names(self, seconds: float) -> None:
        def refuse(*arguments: Any, **more: Any) -> NoReturn:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

        socket.getaddrinfo = refuse
        asyncio.get_running_loop().call_later(seconds, setattr, socket, "getaddrinfo", LOOK_UP)

    def open(self) -> None:
        self.servers = Servers(self.spec.servers)
        self.locker = Locker(self.servers.argument, **self.spec.options)

    async def close(self, locker: Locker, servers: Servers) -> None:
        since = now()
        await locker.aclose()
        self.log("closed", took=now() - since)
        await servers.aclose()

    async def run(self) -> None:
        self.open()
        spec = self.spec
        tasks = [spec.names] * spec.tasks if spec.roam else [[name] for name in spec.names] * spec.tasks
        tasks += [[(name, CROWD_HOLD) for name in spec.crowd]] * spec.crowd_tasks
        await self.watch_loop()
        own = asyncio.create_task(self.watch_self())
        turns = [asyncio.create_task(self.take_turns(names)) for names in tasks]
        self.log("started")
        self._started.set()
        await self.obey()
        self._closing = True
        await self.close(self.locker, self.servers)
        async with asyncio.timeout(CLOSE_LIMIT):
            await asyncio.gather(*turns, *self._beside)
        own.cancel()
        self.log("bye")


def _votes(scope: LockScope) -> list[float]:
    """Until when it counts on each key: a look behind the curtain, to know how many may be lost and not the lock."""
    return [round(left + now(), 4) for left in internals.votes(scope)]


def _die_with_parent() -> None:
    """A stopped process would not see the end of its input."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    _die_with_parent()
    spec = Spec(**json.loads(sys.argv[1]))
    if spec.planted:
        PLANTED[spec.planted](spec)
    factory = asyncio.new_event_loop
    if spec.uvloop:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(Worker(spec).run())


if __name__ == "__main__":
    main()
