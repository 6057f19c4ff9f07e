"""Runs programs: many at a time on one locker. Judges each block by block, and checks that nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any
from zlib import crc32

import anyio

from asynclock import ConfigurationError, Locker, LockLostError, LockScope
from asynclock.testing import Server
from asynclock.testing.resp import encode_command
from tests.support import internals
from tests.support.helpers import key, until

from . import programs as p
from .judge import Record, Wrong, judge

AT_ONCE = 48
SEVERAL = 3  # one scope in that many has several names
LIMIT = 20.0  # seconds after which a program hangs for certain: it takes milliseconds


LINGER = 0.3  # seconds: longer than a push takes, and than the pause before a cancellation is repeated


class OwnError(Exception):
    """An exception of the program itself."""


@dataclass(slots=True)
class Place:
    """Where in a program a statement runs. ``blocks`` are those of the same task."""

    scopes: list[LockScope] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)  # of these scopes
    blocks: list[Record] = field(default_factory=list)

    def swallowed(self, by_the_program: bool = False) -> None:
        """A cancellation was lost: because asyncio or anyio may do that, or because the program drops it."""
        for block in self.blocks:
            block.swallowed = True
            block.excused |= not by_the_program

    def elsewhere(self) -> Place:
        """The same place, in another task."""
        return replace(self, blocks=[])


class World:
    """What the programs of a run share: a locker, another one for contention, and a connection that harms keys."""

    def __init__(self, locker: Locker, other: Locker, saboteur: asyncio.StreamWriter) -> None:
        self.locker = locker
        self.other = other
        self.saboteur = saboteur
        self.holders: dict[str, LockScope] = {}  # of names that are never lost
        self.runs = 0
        self.seen: Counter[str] = Counter()  # what came out of blocks: shows what the programs have covered


class Run:
    """One program. ``wrong``: the judge's complaints."""

    def __init__(self, world: World, program: p.Program) -> None:
        self.world = world
        world.runs += 1
        self.number = world.runs  # makes names unique: one program may run several times at once
        self.program = program
        self.wrong: list[str] = []
        self.anyio_used = False
        self.spawned: list[asyncio.Task[Any]] = []
        self.background: set[asyncio.Future[Any]] = set()
        self.raw: Counter[asyncio.Task[Any]] = Counter()  # cancellations by the program itself
        self.stray: set[asyncio.Task[Any] | None] = set()  # those to which ``pending`` has passed a cancellation on

    async def run(self) -> list[str]:
        self.main = asyncio.create_task(self.block(self.program.body, Place()))
        canceller = asyncio.create_task(self.cancel())
        end = time.monotonic() + LIMIT
        done, _ = await asyncio.wait([self.main], timeout=LIMIT)
        if not done:
            self.wrong.append(f"does not end: {self.main.get_stack()}")
            while not self.main.done():
                self.main.cancel()
                await asyncio.wait([self.main], timeout=0.1)
        canceller.cancel()
        await asyncio.wait([canceller])
        while left := [task for task in self.background if not task.done()]:
            for task in left:  # shielded or abandoned tasks
                task.cancel()
            await asyncio.wait(left, timeout=0.1)
            if time.monotonic() > end + LIMIT:
                break
        if not self.main.cancelled():
            self.main.exception()
        expected = self.raw[self.main]
        # anyio's groups may take back another's cancellation.
        counts = range(expected + 1) if self.anyio_used else (expected,)
        if done and self.main.cancelling() not in counts:
            self.wrong.append(f"Task.cancelling() is {self.main.cancelling()}, and it was cancelled {expected} times")
        if left := [task for task in (*self.spawned, *self.background) if not task.done()]:
            self.wrong.append(f"left running: {left}")
        return self.wrong

    async def cancel(self) -> None:
        for step in self.program.cancel_after:
            await self.step(step, Place())
            self.cancel_raw(self.main)

    def cancel_raw(self, task: asyncio.Task[Any]) -> None:
        if not task.done() and task.cancel():
            self.raw[task] += 1

    async def block(self, block: p.Block, place: Place) -> None:
        for step in block:
            await self.step(step, place)

    def task(self, block: p.Block, place: Place) -> asyncio.Task[None]:
        task = asyncio.create_task(self.block(block, place.elsewhere()))
        self.background.add(task)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # mark its exception as retrieved
        task.add_done_callback(
            self.background.discard
        )  # with its exception, which would keep a cancellation from being repeated
        return task

    async def step(self, step: p.Step, place: Place) -> None:
        if getattr(step, "level", -1) >= len(place.scopes):
            return  # the statement around it was left out by ``shrink``
        match step:
            case p.Sleep(ms):
                await asyncio.sleep(ms / 1000)
            case p.Turns(count):
                for _ in range(count):
                    await asyncio.sleep(0)
            case p.Linger():
                await self.linger(place)
            case p.Fail(number):
                raise OwnError(number)
            case p.CancelMyself():
                task = asyncio.current_task()
                assert task is not None
                self.cancel_raw(task)
            case p.CancelTask(back):
                if len(self.spawned) > back:
                    self.cancel_raw(self.spawned[-1 - back])
            case p.Lose(level, how):
                self.lose(place.scopes[-1 - level], how)
            case p.Stop(level):
                scope, record = place.scopes[-1 - level], place.records[-1 - level]
                record.stopped |= scope.lost_reason is None
                scope.cancel()
            case p.Release(level):
                place.records[-1 - level].released = True
                await place.scopes[-1 - level].release()
            case p.Check(level):
                place.scopes[-1 - level].check()
            case p.InThread(level, call):
                await self.in_thread(place.scopes[-1 - level], call)
            case p.Lock():
                await self.lock(step, place)
            case p.Generator():
                await self.generator(step, place)
            case _:
                await self.around(step, place)

    async def around(self, step: p.Step, place: Place) -> None:
        caught = contextlib.suppress(TimeoutError) if getattr(step, "catch", False) else contextlib.nullcontext()
        match step:
            case p.Begin(body):
                self.task(body, place)
            case p.Spawn(level, body):
                self.spawn(level, body, place)
            case p.Timeout(ms, body, _):
                if self.cancelling():
                    place.swallowed()  # a cancellation that is pending now is later taken for the timeout's own
                with caught:
                    async with asyncio.timeout(ms / 1000):
                        await self.block(body, place)
            case p.WaitFor(ms, body, _):
                if sys.version_info < (3, 12):
                    place.swallowed(by_the_program=True)  # python/cpython#86296: it is stopped all the same
                if self.cancelling():
                    place.swallowed()  # as above
                with caught:
                    await asyncio.wait_for(self.task(body, place), ms / 1000)
                if self.cancelling():
                    place.swallowed()  # by the task that it waited for, which got the cancellation
            case p.FailAfter(ms, body, _):
                with caught, anyio.fail_after(ms / 1000) as around:
                    await self.anyio(around, body, place)
            case p.MoveOn(ms, body):
                with anyio.move_on_after(ms / 1000) as around:
                    await self.anyio(around, body, place)
            case p.AnyioShield(body):
                with anyio.CancelScope(shield=True):
                    await self.block(body, place)
            case p.Group(tasks, body):
                await self.group(tasks, body, place)
            case p.AnyioGroup(tasks, body, cancel):
                nursery = anyio.create_task_group()
                try:
                    async with nursery:
                        for each in tasks:
                            nursery.start_soon(self.block, each, place.elsewhere())
                        try:
                            await self.anyio(nursery.cancel_scope, body, place)
                        finally:
                            if cancel:
                                nursery.cancel_scope.cancel()
                finally:
                    if nursery.cancel_scope.cancel_called:
                        place.swallowed()
            case p.Shield(body):
                await asyncio.shield(self.task(body, place))
            case p.Gather(tasks):
                await asyncio.gather(*(self.task(each, place) for each in tasks))
            case p.Finally(body, cleanup):
                try:
                    await self.block(body, place)
                finally:
                    await self.block(cleanup, place)
            case p.Swallow(body):
                try:
                    await self.block(body, place)
                except asyncio.CancelledError:
                    place.swallowed(by_the_program=True)
            case p.Catch(body):
                try:
                    await self.block(body, place)
                except Exception:
                    if self.cancelling():
                        place.swallowed()  # an error went before it, as in asyncio.TaskGroup before 3.13
            case _:
                raise AssertionError(step)
        if getattr(step, "catch", False) and self.cancelling():
            place.swallowed()  # an error went before it, as in asyncio.TaskGroup before 3.13, and was caught

    async def group(self, tasks: list[p.Block], body: p.Block, place: Place) -> None:
        group = asyncio.TaskGroup()
        inside, at_once = True, False
        try:
            async with group:
                for each in tasks:
                    coroutine = self.block(each, place.elsewhere())
                    try:
                        self.spawned.append(group.create_task(coroutine))
                        at_once |= self.spawned[-1].done()
                    except RuntimeError:  # an eager task has failed already
                        coroutine.close()
                        raise
                try:
                    await self.block(body, place)
                finally:
                    inside = not group._parent_cancel_requested  # type: ignore[attr-defined]
        finally:
            if sys.version_info < (3, 13) and inside and group._parent_cancel_requested:  # type: ignore[attr-defined]
                # A task failed while the group waited for it: the group does not take back its own cancellation.
                task = asyncio.current_task()
                assert task is not None
                task.uncancel()
            if sys.version_info < (3, 13) and at_once:
                # Or an eager task failed, and the group cancelled its parent while that ran: it arrives now.
                place.swallowed()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)

    async def anyio(self, around: anyio.CancelScope, body: p.Block, place: Place) -> None:
        self.anyio_used = True
        try:
            await self.block(body, place)
        finally:
            if around.cancel_called or self.raw:
                place.swallowed()  # it may take another's cancellation for its own, if both arrive at once

    async def linger(self, place: Place) -> None:
        await asyncio.sleep(LINGER)
        if self.goes_on_lost(place):
            await asyncio.sleep(5 * LINGER)  # on a busy machine, the loss may be recent
            if self.goes_on_lost(place):
                self.wrong.append(f"a body goes on with a lost lock: {list(place.scopes)}")

    def goes_on_lost(self, place: Place) -> bool:
        # A body that has swallowed the cancellation must be cancelled again. Except if asyncio or anyio took it for
        # another's, or the program has released the lock itself. Clean-up code is not cancelled again.
        return sys.exc_info()[1] is None and any(
            block.scope is not None
            and block.scope.lost_reason is not None
            and not (block.excused or block.released or block.stopped)
            for block in place.blocks
        )

    def spawn(self, level: int, body: p.Block, place: Place) -> None:
        scope, record = place.scopes[-1 - level], place.records[-1 - level]
        depth = len(place.scopes) - level
        inside = Place(place.scopes[:depth], place.records[:depth])

        async def run() -> None:
            try:
                await self.block(body, inside)
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                record.failures.append(error)
                raise

        # RuntimeError: the block is being left (as asyncio.TaskGroup)
        with contextlib.suppress(RuntimeError):
            task = scope.create_task(run())
            record.tasks.append(task)
            self.spawned.append(task)

    def cancelling(self) -> int:
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    def lose(self, scope: LockScope, how: str) -> None:
        name = scope.names[-1 if how in ("delete", "take") else 0]
        if name.startswith("~"):
            return
        if how == "take":
            self.background.add(asyncio.ensure_future(self.take(name)))
        elif how == "look":  # the task itself finds out, before the event loop's callback
            internals.lose(self.world.locker, name)
        elif how == "delete":
            self.world.saboteur.write(encode_command("DEL", key(name)))
        else:
            self.world.saboteur.write(encode_command("SET", key(name), "somebody's", "PX", 10))

    async def take(self, name: str) -> None:
        await (await self.world.other.force_acquire(name)).release()

    def acquiring(self, step: p.Lock) -> Any:
        locker = self.world.locker
        names = self.names(self.name(step))
        match step.how:
            case "try":
                return locker.try_with_context(*names, wait_release=step.wait)
            case "force":
                return locker.force_with_context(*names, wait_release=step.wait)
            case "hand":
                return _ByHand(locker.acquire(*names, timeout=step.timeout))
        return locker.with_context(*names, timeout=step.timeout, wait_release=step.wait)

    def name(self, step: p.Lock) -> str:
        return step.name if step.name.startswith("~") else f"{step.name} {self.number}"

    @staticmethod
    def names(name: str) -> list[str]:
        """Some scopes have several names, of which the others come before and after this one. Not those that other
        programs use, too: they would wait for each other, as their program says and not as the library does."""
        more = [] if name.startswith("~") or crc32(name.split()[0].encode()) % SEVERAL else [f"{name} 2", f"!{name}"]
        return [name, *more]

    async def lock(self, step: p.Lock, place: Place) -> None:
        name = self.name(step)
        around = [each.scope for each in place.blocks if each.name == name and each.scope is not None]
        block = self.record(name)
        block.inside = any(scope.held for scope in around)
        inside: Place | None = None
        try:
            async with self.acquiring(step) as scope:
                block.scope = scope
                inside = Place([*place.scopes, scope], [*place.records, block], [*place.blocks, block])
                self.alone(scope)
                try:
                    await self.block(step.body, inside)
                except BaseException as error:
                    self.ended(block, error)
                    raise
        except BaseException as error:
            block.out = error
            raise
        finally:
            await self.left(block, place)

    def record(self, name: str) -> Record:
        return Record(name, self.cancelling(), stray=asyncio.current_task() in self.stray)

    def ended(self, block: Record, error: BaseException) -> None:
        """The body of the block has ended with ``error``."""
        block.error = error
        block.error_was = error.__cause__, error.__suppress_context__
        block.cancelling_at_error = self.cancelling()

    async def left(self, block: Record, place: Place) -> None:
        block.cancelling_after = self.cancelling()
        if block.cancelling_after > block.cancelling and not isinstance(
            block.out, asyncio.CancelledError | GeneratorExit
        ):
            block.still_pending = not block.closed and await self.pending()
            if block.still_pending and sys.version_info < (3, 13):
                self.stray.add(asyncio.current_task())
                for each in place.blocks:
                    each.stray = True
        try:
            judge(block)
        except Wrong as wrong:
            self.wrong.append(str(wrong))
        self.world.seen[_kind(block.out)] += 1
        block.error = block.out = block.overtaken_by = None  # no reference cycles through tracebacks
        block.failures.clear()

    async def in_thread(self, scope: LockScope, call: str) -> None:
        """Reading works in a thread. Everything else must refuse, and change nothing: later checks would show it."""

        def use() -> None:
            if call == "check":
                with contextlib.suppress(LockLostError):
                    scope.check()
                return
            try:
                if call == "cancel":
                    scope.cancel()
                elif call == "release":
                    scope.release().send(None)
                else:
                    scope.create_task(asyncio.sleep(0))
            except ConfigurationError:
                return
            self.wrong.append(f"{scope.name}: {call} works in a thread")

        await asyncio.to_thread(use)

    async def generator(self, step: p.Generator, place: Place) -> None:
        if step.how == "manager":
            async with contextlib.asynccontextmanager(self.generate)(step, place) as inside:
                await self.block(step.body, inside)
            return
        async with contextlib.aclosing(self.generate(step, place)) as generator:
            async for inside in generator:
                try:
                    await self.block(step.body, inside)
                except BaseException as error:
                    inside.blocks[-1].overtaken_by = None if isinstance(error, asyncio.CancelledError) else error
                    raise

    async def generate(self, step: p.Generator, place: Place) -> AsyncGenerator[Place]:
        block = self.record(f"{step.name} {self.number}")
        try:
            async with self.world.locker.with_context(*self.names(block.name)) as scope:
                block.scope = scope
                inside = Place([*place.scopes, scope], [*place.records, block], [*place.blocks, block])
                try:
                    await self.block(step.before, inside)
                    yield inside
                    await self.block(step.after, inside)
                except BaseException as error:
                    self.ended(block, error)
                    raise
        except BaseException as error:
            block.out = error
            raise
        finally:
            self.background.update(block.tasks)  # they run on if the generator is closed
            await self.left(block, place)

    async def pending(self) -> bool:
        """Is a cancellation pending? If so, postpone it to the next await but one."""
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            task.cancel(*error.args)
            return True
        return False

    def alone(self, scope: LockScope) -> None:
        if scope.name.startswith("~"):
            before = self.world.holders.get(scope.name)
            if before is not None and before.held and scope.held:
                self.wrong.append(f"{scope.name}: two hold it")
            self.world.holders[scope.name] = scope


class _ByHand:
    def __init__(self, acquiring: Awaitable[LockScope]) -> None:
        self._acquiring = acquiring

    async def __aenter__(self) -> LockScope:
        self._scope = await self._acquiring
        return await self._scope.__aenter__()

    async def __aexit__(self, *error: Any) -> bool | None:
        return await self._scope.__aexit__(*error)


def _kind(out: BaseException | None) -> str:
    return "nothing" if out is None else type(out).__name__


@dataclass
class Report:
    programs: int = 0
    seconds: float = 0.0
    seen: Counter[str] = field(default_factory=Counter)
    failed: dict[int, list[str]] = field(default_factory=dict)  # by seed
    left: list[str] = field(default_factory=list)  # what the programs have left behind


async def run_all(server: Server, programs: Iterable[p.Program], at_once: int = AT_ONCE) -> Report:
    """Run them, ``at_once`` at a time, and check what is left."""
    report = Report()
    loop = asyncio.get_running_loop()
    before = asyncio.all_tasks()
    handler = loop.get_exception_handler()

    def complain(_: object, context: dict[str, Any]) -> None:
        if not context["message"].endswith(
            "failed, and its block was closed"
        ):  # expected: its generator was closed, so the failure goes to the exception handler
            report.left.append(f"the event loop complained: {context}")

    loop.set_exception_handler(complain)
    since = time.monotonic()
    try:
        _, saboteur = await asyncio.open_connection("127.0.0.1", server.port)
        async with Locker(server.url) as locker, Locker(server.url) as other:
            saboteur.write(encode_command("CLIENT", "REPLY", "OFF"))
            world = World(locker, other, saboteur)
            turns = iter(programs)

            async def work() -> None:
                for program in turns:
                    report.programs += 1
                    if wrong := await Run(world, program).run():
                        report.failed[program.seed] = wrong

            await asyncio.gather(*(work() for _ in range(at_once)))
            report.seen = world.seen
            # Clean-up that outlasts a block (a release that is not waited for) ends soon.
            for what, gone in (
                ("rooms", lambda: not internals.busy(locker) and not internals.busy(other)),
                ("keys", lambda: server.execute("DBSIZE") == 0),
                ("tasks", lambda: len(asyncio.all_tasks()) <= len(before)),
            ):
                try:
                    await until(gone, 2.0)
                except AssertionError:
                    keys, tasks = server.execute("KEYS", "*"), asyncio.all_tasks() - before
                    report.left.append(f"{what}: {internals.busy(locker)}, {keys}, {tasks}")
        saboteur.close()
        with contextlib.suppress(OSError):
            await saboteur.wait_closed()
    finally:
        loop.set_exception_handler(handler)
    report.seconds = time.monotonic() - since
    return report
