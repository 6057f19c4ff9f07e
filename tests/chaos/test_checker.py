"""The checker finds violations in a history, and accepts what is allowed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from .checker import FORCED, Bounds, judge
from .deployments import CROWD
from .history import FENCED, LEAST, PERMIT, SEVERAL, SINGLE, tell
from .logs import INJECTOR, Event, Log, merged

BOUNDS = Bounds({"DEL": 0.05, "SIGKILL": 0.0, FORCED: 0.05}, wait=3.0, validity=2.0, majority=1)
QUORUM = Bounds({"DEL": 0.05}, wait=3.0, validity=2.0, majority=2)


def held(at: float, who: str, hold: int = 1, *, due: float = 2.0, votes: int = 1, **more: Any) -> Event:
    told = {"due": at + due, "votes": [at + due] * votes}
    return Event(at, who, "held", {"name": "x", "hold": hold, "waited": 0.0, **told, **more})


def ended(
    at: float, who: str, hold: int = 1, *, why: str = "released", acted: float, due: float, votes: int = 1
) -> Event:
    return Event(
        at, who, "ended", {"name": "x", "hold": hold, "why": why, "acted": acted, "due": due, "votes": [due] * votes}
    )


def fault(since: float, until: float, kind: str, forgot: Sequence[Any] = ()) -> list[Event]:
    number = int(since * 1000)
    return [
        Event(since, INJECTOR, "fault", {"number": number, "kind": kind, "on": "", "solo": True}),
        Event(until, INJECTOR, "over", {"number": number, "forgot": forgot}),
    ]


def verdict(*events: Event | list[Event], bounds: Bounds = BOUNDS) -> Any:
    flat = [event for each in events for event in ([each] if isinstance(each, Event) else each)]
    return judge(tell(sorted(flat, key=lambda event: event.at)), bounds)


def turn(who: str, since: float, until: float, hold: int = 1) -> list[Event]:
    return [held(since, who, hold), ended(until, who, hold, acted=until, due=since + 2)]


def test_one_after_the_other_is_well() -> None:
    assert not verdict(turn("a", 0, 1), turn("b", 1, 2), turn("a", 2.1, 3, hold=2)).violations


def test_two_at_once() -> None:
    found = verdict(turn("a", 10, 11), turn("b", 10.9999, 12))
    assert "two holders" in found.violations[0]
    assert found.rows["none"].broken == 1


def test_a_server_that_forgot_excuses_for_as_long_as_was_promised() -> None:
    late = [held(10, "a"), ended(11.04, "a", why="deleted", acted=11.03, due=12)]
    told = verdict(late, fault(11, 11.001, "DEL", forgot=[["x", 0]]), turn("b", 11.002, 12))
    assert not told.violations
    assert (told.rows["DEL"].broken, told.rows["DEL"].forgotten) == (0, 1)
    assert told.rows["DEL"].longest == pytest.approx(0.038)
    too_late = [held(10, "a"), ended(11.3, "a", why="deleted", acted=11.3, due=12)]
    found = verdict(too_late, fault(11, 11.001, "DEL", forgot=[["x", 0]]), turn("b", 11.002, 12)).violations
    assert "50 ms are the bound" in found[0]


def test_a_fault_that_did_nothing_to_this_lock_is_no_excuse() -> None:
    for no_excuse in (
        fault(11, 11.001, "DEL", forgot=[["y", 0]]),
        fault(11, 11.001, "SIGKILL"),
        fault(8, 8.1, "DEL", forgot=[["x", 0]]),  # before the first one had it
        fault(11.5, 11.6, "DEL", forgot=[["x", 0]]),  # after the second one had it
    ):
        found = verdict(no_excuse, turn("a", 10, 11.03), turn("b", 11.002, 12))
        assert "two holders" in found.violations[0], no_excuse


def test_a_lock_that_was_lost_before_may_go_from_task_to_task_in_its_process() -> None:
    """Task 1 of worker b holds it when its key is deleted, and the push is lost. Worker a acquires it, and b's task 2
    gets it from task 1."""
    elsewhere = turn("a", 10.6, 10.95)
    for due, excused in ((11.9, True), (12.9, False)):  # confirmed at 9.9, before the fault, or at 10.9
        handed_on = [held(10.9, "b", due=due - 10.9), ended(10.94, "b", why="deleted", acted=10.93, due=due)]
        stalled = Event(10.9, "b", "stall", {"since": 10.0})
        found = verdict(fault(10, 10.001, "DEL", forgot=[["x", 0]]), elsewhere, handed_on, stalled)
        assert bool(found.violations) != excused, due
    ran = [held(10.9, "b", due=1.0), ended(10.94, "b", why="deleted", acted=10.93, due=11.9)]
    found = verdict(fault(10, 10.001, "DEL", forgot=[["x", 0]]), elsewhere, ran)
    assert "50 ms are the bound" in found.violations[0]  # it ran all the time, and should have been notified


def test_in_a_quorum_it_takes_as_many_as_the_holder_had_beyond_the_majority() -> None:
    for votes, forgot, excused in ((2, [], False), (2, [0], True), (3, [0], False), (3, [0, 2], True)):
        first = [held(10, "a", votes=3), ended(11.01, "a", why="deleted", acted=11, due=12, votes=votes)]
        of_x = [["x", index] for index in forgot]
        found = verdict(first, fault(11, 11.001, "DEL", of_x), turn("b", 11.002, 12), bounds=QUORUM)
        assert bool(found.violations) != excused, (votes, forgot)


def test_a_worker_that_did_not_run_could_not_know() -> None:
    stalled = [held(10, "a"), Event(15, "a", "stall", {"since": 11.0}), held(12.03, "b"), *turn("c", 20, 21)]
    stalled.append(ended(13, "b", acted=13, due=14.03))
    told = verdict(stalled, ended(15.01, "a", why="expired", acted=10.99, due=12))
    assert not told.violations
    assert told.rows["none"].stale == 1
    # ... but when it runs again, it must notice before it does anything,
    found = verdict(stalled, ended(15.01, "a", why="expired", acted=15.005, due=12)).violations
    assert "acted on it" in found[0]
    # ... and nobody else may have had the lock before its deadline,
    found = verdict(stalled, ended(15.01, "a", why="expired", acted=10.99, due=12.5)).violations
    assert "before the first one's time was over" in found[0]


def test_it_has_to_notice_soon() -> None:
    stalled = [held(10, "a"), Event(13, "a", "stall", {"since": 11.0}), *turn("b", 12.03, 14)]
    assert not verdict(stalled, ended(13.02, "a", why="expired", acted=10.99, due=12)).violations
    found = verdict(stalled, ended(13.2, "a", why="expired", acted=10.99, due=12)).violations
    assert "noticed 200.0 ms" in found[0]


def test_who_did_run_has_no_excuse() -> None:
    events = [held(10, "a"), Event(10.6, "a", "stall", {"since": 10.5}), *turn("b", 12.03, 14)]
    found = verdict(events, ended(12.04, "a", why="expired", acted=11.99, due=12)).violations
    assert "its loop did run" in found[0]


def test_the_dead_hold_nothing() -> None:
    killed = Event(11, INJECTOR, "killed", {"target": "a"})
    assert not verdict(held(10, "a"), killed, turn("b", 12.1, 13)).violations
    assert verdict(held(10, "a"), killed, turn("b", 10.9, 13)).violations


def test_a_lock_that_nobody_gets_for_too_long() -> None:
    events = [*turn("a", 10, 11), *turn("b", 15, 16), Event(18, INJECTOR, "closing", {})]
    assert "nobody had it for 3.80 s" in verdict(events, fault(11, 11.2, "SIGKILL")).violations[0]
    assert not verdict(events, fault(11, 12.2, "SIGKILL")).violations
    at_rest = verdict(turn("a", 10, 11), Event(12, INJECTOR, "calm", {}), Event(16, INJECTOR, "closing", {}))
    assert "though all was well" in at_rest.violations[0]


def test_a_loss_without_a_fault() -> None:
    lost = [held(10, "a"), ended(10.5, "a", why="disconnected", acted=10.4, due=12)]
    assert "though all was well" in verdict(lost).violations[0]
    told = verdict(lost, fault(10.45, 10.49, "SIGKILL"))
    assert not told.violations
    assert told.rows["SIGKILL"].lost == 1
    assert told.rows["SIGKILL"].told == pytest.approx(0.05)


def test_a_loss_after_what_costs_nobody_a_lock() -> None:
    lost = [held(10, "a"), ended(10.5, "a", why="disconnected", acted=10.4, due=12)]
    bounds = dataclasses.replace(BOUNDS, harmless=("cut",))
    found = verdict(lost, fault(10.45, 10.46, "cut"), bounds=bounds)
    assert "'cut', which costs nobody a lock" in found.violations[0]
    # Another fault, or a loop that did not run, may be the cause.
    assert not verdict(lost, fault(8, 9.5, "DEL"), fault(10.45, 10.46, "cut"), bounds=bounds).violations
    stalled = Event(10.49, "a", "stall", {"since": 9.0})
    assert not verdict(lost, stalled, fault(10.45, 10.46, "cut"), bounds=bounds).violations


def test_an_evicted_key_is_told_of_as_soon_as_a_deleted_one() -> None:
    bounds = dataclasses.replace(BOUNDS, told={"keys evicted": 0.1})
    evicted = fault(11, 12, "keys evicted", forgot=[["x", 0]])
    for until, excused in ((11.59, True), (11.7, False)):
        first = [held(10.5, "a"), ended(until, "a", why="deleted", acted=until - 0.01, due=13)]
        found = verdict(first, evicted, turn("b", 11.5, 11.9), bounds=bounds).violations
        assert bool(found) != excused, until


def test_what_takes_keys_and_no_connection_allows_no_later_message() -> None:
    events = [held(10, "a"), ended(11.3, "a", why="deleted", acted=11.3, due=13), *turn("b", 11.002, 12)]
    faults = fault(10.5, 10.6, "DEL", forgot=[["y", 0]]), fault(11, 11.001, "DEL", forgot=[["x", 0]])
    assert not verdict(*events, *faults).violations
    assert verdict(*events, *faults, bounds=dataclasses.replace(BOUNDS, heard=("DEL",))).violations


def test_a_fault_that_is_over_in_a_moment_costs_nobody_a_lock() -> None:
    lost = [held(10, "a"), ended(10.5, "a", why="disconnected", acted=10.4, due=12)]
    for harmless in (True, False):
        brief = fault(10.45, 10.46, "maxclients")
        brief[0].details["harmless"] = harmless
        found = verdict(lost, brief).violations
        assert any("costs nobody a lock" in violation for violation in found) == harmless


def test_after_some_faults_a_lock_has_to_be_free_sooner() -> None:
    bounds = dataclasses.replace(BOUNDS, waits={"NOREPLICAS": 1.0})
    events = [*turn("a", 10, 11), *turn("b", 13.2, 14), Event(18, INJECTOR, "closing", {})]
    assert not verdict(events[:-1], fault(11, 11.2, "SIGKILL"), bounds=bounds).violations
    found = verdict(events[:-1], fault(11, 11.2, "NOREPLICAS"), bounds=bounds).violations
    assert "2.00 s after 'NOREPLICAS'" in found[0] and "1 s are the bound" in found[0]


def test_nobody_waits_for_the_locks_of_the_crowd() -> None:
    events = [*turn("a", 10, 11), *turn("b", 25, 26), Event(28, INJECTOR, "closing", {})]
    for event in events[:-1]:
        event.details["name"] = f"{CROWD}7"
    assert not verdict(events, fault(11, 11.2, "SIGKILL")).violations


def test_a_worker_that_never_works_again() -> None:
    """The others hold the locks, so no lock is without a holder."""
    bounds = dataclasses.replace(BOUNDS, idle=3.0)
    others = [event for at in range(10, 20) for event in turn("b", at, at + 0.99, hold=at)]
    broken, end = fault(10, 11, "maxclients"), Event(20, INJECTOR, "closing", {})
    before = turn("a", 9, 9.9)
    for more, well in (
        ([], False),
        (turn("a", 18.992, 18.994, hold=2), False),
        (turn("a", 13.992, 13.994, hold=2) + turn("a", 17.992, 17.994, hold=3), False),
        (
            turn("a", 13.992, 13.994, hold=2) + turn("a", 16.992, 16.994, hold=3) + turn("a", 17.992, 17.994, hold=4),
            True,
        ),
        # A worker that does not run, or does not exist, gets no lock.
        ([Event(19.9, "a", "stall", {"since": 12.0})], True),
        ([Event(12, INJECTOR, "killed", {"target": "a"})], True),
    ):
        found = verdict(others, before, more, broken, end, bounds=bounds).violations
        assert bool(found) != well, (more, found)
        assert all("a got no lock at all for" in violation for violation in found)
    # Nor who has just begun.
    begun = Event(18, "a", "started", {})
    assert not verdict(others, begun, broken, end, bounds=bounds).violations


def test_a_server_that_is_asked_without_end() -> None:
    bounds = dataclasses.replace(BOUNDS, commands=300.0)
    for before, during, well in ((1000.0, 1900.0, True), (1000.0, 2100.0, False), (100.0, 40_000.0, False)):
        storm = fault(10, 13, "FLUSHDB")
        counted = Event(12.9, INJECTOR, "rate", {"number": 10_000, "before": before, "during": during})
        found = verdict(storm, counted, bounds=bounds)
        assert bool(found.violations) != well, during
        assert found.rows["FLUSHDB"].rate == during
        assert well or "commands a second during 'FLUSHDB'" in found.violations[0]
        storm[0].details["solo"] = False  # others may be what it is asked for
        assert not verdict(storm, counted, bounds=bounds).violations


def test_errors_and_holds_without_an_end() -> None:
    error = Event(10, "a", "error", {"text": "KeyError"})
    assert "KeyError" in verdict(error).violations[0]
    assert "never ended" in verdict(held(10, "a")).violations[0]


def test_by_force() -> None:
    events = [*turn("a", 10, 11.01), held(11, "b", forced=True), ended(12, "b", acted=12, due=13)]
    told = verdict(events)
    assert not told.violations
    assert told.rows[FORCED].forgotten == 1


def test_who_was_stopped_once_has_no_excuse_for_ever() -> None:
    """It runs again, and is killed much later: in between it could know."""
    events = [
        Event(5, INJECTOR, "paused", {"target": "a"}),
        Event(6, "a", "stall", {"since": 5.0}),
        held(10, "a"),
        held(12.03, "b"),
        ended(12.5, "a", why="expired", acted=11.9, due=12),
        ended(13, "b", acted=13, due=14.03),
        Event(20, INJECTOR, "killed", {"target": "a"}),
    ]
    assert "its loop did run" in verdict(events).violations[0]


def test_nobody_holds_beyond_his_own_deadline_even_if_nobody_else_gets_the_lock() -> None:
    away = fault(11, 13, "SIGKILL")
    late = [held(10, "a"), ended(13, "a", why="expired", acted=11.99, due=12)]
    assert "1000 ms after its own deadline" in verdict(late, away).violations[0]
    assert not verdict(late, away, Event(12.99, "a", "stall", {"since": 11.995})).violations


def test_who_learns_late_that_he_got_it_may_not_have_got_it_with_another_one() -> None:
    stall = Event(11.99, "b", "stall", {"since": 10.0})
    late = [held(12, "b", due=-0.1), ended(12.01, "b", why="expired", acted=12, due=11.9)]
    first = [held(10, "a"), ended(12.3, "a", acted=12.3, due=12.5)]
    assert "when the first one had it already" in verdict(stall, late, first).violations[0]
    after = [held(11.95, "a"), ended(12.3, "a", acted=12.3, due=13.9)]
    assert not verdict(stall, late, after).violations


def test_a_server_that_forgot_does_not_excuse_who_is_beyond_his_deadline() -> None:
    one_of_three = fault(11, 11.001, "DEL", forgot=[["x", 0]])
    first = [held(10, "a", votes=3), ended(12.04, "a", why="expired", acted=11.99, due=12, votes=2)]
    found = verdict(first, one_of_three, turn("b", 12.001, 13), bounds=QUORUM).violations
    assert "its loop did run" in found[0]


def test_an_earlier_fault_that_is_long_over_allows_no_later_message() -> None:
    events = [*turn("c", 1, 2), held(10, "a"), ended(11.3, "a", why="deleted", acted=11.3, due=13)]
    for until, excused in ((9.3, False), (10.9, True)):
        found = verdict(
            events,
            fault(8, until, "SIGKILL"),
            fault(11, 11.001, "DEL", forgot=[["x", 0]]),
            turn("b", 11.002, 12),
        )
        assert bool(found.violations) != excused, until
        assert found.rows["DEL"].beyond == excused


def test_a_task_that_sleeps_through_the_calm() -> None:
    calm, closing = Event(20, INJECTOR, "calm", {}), Event(26, INJECTOR, "closing", {})
    for waited, well in ((5.0, True), (7.0, False)):
        away = Event(26.01, "a", "turned away", {"name": "x", "waited": waited})
        busy = [*turn("a", 19, 21), *turn("b", 22, 24, hold=2), *turn("b", 24, 25.9, hold=3)]
        assert (not verdict(busy, calm, closing, away).violations) == well


def test_every_wait_counts_however_it_ends() -> None:
    for what in ("turned away", "refused"):
        event = Event(50, "a", what, {"name": "x", "why": "ServerError", "waited": 40.0})
        assert tell([event]).longest_wait == 40.0


def test_errors_belong_to_the_faults_around() -> None:
    error = Event(10.5, "a", "error", {"text": "KeyError"})
    found = verdict(fault(1, 2, "DEL"), fault(10, 11, "SIGKILL"), error)
    assert (found.rows["DEL"].errors, found.rows["SIGKILL"].errors) == (0, 1)
    assert verdict(error).rows["none"].errors == 1


def test_logs_are_read_in_the_order_of_time_and_to_where_they_were_cut_off(tmp_path: Path) -> None:
    logs = {who: Log(tmp_path, who) for who in "ab"}
    logs["a"]("one", at=1.0, more=1)
    logs["b"]("two", at=2.0)
    logs["a"]("three", at=3.0)
    for log in logs.values():
        log.close()
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"at":4.0,"wh')
    assert [*merged(tmp_path)] == [(1.0, "a", "one", {"more": 1}), (2.0, "b", "two", {}), (3.0, "a", "three", {})]


def token(asked: float, got: float, who: str, number: int, hold: int = 1) -> Event:
    return Event(got, who, "token", {"name": "x", "hold": hold, "number": number, "asked": asked})


def test_a_later_holder_has_a_greater_token() -> None:
    holds = turn("a", 10, 11), turn("b", 11.5, 12)
    for number, well in ((101, True), (100, False), (99, False)):
        found = verdict(*holds, token(10.1, 10.2, "a", 100), token(11.6, 11.7, "b", number)).violations
        assert bool(found) != well, number
        assert well or "after a had got 100" in found[0]


def test_a_token_is_greater_than_those_that_were_given_before_it_was_asked_for() -> None:
    """Whoever has it. Those that were asked for at the same time have any order."""
    late = [held(10, "a"), ended(12, "a", why="deleted", acted=11, due=12), Event(12, "a", "stall", {"since": 10.5})]
    taken = [held(11, "b", forced=True), ended(11.9, "b", acted=11.9, due=13)]
    for asked, number, well in ((11.8, 8, True), (11.8, 6, False), (11.15, 6, True)):
        found = verdict(late, taken, token(11.1, 11.2, "b", 7), token(asked, 11.95, "a", number)).violations
        assert bool(found) != well, (asked, number)
    # In a hold that has a token, no server is asked again.
    again = token(10.1, 10.15, "a", 6), token(11.8, 11.95, "a", 6)
    assert not verdict(late, taken, token(11.1, 11.2, "b", 7), *again).violations
    # A lower number that was given later must not hide a higher one.
    three = turn("a", 10, 11), turn("b", 11, 12), turn("c", 12, 13)
    given = token(10.1, 10.2, "a", 9), token(11.1, 11.2, "b", 5), token(12.1, 12.2, "c", 7)
    assert len(verdict(*three, *given).violations) == 2


def test_in_one_hold_a_token_stays_the_same() -> None:
    for number, well in ((100, True), (101, False)):
        twice = token(10.1, 10.2, "a", 100), token(10.3, 10.4, "a", number)
        found = verdict(turn("a", 10, 11), *twice).violations
        assert bool(found) != well, number
        assert well or "100 in the same hold before" in found[0]


def test_a_token_is_a_number_of_53_bits() -> None:
    for number, well in (((1 << 53) - 1, True), (1 << 53, False), (0, False)):
        assert (not verdict(turn("a", 10, 11), token(10.1, 10.2, "a", number)).violations) == well, number


def test_a_token_may_go_back_if_the_counter_was_lost_and_the_clock_was_set_back() -> None:
    """But not behind the clock as it is."""
    wall = 1_000_000.0
    clocks = Event(1, INJECTOR, "clocks", {"wall": wall, "servers": [1, 2]})
    set_back = Event(10.5, INJECTOR, "clock", {"server": 1, "offset": -1.6})
    holds = turn("a", 10, 11), turn("b", 11.5, 12)
    first, second = int((wall + 10.15) * 1e6), int((wall + 11.6 - 1.6) * 1e6)
    for lost, back, number, told in (
        (True, True, second, ""),
        (False, True, second, "after a had got"),
        (True, True, second - 100_000, "0.100 s behind the server's clock"),
        (True, False, second, "1.600 s behind the server's clock"),
    ):
        flushed = fault(11.2, 11.3, "DEL", forgot=[["x", 0]])
        flushed[1].details["emptied"] = [["x", 0]] if lost else []
        given = token(10.1, 10.2, "a", first), token(11.6, 11.7, "b", number)
        found = verdict(clocks, *([set_back] if back else []), flushed, *holds, *given)
        assert any(told in violation for violation in found.violations) if told else not found.violations
        assert found.disorder == lost


def test_nobody_gets_a_lock_within_its_least_time() -> None:
    for since, well in ((10.9, False), (10.995, True), (11.2, True)):
        kept = [held(10, "a", stays=11), ended(10.1, "a", acted=10.1, due=12)]
        found = verdict(kept, turn("b", since, 12)).violations
        assert bool(found) != well, since
        assert well or ("was to stay until 11.0000" in found[0] and "100.0 ms too early" in found[0])


def test_a_least_time_counts_from_when_the_program_had_the_lock() -> None:
    """Its loop may not have run before it logged that."""
    kept = [held(10, "a", stays=11), ended(10.1, "a", acted=10.1, due=12)]
    for since, well in ((9.8, True), (9.95, False)):
        assert (
            not verdict(kept, Event(10.001, "a", "stall", {"since": since}), turn("b", 10.85, 12)).violations
        ) == well


def test_what_ends_a_least_time_early() -> None:
    second = turn("b", 10.5, 12)
    for why, excused in (("released", False), ("cancelled", False), ("closed", False), ("disconnected", True)):
        first = [held(10, "a", stays=11), ended(10.1, "a", why=why, acted=10.1, due=12)]
        found = verdict(first, second, fault(10.0, 10.001, "SIGKILL")).violations
        assert bool(found) != excused, why
    left = [held(10, "a", stays=11), ended(10.1, "a", acted=10.1, due=12)]
    killed = [held(10, "a", due=0.4, stays=11), Event(10.1, INJECTOR, "killed", {"target": "a"})]
    assert not verdict(killed, second).violations
    assert not verdict(left, fault(10.3, 10.301, "DEL", forgot=[["x", 0]]), second).violations
    assert verdict(left, fault(10.3, 10.301, "DEL", forgot=[["y", 0]]), second).violations
    forced = [held(10.5, "b", forced=True), ended(12, "b", acted=12, due=12.5)]
    assert not verdict(left, forced).violations


def test_a_release_that_no_server_got_keeps_a_lock_until_its_deadline() -> None:
    left = [held(10, "a", stays=14), ended(10.1, "a", acted=10.1, due=12)]
    silent = fault(10.05, 11.0, "SIGKILL")
    for since, trouble, well in ((12.1, True, True), (12.1, False, False), (11.9, True, False)):
        found = verdict(left, silent if trouble else [], turn("b", since, 13.5)).violations
        assert bool(found) != well, (since, trouble)


def test_a_quarantine_does_not_make_up_for_a_least_time_that_is_longer() -> None:
    for since, votes, well in ((12.9, 2, False), (13.1, 2, True), (13.1, 3, False)):
        left = [held(10, "a", stays=14, votes=votes), ended(10.5, "a", acted=10.5, due=12.4, votes=votes)]
        restarted = fault(11.05, 11.5, "SIGKILL")
        restarted[1].details["emptied"] = [["x", 0]]
        found = verdict(left, restarted, turn("b", since, 14), bounds=QUORUM).violations
        assert bool(found) != well, (since, votes)


def test_a_lock_that_is_kept_is_not_without_a_holder() -> None:
    left = [held(10, "a", stays=14), ended(10.1, "a", acted=10.1, due=15)]
    for since, well in ((16.9, True), (17.2, False)):
        events = *left, *turn("b", since, 18), Event(18, INJECTOR, "closing", {})
        assert (not verdict(*events, fault(10.5, 10.6, "SIGKILL")).violations) == well, since


def permit(
    slot: int, who: str, since: float, until: float, hold: int = 1, *, waited: float = 0.0, why: str = "released"
) -> list[Event]:
    events = [held(since, who, hold, permits=2), ended(until, who, hold, why=why, acted=until, due=since + 2)]
    for event in events:
        event.details["name"] = f"pool#{slot}"
    events[0].details["waited"] = waited
    return events


def test_a_third_holder_of_two_permits() -> None:
    two = permit(0, "a", 10, 11), permit(1, "b", 10, 11)
    assert not verdict(*two, permit(0, "c", 11, 12)).violations
    assert "'pool#0' had two holders" in verdict(*two, permit(0, "c", 10.9, 12)).violations[0]
    assert "3 permits were held; there are 2" in verdict(*two, permit(2, "c", 10.9, 12)).violations[0]
    assert verdict(*two).violations == []
    # The excuses are those of a lock.
    deleted = fault(10.8, 10.801, "DEL", forgot=[["pool#0", 0]])
    told = permit(0, "a", 10, 10.92, why="deleted"), permit(1, "b", 10, 11), permit(0, "c", 10.9, 12)
    assert not verdict(*told, deleted).violations


def test_a_permit_that_nobody_gets_although_somebody_waits() -> None:
    """Tasks share slot 0, and slot 1 stays free."""
    events = [permit(1, "a", 9, 10, hold=1), fault(10.0, 10.1, "SIGKILL"), [Event(16, INJECTOR, "closing", {})]]
    for waited, well in ((0.9, True), (1.1, False)):  # is there always somebody who waits?
        shared = [permit(0, "ab"[at % 2], at, at + 0.99, hold=at, waited=waited) for at in range(10, 16)]
        found = verdict(*events, *shared).violations
        assert bool(found) != well, waited
        assert well or "'pool#1' was waited for" in found[0]
    # A task that never gets a permit tells of its wait in the end.
    alone = permit(0, "a", 9, 10, hold=2), Event(16.1, "b", "turned away", {"name": "pool", "waited": 5.5})
    assert "'pool#0' was waited for" in verdict(*events, *alone).violations[0]


def test_holders_of_each_kind_that_were_killed_or_stopped() -> None:
    history = tell(
        [
            held(10, "a", several=True, fenced=True),
            held(10, "b", stays=12),
            held(10, "c"),
            permit(0, "d", 10, 11)[0],
            Event(10.1, INJECTOR, "paused", {"target": "a"}),
            *(Event(10.2, INJECTOR, "killed", {"target": who}) for who in "bcd"),
        ]
    )
    assert history.of_kind == dict.fromkeys((SEVERAL, FENCED, LEAST, SINGLE, PERMIT), 1)
    assert history.paused == dict.fromkeys((SEVERAL, FENCED), 1)
    assert history.killed == dict.fromkeys((LEAST, SINGLE, PERMIT), 1)


def test_a_task_that_waits_for_several_names_may_have_kept_the_first_ones() -> None:
    for before, waited, well in ((True, 3.9, True), (True, 0.1, False), (False, 3.9, False)):
        second = turn("b", 15, 16)
        second[0].details.update(several=True, before=before, waited=waited)
        events = *turn("a", 10, 11), *second, Event(18, INJECTOR, "closing", {})
        assert (not verdict(*events, fault(11, 11.2, "SIGKILL")).violations) == well, (before, waited)
