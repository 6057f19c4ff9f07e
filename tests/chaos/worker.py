"""One worker process: acquires locks, works under them, releases them, and logs what it knew at which time.

    python -m tests.chaos.worker SPEC

SPEC is JSON (see ``Spec``). Commands on stdin, one a line, with times in seconds:

- ``block 1.5`` blocks the event loop;
- ``force NAME`` takes a lock over;
- ``swell 1.0`` fills the server's memory;
- ``without descriptors 1.0`` makes the process run out of file descriptors;
- ``without names 1.0`` makes its name resolution fail;
- ``reopen`` closes the locker and opens another;
- ``hurry`` makes every hold short from then on.

At the end of stdin it closes the locker, and ends.

Events: ``held`` as soon as it knows that it holds a lock, and ``ended`` as soon as it knows that it no longer does: the
body was cancelled, a check failed, or it is about to release. In these, ``acted`` is when it last knew that it had the
lock, ``due`` the deadline at that time, and ``votes`` are the deadlines of its keys. A scope of several names has an
event for each; if one of them is lost, the others count as released. ``before``: another name of the scope comes after
this one, so it may have been kept while the task waited. A permit is a lock on a slot (``pool#1``).
``stays`` is when the least time of a lock is over. ``token``: it has got a fencing token, for which it asked at
``asked``. ``stall`` is a time in which its event loop did
not run, for whatever reason.
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
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
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
from .logs import KEPT, WITH_ANOTHER, Log, now, slot_name
from .planted import PLANTED

STEP = 0.02  # seconds between two checks while it works under a lock
TICK = 0.005  # seconds between two ticks that show that the event loop runs
STALL = 0.012  # seconds between two ticks from which on they count as a stall
SELF = 5.0  # seconds between two samples of its own memory and descriptors
CROWD_HOLD = (1.0, 4.0)  # seconds
SEVERAL = 0.08  # share of turns that take several names at once
SHORT = 0.05  # seconds: names that are not held for longer by themselves are the ones that are taken with another one
LONGEST_KEPT = 2.4  # seconds for which ``at_least`` keeps a lock, less a tenth
KEPT_PATIENCE = 2.0  # seconds for which a turn with ``at_least`` waits
LONGEST_SEVERAL = 0.2  # seconds for which several names are held: others wait for these
DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)
LOOK_UP = socket.getaddrinfo
BIG = "y" * 2000  # part of a name whose key takes much memory
CLOSE_LIMIT = 10.0  # seconds that closing may take


@dataclass
class Spec:
    who: str
    directory: str
    seed: str
    servers: dict[str, Any]  # see connecting.py
    options: dict[str, Any]  # of the locker
    names: list[tuple[str, tuple[float, float]]]  # with the range of seconds for which each is held
    tasks: int  # for each name; with ``roam`` for all of them
    rest: tuple[float, float]  # seconds between turns
    roam: bool = False  # every turn takes any name
    crowd: list[str] = field(default_factory=list)  # further names
    crowd_tasks: int = 0  # number of tasks that take these
    uvloop: bool = False
    patience: float = field(default=0.3)  # timeout, in seconds, of acquisitions that have one
    permits: dict[str, int] = field(default_factory=dict)  # of the names that are semaphores
    fenced: float = 0.0  # share of turns that ask for a fencing token
    kept: float = 0.0  # share of turns with ``at_least``
    planted: str = ""  # a fault of the library (see planted.py)


@dataclass
class Turn:
    """What a task takes, and for how long."""

    names: list[str]
    seconds: float
    permits: int = 0  # of the semaphore; 0: it takes locks
    fenced: bool = False  # it asks for fencing tokens
    at_least: float = 0.0

    def of(self, locker: Locker) -> Taking:
        if self.permits:
            return Taking(locker.semaphore(self.names[0], self.permits), (), {})
        return Taking(locker, self.names, {"at_least": self.at_least} if self.at_least else {})

    def held_names(self, scope: LockScope) -> tuple[str, ...]:
        """What the checker calls the locks of the scope. (The slot is internal state: shows who excludes whom.)"""
        return (slot_name(scope.name, internals.slot(scope)),) if self.permits else scope.names

    def more(self, at: float) -> dict[str, Any]:
        """What is special about it, for the log."""
        more: dict[str, Any] = {"several": len(self.names) > 1, "fenced": self.fenced, "permits": self.permits}
        more["stays"] = at + self.at_least if self.at_least else 0.0
        return {name: value for name, value in more.items() if value}


class Taking:
    """A locker or a semaphore, with what is to be given to its methods."""

    def __init__(self, source: Any, names: Sequence[str], options: dict[str, Any]) -> None:
        self._source = source
        self._names = names
        self._options = options

    def __getattr__(self, method: str) -> Any:
        return partial(getattr(self._source, method), *self._names, **self._options)


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
        self._lost: dict[asyncio.Task[Any], float] = {}  # task -> when its lock was lost
        self._beside: set[asyncio.Task[None]] = set()  # commands that still run
        self._without_descriptors = False

    # Turns

    async def take_turns(self, names: list[tuple[str, tuple[float, float]]]) -> None:
        """Each turn takes one of the names at random."""
        await self._started.wait()
        while not self._closing:
            name, hold = self.random.choice(names)
            turn = Turn([name], self.random.uniform(*hold), permits=self.spec.permits.get(name, 0))
            if not turn.permits:
                self.vary(turn)
            await self.turn(turn, self.random.random())
            await asyncio.sleep(self.random.uniform(*self.spec.rest))

    def vary(self, turn: Turn) -> None:
        """Some turns want more than a single lock."""
        if self.random.random() < SEVERAL and (others := self.others(turn.names[0])):
            turn.names += others
            turn.seconds = min(turn.seconds, LONGEST_SEVERAL)
        turn.fenced = self.random.random() < self.spec.fenced
        if self.random.random() < self.spec.kept and not self._hurry:
            # Mostly it leaves earlier: the lock is taken for as long as in another turn.
            turn.at_least = min(turn.seconds, LONGEST_KEPT) + self.random.uniform(0.0, 0.1)
            turn.seconds = turn.at_least * self.random.uniform(0.0, 1.2)

    def others(self, name: str) -> list[str]:
        """Names that are only held for a moment: while the task waits for them, nobody has those before them. The crowd
        takes none: it is so many that they would queue."""
        if name in self.spec.crowd:
            return []
        others = [each for each, (_, longest) in self.spec.names if longest <= SHORT and each != name]
        return self.random.sample(others, min(len(others), self.random.choice((1, 2))))

    async def turn(self, turn: Turn, how: float) -> None:
        since = now()
        locker = self.locker
        name = turn.names[0]
        # When the faults are over, least times end soon: the others are to get the locks, too.
        patience = KEPT_PATIENCE if turn.at_least else None
        try:
            if how < 0.6:
                async with turn.of(locker).with_context(timeout=patience) as scope:
                    await self.work(scope, turn, since)
            elif how < 0.7:
                await self.interrupted(locker, turn, since)
            elif how < 0.82:
                async with turn.of(locker).with_context(timeout=self.spec.patience) as scope:
                    await self.work(scope, turn, since)
            elif how < 0.9:
                async with turn.of(locker).try_with_context() as scope:
                    await self.work(scope, turn, since)
            else:
                await self.by_hand(await turn.of(locker).acquire(timeout=patience), turn, since)
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

    async def interrupted(self, locker: Locker, turn: Turn, since: float) -> None:
        """A turn that is cancelled from outside, while it waits, acquires, holds or releases."""
        try:
            async with asyncio.timeout(self.random.uniform(0.0, self.spec.patience)):
                async with turn.of(locker).with_context() as scope:
                    await self.work(scope, turn, since)
        except TimeoutError:
            pass
        task = asyncio.current_task()
        if task is None or task.cancelling():
            self.log("error", text=f"{turn.names}: the task counts as cancelled after its block was left")

    def left(self, name: str) -> None:
        """A block was left after a loss, which was logged when it was noticed."""
        if (task := asyncio.current_task()) in self._lost:
            self.log("left", name=name, since=self._lost.pop(task))

    async def by_hand(self, scope: LockScope, turn: Turn, since: float) -> None:
        try:
            await self.work(scope, turn, since, told=scope.wait_lost())
        finally:
            await scope.release()

    async def force(self, name: str) -> None:
        since = now()
        turn = Turn([name], SHORT, fenced=self.random.random() < self.spec.fenced)
        try:
            async with self.locker.force_with_context(name) as scope:
                await self.work(scope, turn, since, forced=True)
        except LockLostError:
            self.left(name)
        except AsyncLockError as error:
            self.log("refused", name=name, why=type(error).__name__, waited=now() - since)
        except Exception:
            self.log("error", text=traceback.format_exc())

    async def swell(self, seconds: float) -> None:
        """Acquire more and more locks whose keys take much memory."""
        until, number = now() + seconds, 0
        scopes: list[LockScope] = []
        while now() < until:
            number += 1
            with contextlib.suppress(AsyncLockError):
                scopes.append(await self.locker.try_acquire(f"{self.spec.who} {number} {BIG}"))
            await asyncio.sleep(STEP)
        for scope in scopes:
            await scope.release()

    async def work(self, scope: LockScope, turn: Turn, since: float, told: Any = None, forced: bool = False) -> None:
        """Work under the lock. In a block, a loss cancels it; with ``told`` it waits for the loss itself."""
        task = asyncio.current_task()
        assert task is not None
        self._lost.pop(task, None)  # of a block that ended otherwise
        at = acted = now()
        names = turn.held_names(scope)
        holds = {name: self._holds + number for number, name in enumerate(names, 1)}
        self._holds += len(holds)
        due, votes = at + scope.remaining(), _votes(scope, names)
        for name, hold in holds.items():
            more = (
                turn.more(at) | ({"forced": True} if forced else {}) | ({"before": True} if name < max(names) else {})
            )
            self.log("held", at=at, name=name, hold=hold, waited=at - since, due=due, votes=votes[name], **more)
        beside = [asyncio.ensure_future(told)] if told else []
        asking = asyncio.create_task(self.ask(scope, holds)) if turn.fenced else None
        if asking is not None:
            beside.append(asking)
        why = "released"
        try:
            while True:
                left = 0.0 if self._hurry else at + turn.seconds - now()
                asks = asking is not None and not asking.done()
                if left <= 0 and not asks:
                    break
                pause = min(left, STEP) if left > 0 else STEP
                if waits_for := [each for each in beside if not each.done()]:
                    await asyncio.wait(waits_for, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.sleep(pause)
                looked = now()
                scope.check()
                acted, due, votes = looked, looked + scope.remaining(), _votes(scope, names)
        except LockLostError as error:
            why = error.reason
            raise
        except asyncio.CancelledError:
            why = scope.lost_reason or "cancelled"
            raise
        finally:
            if why not in KEPT:
                self._lost[task] = now()
            lost = names[0] if len(names) == 1 else internals.lost_name(scope)
            for name, hold in holds.items():
                end = why if why in KEPT or name == lost else WITH_ANOTHER
                self.log("ended", name=name, hold=hold, why=end, acted=acted, due=due, votes=votes[name])
            for each in beside:
                each.cancel()

    async def ask(self, scope: LockScope, holds: dict[str, int]) -> None:
        """Ask twice for the fencing token of each name: it must be the same."""
        for name, hold in [*holds.items()] * 2:
            asked = now()
            try:
                number = await scope.fencing_token(name)
            except LockLostError:
                return
            except AsyncLockError as error:
                self.log("no token", name=name, why=type(error).__name__, text=str(error))
                return
            except Exception:
                self.log("error", text=traceback.format_exc())
                return
            self.log("token", name=name, hold=hold, number=number, asked=asked)

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
        """Returns at the end of stdin."""
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
        """Open descriptors stay open."""
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


def _votes(scope: LockScope, names: Sequence[str]) -> dict[str, list[float]]:
    """For each name, until when it counts on each key. (Internal state: shows how many keys it can lose without losing
    the lock.)"""
    found = {names[0]: internals.votes(scope)} if len(names) == 1 else internals.votes_of(scope)
    return {name: [round(left + now(), 4) for left in found.get(name, ())] for name in names}


def _die_with_parent() -> None:
    """Die with the parent: a process under SIGSTOP does not see the end of its stdin."""
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
