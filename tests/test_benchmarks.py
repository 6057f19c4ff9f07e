"""The benchmarks run, and say so when one of them breaks. Not how fast: that is for their reader."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asynclock.testing import Server
from benchmarks import turns
from benchmarks.__main__ import main
from benchmarks.contention import Acquisition, Round
from benchmarks.contestants import CONTESTANTS, PEERS, Contestant, Enter, why_not
from benchmarks.figures import OURS, Figure, at_least, at_most
from benchmarks.report import PAGES, between, long, refresh, short, three
from benchmarks.results import RESULTS, Results
from benchmarks.run import BrokenError, Run, measure
from benchmarks.scenarios import SCENARIOS
from benchmarks.turns import Turns, crowd

pytestmark = pytest.mark.serverless

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_all_run_quickly(tmp_path: Path, kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--loop", "asyncio", "--server", kind, "--save", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "PYTHONASYNCIODEBUG": ""},  # it says on stderr what took long, and that is the point here
    )
    assert (done.returncode, done.stderr) == (0, "")
    saved = json.loads((tmp_path / "results.json").read_text())
    assert {"cpu", "memory", "python", "os", "cpus", "server", "date"} <= set(saved["machine"])
    assert saved["broken"] == {}
    results = Results.read(tmp_path / "results.json")
    assert list(dict.fromkeys(each.scenario for each in results.figures)) == [
        name for name in SCENARIOS if name != "held" or sys.platform == "linux"
    ]
    for each in results.figures:
        assert each.loop == "asyncio"
        assert each.n >= 1
        assert each.min <= each.median <= each.p99 <= each.max, each
        assert f"{each.scenario}, asyncio: {each.label}: " in done.stdout
    # Each library was measured, or is said to be absent.
    for name in CONTESTANTS:
        assert results.find("cycle", "1 task", "asyncio", name) or f"absent: {name}: " in done.stdout
    assert results.find("cycle", "512 tasks: ratio to the floor", "asyncio")


def test_a_figure() -> None:
    figure = Figure.of("s", "what", "asyncio", "ms", range(200, 0, -1))
    assert (figure.n, figure.min, figure.median, figure.p99, figure.max) == (200, 1, 100.5, 198, 200)
    assert Figure.of("s", "what", "asyncio", "ms", [3.0]).p99 == 3.0
    assert figure.reached is None


def test_what_it_must_reach() -> None:
    values = [10.0, 20.0, 90.0]

    def judged(*targets: object) -> tuple[bool | None, str]:
        figure = Figure.of("s", "what", "asyncio", "ms", values, targets)  # type: ignore[arg-type]
        assert Figure.from_json(json.loads(json.dumps(figure.to_json()))) == figure
        return figure.reached, figure.judged()

    assert judged() == (None, "")
    assert judged(at_most(20)) == (True, "≤ 20 reached")
    assert judged(at_most(19.9)) == (False, "≤ 19.9 not reached (median 20.0)")
    assert judged(at_least(20), at_most(90, "max")) == (True, "≥ 20, max ≤ 90 reached")
    assert judged(at_least(11, "min"), at_most(80, "max")) == (
        False,
        "min ≥ 11, max ≤ 80 not reached (min 10.0, max 90.0)",
    )


def test_what_a_log_of_processes_says() -> None:
    """Two processes take turns, then the first has it twice: (asked, acquired, about to release)."""
    log = [(0, 0, 1, 0), (0, 2, 3, 1), (1, 5, 6, 0), (6, 7, 8, 0)]
    went = Round(10.0, [Acquisition(acquired, releasing, asked, its) for asked, acquired, releasing, its in log])
    assert went.handovers() == [1e6, 2e6]  # not the one within the process
    assert went.shares(2) == [75, 25]
    assert went.waits() == [0, 2000, 4000, 1000]
    assert went.per_acquisition() == 2.5e6
    assert Round(6.0, went.log).per_acquisition() == 2e6  # what came after the end does not count


def test_who_polls_an_idle_lock_at_the_end_is_no_throughput() -> None:
    calls = 0

    async def cycle(name: str) -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.2 if calls > 5 else 0)

    assert asyncio.run(crowd(1, 0.1, "job", cycle, 5.0)) == (pytest.approx(0.1e6 / 5), 0)


def test_who_still_waits_after_the_grace_is_cancelled_and_counted() -> None:
    lock = asyncio.Lock()

    async def cycle(name: str) -> None:
        await lock.acquire()  # the first keeps it

    assert asyncio.run(crowd(3, 0.02, "job", cycle, 0.02)) == (0.02e6, 3)

    async def breaks(name: str) -> None:
        raise ValueError("it broke")

    with pytest.raises(ValueError, match="it broke"):
        asyncio.run(crowd(3, 0.02, "job", breaks, 0.02))


def results() -> Results:
    some = [
        Figure.of("cycle", "1 task", "uvloop", "µs", [100.0, 130.0], by=OURS),
        Figure.of("cycle", "1 task: ratio to the floor", "uvloop", "x", [1.2, 1.25], [at_most(1.1)]),
        Figure.of("loss", "DEL", "asyncio", "ms", [0.2] * 150, [at_most(1), at_most(10, "max")]),
    ]
    machine = {"cpu": "an abacus", "cpus": 2, "memory": "1 GiB", "os": "x", "python": "3", "server": "s"}
    return Results({**machine, "load before": "0.1", "date": "today"}, some, {"coredis": "not installed"})


def test_the_tables() -> None:
    assert "an abacus" in short(results())
    assert "relative to a bare protocol (1.0 = equal) | - / - / - / - | 1.23 / - / - / - times |" in short(results())
    assert "time until the body is cancelled | 0.200 ms (at most 0.200) | - |" in short(results())
    assert "the cancelled body: **0.200 ms** (at most 0.200 ms)" in three(results())
    assert "to the lock in another: -" in three(results())
    table = long(results(), {"cycle": "Again and again", "loss": "A lock is lost"})
    assert "| **cycle**: Again and again | | | | |" in table
    assert "| 1 task: ratio to the floor |  | 1.23 (1.20 to 1.25) ✗ | x | ≤ 1.1 |" in table
    assert "| DEL | 0.200 (0.200, 0.200) ✓ |  | ms | ≤ 1, max ≤ 10 |" in table
    assert "coredis was not measured: not installed" in table


def test_the_tables_are_put_in_between_their_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- short -->\nold\n<!-- /short -->\nafter\n")
    refresh(results(), {}, {page: "short"})
    once = page.read_text()
    assert once == f"before\n<!-- short -->\n\n{short(results())}\n\n<!-- /short -->\nafter\n"
    refresh(results(), {}, {page: "short"})
    assert page.read_text() == once
    with pytest.raises(ValueError, match="<!-- long -->"):
        between(once, "long", "table")


def test_the_pages_show_the_last_results() -> None:
    headings = {name: (each.__doc__ or "").splitlines()[0] for name, each in SCENARIOS.items()}
    last = Results.read(RESULTS)
    tables = {"three": three(last), "short": short(last), "long": long(last, headings)}
    for page, which in PAGES.items():
        text = page.read_text()
        assert between(text, which, tables[which]) == text, f"{page.name}: run python -m benchmarks --readme"


def test_charts(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="of the bench extra")
    from benchmarks.charts import draw

    last = Results.read(RESULTS)
    files = draw(last, tmp_path)
    assert [file.name for file in files] == ["cycle.svg", "handover.svg"]
    for file in files:
        text = file.read_text()
        for name in CONTESTANTS:
            assert (f">{name}<" in text) == (name not in last.absent)
    assert draw(Results({}), tmp_path / "none") == []


async def works(run: Run) -> None:
    """It works"""
    run.record("one", "ms", [1.0, 2.0])


async def raises(run: Run) -> None:
    run.record("before", "ms", [1.0])
    raise ValueError("it broke")


async def dies(run: Run) -> None:
    os._exit(3)


async def hangs(run: Run) -> None:
    await asyncio.sleep(60)


async def complains(run: Run) -> None:
    run.record("before", "ms", [1.0])
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)


async def does_nothing(run: Run) -> None: ...


@contextlib.asynccontextmanager
async def refuses(url: str, tasks: int) -> AsyncIterator[Enter]:
    raise ModuleNotFoundError("No module named 'distutils'")
    yield


@contextlib.asynccontextmanager
async def waits_for_ever(url: str, tasks: int) -> AsyncIterator[Enter]:
    await asyncio.sleep(60)
    yield contextlib.nullcontext


@contextlib.asynccontextmanager
async def throws_behind_its_back(url: str, tasks: int) -> AsyncIterator[Enter]:
    async def fail() -> None:
        raise ValueError("nobody looks")

    failing = asyncio.create_task(fail())
    await asyncio.wait([failing])
    del failing
    yield contextlib.nullcontext


async def with_bad_peers(run: Run) -> None:
    turns.PATIENCE = 2.0
    openers = {"refuses": refuses, "waits": waits_for_ever, "throws": throws_behind_its_back}
    peers = [Contestant(name, "no-such" if name == "throws" else "pytest", each) for name, each in openers.items()]
    with Server(run.kind) as server:
        its = Turns(run, server, 0.01)
        await its.peers(peers, 1)
        await its.ours(1)
        await its.peers(peers, 1)
        assert its.best(peers) == "throws"
        for who, values in its.spent.items():
            run.record("1 task", "µs", values, by=who)


def test_a_library_that_is_not_installed_is_said_to_be() -> None:
    peer = Contestant("some", "no-such-package", refuses)
    assert why_not(peer, ModuleNotFoundError("some")) == "not installed: pip install -e '.[bench]'"


def test_a_library_that_does_not_run_is_left_out_and_said(kind: str) -> None:
    outcome = measure(with_bad_peers, Run("it", kind, "asyncio", quick=True), 60.0, lambda *step: None)
    assert {each.by: each.n for each in outcome.figures} == {"throws": 2, OURS: 1}
    assert outcome.absent == {
        "refuses": f"{pytest.__version__} fails here: ModuleNotFoundError: No module named 'distutils'",
        "waits": f"{pytest.__version__} did not finish in time",
    }


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore")  # what theirs warn of is their matter
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
async def test_each_library_locks(peer: Contestant, server: Server) -> None:
    """Two tasks that want one name are never inside together."""
    inside = most = 0
    async with contextlib.AsyncExitStack() as stack:
        try:
            enter = await stack.enter_async_context(peer.open(server.url, 2))
        except ImportError as error:
            pytest.skip(f"{peer.name}: {error}")

        async def work() -> None:
            nonlocal inside, most
            async with enter("job"):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.01)
                inside -= 1

        await asyncio.gather(work(), work())
    assert most == 1


@pytest.mark.parametrize(
    ("scenario", "problem"),
    [
        (raises, "it broke"),
        (dies, "exit code 3"),
        (hangs, "not through after 2 s"),
        (complains, "ZeroDivisionError"),
        (does_nothing, "measured nothing"),
    ],
)
def test_a_scenario_that_breaks_is_told(scenario: object, problem: str) -> None:
    run = Run("it", "valkey-9.1", "asyncio", quick=True)
    with pytest.raises(BrokenError, match=problem):
        measure(scenario, run, 2.0 if scenario is hangs else 60.0, lambda *step: None)  # type: ignore[arg-type]


def test_the_others_are_measured_and_the_exit_code_is_not_0(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    arguments = ["--quick", "--loop", "asyncio", "--server", kind]
    assert main(arguments, {"broken": raises, "working": works}) == 1
    shown = capsys.readouterr()
    assert "broken, asyncio: BROKEN: " in shown.err
    assert "working, asyncio: one: 1.50 ms (n=2, min 1.00, p99 2.00, max 2.00)" in shown.out
    assert main(arguments, {"working": works}) == 0


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--server", "no-such-server"], {"working": works})
    assert "no such server" in capsys.readouterr().err
