"""Refreshing a cluster's slots: what ends it, and what must not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio.cluster import RedisCluster

from asynclock import Locker
from asynclock.testing import Cluster
from asynclock.topology.cluster import Cluster as Topology
from tests.support import internals
from tests.support.builds import only_pure
from tests.support.cluster import asking, primaries
from tests.support.helpers import key, until


def topology_of(locker: Locker) -> Topology:
    topology = internals.topology(locker)
    assert isinstance(topology, Topology)
    return topology


@only_pure
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
            await internals.disconnect(locker)

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
            monkeypatch.setattr(node.connection, "call", taps(node.connection.call))
        topology.refresh_soon()
        await asyncio.wait_for(closing, 5)
        assert all(node.closed for node in topology.nodes)
        assert {node.connector.host for node in topology.nodes} == {"127.0.0.1"}
    await client.aclose()


@pytest.mark.asyncio
async def test_an_error_that_nobody_has_thought_of_is_told_and_looking_goes_on(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with Locker(cluster.url) as locker:
        topology = topology_of(locker)
        apply = topology._apply
        troubles = [RuntimeError("first"), RuntimeError("second"), RuntimeError("second")]
        through = asyncio.Event()

        def troubled(ranges: Any) -> None:
            if troubles:
                raise troubles.pop(0)
            apply(ranges)
            through.set()

        monkeypatch.setattr(topology, "_apply", troubled)
        topology.refresh_soon()  # once, and no other sign is given
        await asyncio.wait_for(through.wait(), 5)
    told = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [str(record.exc_info[1]) for record in told if record.exc_info] == ["first", "second"]  # not twice the same
    assert all("slots" in record.message for record in told)


@pytest.mark.asyncio
async def test_a_look_that_somebody_cancelled_is_not_the_last(cluster: Cluster) -> None:
    """As by a program that ends by cancelling all tasks that there are."""
    async with Locker(cluster.url) as locker:
        topology = topology_of(locker)
        topology.refresh_soon()
        refreshing = topology.refreshing._task
        assert refreshing is not None
        refreshing.cancel()
        await asyncio.wait([refreshing])
        before = topology._asked_at
        topology.refresh_soon()
        await until(lambda: topology._asked_at > before)


@pytest.mark.asyncio
async def test_an_address_remap_that_raises(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """For the slots as well as for a redirection: the cluster's own address is used, and that is told."""
    table = {("127.0.0.1", server.port): ("127.0.0.1", server.port) for server in cluster.servers}
    client = RedisCluster.from_url(cluster.url, address_remap=lambda address: table[address])
    async with Locker(client, key_majority=1, key_validity=1.0) as locker:
        topology = topology_of(locker)
        scope = await locker.acquire("job")
        wires = {node.connection for node in topology.nodes}
        slot = cluster.slot_of(key("job"))
        source = cluster.owner(slot)
        target = next(server for server in primaries(cluster) if server is not source)
        table.clear()
        await asyncio.to_thread(cluster.migrate, slot, target)
        await until(lambda: topology._owners[slot].connector.port == target.port)  # type: ignore[union-attr]
        await asyncio.sleep(1.2)  # more than a validity: it was extended there
        assert scope.held and target.execute("EXISTS", key("job")) == 1
        assert {node.connection for node in topology.nodes} == wires  # no connection was lost by it
        await scope.release()
        told = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert all("address_remap" in message and "KeyError" in message for message in told)
        assert len(told) == len(set(told)) == 3  # once for each node, however often it is asked
    async with Locker(client) as locker, locker.with_context("job") as scope:  # with none from the first look on
        assert scope.held
    await client.aclose()


@pytest.mark.asyncio
async def test_an_address_remap_that_raises_for_a_redirection(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """It is called in the middle of what the connection has received, and the rest of that is read all the same."""
    broken = False

    def remap(address: tuple[str, int]) -> tuple[str, int]:
        if broken:
            raise LookupError("no such node")
        return address

    client = RedisCluster.from_url(cluster.url, address_remap=remap)
    async with Locker(client, key_majority=1) as locker:
        slot = cluster.slot_of(key("job"))
        source = cluster.owner(slot)
        target = next(server for server in primaries(cluster) if server is not source)
        wires = {node.connection for node in topology_of(locker).nodes}
        await asyncio.to_thread(cluster.begin_migration, slot, target)
        broken = True
        async with locker.with_context("job") as scope:  # sent on with ASK
            assert scope.held and asking(target, "EXISTS", key("job")) == 1
        assert {node.connection for node in topology_of(locker).nodes} == wires
        await asyncio.to_thread(cluster.finish_migration, slot, target)
    await client.aclose()
    assert "address_remap" in caplog.text and "LookupError: no such node" in caplog.text
