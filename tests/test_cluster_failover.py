"""Nodes that fail, hang, come back, or hand over: what is held, by whom, and what can be had meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator

import pytest

from asynclock import AcquireTimeoutError, Locker, NotLockedError, ServerError
from asynclock.testing import Cluster, Server
from asynclock.wire.node import Node
from tests.support import internals
from tests.support.cluster import Rival, execute, no_keys, on_one, own_cluster, owner_of, primaries, spread
from tests.support.helpers import AT_ONCE, body, key, until

# 1.5 s until a node counts as failed, an election after that, and a look at the slots.
TAKEN_OVER = 8.0


@pytest.fixture
def planned(kind: str) -> None:
    if kind == "redis-6.2":
        pytest.skip("its nodes often never finish a planned failover; those that crash are replaced all the same")


@pytest.mark.usefixtures("planned")
@pytest.mark.asyncio
async def test_a_planned_failover(cluster: Cluster) -> None:
    primary = primaries(cluster)[0]
    (replica,) = cluster.replicas_of(primary)
    names = [next(spread(cluster)), next(on_one(cluster, primary, 2)), next(on_one(cluster, primary, 3))]
    async with Locker(cluster.url, key_validity=2.0) as locker, Locker(cluster.urls[1]) as other:
        scopes = {name: await locker.acquire(name) for name in names}
        rival = Rival(other, scopes)
        await asyncio.sleep(0.05)
        await asyncio.to_thread(cluster.failover, replica)
        await asyncio.sleep(2.2)  # more than a validity
        assert rival.tries > 50
        await rival.stop()
        assert [scope.lost_reason for scope in scopes.values()] == [None] * 3 and not rival.got
        holding = await body(scopes[names[1]])
        assert owner_of(cluster)(key(names[2])) is replica
        mine = [index for index in range(3) if owner_of(cluster)(key(names[1], index)) is replica]
        since = time.monotonic()
        replica.execute("DEL", key(names[1], mine[0]))
        replica.execute("DEL", key(names[1], mine[1]))
        assert (await holding.lost_within(AT_ONCE, since)).reason == "deleted"
        for scope in scopes.values():
            await scope.release()
    await no_keys(cluster)


@pytest.mark.usefixtures("planned")
@pytest.mark.asyncio
async def test_told_at_once_right_after_a_failover(cluster: Cluster) -> None:
    """Long before the next extension, and nobody has asked the new primary to tell: the old one does, as soon
    as it follows the new one, which takes a moment."""
    primary = primaries(cluster)[1]
    (replica,) = cluster.replicas_of(primary)
    name = next(on_one(cluster, primary, 3, "right after"))
    async with Locker(cluster.url, key_validity=20.0) as locker, Locker(cluster.urls[1]) as other:
        holding = await body(await locker.acquire(name))
        waiting = asyncio.create_task(other.acquire(name))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(cluster.failover, replica)
        since = time.monotonic()
        for index in range(3):
            replica.execute("DEL", key(name, index))
        assert (await holding.lost_within(4.0, since)).reason in ("deleted", "flushed", "forgotten")
        async with await asyncio.wait_for(waiting, 2) as scope:
            assert scope.held
    await no_keys(cluster)


@pytest.fixture(params=["no", "yes"])
def coverage(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[str]:
    """Whether a cluster that lacks some slots serves none of the others either."""
    for server in cluster.servers:
        server.execute("CONFIG", "SET", "cluster-require-full-coverage", request.param)
    yield request.param
    for server in cluster.servers:
        server.start()
        server.execute("CONFIG", "SET", "cluster-require-full-coverage", "yes")


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_primary_is_killed(cluster: Cluster, coverage: str) -> None:
    async with (
        Locker(cluster.url, key_validity=4.0) as locker,
        Locker(cluster.urls[1], key_validity=12.0, extend_interval=0.5, disconnect_grace=12.0) as patient,
        Locker(cluster.urls[2]) as other,
    ):
        victim = primaries(cluster)[0]
        (heir,) = cluster.replicas_of(victim)
        one = [await locker.acquire(name) for name, _ in zip(spread(cluster), range(5), strict=False)]
        two = await body(await locker.acquire(next(on_one(cluster, victim, 2, "two"))))
        graced = await patient.acquire(next(on_one(cluster, victim, 2, "graced")))
        await asyncio.sleep(0.1)
        rival = Rival(other, {scope.name: scope for scope in [*one, two.scope, graced]})
        new = spread(cluster, "new")
        since = time.monotonic()
        victim.kill()
        error = await two.lost_within(AT_ONCE, since)
        assert error.reason == "disconnected" and str(victim.port) in str(error)
        for _ in range(20):  # before anybody but clients has noticed
            started = time.monotonic()
            async with locker.with_context(next(new)):
                assert time.monotonic() - started < AT_ONCE
            await asyncio.sleep(0.02)
        had, longest = 0, 0.0
        while owner_of(cluster)("") is victim or owner_of(cluster)(key(one[0].name)) is victim or had < 50:
            started = time.monotonic()
            assert started - since < TAKEN_OVER
            async with locker.with_context(next(new), timeout=TAKEN_OVER):
                longest = max(longest, time.monotonic() - started)
                had += 1
            await asyncio.sleep(0.03)
        await asyncio.to_thread(cluster.wait_until_ok)
        assert longest < (0.5 if coverage == "no" else TAKEN_OVER), longest
        await asyncio.sleep(max(0.0, since + 4.1 - time.monotonic()))  # more than the validity
        assert [scope.lost_reason for scope in one] == [None] * 5
        assert graced.held
        # All keys are where they belong now, by the next extension at the latest.
        await until(lambda: all(execute(cluster, "EXISTS", key(one[0].name, index)) for index in range(3)), 3)

        victim.start()
        await asyncio.to_thread(cluster.wait_until_ok)
        assert victim in cluster.replicas_of(heir)
        await asyncio.sleep(0.1)
        assert graced.held and all(scope.held for scope in one)
        await rival.stop()
        assert rival.tries > 100 and rival.got.keys() <= {two.scope.name}
        holding = await body(one[0])
        mine = [index for index in range(3) if owner_of(cluster)(key(one[0].name, index)) is heir]
        others = [index for index in range(3) if index not in mine]
        owners = {index: cluster.primary_of(key(one[0].name, index)) for index in (mine[0], others[0])}
        since = time.monotonic()
        for index, owner in owners.items():
            owner.execute("DEL", key(one[0].name, index))
        assert (await holding.lost_within(AT_ONCE, since)).reason == "deleted"
        for scope in (*one, graced):
            await scope.release()
        await no_keys(cluster)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_every_node_is_killed_and_comes_back(kind: str) -> None:
    async with own_cluster(kind) as cluster:
        async with Locker(cluster.url) as locker, Locker(cluster.urls[3]) as other:
            holding = await body(await locker.acquire("job"))
            waiting = asyncio.create_task(other.acquire("job"))
            await asyncio.sleep(0.1)
            since = time.monotonic()
            for server in cluster.servers:
                server.kill()
            error = await holding.lost_within(AT_ONCE, since)
            assert error.reason == "disconnected"
            with pytest.raises(AcquireTimeoutError, match=r"127\.0\.0\.1"):
                await locker.acquire("job", timeout=0.2)
            with pytest.raises(ServerError, match=r"127\.0\.0\.1"):
                await locker.try_acquire("job")

            def come_back() -> None:
                for server in cluster.servers:
                    server.start()
                cluster.wait_until_ok(20)

            closing = Locker(cluster.url)
            with pytest.raises(ServerError, match="cannot be reached"):
                await closing.acquire("job")
            await closing.aclose()
            await asyncio.to_thread(come_back)
            async with await asyncio.wait_for(waiting, 5) as scope:
                assert scope.held
                with pytest.raises(NotLockedError):
                    await locker.try_acquire("job")
            await (await locker.acquire("job", timeout=5)).release()
            await no_keys(cluster)
            for server in cluster.servers:
                server.kill()
            await asyncio.sleep(0.2)
            since = time.monotonic()
        assert time.monotonic() - since < AT_ONCE  # closed, both


@pytest.mark.asyncio
async def test_closed_at_any_moment_after_a_primary_died(kind: str) -> None:
    async with own_cluster(kind, replicas=0, cluster_require_full_coverage="no") as cluster:
        lockers = [Locker(cluster.url) for _ in range(8)]
        victim = primaries(cluster)[1]
        name = next(on_one(cluster, victim, 2))
        for locker in lockers:
            await locker.__aenter__()
        holding = await body(await lockers[0].acquire(name))
        waiting = [asyncio.create_task(locker.acquire(name)) for locker in lockers[1:]]
        await asyncio.sleep(0.05)
        victim.kill()
        await holding.lost_within(AT_ONCE, time.monotonic())
        for number, locker in enumerate(lockers):
            since = time.monotonic()
            await locker.aclose()
            assert time.monotonic() - since < AT_ONCE
            await asyncio.sleep(0.03 * number)
        assert all(task.done() for task in waiting)
        await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_shard_without_a_replica_is_down_and_comes_back_slowly(kind: str) -> None:
    """CLUSTERDOWN while it is gone, and while it loads (LOADING it would say only after that word): whoever
    waits just waits, and whoever does not is told."""
    if kind == "redis-6.2":
        pytest.skip("it has no loading-process-events-interval-bytes, and says nothing while it loads so little")
    slowly = {"key-load-delay": "2000", "loading-process-events-interval-bytes": "1024"}
    async with (
        own_cluster(kind, replicas=0, **slowly) as cluster,
        Locker(cluster.url) as locker,
        Locker(cluster.url) as other,
    ):
        victim = primaries(cluster)[1]
        tag = next(f"{{{number}}}" for number in itertools.count() if owner_of(cluster)(f"{{{number}}}") is victim)
        much = {f"{tag} {number}": "x" * 100 for number in range(1500)}
        victim.execute("MSET", *itertools.chain(*much.items()))
        victim.execute("SAVE")
        name = next(on_one(cluster, victim, 2))
        there = next(on_one(cluster, victim, 0))
        victim.kill()
        alive = [server for server in cluster.servers if server is not victim]
        await until(lambda: all("CLUSTERDOWN" in told(server, "GET", key(there)) for server in alive), 10)
        for _ in range(3):
            with pytest.raises(AcquireTimeoutError) as missed:
                await locker.acquire(there, timeout=0.1)
        with pytest.raises(ServerError, match="CLUSTERDOWN"):
            await locker.try_acquire(there)
        with pytest.raises(AcquireTimeoutError, match=f":{victim.port}"):
            await locker.acquire(name, timeout=0.1)
        assert missed.value.name == there
        waiting = asyncio.create_task(locker.acquire(name))
        starting = asyncio.create_task(asyncio.to_thread(victim.start))
        answers = set()
        while not starting.done():
            with contextlib.suppress(NotLockedError):
                try:
                    await (await other.try_acquire(name)).release()
                except ServerError as error:
                    answers.add(str(error))
            await asyncio.sleep(0.02)
        await starting
        assert any(": CLUSTERDOWN" in answer or ": LOADING" in answer for answer in answers), answers
        await (await asyncio.wait_for(waiting, 10)).release()
        await (await locker.acquire(there, timeout=10)).release()
        await no_keys(cluster, only="asynclock:*")


def told(server: Server, *command: str) -> str:
    try:
        return str(server.execute(*command))
    except RuntimeError as error:
        return str(error)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_node_that_hangs(kind: str) -> None:
    """While connecting, while the slots are looked at, and while locks are wanted."""
    async with own_cluster(kind, replicas=0, cluster_node_timeout="20000") as cluster:
        hung = primaries(cluster)[1]
        name = next(spread(cluster))
        seeds = [server.url for server in cluster.servers if server is not hung]
        hung.pause()
        # The only seed: the timeout holds, and so does aclose.
        locker = Locker(hung.url)
        since = time.monotonic()
        with pytest.raises(AcquireTimeoutError, match="has not answered"):
            await locker.acquire(name, timeout=0.2)
        await locker.aclose()
        assert time.monotonic() - since < 0.5
        # One of the shards: a second at most, and then two of three keys are enough.
        since = time.monotonic()
        async with Locker(seeds[0]) as locker:
            assert time.monotonic() - since < 2
            since = time.monotonic()
            async with locker.with_context(name):
                assert time.monotonic() - since < AT_ONCE
            hung.resume()
            nodes = internals.nodes(locker)
            await until(lambda: all(node.connection is not None for node in nodes), 8)
            # The one that is asked for the slots: it is not waited for longer than a second.
            topology = internals.topology(locker)
            hung.pause()
            for _ in range(3):
                topology.refresh_soon()  # type: ignore[attr-defined]
                await asyncio.sleep(0.15)
                async with locker.with_context(name, timeout=1):
                    pass
            since = time.monotonic()
        assert time.monotonic() - since < AT_ONCE
        hung.resume()
        await no_keys(cluster)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_node_that_comes_back_without_its_nodes_conf(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its old address there is a node of no cluster now, which knows of no slots. It is not believed."""
    async with own_cluster(kind, replicas=0, cluster_require_full_coverage="no") as cluster:
        primary = primaries(cluster)[0]
        name = next(on_one(cluster, primary, 1))
        async with Locker(primary.url) as locker:
            nodes = internals.nodes(locker)
            primary.kill()
            assert primary._guard is not None
            (primary._guard.directory / "nodes.conf").unlink()
            primary.start()
            await until(lambda: all(node.connection is not None for node in nodes))

            def that_first(nodes: list[Node]) -> None:
                nodes.sort(key=lambda node: node.connector.port != primary.port)

            monkeypatch.setattr("asynclock.topology.cluster.random.shuffle", that_first)  # else it is by chance
            for _ in range(5):
                internals.topology(locker).refresh_soon()
                await asyncio.sleep(0.15)
                async with locker.with_context(name, timeout=1) as scope:
                    assert scope.held


@pytest.mark.usefixtures("planned")
@pytest.mark.asyncio
async def test_roles_may_change_as_often_as_they_like(cluster: Cluster) -> None:
    """A seed that is a replica by now, and one that is a primary again: both lead to all of it."""
    primary = primaries(cluster)[2]
    (replica,) = cluster.replicas_of(primary)
    async with Locker(primary.url) as locker:
        await asyncio.to_thread(cluster.failover, replica)
        for url in (primary.url, replica.url):
            async with Locker(url) as other:
                for name in itertools.islice(spread(cluster), 5):
                    async with locker.with_context(name):
                        with pytest.raises(NotLockedError):
                            await other.try_acquire(name)
    await no_keys(cluster)


@pytest.mark.usefixtures("planned")
@pytest.mark.asyncio
async def test_what_a_hung_primary_was_to_release_is_released_by_its_heir(cluster: Cluster) -> None:
    primary = primaries(cluster)[0]
    (replica,) = cluster.replicas_of(primary)
    async with Locker(primary.url, key_majority=1, key_validity=30.0) as locker:
        mine = (f"heir {number}" for number in itertools.count())
        name = next(name for name in mine if owner_of(cluster)(key(name)) is primary)
        scope = await locker.acquire(name)
        await asyncio.sleep(0.1)  # until the replica has it too
        primary.pause()
        try:
            since = time.monotonic()
            await scope.release()
            assert time.monotonic() - since < 0.5
            await asyncio.to_thread(cluster.failover, replica, force=True)
            assert replica.execute("EXISTS", key(name)) == 1
            await no_keys(cluster, 6)
            since = time.monotonic()
        finally:
            primary.resume()
    assert time.monotonic() - since < 0.5
    await asyncio.to_thread(cluster.wait_until_ok)
