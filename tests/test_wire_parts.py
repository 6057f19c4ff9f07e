"""The small owners of a node's state, without a server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asynclock.core.clock import ServerClock
from asynclock.core.pace import FLUSHES, Pace
from asynclock.wire.backoff import Backoff
from asynclock.wire.commands import px
from asynclock.wire.credentials import Credentials, Rotation
from asynclock.wire.expiry import ExpiryClock
from asynclock.wire.flushes import Flushes
from asynclock.wire.grace import Grace
from asynclock.wire.memory_shortage import GIVE_UP_AFTER, NEW_AFTER, MemoryShortage

pytestmark = [pytest.mark.fast, pytest.mark.every_python, pytest.mark.serverless]


def test_pauses_grow_to_the_longest_and_begin_anew() -> None:
    backoff = Backoff(0.01, 0.1)
    for _ in range(2):
        for whole in (0.01, 0.02, 0.04, 0.08, 0.1, 0.1):
            assert whole / 2 <= backoff.next() <= whole
        backoff.reset()


@pytest.mark.asyncio
async def test_a_server_counts_as_gone_once_for_each_loss_and_only_when_it_refuses() -> None:
    now, gone = 0.0, []
    grace = Grace(0.02, lambda: now)
    grace.refused(lambda: gone.append("never lost"))
    grace.lost()
    await asyncio.sleep(0.05)
    assert not gone  # it is silent
    grace.refused(lambda: gone.append("in time"))
    grace.refused(lambda: gone.append("twice"))
    assert not gone
    await asyncio.sleep(0.05)
    assert gone == ["in time"]
    grace.refused(lambda: gone.append("again"))
    grace.lost()
    now = 1.0  # the grace period is over
    grace.refused(lambda: gone.append("at once"))
    assert gone == ["in time", "at once"]
    grace.lost()
    grace.refused(lambda: gone.append("connected again"))
    grace.stop()
    await asyncio.sleep(0.05)
    assert gone == ["in time", "at once"]


@pytest.mark.asyncio
async def test_flushes_are_reported_at_once_until_there_are_many() -> None:
    reports: list[int] = []
    flushes = Flushes(Pace())
    for number in range(int(FLUSHES) + 10):
        flushes.flushed(1.0, lambda number=number: reports.append(number))  # type: ignore[misc]
    assert reports == list(range(int(FLUSHES) + 1))
    await asyncio.sleep(0.15)
    assert reports == list(range(int(FLUSHES) + 2))  # one stands for all the others
    flushes.flushed(1.0, lambda: reports.append(-1))
    flushes.stop()
    await asyncio.sleep(0.15)
    assert -1 not in reports


def test_a_shortage_of_memory_passes_for_a_while() -> None:
    memory = MemoryShortage()
    now = 100.0
    while now < 100.0 + GIVE_UP_AFTER:
        assert memory.is_temporary(now)
        now += NEW_AFTER / 2
    assert not memory.is_temporary(now)
    assert memory.is_temporary(now + NEW_AFTER + 1)  # another one


class Wire:
    """Takes what is sent; its clock stands still."""

    def __init__(self) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting: list[Any] = []

    def clock(self) -> float:
        return 100.0

    def send(self, data: bytes, expects: Any, replies: int, now: float) -> None:
        self.waiting.append(expects)


@pytest.mark.asyncio
async def test_an_expiry_is_in_the_servers_time_once_that_is_known() -> None:
    wire: Any = Wire()
    expiry = ExpiryClock(wire, ServerClock(5.0), 5.0, pxat=True)
    assert expiry.argument(100.0) == expiry.argument(100.0015) == px(5000)
    (time,) = wire.waiting  # asked once
    time.reply([b"5000", b"0"], (), 100.002)
    # Asked at 100, when it was 5000 there at most; from 100.0015 on, rounded up to the next millisecond.
    assert expiry.argument(100.0015) == b"$4\r\nPXAT\r\n$7\r\n5005002\r\n"
    expiry.doubt()
    assert expiry.argument(100.0015) == px(5000)
    assert len(wire.waiting) == 2
    was_set = []
    expiry.on_set = lambda: was_set.append(True)
    wire.waiting[-1].reply([b"5000", b"1000"], (), 100.002)
    assert not was_set
    expiry.doubt()
    wire.waiting[-1].reply([b"5003", b"0"], (), 100.002)
    assert was_set
    wire.closed.set_result(None)
    expiry.ask()
    assert len(wire.waiting) == 3


def test_new_credentials_go_to_the_connection_in_use_or_to_the_next_one() -> None:
    rotation, used, connected = Rotation(), [], False
    listeners: list[Any] = []

    def use(credentials: Credentials) -> bool:
        if connected:
            used.append(credentials)
        return connected

    def subscribe(hear: Any) -> Any:
        listeners.append(hear)
        return lambda: None

    rotation.start(subscribe, use)
    (hear,) = listeners
    hear((b"old",))
    rotation.connecting()
    assert rotation.take() is None
    hear((b"new",))
    assert rotation.take() == (b"new",)
    assert rotation.take() is None
    connected = True
    hear((b"newer",))
    assert used == [(b"newer",)] and rotation.take() is None
    rotation.stop()
    hear((b"too late",))
    assert len(used) == 1
