"""The benchmarks run, and say so when one of them breaks. Not how fast: that is for their reader."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.run import BrokenError, Figure, Run, measure
from benchmarks.scenarios import SCENARIOS


@pytest.mark.slow
def test_all_run_quickly(tmp_path: Path, kind: str) -> None:
    saved = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--loop", "asyncio", "--server", kind, "--save", str(saved)],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=Path(__file__).parents[1],
    )
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads(saved.read_text())
    assert {"python", "os", "cpus", "server", "date"} <= set(results["machine"])
    figures = results["figures"]
    assert list(dict.fromkeys(each["scenario"] for each in figures)) == [
        name for name in SCENARIOS if name != "memory" or sys.platform == "linux"
    ]
    for each in figures:
        assert each["loop"] == "asyncio"
        assert each["unit"]
        assert each["n"] >= 1
        assert each["min"] <= each["median"] <= each["p99"] <= each["max"], each
        assert f"{each['scenario']}, asyncio: {each['what']}: " in done.stdout


def test_a_figure() -> None:
    figure = Figure.of("s", "what", "asyncio", "ms", range(200, 0, -1))
    assert (figure.n, figure.min, figure.median, figure.p99, figure.max) == (200, 1, 100.5, 198, 200)
    assert Figure.of("s", "what", "asyncio", "ms", [3.0]).p99 == 3.0


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
