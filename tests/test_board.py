"""The board of examples/board over HTTP, as one command starts it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from asynclock.testing import Server
from examples.board.board import Board
from examples.board.workers import KEY_PREFIX
from tests.support.apps import raw
from tests.support.board import LOCKS, SOON, Program, running
from tests.support.family import Family
from tests.support.helpers import ROOT, key

pytestmark = [pytest.mark.serverless, pytest.mark.one_loop, pytest.mark.asyncio]


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    with running() as program:
        yield program


async def test_the_events_tell_who_holds_and_who_waits(program: Program) -> None:
    async with program.events() as events:
        async for seen in events:
            locks = {lock["name"]: lock for lock in seen["locks"]}
            assert list(locks) == LOCKS
            holders = [lock["holder"]["who"] for lock in locks.values() if lock["holder"]]
            waiting = [entry["who"] for lock in locks.values() for entry in lock["waiting"]]
            assert len({*holders, *waiting}) == len(holders) + len(waiting), "somebody is in two places"
            if holders and waiting:
                break


async def test_only_a_lock_of_the_board_can_be_stolen_and_only_by_its_page(program: Program) -> None:
    async with httpx.AsyncClient(base_url=program.url, trust_env=False) as http:
        response = await http.post("locks/payroll/steal")
        assert response.status_code == 404
        assert "'payroll'" in response.text
        assert (await http.get("locks/reports/steal")).status_code in (404, 405)
        elsewhere = {"Sec-Fetch-Site": "cross-site"}
        assert (await http.post("locks/reports/steal", headers=elsewhere)).status_code == 403
        assert (await http.get("", headers={"Host": "evil.example"})).status_code == 400
        assert (await http.get("")).status_code == 200


async def test_a_stream_ends_when_its_client_leaves(program: Program) -> None:
    async with program.events() as events:
        async with program.events() as others:
            await anext(others)
            await until_watched_by(2, events)
        await until_watched_by(1, events)


async def until_watched_by(number: int, events: AsyncIterator[dict[str, Any]]) -> None:
    async for seen in events:
        if seen["watchers"] == number:
            return
    raise AssertionError("the stream ended")


async def test_a_slow_browser_gets_the_newest_and_no_queue() -> None:
    board = Board(["reports"])
    events = board.watch()
    await anext(events)
    for number in range(1000):
        board.has_trouble("reports", f"worker {number}", "was slow")
    assert (await anext(events))["locks"][0]["trouble"]["who"] == "worker 999"
    board.close()
    assert [seen async for seen in events] == []


async def test_a_holder_that_hears_of_a_theft_late_does_not_wipe_out_the_thief() -> None:
    board = Board(["reports"])
    board.holds("reports", "worker 1")
    board.holds("reports", "thief 1")
    board.leaves("reports", "worker 1")
    events = board.watch()
    assert (await anext(events))["locks"][0]["holder"]["who"] == "thief 1"
    await events.aclose()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
async def test_it_ends_with_open_streams_and_leaves_nothing(family: Family, number: signal.Signals) -> None:
    with running(env=family.env) as program:
        request = f"GET /events HTTP/1.1\nHost: 127.0.0.1:{program.port}"
        async with program.events() as events, raw(program.port, request) as deaf:
            deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]  # and reads nothing
            await anext(events)
            assert family.members("valkey-server")
            assert await asyncio.to_thread(program.end, number) == ""
            async for _ in events:  # to the end: it was not broken off
                pass
    assert family.gone()


async def test_it_uses_a_server_of_yours_and_survives_its_absence_and_its_death(own_server: Server) -> None:
    own_server.kill()
    with running("--port", "0", "--url", own_server.url) as program:
        async with program.events() as events:
            await until_trouble(events, "did not get")
            own_server.start()
            seen = await until_held(events)
            assert own_server.execute("EXISTS", *(key(name, prefix=KEY_PREFIX) for name in seen)) == len(seen)
            own_server.kill()
            await until_trouble(events, "disconnected")
            own_server.start()
            await until_held(events)
        assert await asyncio.to_thread(program.end) == ""
        assert own_server.execute("DBSIZE") == 0


async def until_trouble(events: AsyncIterator[dict[str, Any]], why: str) -> None:
    async for seen in events:
        if any(lock["trouble"] and why in lock["trouble"]["why"] for lock in seen["locks"]):
            return
    raise AssertionError("the stream ended")


async def until_held(events: AsyncIterator[dict[str, Any]]) -> list[str]:
    """The names of the locks that somebody holds."""
    async for seen in events:
        if held := [lock["name"] for lock in seen["locks"] if lock["holder"]]:
            return held
    raise AssertionError("the stream ended")


async def test_a_port_that_is_taken_is_told(program: Program) -> None:
    command = [sys.executable, "-m", "examples.board", "--port", str(program.port)]
    done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=SOON)
    assert done.returncode == 1
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr
