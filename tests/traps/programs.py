"""Programs: their statements, how one is made from a seed, and how it is printed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, fields

Block = list["Step"]


@dataclass(slots=True)
class Step:
    """A statement. Its fields of type ``Block`` and ``list[Block]`` are the blocks inside it."""

    def blocks(self) -> list[Block]:
        found: list[Block] = []
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, list):
                found += value if value and isinstance(value[0], list) else [value]
        return found


# Leaves


@dataclass(slots=True)
class Sleep(Step):
    ms: float


@dataclass(slots=True)
class Turns(Step):
    """``asyncio.sleep(0)``, several times."""

    count: int


@dataclass(slots=True)
class Linger(Step):
    """Sleep for so long that any pending cancellation or loss arrives."""


@dataclass(slots=True)
class Fail(Step):
    number: int


@dataclass(slots=True)
class CancelMyself(Step):
    pass


@dataclass(slots=True)
class CancelTask(Step):
    """Cancel a task that was spawned before, counted from the last one."""

    back: int


@dataclass(slots=True)
class Lose(Step):
    """Lose the lock of an enclosing scope; 0 is the innermost."""

    level: int
    how: str  # delete, overwrite, take, look


@dataclass(slots=True)
class Stop(Step):
    """``scope.cancel()``"""

    level: int


@dataclass(slots=True)
class Release(Step):
    level: int


@dataclass(slots=True)
class Check(Step):
    level: int


@dataclass(slots=True)
class InThread(Step):
    """Use an enclosing scope in a thread."""

    level: int
    call: str  # check, cancel, release, create_task


# Blocks


@dataclass(slots=True)
class Lock(Step):
    name: str  # begins with "~" if other programs use it, too
    how: str  # with, try, force, hand
    body: Block
    timeout: float | None = None
    wait: bool | None = None  # for the release


@dataclass(slots=True)
class Generator(Step):
    """A lock in an async generator: ``before`` and ``after`` run in the generator, ``body`` at its yield."""

    name: str
    how: str  # manager, aclosing
    before: Block
    body: Block
    after: Block


@dataclass(slots=True)
class Begin(Step):
    """Start a task that nobody waits for."""

    body: Block


@dataclass(slots=True)
class Spawn(Step):
    level: int
    body: Block


@dataclass(slots=True)
class Timeout(Step):
    ms: float
    body: Block
    catch: bool


@dataclass(slots=True)
class WaitFor(Step):
    ms: float
    body: Block
    catch: bool


@dataclass(slots=True)
class Group(Step):
    tasks: list[Block]
    body: Block


@dataclass(slots=True)
class AnyioGroup(Step):
    tasks: list[Block]
    body: Block
    cancel: bool


@dataclass(slots=True)
class MoveOn(Step):
    ms: float
    body: Block


@dataclass(slots=True)
class FailAfter(Step):
    ms: float
    body: Block
    catch: bool


@dataclass(slots=True)
class AnyioShield(Step):
    body: Block


@dataclass(slots=True)
class Shield(Step):
    body: Block


@dataclass(slots=True)
class Gather(Step):
    tasks: list[Block]


@dataclass(slots=True)
class Finally(Step):
    body: Block
    cleanup: Block


@dataclass(slots=True)
class Swallow(Step):
    body: Block


@dataclass(slots=True)
class Catch(Step):
    body: Block


@dataclass(slots=True)
class Program:
    seed: int
    body: Block
    cancel_after: list[Step] = field(
        default_factory=list
    )  # run by another task, which cancels the program after each sleep


MAX_DEPTH = 6
MAX_STEPS = 50


class _Maker:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.steps = 0
        self.names = 0

    def program(self) -> Program:
        body = [self.lock(0, 0)]
        if self.random.random() < 0.3:
            body = [self.wrapped(body)]
        cancel_after = [self.pause() for _ in range(self.random.choice((0, 0, 0, 0, 0, 1, 1, 2)))]
        return Program(self.seed, body, cancel_after)

    def pause(self) -> Step:
        if self.random.random() < 0.4:
            return Turns(self.random.randrange(12))
        return Sleep(round(self.random.random() * 2, 1))

    def ms(self) -> float:
        return round(self.random.random() * 5, 1)

    def block(self, depth: int, scopes: int) -> Block:
        steps: Block = []
        for _ in range(self.random.choice((1, 2, 2, 3, 3))):
            step = self.step(depth, scopes)
            steps.append(step)
            if isinstance(step, Lose | Stop) and self.random.random() < 0.7:  # give it time to take effect
                steps.append(Linger() if self.random.random() < 0.5 else self.pause())
        return steps

    def wrapped(self, body: Block) -> Step:
        """The body in a statement with a timeout."""
        catch = self.random.random() < 0.5
        match self.random.randrange(5):
            case 0:
                return Timeout(self.ms(), body, catch)
            case 1:
                return MoveOn(self.ms(), body)
            case 2:
                return FailAfter(self.ms(), body, catch)
            case 3:
                return WaitFor(self.ms(), body, catch)
            case _:
                return Group([[self.pause()]], body)

    def lock(self, depth: int, scopes: int) -> Lock:
        self.steps += 1
        how = self.random.choice(("with", "with", "with", "try", "force", "hand"))
        if self.random.random() < 0.2:
            name, timeout = f"~{self.random.randrange(4)}", self.random.choice((0.0, 0.005, 0.02))
            how = "with"
        else:
            name, timeout = f"{self.seed}-{self.names}", self.random.choice((None, None, 1.0))
            self.names += 1
        wait = self.random.choice((None, None, False))
        return Lock(name, how, self.block(depth + 1, scopes + 1), timeout, wait)

    def generator(self, depth: int, scopes: int) -> Generator:
        name = f"{self.seed}-{self.names}"
        self.names += 1
        how = self.random.choice(("manager", "aclosing", "aclosing"))
        before = self.block(depth, scopes + 1) if self.random.random() < 0.5 else []
        body = self.block(depth, scopes + 1)
        after = self.block(depth, scopes + 1) if self.random.random() < 0.3 else []
        return Generator(name, how, before, body, after)

    def step(self, depth: int, scopes: int) -> Step:
        r = self.random
        self.steps += 1
        if depth >= MAX_DEPTH or self.steps >= MAX_STEPS or r.random() < 0.3:
            return self.leaf(scopes)
        down = depth + 1
        match r.randrange(17):
            case 0 | 1 | 2:
                return self.lock(depth, scopes)
            case 3 | 4 if scopes:
                return Spawn(r.randrange(scopes), self.block(down, scopes))
            case 5 | 6:
                body = self.block(down, scopes)
                if r.random() < 0.5:
                    body.append(Linger())
                wrapped = self.wrapped(body)
                if isinstance(wrapped, Group) and isinstance(body[-1], Linger):
                    body.pop()
                return wrapped
            case 7:
                tasks = [self.block(down, scopes) for _ in range(r.randrange(1, 3))]
                return Group(tasks, self.block(down, scopes))
            case 8:
                tasks = [self.block(down, scopes) for _ in range(r.randrange(1, 3))]
                return AnyioGroup(tasks, self.block(down, scopes), r.random() < 0.3)
            case 9:
                return Shield(self.block(down, scopes)) if r.random() < 0.7 else AnyioShield(self.block(down, scopes))
            case 10:
                return Gather([self.block(down, scopes) for _ in range(r.randrange(1, 3))])
            case 11:
                cleanup = [self.pause()] if r.random() < 0.8 else self.block(down, scopes)
                return Finally(self.block(down, scopes), cleanup)
            case 12:
                return Swallow(self.block(down, scopes))
            case 13:
                body = self.block(down, scopes)
                if scopes and r.random() < 0.5:
                    body.insert(0, Lose(r.randrange(scopes), "look"))  # with eager tasks: at once
                return Begin(body)
            case 14 | 15:
                return self.generator(down, scopes)
            case _:
                return Catch(self.block(down, scopes))

    def leaf(self, scopes: int) -> Step:
        r = self.random
        level = r.randrange(scopes) if scopes else 0
        match r.randrange(25):
            case 0:
                return Fail(self.steps)
            case 2 | 3 | 4 if scopes:
                return Lose(level, r.choice(("delete", "delete", "overwrite", "take", "look")))
            case 5 if scopes:
                return Stop(level)
            case 6 if scopes:
                return Release(level) if r.random() < 0.5 else Check(level)
            case 8 if scopes:
                return InThread(level, r.choice(("check", "cancel", "release", "create_task")))
            case 7:
                return CancelMyself() if r.random() < 0.25 else CancelTask(r.randrange(3))
            case _:
                return self.pause()


def make(seed: int) -> Program:
    return _Maker(seed).program()


# As text


def text(program: Program) -> str:
    lines = [f"async def program_{program.seed}():"]
    _write(program.body, 1, lines)
    if program.cancel_after:
        lines.append("# meanwhile, in another task:")
        for step in program.cancel_after:
            lines += [_leaf(step), "program.cancel()"]
    return "\n".join(lines)


def _write(block: Block, depth: int, lines: list[str]) -> None:
    pad = "    " * depth
    for step in block:
        heads = _heads(step)
        if heads is None:
            lines.append(pad + _leaf(step))
            continue
        for head, body in heads:
            lines.append(pad + head)
            _write(body, depth + 1, lines)
            if not body:
                lines.append(pad + "    pass")
    if not block:
        lines.append(pad + "pass")


def _leaf(step: Step) -> str:
    match step:
        case Sleep(ms):
            return f"await asyncio.sleep({ms / 1000:g})"
        case Turns(count):
            return f"for _ in range({count}): await asyncio.sleep(0)"
        case Linger():
            return "await asyncio.sleep(0.3)"
        case Fail(number):
            return f"raise OwnError({number})"
        case CancelMyself():
            return "asyncio.current_task().cancel()"
        case CancelTask(back):
            return f"spawned[-{back + 1}].cancel()"
        case Lose(level, how):
            return f"elsewhere.{how}(scopes[-{level + 1}].name)"
        case Stop(level):
            return f"scopes[-{level + 1}].cancel()"
        case Release(level):
            return f"await scopes[-{level + 1}].release()"
        case Check(level):
            return f"scopes[-{level + 1}].check()"
        case InThread(level, call):
            return f"await asyncio.to_thread(scopes[-{level + 1}].{call})"
    raise AssertionError(step)


def _heads(step: Step) -> list[tuple[str, Block]] | None:
    caught = ("except TimeoutError:", [])
    match step:
        case Lock(name, how, body, timeout, wait):
            limit = "" if timeout is None else f", timeout={timeout}"
            swift = "" if wait is None else f", wait_release={wait}"
            call = {
                "with": f"locker.with_context({name!r}{limit}{swift})",
                "try": f"locker.try_with_context({name!r}{swift})",
                "force": f"locker.force_with_context({name!r}{swift})",
                "hand": f"await locker.acquire({name!r}{limit})",
            }[how]
            return [(f"async with {call} as scope:", body)]
        case Generator(name, how, before, body, after):
            return [
                (f"async with locker.with_context({name!r}) in a generator ({how}):", before),
                ("at its yield:", body),
                ("after it:", after),
            ]
        case Begin(body):
            return [("asyncio.create_task:", body)]
        case Spawn(level, body):
            return [(f"scopes[-{level + 1}].create_task:", body)]
        case Timeout(ms, body, catch):
            head = f"async with asyncio.timeout({ms / 1000:g}):"
            return [(("try: " if catch else "") + head, body), *([caught] if catch else [])]
        case WaitFor(ms, body, catch):
            head = f"await asyncio.wait_for(..., {ms / 1000:g}):"
            return [(("try: " if catch else "") + head, body), *([caught] if catch else [])]
        case FailAfter(ms, body, catch):
            head = f"with anyio.fail_after({ms / 1000:g}):"
            return [(("try: " if catch else "") + head, body), *([caught] if catch else [])]
        case Group(tasks, body):
            return [("async with asyncio.TaskGroup() as group:", body), *(("group.create_task:", t) for t in tasks)]
        case AnyioGroup(tasks, body, cancel):
            end = " # and group.cancel_scope.cancel() at its end" if cancel else ""
            return [
                (f"async with anyio.create_task_group() as group:{end}", body),
                *(("group.start_soon:", t) for t in tasks),
            ]
        case MoveOn(ms, body):
            return [(f"with anyio.move_on_after({ms / 1000:g}):", body)]
        case AnyioShield(body):
            return [("with anyio.CancelScope(shield=True):", body)]
        case Shield(body):
            return [("await asyncio.shield(...):", body)]
        case Gather(tasks):
            return [("await asyncio.gather(...):", []), *(("with:", t) for t in tasks)]
        case Finally(body, cleanup):
            return [("try:", body), ("finally:", cleanup)]
        case Swallow(body):
            return [("try:", body), ("except asyncio.CancelledError:", [])]
        case Catch(body):
            return [("try:", body), ("except Exception:", [])]
    return None
