"""Locks that stay for a least time after they were acquired (``at_least``), in a simulated world."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asynclock.core.lease import Lease
from asynclock.core.reasons import LossReason

from .servers import Expiry

if TYPE_CHECKING:
    from .processes import Task
    from .world import World

SHARE = 0.6  # of the tasks that get a lock, where there are any that want it to stay


@dataclass(slots=True)
class Stay:
    """A lock that is to stay, from when ``task`` has got it."""

    task: Task
    lease: Lease
    until: float
    #: Once it was left in time: the keys that had its token then. None: they need not stay (yet, or any more).
    keys: list[bytes] | None = None

    def is_due(self, world: World) -> bool:
        """Is it to stay now: was it left as a held lock, by a task that is not dead, and is its time not over? (Clocks
        run at different speeds.)"""
        task = self.task
        allowed = 0.002 + (self.until - task.granted) * 2 * world.drift
        left = self.keys is not None and (task.state == "released" or is_closed(task))
        return left and world.now < self.until - allowed


def is_closed(task: Task) -> bool:
    return task.state == "lost" and task.problem is LossReason.CLOSED


def begin(world: World, task: Task) -> None:
    """The task has just got the lock. It may want it to stay."""
    chance = world.stay_chance
    if chance.random() < SHARE:
        assert task.lease is not None
        validity = world.rules.validity
        least = chance.choice((0.005, 0.05, 0.3, 1.0, validity, 1.5 * validity))
        task.lease.keep(world.now + least)
        world.longest_stay = max(world.longest_stay, least)
        task.stay = Stay(task, task.lease, world.now + least)
        world.stays.append(task.stay)
        world.log("%r wants %r to stay until %.3f", task, task.name, world.ms(world.now + least))


def leave(world: World, task: Task) -> None:
    """The task is about to give the lock back, or its process closes."""
    stay = task.stay
    if stay is not None and world.now < min(stay.until, stay.lease.deadline):
        assert task.room is not None
        keys = zip(task.room.keys, task.client.homes, strict=True)
        stay.keys = [key for key, home in keys if world.servers[home].has(key, stay.lease.token)]


def expiry(until: float, now: float) -> Expiry:
    """As ``asynclock.wire.expiry.stay``."""
    return Expiry("PX", max(1, math.ceil((until - now) * 1000)))


def too_early(world: World, granted: Task) -> Stay | None:
    """The lock that should have stayed, and that ``granted`` has got all the same.

    It may get it by force, and if too few keys are left: since somebody has touched them, or servers have lost them. If
    anything at all has gone wrong in the world, only those keys count whose server has moved the expiry. And it may
    only seem to get it: its process was stopped, and the keys were taken from it before it has read the answers.
    """
    if granted.how == "force" or not _has_majority(world, granted):
        return None
    for stay in world.stays:
        if stay.task.name != granted.name or stay.task is granted or not stay.is_due(world):
            continue
        assert stay.keys is not None
        token = stay.lease.token
        there = [key for key in stay.keys if (key, token) not in world.touched]
        if world.disturbed:
            there = [key for key in there if (key, token) in world.moved]
        if len(there) > world.rules.keys // 2:
            return stay
    return None


def _has_majority(world: World, task: Task) -> bool:
    """Are a majority of the keys really its own?"""
    assert task.room is not None and task.lease is not None
    keys = zip(task.room.keys, task.client.homes, strict=True)
    return sum(world.servers[home].has(key, task.lease.token) for key, home in keys) > world.rules.keys // 2
