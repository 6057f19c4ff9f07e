"""The timers that wake rooms: on time, and no more often than that."""

from __future__ import annotations

import asyncio
import time

import pytest

from asynclock._engine.timers import Timers
from asynclock.core.room import Room
from tests.support.bench import Bench
from tests.support.builds import only_pure

pytestmark = [pytest.mark.fast, pytest.mark.every_python, pytest.mark.serverless]


@only_pure
@pytest.mark.asyncio
@pytest.mark.parametrize("left", [0.0, 0.0003, 0.0012, 0.004, 0.03])
async def test_a_room_is_woken_once_its_time_has_come_and_not_before(
    left: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    wakes = 0
    wake = Timers._wake

    def count(self: Timers, room: Room[str]) -> None:
        nonlocal wakes
        wakes += 1
        wake(self, room)

    monkeypatch.setattr(Timers, "_wake", count)
    monkeypatch.setattr(Room, "woken", lambda room, now: woken.set_result(now))
    timers = Timers(asyncio.get_running_loop(), time.monotonic)
    room = Bench().room
    room.wake = time.monotonic() + left
    timers.set(room, room.wake)
    assert await woken >= room.wake
    assert wakes <= 3  # whoever comes back to it at once, until the time has come, does so hundreds of times
