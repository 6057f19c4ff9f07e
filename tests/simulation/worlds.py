"""Schedules: the world and the story that a seed determines."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import NamedTuple

from asynclock.core.rules import Rules

from .story import Story, random_story
from .world import Setting, World


class Shape(NamedTuple):
    majority: int
    servers: int
    weight: int  # relative frequency, if the seed chooses
    independent: bool = False


WORLDS = {
    "single": Shape(1, 1, 8),  # one key, one server
    "majority": Shape(2, 1, 3),  # three keys, one server
    "cluster": Shape(2, 2, 3),  # three keys, two servers
    # The rules do not see the slots of keys: a cluster with ``spread_keys`` is what this is without a quarantine.
    "independent": Shape(2, 3, 5, True),
    "independent-5": Shape(3, 5, 1, True),
}
SEVERAL = "several"  # one of these worlds, in which tasks want several names at once
# One of these worlds, in which each server has a replica. Three servers are a cluster with ``spread_keys`` then, and no
# server has a quarantine: ``min_replicas`` is not for independent servers.
REPLICAS = "replicas"
KINDS = (*WORLDS, SEVERAL, REPLICAS)
_NAMES, _WEIGHTS = list(WORLDS), [shape.weight for shape in WORLDS.values()]
FENCING = 0.3  # share of schedules in which tasks ask for fencing tokens
PERMITS = 0.2  # share of the others, in which they want permits of semaphores instead of locks
AT_LEAST = 0.3  # share of schedules in which tasks want locks to stay for a least time
_TIMES = ((4.0, 2.0), (4.0, 1.0), (1.0, 0.5))  # validity, extend_interval


@dataclass(frozen=True, slots=True)
class Schedule:
    """The world and the story of a seed."""

    seed: int
    which: str
    setting: Setting
    story: Story

    def world(self, recording: bool = False) -> World:
        """A new world, the same every time."""
        return World(self.setting, self.seed + (1 << 64), recording)  # other random numbers than those of the story

    def __str__(self) -> str:
        rules, setting = self.setting.rules, self.setting
        return (
            f"seed {self.seed}: {self.which}, {setting.clients} processes, {rules.keys} keys on {setting.servers} "
            f"servers, validity {rules.validity} s, extended every {rules.extend_interval} s, "
            f"{'' if rules.tracking else 'no '}tracking, {rules.handoffs} hand-offs"
            f"{', quarantine' if setting.quarantine else ''}{', fencing tokens' if setting.fencing else ''}"
            f"{', least times' if setting.at_least else ''}"
            f"{', several names' if setting.several else ''}{', replicas' if setting.replicas else ''}"
            f"{f', semaphores with {setting.permits} permits' if setting.permits else ''}"
        )


def schedule(
    seed: int,
    which: str | None = None,
    tracking: bool | None = None,
    fencing: bool | None = None,
    at_least: bool | None = None,
    permits: bool | None = None,
) -> Schedule:
    """``None``: the seed chooses.

    :param which: one of ``KINDS``
    """
    replicas = which == REPLICAS
    if replicas:
        fencing = at_least = (
            False  # not simulated: numbers that wait for replicas. A KEEP waits for none, so it may get lost
        )
    kinds = random.Random(~seed)  # another one, so that the stories are the same with and without
    chosen_fencing, chosen_permits = kinds.random() < FENCING, kinds.random() < PERMITS
    if permits is None:
        permits = chosen_permits and not (chosen_fencing if fencing is None else fencing) and which != SEVERAL
    if at_least is None:
        at_least = random.Random(~seed - 1).random() < AT_LEAST and not permits
    if fencing is None:
        fencing = chosen_fencing and not permits
    chance = random.Random(seed)
    chosen = chance.choices(_NAMES, _WEIGHTS)[0]
    several = which == SEVERAL
    which = chosen if which is None or several or replicas else which
    shape = WORLDS[which]
    validity, interval = chance.choice(_TIMES)
    tracked = chance.random() < 0.8
    rules = Rules(
        majority=shape.majority,
        validity=validity,
        extend_interval=interval,
        try_next_after=0.02,
        tracking=tracked if tracking is None else tracking,
        handoffs=chance.choice((0, 3, 100)),
    )
    quarantine = chance.random() < 0.7 and shape.independent and not replicas
    setting = Setting(
        rules, shape.servers, chance.choice((2, 3, 3, 4)), quarantine, fencing, at_least, several, replicas
    )
    if permits:
        setting = replace(setting, permits=kinds.choice((1, 2, 2, 3)))
    return Schedule(seed, which, setting, random_story(chance, replicas))
