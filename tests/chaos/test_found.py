"""What chaos found, each as small as it can be."""

from __future__ import annotations

import pytest

from asynclock import Locker
from asynclock.testing import Cluster


@pytest.mark.xfail(
    strict=True,
    reason="wire/abilities.py looks for the reply to a probe that was never sent: KeyError 'SET PXAT' on every node",
)
@pytest.mark.asyncio
async def test_px_on_a_cluster(cluster: Cluster) -> None:
    async with Locker(cluster.url, fallback_setpx=True) as locker, locker.with_context("job") as scope:
        assert scope.held
