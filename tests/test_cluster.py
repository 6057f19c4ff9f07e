"""A cluster: any of its nodes leads to all of it, and a lock there is one like any other."""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from redis.asyncio.cluster import ClusterNode, RedisCluster

from asynclock import AcquireTimeoutError, ConfigurationError, Locker, LossReason, NotLockedError, ServerError
from asynclock.testing import Cluster, Server
from asynclock.testing.ports import HeldPort
from tests.support.cluster import execute, keys, names, no_keys, on_one, owner_of, primaries, spread
from tests.support.helpers import AT_ONCE, body, key, until

pytestmark = pytest.mark.redis_py

# 10 ms are meant and 1 to 3 are typical; two cores with other work need room.


@pytest_asyncio.fixture
async def locker(cluster: Cluster) -> AsyncIterator[Locker]:
    async with Locker(cluster.url) as locker:
        yield locker


@pytest_asyncio.fixture
async def other(cluster: Cluster) -> AsyncIterator[Locker]:
    """Another locker, that came in through another node."""
    async with Locker(cluster.urls[2]) as locker:
        yield locker


# Ways in


@pytest.mark.asyncio
async def test_the_url_of_any_node_will_do(cluster: Cluster) -> None:
    name = next(spread(cluster))
    for server in cluster.servers:  # three of them are replicas
        async with Locker(server.url) as locker:
            async with locker.with_context(name) as scope:
                assert keys(cluster) == {key(name, index).encode() for index in range(3)}
                for index in range(3):
                    assert execute(cluster, "EXISTS", key(name, index)) == 1
                assert scope.held
            assert isinstance(locker.client, RedisCluster)
            assert await locker.client.set("{of the user}", "x")
            assert await locker.client.delete("{of the user}") == 1
        await no_keys(cluster)


@pytest.mark.asyncio
async def test_any_number_of_seeds(cluster: Cluster) -> None:
    for seeds in (cluster.urls, cluster.urls[:2], cluster.urls[:4]):
        async with Locker(seeds) as locker, locker.with_context("job") as scope:
            assert scope.held and len(keys(cluster)) == 3
    held = HeldPort()  # nobody listens there
    try:
        refused = f"redis://127.0.0.1:{held.number}"
        for seeds in ([refused, cluster.url], [cluster.url, refused], [refused, refused, refused, cluster.url]):
            async with Locker(seeds) as locker, locker.with_context("job") as scope:
                assert scope.held
    finally:
        held.close()


@pytest.mark.asyncio
async def test_of_three_seeds_one_is_enough(cluster: Cluster) -> None:
    silent = socket.create_server(("127.0.0.1", 0))  # takes connections, and never says a word
    hung = f"redis://127.0.0.1:{silent.getsockname()[1]}"
    held = HeldPort()  # nobody listens there
    refused = f"redis://127.0.0.1:{held.number}"
    up = cluster.url
    try:
        for seeds in (
            [up, refused, refused],
            [refused, up, refused],
            [refused, refused, up],
            [hung, refused, up],
            [hung, hung, up],
            cluster.urls[:3],
        ):
            since = time.monotonic()
            async with Locker(seeds) as locker:
                assert time.monotonic() - since < 1, seeds  # 5 s are the patience with a seed that hangs
                assert await locker.client.ping()
                async with locker.with_context("job") as scope:
                    assert len(keys(cluster)) == 3 and scope.held
            assert time.monotonic() - since < 1.5, seeds
        with pytest.raises(ServerError, match=f"127.0.0.1:{held.number}.*cannot be reached"):
            await Locker([refused] * 3).acquire("job")
    finally:
        held.close()
        silent.close()


@pytest.mark.asyncio
async def test_a_seed_that_knows_of_no_slots_is_passed_over(cluster: Cluster, kind: str) -> None:
    with Server(kind, config={"cluster-enabled": "yes"}) as lone:
        async with Locker([lone.url, *cluster.urls[:2]]) as locker, locker.with_context("job") as scope:
            assert scope.held and len(keys(cluster)) == 3


@pytest.mark.asyncio
async def test_a_redis_cluster_client(cluster: Cluster) -> None:
    nodes = [ClusterNode("127.0.0.1", server.port) for server in cluster.servers[:2]]
    for client in (
        RedisCluster.from_url(cluster.url),
        RedisCluster(host="127.0.0.1", port=cluster.servers[4].port),
        RedisCluster(startup_nodes=nodes),
    ):
        for _ in range(2):  # before and after it was used, which fills in its list of nodes
            async with Locker(client) as locker:
                assert locker.client is client
                async with locker.with_context("job"):
                    assert len(keys(cluster)) == 3
            assert await client.ping()  # it is the caller's, and still open
        await client.aclose()


@pytest.mark.asyncio
async def test_addresses_are_mapped_as_the_client_says(cluster: Cluster) -> None:
    """As with nodes behind NAT: what the cluster says of itself is not where they can be reached."""
    there = []

    def remap(address: tuple[str, int]) -> tuple[str, int]:
        there.append(address)
        return "localhost", address[1]

    client = RedisCluster.from_url(cluster.url, address_remap=remap)
    async with Locker(client) as locker, locker.with_context("job"):
        assert there and "localhost" in repr(locker) and "127.0.0.1" not in repr(locker)
    await client.aclose()


@pytest.mark.asyncio
async def test_one_password_for_all_nodes(cluster: Cluster) -> None:
    rules = ["on", ">secret", "~asynclock:*", "+get", "+set", "+pttl", "+time", "+eval", "+del", "+pexpire"]
    rules += ["+pexpireat", "+client|tracking", "+client|setname", "+client|setinfo"]
    if b"valkey_version" in cluster.servers[0].execute("INFO", "server"):  # type: ignore[operator]
        rules.append("+delifeq")
    try:
        for server in cluster.servers:
            server.execute("ACL", "SETUSER", "worker", *rules, "+cluster|slots", "+asking")
            server.execute("ACL", "SETUSER", "blind", *rules)
        at = cluster.url.removeprefix("redis://")
        async with Locker(f"redis://worker:secret@{at}") as locker, locker.with_context(next(spread(cluster))) as scope:
            assert scope.held and len(keys(cluster)) == 3
        with pytest.raises(ServerError, match=r"CLUSTER SLOTS.*grant CLUSTER\|SLOTS") as refused:
            await Locker(f"redis://blind:secret@{at}").acquire("job")
        assert refused.value.lasting and refused.value.server in cluster.url
        with pytest.raises(ServerError, match="authentication refused") as refused:
            await Locker(f"redis://worker:guess@{at}").acquire("job")
        assert refused.value.lasting
    finally:
        for server in cluster.servers:
            server.execute("ACL", "DELUSER", "worker", "blind")


@pytest.mark.asyncio
async def test_lists_that_are_no_cluster(cluster: Cluster, server: Server) -> None:
    for mixed in ([cluster.url, server.url], [server.url, cluster.url]):
        with pytest.raises(ConfigurationError, match=f":{server.port}/0 is not"):
            await Locker(mixed).acquire("job")
    for mixed in ([*cluster.urls[:2], server.url], [server.url, *cluster.urls[:2]]):
        with pytest.raises(ConfigurationError, match="is part of a cluster and") as refused:
            await Locker(mixed).acquire("job")
        assert f":{server.port}/0 is not" in str(refused.value)
    client = RedisCluster.from_url(cluster.url)
    with pytest.raises(ConfigurationError, match="RedisCluster"):
        Locker([client, cluster.url, cluster.url])  # type: ignore[list-item]


@pytest.mark.asyncio
async def test_a_node_without_a_cluster(kind: str) -> None:
    with Server(kind, config={"cluster-enabled": "yes"}) as server:
        with pytest.raises(ServerError, match="serves no slots yet") as refused:
            await Locker(server.url).acquire("job")
        assert str(server.port) in refused.value.server


# A lock there


@pytest.mark.asyncio
@pytest.mark.fast
async def test_acquire_try_and_force(cluster: Cluster, locker: Locker, other: Locker) -> None:
    for name in (next(spread(cluster)), next(on_one(cluster, primaries(cluster)[1], 3))):
        holding = await body(await locker.acquire(name))
        with pytest.raises(NotLockedError, match="somebody else"):
            await other.try_acquire(name)
        since = time.monotonic()
        with pytest.raises(AcquireTimeoutError):
            await other.acquire(name, timeout=0.2)
        assert 0.19 < time.monotonic() - since < 0.2 + AT_ONCE  # uvloop counts whole milliseconds
        assert holding.scope.held
        since = time.monotonic()
        taken = await other.force_acquire(name)
        error = await holding.lost_within(AT_ONCE, since)
        assert error.reason is LossReason.TAKEN_OVER and taken.held
        await taken.release()
        await no_keys(cluster)


@pytest.mark.asyncio
async def test_braces_put_all_keys_on_one_shard(cluster: Cluster, locker: Locker, other: Locker) -> None:
    name = "jobs of {tenant 7}"
    assert len({owner_of(cluster)(key(name, index)) for index in range(3)}) == 1
    holding = await body(await locker.acquire(name))
    with pytest.raises(NotLockedError):
        await other.try_acquire(name)
    since = time.monotonic()
    execute(cluster, "DEL", key(name, 0), key(name, 2))
    assert (await holding.lost_within(AT_ONCE, since)).reason == "deleted"


@pytest.mark.asyncio
@pytest.mark.parametrize("majority", [1, 3])
async def test_another_majority(cluster: Cluster, majority: int) -> None:
    async with Locker(cluster.url, key_majority=majority) as locker, locker.with_context("job"):
        assert len(keys(cluster)) == 2 * majority - 1


@pytest.mark.asyncio
async def test_a_release_wakes_who_waits_elsewhere(cluster: Cluster, locker: Locker, other: Locker) -> None:
    took = []
    for name in [name for name, _ in zip(spread(cluster), range(10), strict=False)]:
        scope = await locker.acquire(name)
        waiting = asyncio.create_task(other.acquire(name))
        await asyncio.sleep(0.03)
        assert not waiting.done()
        since = time.monotonic()
        await scope.release()
        await (await waiting).release()
        took.append(time.monotonic() - since)
    assert statistics.median(took) < 0.05, took


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["DEL", "FLUSHALL"])
async def test_a_loss_is_told_at_once(cluster: Cluster, locker: Locker, how: str) -> None:
    took = []
    for name in [name for name, _ in zip(spread(cluster), range(10), strict=False)]:
        owners = [owner_of(cluster)(key(name, index)) for index in range(3)]
        holding = await body(await locker.acquire(name))
        await asyncio.sleep(0.03)  # two votes made it held, and the third may still be on its way
        owners[0].execute(*(("DEL", key(name, 0)) if how == "DEL" else ("FLUSHALL",)))
        await asyncio.sleep(0.01)
        assert holding.scope.held  # with two of three keys
        since = time.monotonic()
        owners[1].execute(*(("DEL", key(name, 1)) if how == "DEL" else ("FLUSHALL",)))
        error = await holding.lost_within(AT_ONCE, since)
        assert error.reason == ("deleted" if how == "DEL" else "flushed")
        assert f"127.0.0.1:{owners[1].port}" in str(error)
        assert holding.stopped is not None
        took.append(holding.stopped - since)
    assert statistics.median(took) < 0.05, took
    await no_keys(cluster)


@pytest.mark.asyncio
async def test_a_key_that_was_deleted_is_put_back(cluster: Cluster) -> None:
    async with Locker(cluster.url, key_validity=1.0) as locker:
        name = next(spread(cluster))
        async with locker.with_context(name):
            execute(cluster, "DEL", key(name, 2))
            await until(lambda: execute(cluster, "EXISTS", key(name, 2)) == 1)
    await no_keys(cluster)


@pytest.mark.asyncio
async def test_many_names_at_once(cluster: Cluster, locker: Locker, other: Locker) -> None:
    """However their keys are spread: each is held once."""
    inside: dict[str, int] = {}

    async def work(locker: Locker, name: str) -> None:
        for _ in range(3):
            async with locker.with_context(name):
                inside[name] = inside.get(name, 0) + 1
                assert inside[name] == 1
                await asyncio.sleep(0)
                inside[name] -= 1

    some = [name for name, _ in zip(names(cluster, lambda owners: True), range(20), strict=False)]
    async with asyncio.timeout(30):
        await asyncio.gather(*(work(each, name) for name in some for each in (locker, other)))
    await no_keys(cluster)


@pytest.mark.asyncio
async def test_px_by_choice(cluster: Cluster) -> None:
    """``SET ... PXAT`` is not even tried then, and is not missed."""
    async with Locker(cluster.url, fallback_setpx=True) as locker, locker.with_context("job") as scope:
        assert scope.held
