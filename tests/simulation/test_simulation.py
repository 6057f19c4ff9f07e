"""Plays some schedules of each kind, tests the simulation itself, and checks that it finds planted faults.

``python -m tests.simulation --seeds N`` plays many more.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from asynclock.core.reasons import LossReason
from asynclock.core.rules import Rules

from .__main__ import app
from .checks import Broken, Check
from .faults import FAULTS, WORLD_OF, count_from_the_reply
from .runner import history, play_slice, tell
from .story import crowd, outcome, shortened
from .world import Setting, World
from .worlds import KINDS, REPLICAS, SEVERAL, WORLDS, schedule

pytestmark = [pytest.mark.every_python, pytest.mark.serverless]

ENOUGH = 20_000  # at least one of that many schedules must find a fault


@pytest.mark.fast
@pytest.mark.parametrize("tracking", [True, False], ids=["tracking", "no tracking"])
@pytest.mark.parametrize("which", KINDS)
def test_the_rules_hold_in_every_schedule(which: str, tracking: bool) -> None:
    tally = play_slice(0, 150, which, tracking)
    if tally.failed is not None:
        pytest.fail(tell(schedule(tally.failed, which, tracking)))
    assert tally.schedules == 150


@pytest.mark.fast
@pytest.mark.parametrize("which", WORLDS)
def test_the_rules_hold_for_permits(which: str) -> None:
    tally = play_slice(0, 150, which, permits=True)
    if tally.failed is not None:
        pytest.fail(tell(schedule(tally.failed, which, permits=True)))
    assert tally.schedules == 150 and tally.granted > 150


@pytest.mark.parametrize("fault", FAULTS)
def test_the_schedules_find_a_planted_fault(fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    which = WORLD_OF.get(FAULTS[fault])
    with pytest.MonkeyPatch.context() as patch:
        FAULTS[fault](patch)
        for seed in range(ENOUGH):
            chosen = schedule(seed, which)
            broken = outcome(chosen.story, chosen.world())
            if broken is not None:
                break
        else:
            pytest.fail(f"not found in {ENOUGH} schedules")
    assert isinstance(broken, Broken), f"no guarantee was broken, but the simulation: {broken!r}"
    with capsys.disabled():
        print(f"\n  {fault}: found by schedule {seed + 1}: {broken}")
    # The planted fault is the cause: without it, the same schedule passes.
    tally = play_slice(seed, 1, which)
    assert (tally.schedules, tally.failed) == (1, None)


def test_a_great_many_things_happen_in_them() -> None:
    tally = play_slice(0, 1000)
    assert tally.failed is None
    assert set(tally.losses) == set(map(str, LossReason)) - {"released"}  # a release is no loss
    assert tally.granted > tally.schedules
    assert tally.tokens > tally.schedules / 4
    assert tally.kept > tally.schedules / 20
    assert tally.overlaps > 20
    assert tally.told > 0.5  # a push takes most of a packet delay, and the key is read at once
    assert tally.groups == 0
    assert play_slice(0, 250, SEVERAL).groups > 250
    with_replicas = play_slice(0, 250, REPLICAS)
    assert with_replicas.failovers > 25
    assert with_replicas.unconfirmed > 250


def test_a_seed_is_a_history() -> None:
    for seed in range(20):
        chosen = schedule(seed)
        world, again = chosen.world(), chosen.world(recording=True)
        assert outcome(chosen.story, world) is outcome(chosen.story, again) is None
        assert (world.now, world.events, world.granted) == (again.now, again.events, again.granted)
        assert history(chosen) == history(schedule(seed))


def test_a_failure_is_told_with_as_few_steps_as_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    count_from_the_reply(monkeypatch)
    fewest = 100
    for failed in [schedule(seed) for seed in range(100) if play_slice(seed, 1).failed is not None][:5]:
        broken = outcome(failed.story, failed.world())
        assert isinstance(broken, Broken)
        shorter = shortened(failed.story, failed.world)
        again = outcome(shorter, failed.world())
        assert isinstance(again, Broken)
        assert again.guarantee == broken.guarantee == 2
        assert len(shorter.steps) < len(failed.story.steps)
        fewest = min(fewest, len(shorter.steps))
    assert fewest <= 2
    told = tell(failed)
    assert f"seed {failed.seed}: " in told
    assert " HOLDS " in told
    assert f"Broken: {again}" in told


def test_the_exit_code_is_1_if_a_schedule_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    count_from_the_reply(monkeypatch)
    result = CliRunner().invoke(app, ["--seeds", "500", "--jobs", "1", "--world", "single"])
    assert result.exit_code == 1
    assert "FAILED: seed " in result.output
    assert "to repeat: python -m tests.simulation --seeds 1 --start " in result.output


def test_from_the_command_line() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.simulation", "--seeds", "600", "--start", "1000", "--jobs", "2"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("600 schedules in ")


# What the simulation has found


def test_a_server_that_is_away_starves_nobody() -> None:
    rules = Rules(majority=2, validity=4.0, extend_interval=2.0, try_next_after=0.02, handoffs=100)
    for seed in range(20):
        world = World(Setting(rules, servers=3, clients=2), seed)
        world.calm = True
        world.servers[0].crash(1e9, amnesia=False)
        world.run(0.1)
        crowd(world, Check(world))


def test_a_process_that_was_stopped_has_not_got_the_lock_before_its_time() -> None:
    """It has only read an answer that is out of date, and is about to read of the take-over."""
    assert play_slice(243156, 1, at_least=True).failed is None


def test_nobody_starves_while_a_killed_holders_key_lives_for_longer_since_a_clock_was_set_back() -> None:
    assert play_slice(1136863, 1).failed is None


def test_nobody_counts_on_a_key_for_longer_than_the_next_extension_makes_it_live() -> None:
    """The server's clock was set back while an attempt was under way, whose keys were read again."""
    assert play_slice(36367, 1, permits=True).failed is None


def test_a_deadline_allows_for_a_clock_that_is_half_a_percent_fast() -> None:
    rules = Rules(majority=1, validity=1.0, extend_interval=0.5, try_next_after=0.02)
    for seed in range(20):
        world = World(Setting(rules, drift=0.005), seed)
        world.calm = True  # this is about clocks, not about slow packets
        check = Check(world)
        client = world.clients[0]
        world.run(9.0)
        task = client.acquire("a")
        world.run(2.0)
        assert task.state == "held", str(check.count_losses())
