"""The cost of keys that are spread over the shards of a cluster, beside keys that are where chance puts them."""

from __future__ import annotations

import itertools

from asynclock import Locker
from asynclock.testing import Cluster

from .contestants import VALIDITY
from .run import Run
from .turns import Cycle, beside

PLAIN, SPREAD = "plain", "spread"


async def spread_keys(run: Run) -> None:
    """Acquire and release a new name in a cluster of 3 primaries, with 3 keys: plain, and with spread_keys=True"""
    with Cluster(run.kind, primaries=3, replicas=0) as cluster:
        async with _locker(cluster, PLAIN) as plain, _locker(cluster, SPREAD) as spread:
            await beside(run, {PLAIN: _lock(plain), SPREAD: _lock(spread)})


def _locker(cluster: Cluster, how: str) -> Locker:
    """With a prefix of its own: lockers with and without ``spread_keys`` warn of each other if they share one."""
    return Locker(cluster.urls, key_prefix=how, key_majority=2, key_validity=VALIDITY, spread_keys=how == SPREAD)


def _lock(locker: Locker) -> Cycle:
    numbers = itertools.count()  # new names: else chance would decide once where the plain keys of a task are

    async def cycle(name: str) -> None:
        async with locker.with_context(f"{name} {next(numbers)}"):
            pass

    return cycle
