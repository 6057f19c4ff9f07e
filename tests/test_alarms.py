"""The timers that wake rooms: on time, and no more often than that."""

from __future__ import annotations

import asyncio
import time

import pytest

from asynclock.alarms import Alarms
from asynclock.core.room import Room

from .core.bench import Bench


@pytest.mark.asyncio
@pytest.mark.parametrize("left", [0.0, 0.0003, 0.0012, 0.004, 0.03])
async def test_a_room_is_woken_once_its_time_has_come_and_not_before(
    left: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    rings = 0
    ring = Alarms._ring

    def count(self: Alarms, room: Room[str]) -> None:
        nonlocal rings
        rings += 1
        ring(self, room)

    monkeypatch.setattr(Alarms, "_ring", count)
    monkeypatch.setattr(Room, "woken", lambda room, now: woken.set_result(now))
    alarms = Alarms(asyncio.get_running_loop(), time.monotonic)
    room = Bench().room
    room.wake = time.monotonic() + left
    alarms.set(room, room.wake)
    assert await woken >= room.wake
    assert rings <= 3  # whoever comes back to it at once, until the time has come, does so hundreds of times
