"""What ``spread_keys=True`` is for: the death of a shard costs no lock."""

from __future__ import annotations

import asyncio

import pytest

from asynclock import Locker, LockScope
from asynclock.core.keys import Spread
from tests.support import internals
from tests.support.cluster import Rival, no_keys, own_cluster, primaries
from tests.support.helpers import key, until

pytestmark = pytest.mark.slow

NAMES = 300

# With the default of ``cluster-require-full-coverage``, all nodes answer CLUSTERDOWN from when they have noticed that a
# primary is dead (1.5 s) until its replica has taken over (another second or two; ten on a machine that is busy with
# other tests). Meanwhile no key can be extended, on whichever shard it is. So a lock has to last through that with what
# an extension has left of it at worst: the validity less one interval.
EXTEND_INTERVAL = 2.0
FAILOVER = 13.0
KEY_VALIDITY = FAILOVER + EXTEND_INTERVAL


@pytest.mark.asyncio
async def test_300_locks_outlive_each_of_three_primaries(kind: str) -> None:
    """One after the other is killed with SIGKILL, whenever the one before has been replaced and every lock has three
    votes again. Nobody else gets any of them, and of those whose keys are where chance puts them, many are lost."""
    names = [f"job {number}" for number in range(NAMES)]
    options = {"key_validity": KEY_VALIDITY, "extend_interval": EXTEND_INTERVAL}
    async with (
        own_cluster(kind) as cluster,
        Locker(cluster.urls[3], spread_keys=True, **options) as locker,
        Locker(cluster.urls[4], spread_keys=True, key_validity=1.0) as other,
        Locker(cluster.urls[5], **options) as plain,
    ):
        scopes = dict(zip(names, await asyncio.gather(*map(locker.acquire, names)), strict=True))
        by_chance = await asyncio.gather(*map(plain.acquire, names))
        rival = Rival(other, {name: scopes[name] for name in names[:10]})
        for number, victim in enumerate(primaries(cluster)):
            await until(lambda: all(map(has_three_votes, scopes.values())), 30)
            victim.kill()
            # 30 s: no promise, but by then the machine is to blame.
            await asyncio.to_thread(cluster.wait_until_ok, 30)
            assert {name: scope.lost_reason for name, scope in scopes.items() if not scope.held} == {}
            if not number:
                lost = sum(not scope.held for scope in by_chance)
                assert NAMES / 10 < lost < NAMES / 2  # two keys or three on that shard: 7 in 27
                for scope in by_chance:
                    await scope.release()
            victim.start()
            await asyncio.to_thread(cluster.wait_until_ok, 30)
        await until(lambda: all(map(has_three_votes, scopes.values())), 30)
        await rival.stop()
        assert rival.tries > 100 and not rival.got
        layout = Spread(b"asynclock", 3)
        for name in names[:20]:
            assert all(cluster.primary_of(found).execute("EXISTS", found) for found in layout.keys(name.encode()))
            assert not cluster.primary_of(key(name)).execute("EXISTS", key(name))
        for scope in scopes.values():
            scope.check()
        await asyncio.gather(*(scope.release() for scope in scopes.values()))
        await no_keys(cluster)


def has_three_votes(scope: LockScope) -> bool:
    assert scope.held, scope.lost_reason
    return sum(left > 0 for left in internals.votes(scope)) == 3
