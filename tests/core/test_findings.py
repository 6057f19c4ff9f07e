"""What a look at the slots of a semaphore finds on several servers."""

from __future__ import annotations

import pytest

from asynclock.core.findings import Findings
from asynclock.core.rules import Rules

pytestmark = [pytest.mark.fast, pytest.mark.every_python, pytest.mark.serverless]

ONE = Rules(majority=1, validity=5.0, extend_interval=2.5, try_next_after=0.02)
THREE = Rules(majority=2, validity=5.0, extend_interval=2.5, try_next_after=0.02)


def test_one_server() -> None:
    findings = Findings([3, 1, 2, 7], ONE, 100.0)
    assert not findings.complete and findings.found() is None
    findings.answered(0, [-2, 999, -1, None], 101.0)
    assert findings.complete
    assert findings.found() == {3: 0.0, 1: 101.0, 2: 106.0}
    assert list(findings.found() or ()) == [3, 1, 2]  # in the order in which they were asked for


def test_a_server_that_fails() -> None:
    findings = Findings([0], ONE, 100.0)
    findings.failed(0, False)
    assert findings.complete and findings.found() is None


def test_a_slot_is_free_as_soon_as_a_majority_of_its_keys_is() -> None:
    findings = Findings([0, 1, 2, 3], THREE, 100.0)
    findings.answered(0, [-2, -2, 999, None], 100.0)
    findings.answered(2, [-2, 999, 1999, -2], 100.0)
    assert not findings.complete  # the third may answer at once
    findings.late = True
    assert findings.complete
    assert findings.found() == {0: 0.0, 1: 101.0, 2: 102.0}
    findings.answered(1, [999, -2, 1499, -2], 100.0)
    assert findings.found() == {0: 0.0, 1: 0.0, 2: 101.5, 3: 0.0}


def test_a_majority_is_needed_however_late_it_is() -> None:
    findings = Findings([0], THREE, 100.0)
    findings.answered(0, [-2], 100.0)
    findings.late = True
    findings.failed(1, False)
    assert not findings.complete
    findings.failed(2, False)
    assert findings.complete and findings.found() is None
