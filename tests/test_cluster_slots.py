"""Looking at a cluster's slots: what ends the looking, and what must not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio.cluster import RedisCluster

from asynclock import Locker
from asynclock.testing import Cluster
from asynclock.topology.cluster import Cluster as Topology


def topology_of(locker: Locker) -> Topology:
    topology = locker._keeper.topology
    assert isinstance(topology, Topology)
    return topology


@pytest.mark.asyncio
async def test_closed_in_the_moment_in_which_the_slots_are_told(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is there, and whoever waits for it has not gone on yet: nothing is started any more."""
    host = "127.0.0.1"
    client = RedisCluster.from_url(cluster.url, address_remap=lambda address: (host, address[1]))
    async with Locker(client) as locker:
        topology = topology_of(locker)
        loop = asyncio.get_running_loop()
        told = loop.create_future()

        async def close() -> None:
            await told
            await locker._keeper.disconnect()

        def taps(call: Any) -> Any:
            def tapped(data: bytes) -> asyncio.Future[Any]:
                answer: asyncio.Future[Any] = loop.create_future()

                def pass_on(real: asyncio.Future[Any]) -> None:
                    told.set_result(None)  # so the closing goes on first
                    answer.set_result(real.result())

                call(data).add_done_callback(pass_on)
                return answer

            return tapped

        closing = asyncio.create_task(close())
        await asyncio.sleep(0)
        host = "localhost"  # so that whoever looks now finds nothing but new nodes
        for node in topology.nodes:
            monkeypatch.setattr(node.wire, "call", taps(node.wire.call))
        topology.doubt()
        await asyncio.wait_for(closing, 5)
        assert all(node.closed for node in topology.nodes)
        assert {node.door.host for node in topology.nodes} == {"127.0.0.1"}
    await client.aclose()
