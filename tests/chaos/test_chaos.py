"""Runs some seconds of chaos: without violations, and with violations when there are no locks."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.soak.plan import SOAK
from tests.support.kinds import needs

from . import report
from . import run as running
from .__main__ import main as chaos
from .crew import Crew
from .deployments import DEPLOYMENTS, One
from .faults import KINDS, kinds_for
from .field import UNASKED
from .history import FENCED, LEAST, PERMIT, SEVERAL, SINGLE, History
from .plan import CHAOS, work_for

SECONDS = 6.0

pytestmark = pytest.mark.slow


@pytest.mark.skipif(
    "PYTEST_XDIST_WORKER" in os.environ,
    reason="its limits are for a machine that does nothing else: pytest -n 0 tests/chaos",
)
@pytest.mark.parametrize(
    ("deployment", "fault"),
    [
        ("one", None),
        ("evicting", "keys evicted"),
        pytest.param("redis-8.2", "the tracking table is full, DEL", marks=needs("redis-8.2")),
        pytest.param("redis-8.2", "FLUSHDB of another database", marks=needs("redis-8.2")),
        ("long", "NOREPLICAS"),
        ("one", "no file descriptor at the reconnect"),
        ("one", "maxclients at the reconnect"),
    ],
)
def test_a_few_seconds_of_it(tmp_path: Path, deployment: str, fault: str | None) -> None:
    said: list[str] = []
    work = work_for(deployment)
    outcome = asyncio.run(running.run(work, deployment, SECONDS, 1, tmp_path, said.append, fault and [fault]))
    assert outcome.verdict.violations == []
    assert outcome.history.holds > 100
    assert said[-1] == "judging"
    assert outcome.history.of_kind.keys() == {SINGLE, SEVERAL, FENCED, LEAST, PERMIT}
    assert outcome.history.most == {"pool": 2}
    assert outcome.history.tokens and outcome.history.left_early
    assert outcome.verdict.rows
    assert json.loads(json.dumps(report.as_json(outcome)))["violations"] == []
    kinds = set(outcome.verdict.rows) - {"none"}
    assert kinds and all(f"| {kind} | " in report.markdown([outcome, outcome]) for kind in kinds)
    picture = report.picture(outcome)
    assert picture.startswith("<svg ") and "long-1" in picture


def test_without_locks_it_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = running._spec

    def everyone_for_himself(*arguments: Any) -> Any:
        fair = spec(*arguments)
        return dataclasses.replace(fair, options=fair.options | {"key_prefix": f"asynclock-{fair.who}"})

    monkeypatch.setattr(running, "_spec", everyone_for_himself)
    outcome = asyncio.run(running.run(CHAOS, "one", 1.0, 1, tmp_path, print, ["CLIENT KILL"]))
    assert any("two holders" in violation for violation in outcome.verdict.violations)
    assert outcome.verdict.rows["none"].broken or outcome.verdict.rows["CLIENT KILL"].broken


@pytest.mark.parametrize(
    ("planted", "deployment", "seconds", "fault", "told"),
    [
        ("a refused release is forgotten", "long", 10, "NOREPLICAS", "nobody had it for|keys left when all had closed"),
        ("NOLOOP though keys are evicted", "evicting", 10, "keys evicted", "two holders"),
        ("the uptime is believed", "three", 30, "restart by a clock that was off, with one server away", "two holders"),
        ("least times are forgotten", "one", 5, "CLIENT KILL", "was to stay until .* ms too early"),
        ("fencing tokens are remembered", "one", 5, "CLIENT KILL", "got token .* after w.* had got"),
        ("a semaphore has one slot more", "one", 5, "CLIENT KILL", "3 permits were held; there are 2"),
    ],
)
def test_what_is_planted_is_found(
    tmp_path: Path, planted: str, deployment: str, seconds: float, fault: str, told: str
) -> None:
    work = dataclasses.replace(work_for(deployment), planted=planted)
    found = asyncio.run(running.run(work, deployment, seconds, 1, tmp_path, print, [fault])).verdict.violations
    assert any(re.search(told, violation) for violation in found)


def test_what_goes_wrong_beside_the_locks_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without faults, in which a worker dies at the end, another one writes to stderr, and a key is left."""
    stop_all, left = Crew.stop_all, One.left

    async def stop_all_but_one(crew: Crew) -> None:
        victim = crew._processes[0]
        assert victim is not None
        victim.kill()
        await victim.wait()
        (tmp_path / f"{crew.name(1)}.stderr").write_text("Task exception was never retrieved")
        await stop_all(crew)

    monkeypatch.setattr(Crew, "stop_all", stop_all_but_one)
    looks = iter((["asynclock:0:orphan"], []))  # it expires before the second look
    monkeypatch.setattr(One, "left", lambda deployment: [*left(deployment), *next(looks)])
    found = asyncio.run(running.run(CHAOS, "one", 0.0, 1, tmp_path, print)).verdict.violations
    for told in ("no fault", "exit status -9", "never retrieved", "orphan"):
        assert any(told in violation for violation in found), told


def test_in_soak_too_a_worker_whose_locker_does_not_work_any_more_is_missed() -> None:
    history = History(calm=20.0, closing=28.0, at_rest={("w0-0", "lock-7")})
    crew: Any = SimpleNamespace(names=["w0-0", "w1-1"])
    assert running._asleep(history, crew, SOAK) == ["w1-1 did not get any lock in 8.0 s of calm"]


def test_a_fault_that_does_not_exist_is_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--fault", "wire silnet"], ["--only", "one", "--fault", "slot migrated"]):
        with pytest.raises(SystemExit) as ended:
            chaos(wrong)
        assert ended.value.code == 2
        assert wrong[-1] in capsys.readouterr().err


def test_every_deployment_has_faults_of_all_tracks() -> None:
    for name in DEPLOYMENTS:
        kinds = kinds_for(name)
        assert {kind.track for kind in kinds} == {"servers", "wires", "workers"}
        assert len(kinds) > 20
        assert set(DEPLOYMENTS[name].spared) <= set(KINDS)
    named = {deployment for kind in KINDS.values() if kind.name != UNASKED for deployment in kind.only}
    assert named <= set(DEPLOYMENTS)
