"""Chaos for some seconds: it runs, it ends well, and it does not when there are no locks."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from . import report
from . import run as running
from .deployments import DEPLOYMENTS
from .faults import KINDS, kinds_for
from .field import UNASKED
from .plan import CHAOS

SECONDS = 6.0

pytestmark = pytest.mark.slow


@pytest.mark.skipif(
    "PYTEST_XDIST_WORKER" in os.environ,
    reason="its bounds are for a machine that does nothing else: pytest -n 0 tests/chaos",
)
def test_a_few_seconds_of_it(tmp_path: Path) -> None:
    said: list[str] = []
    outcome = asyncio.run(running.run(CHAOS, "one", SECONDS, 1, tmp_path, said.append))
    assert not outcome.verdict.violations
    assert outcome.history.holds > 100
    assert said[-1] == "judging"
    assert outcome.verdict.rows
    assert report.as_json(outcome)["violations"] == []
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


def test_every_deployment_has_faults_of_all_tracks() -> None:
    for name in DEPLOYMENTS:
        kinds = kinds_for(name)
        assert {kind.track for kind in kinds} == {"servers", "wires", "workers"}
        assert len(kinds) > 20
    named = {deployment for kind in KINDS.values() if kind.name != UNASKED for deployment in kind.only}
    assert named <= set(DEPLOYMENTS)
