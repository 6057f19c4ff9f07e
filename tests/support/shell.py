"""Shell commands of asynclock as their users run them: in processes of their own, with pipes or a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from fcntl import ioctl
from types import TracebackType
from typing import Any, Self

import pytest

from asynclock import Locker
from asynclock.testing import Cluster, Sentinels, Server

LIMIT = 20.0  # seconds for one command, with the start of Python on a machine that is busy with other tests
COMMAND = [sys.executable, "-m", "asynclock"]


@dataclass(frozen=True)
class Deployment:
    """Servers of one kind, without keys."""

    kind: str
    urls: Sequence[str]
    servers: Sequence[Server]

    @property
    def arguments(self) -> list[str]:
        """Of the command line."""
        return [word for url in self.urls for word in ("--url", url)]

    @property
    def keys(self) -> int:
        """How many keys a lock has."""
        return 3 if self.kind in ("three", "cluster") else 1

    def locker(self, **options: Any) -> Locker:
        if self.kind == "three":
            options.setdefault("restart_quarantine", False)
        return Locker(self.urls[0] if len(self.urls) == 1 else list(self.urls), **options)

    async def complete(self, locker: Locker, name: str) -> None:
        """Wait until its holder has every key: a majority is enough to acquire a lock, and the rest may come later."""
        async with asyncio.timeout(LIMIT):
            while (holder := await locker.holder(name)) is None or holder.votes < self.keys:
                await asyncio.sleep(0.01)


@pytest.fixture(scope="session")
def shared_sentinels(kind: str) -> Iterator[Sentinels]:
    if kind == "redis-6.2":
        pytest.skip("asynclock.testing has no Sentinels of Redis 6.2")
    with Sentinels(kind) as group:
        yield group


@pytest.fixture(scope="session")
def shared_trio(kind: str) -> Iterator[list[Server]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Server(kind)) for _ in range(3)]


@pytest.fixture
def trio(shared_trio: list[Server]) -> Deployment:
    """Three independent servers, to kill as well."""
    for server in shared_trio:
        server.start()
        server.execute("FLUSHALL")
    return Deployment("three", [server.url for server in shared_trio], shared_trio)


@pytest.fixture(params=["one", "three", "cluster", "sentinel"])
def deployment(request: pytest.FixtureRequest) -> Deployment:
    """Each kind in turn."""
    if request.param == "three":
        three: Deployment = request.getfixturevalue("trio")
        return three
    if request.param == "cluster":
        cluster: Cluster = request.getfixturevalue("cluster")
        return Deployment("cluster", [cluster.url], cluster.servers)
    if request.param == "sentinel":
        sentinels: Sentinels = request.getfixturevalue("shared_sentinels")
        sentinels.primary.execute("FLUSHALL")
        return Deployment("sentinel", [sentinels.url], sentinels.servers)
    server: Server = request.getfixturevalue("server")
    return Deployment("one", [server.url], [server])


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lock(self) -> Any:
        """The only one in the JSON of ``status``."""
        (lock,) = self.json["locks"]
        return lock


def environment(**more: str) -> dict[str, str]:
    """Without what the user of these tests has set for asynclock, or for the width of a terminal."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("ASYNCLOCK_") and name not in ("COLUMNS", "LINES")
    }
    return kept | {"TERM": "xterm-256color"} | more


def own(err: str) -> str:
    """What a command has written to stderr itself. In asyncio's debug mode, asyncio writes there which of its steps
    took more than 0.1 s: any, on a machine that is busy with other tests."""
    return re.sub(r"^Executing <.* took [\d.]+ seconds\n", "", err, flags=re.MULTILINE)


async def shell(*arguments: str, program: Sequence[str] = COMMAND, **env: str) -> Done:
    """Run a command to its end, without a terminal."""
    process = await asyncio.create_subprocess_exec(
        *program,
        *arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(**env),
    )
    out, err = await asyncio.wait_for(process.communicate(), LIMIT)
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), own(err.decode()))


_EACH = """
import contextlib, io, json, sys
from asynclock.cli.app import app
done = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app(arguments, prog_name="asynclock")
        except SystemExit as ending:
            status = ending.code
    done.append((status, out.getvalue(), err.getvalue()))
print(json.dumps(done))
"""


async def shells(command: str, *table: Sequence[str]) -> list[Done]:
    """The same command with each of these arguments, one after the other in one process, which saves many starts."""
    program = [sys.executable, "-c", _EACH]
    done = await shell(json.dumps([[command, *arguments] for arguments in table]), program=program)
    assert (done.status, done.err) == (0, "")
    return [Done(*each) for each in done.json]


class Lines:
    """A command that runs on, and what it prints."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        """The next one on stdout."""
        assert self.process.stdout is not None
        raw = await asyncio.wait_for(self.process.stdout.readline(), LIMIT)
        assert raw, "it has ended"
        return raw.decode().rstrip("\n")

    async def complaint(self) -> str:
        """The next one on stderr."""
        assert self.process.stderr is not None
        raw = await asyncio.wait_for(self.process.stderr.readline(), LIMIT)
        assert raw, "it has ended"
        return raw.decode().rstrip("\n")

    async def object(self) -> Any:
        """The next line, which is JSON."""
        return json.loads(await self.line())

    async def end(self, number: int = signal.SIGTERM) -> Done:
        """Send the signal."""
        self.process.send_signal(number)
        return await self.ended()

    async def ended(self) -> Done:
        out, err = await asyncio.wait_for(self.process.communicate(), LIMIT)
        assert self.process.returncode is not None
        return Done(self.process.returncode, (out or b"").decode(), err.decode())


@contextlib.asynccontextmanager
async def running(*arguments: str, program: Sequence[str] = COMMAND, stdout: int = -1) -> AsyncIterator[Lines]:
    process = await asyncio.create_subprocess_exec(
        *program,
        *arguments,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=environment(),
        # What a shell starts in the background is to ignore it, and so is all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield Lines(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


class Terminal:
    """A command on a terminal: ``with Terminal("status") as terminal``. All methods block."""

    def __init__(self, *arguments: str, columns: int = 80, lines: int = 24) -> None:
        self.written = ""  #: everything
        master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._master = master
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment(),
            start_new_session=True,
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def shows(self, pattern: str, since: int = 0, seconds: float = LIMIT) -> str:
        """Wait until it has written this, from position ``since`` on. Returns what was written from there."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.written[since:], re.DOTALL):
            assert self._read(end), f"{pattern!r} is not in {self.written[since:][-3000:]!r}"
        return self.written[since:]

    def ended(self) -> int:
        """Wait for the end. Returns the exit status."""
        while self._read(time.monotonic() + LIMIT):
            pass
        return self.process.wait(LIMIT)

    def _read(self, end: float) -> bool:
        """Something. False: there is no more, or not in time."""
        if not select.select([self._master], [], [], max(0.0, end - time.monotonic()))[0]:
            return False
        with contextlib.suppress(OSError):  # Linux says so when the last one has closed the other side
            if data := os.read(self._master, 65536):
                self.written += data.decode(errors="replace")
                return True
        return False

    @property
    def screen(self) -> list[str]:
        """The lines that are on it now, if they have not scrolled away."""
        return screen(self.written)


def screen(written: str) -> list[str]:
    """As a terminal shows it, which knows colours, to go up, and to delete a line."""
    lines: list[list[str]] = [[]]
    row = column = 0
    for found in re.finditer(r"\x1b\[([?\d;]*)([A-Za-z])|(.)", written, re.DOTALL):
        number, command, letter = found.groups()
        if command == "A":
            row = max(0, row - int(number or 1))
        elif command == "K":
            lines[row] = []
        elif command in ("m", "h", "l"):
            pass
        elif command:
            raise AssertionError(f"this terminal does not know {found[0]!r}")
        elif letter == "\n":
            row += 1
            lines += [[] for _ in range(row + 1 - len(lines))]
        elif letter == "\r":
            column = 0
        else:
            assert letter.isprintable(), f"{letter!r} was written"
            line = lines[row]
            line += " " * (column + 1 - len(line))
            line[column] = letter
            column += 1
    return ["".join(line).rstrip() for line in lines]
