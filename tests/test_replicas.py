"""``min_replicas``: a lock counts once so many replicas have its key. Real replication, paused and killed."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import pytest
import pytest_asyncio

from asynclock import AcquireTimeoutError, ConfigurationError, Locker, NotLockedError, ServerError
from asynclock.core.keys import Spread
from asynclock.testing import Cluster, Sentinels, Server
from asynclock.wire.commands import bulk
from asynclock.wire.markers import tag_of
from tests.support import internals
from tests.support.helpers import AT_ONCE, body, key, until
from tests.support.interceptor import TwoServers

SOON = {"repl-diskless-sync": "yes", "repl-diskless-sync-delay": "0"}
# The second: a busy machine's server is late to say so.
NOT_ENOUGH = (
    r"0 of 1 replicas have key 'asynclock:0:job' within 20 ms \(min_replicas\); is replication up\?"
    r"|WAIT for 1 replicas was not answered within 20 ms"
)


def info(server: Server, section: str) -> dict[str, str]:
    text = server.execute("INFO", section)
    assert isinstance(text, bytes)
    return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)


def calls(server: Server, command: str) -> int:
    stats = info(server, "commandstats").get(f"cmdstat_{command.lower()}", "calls=0,")
    return int(stats.split("calls=")[1].split(",")[0])


def keys(server: Server) -> object:
    """Every key that is there."""
    return server.execute("KEYS", "*")


async def in_sync(primary: Server, *replicas: Server) -> None:
    """Until these replicas have everything, and the primary counts them."""

    def online() -> int:
        return sum("state=online" in value for value in info(primary, "replication").values())

    await until(lambda: online() >= len(replicas), 20)
    offset = int(info(primary, "replication")["master_repl_offset"])
    for replica in replicas:
        await until(lambda replica=replica: int(info(replica, "replication")["slave_repl_offset"]) >= offset, 20)  # type: ignore[misc]


@contextlib.contextmanager
def started(kind: str, replicas: int) -> Iterator[list[Server]]:
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(Server(kind, config=SOON))
        follow = {**SOON, "replicaof": f"127.0.0.1 {primary.port}"}
        yield [primary, *(stack.enter_context(Server(kind, config=follow)) for _ in range(replicas))]


@pytest.fixture(scope="module")
def shared_pair(kind: str) -> Iterator[list[Server]]:
    with started(kind, 1) as servers:
        yield servers


@pytest_asyncio.fixture
async def pair(shared_pair: list[Server]) -> AsyncIterator[list[Server]]:
    """A primary and its replica, in step and without keys; both run again after the test."""
    primary, replica = shared_pair
    primary.execute("FLUSHALL")
    await in_sync(primary, replica)
    yield shared_pair
    replica.resume()
    replica.start()


async def acquired(locker: Locker, name: str = "job") -> float:
    """Take it and give it back; returns how long that took."""
    since = time.perf_counter()
    async with locker.with_context(name):
        pass
    return time.perf_counter() - since


@pytest.mark.asyncio
@pytest.mark.parametrize("majority", [1, 2])
async def test_held_only_once_the_replica_has_the_key(pair: list[Server], majority: int) -> None:
    primary, replica = pair
    async with Locker(primary.url, min_replicas=1, key_majority=majority) as locker:
        for number in range(50):
            scope = await locker.acquire(f"job {number}")
            # What the replica has acknowledged, it has: no waiting here.
            held = sum(replica.execute("EXISTS", key(f"job {number}", index)) == 1 for index in range(2 * majority - 1))
            assert held >= majority
            await scope.release()
        async with locker.force_with_context("job"):
            assert replica.execute("EXISTS", key("job")) == 1
    assert keys(primary) == []
    await until(lambda: keys(replica) == [])


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["paused", "stopped"])
async def test_no_lock_without_its_replica_and_nothing_left_behind(pair: list[Server], how: str) -> None:
    primary, replica = pair
    async with Locker(primary.url, min_replicas=1) as locker, Locker(primary.url) as careless:
        if how == "paused":
            replica.pause()
        else:
            replica.stop()
        since = time.monotonic()
        with pytest.raises(AcquireTimeoutError, match=NOT_ENOUGH):
            await locker.acquire("job", timeout=0.3)
        assert 0.29 < time.monotonic() - since < 0.3 + AT_ONCE
        assert keys(primary) == []
        for attempt in (locker.try_acquire, locker.force_acquire):
            since = time.monotonic()
            with pytest.raises(ServerError, match=NOT_ENOUGH) as caught:
                await attempt("job")
            assert not caught.value.lasting
            assert time.monotonic() - since < AT_ONCE  # try_next_after and a little are meant
            await until(lambda: keys(primary) == [])
        await acquired(careless)  # which does not wait for replicas
        waiting = asyncio.create_task(locker.acquire("job"))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        if how == "paused":
            replica.resume()
        else:
            replica.start()
        scope = await asyncio.wait_for(waiting, 20)
        assert replica.execute("EXISTS", key("job")) == 1
        await scope.release()
    assert keys(primary) == []
    await in_sync(primary, replica)
    assert keys(replica) == []


@pytest.mark.asyncio
async def test_more_replicas_than_there_are(pair: list[Server]) -> None:
    primary, _ = pair
    # A busy machine may take longer than the usual 20 ms to say so.
    async with Locker(primary.url, min_replicas=2, try_next_after=0.3) as locker:
        with pytest.raises(ServerError, match=r"1 of 2 replicas have key 'asynclock:0:job' within 300 ms"):
            await locker.try_acquire("job")
        await until(lambda: keys(primary) == [])


@pytest.mark.asyncio
async def test_an_address_that_leads_to_two_servers(pair: list[Server], server: Server) -> None:
    """As during a failover: a WAIT on one of them says nothing about writes to the other."""
    async with TwoServers(pair[0].port, server.port) as balancer:
        with pytest.raises(ServerError, match=r"two servers; is a failover under way\? \(min_replicas\)") as caught:
            await Locker(balancer.url, min_replicas=1).acquire("job", timeout=2)
        assert not caught.value.lasting


@pytest.mark.asyncio
async def test_a_held_lock_whose_replica_dies_is_lost_at_its_deadline(pair: list[Server]) -> None:
    primary, replica = pair
    async with Locker(primary.url, min_replicas=1, key_validity=0.8) as locker:
        holding = await body(await locker.acquire("job"))
        await asyncio.sleep(1.0)  # longer than the validity: extensions are confirmed, too
        assert holding.scope.held
        replica.pause()
        paused, remaining = time.monotonic(), holding.scope.remaining()
        assert remaining > 0.2
        error = await holding.lost_within(remaining + 0.1, paused)
        assert error.reason == "expired"
        # What the primary answered last, or that it did not in the time that it has, which is short.
        assert "0 of 1 replicas have key 'asynclock:0:job'" in error.detail or "WAIT for 1 replicas" in error.detail
        assert holding.stopped is not None
        # Not before: at most one extension was acknowledged between the last look and the pause.
        assert holding.stopped - paused > remaining - 0.01
        await until(lambda: keys(primary) == [])


@pytest.mark.asyncio
async def test_a_held_lock_outlives_a_short_gap(pair: list[Server]) -> None:
    primary, replica = pair
    async with Locker(primary.url, min_replicas=1, key_validity=2, extend_interval=0.2) as locker:
        holding = await body(await locker.acquire("job"))
        replica.pause()
        await asyncio.sleep(0.6)  # three extensions that nobody acknowledges
        replica.resume()
        await asyncio.sleep(2.0)  # longer than the validity
        assert holding.scope.held
        holding.scope.cancel()
        await holding.task


@pytest.mark.asyncio
async def test_a_cancelled_wait_leaves_nothing(pair: list[Server]) -> None:
    primary, replica = pair
    async with Locker(primary.url, min_replicas=1, try_next_after=3) as locker:
        replica.pause()
        tasks = [asyncio.create_task(locker.acquire(f"job {number}")) for number in range(20)]
        await until(lambda: info(primary, "clients")["blocked_clients"] == "1")
        assert len(primary.execute("KEYS", "*")) == 20  # type: ignore[arg-type]
        for task in tasks:
            task.cancel()
        since = time.monotonic()
        await asyncio.wait(tasks)
        assert time.monotonic() - since < AT_ONCE  # not for as long as the WAIT may take
        assert all(task.cancelled() for task in tasks)
        assert keys(primary) == []
        replica.resume()
        assert await acquired(locker, "job 0") < 2
    await in_sync(primary, replica)
    assert keys(primary) == keys(replica) == []


@pytest.mark.asyncio
async def test_closed_in_the_middle_of_a_wait(pair: list[Server]) -> None:
    primary, replica = pair
    async with Locker(primary.url, min_replicas=1, try_next_after=3) as locker:
        held = await body(await locker.acquire("held"))
        replica.pause()
        waiting = asyncio.create_task(locker.acquire("job"))
        await until(lambda: info(primary, "clients")["blocked_clients"] == "1")
        since = time.monotonic()
    assert time.monotonic() - since < 2 * AT_ONCE  # not for as long as the WAIT may take
    await asyncio.wait([held.task, waiting])
    assert waiting.exception() is not None
    await until(lambda: keys(primary) == [])
    await until(lambda: "asynclock" not in str(primary.execute("CLIENT", "LIST")))


def connections(server: Server) -> dict[str, str]:
    """The ids of asynclock's connections, and what each has asked last."""
    listed = server.execute("CLIENT", "LIST")
    assert isinstance(listed, bytes)
    clients = [dict(word.split("=", 1) for word in line.split()) for line in listed.decode().splitlines()]
    return {client["id"]: client["cmd"] for client in clients if client["name"].startswith("asynclock")}


@pytest.mark.asyncio
@pytest.mark.parametrize("which", ["main", "side"])
async def test_a_connection_is_dropped_in_the_middle_of_a_wait(pair: list[Server], which: str) -> None:
    """Both are made anew. What was under way is told so, and tried again; what is held stays held."""
    primary, replica = pair
    async with Locker(primary.url, min_replicas=1, try_next_after=1) as locker:
        holding = await body(await locker.acquire("held"))
        replica.pause()
        waiting = asyncio.create_task(locker.acquire("job"))
        await until(lambda: "wait" in connections(primary).values())
        first = connections(primary)
        assert len(first) == 2
        victim = next(id for id, command in first.items() if (command == "wait") == (which == "side"))
        primary.execute("CLIENT", "KILL", "ID", victim)
        replica.resume()
        scope = await asyncio.wait_for(waiting, 5)
        now = connections(primary)
        assert len(now) == 2
        assert not now.keys() & first.keys()
        assert holding.scope.held
        assert replica.execute("EXISTS", key("job")) == 1
        await scope.release()
        holding.scope.cancel()
        await holding.task
    assert keys(primary) == []


def side_transport(locker: Locker) -> asyncio.Transport:
    """Of the connection for WAIT: whoever stops reading there hears no more of it, as behind a proxy that has hung."""
    node = internals.node(locker)
    assert node.replicas is not None
    transport = node.replicas._side._transport
    return cast(asyncio.Transport, transport)


@pytest.mark.asyncio
async def test_a_wait_that_is_never_answered(pair: list[Server]) -> None:
    """It counts as failed, soon; nobody waits for it after that; and it does not stay so."""
    primary, _ = pair
    async with Locker(primary.url, min_replicas=1) as locker:
        await acquired(locker)
        before = connections(primary).keys()
        side_transport(locker).pause_reading()
        since = time.monotonic()
        with pytest.raises(ServerError, match=r"WAIT for 1 replicas was not answered within 20 ms"):
            await locker.try_acquire("job")
        assert 0.02 < time.monotonic() - since < AT_ONCE
        since = time.monotonic()
        with pytest.raises(ServerError, match=r"does the server hang\?"):
            await locker.try_acquire("job")
        assert time.monotonic() - since < AT_ONCE
        scope = await locker.acquire("job", timeout=10)
        assert len(connections(primary).keys() - before) == 2
        await scope.release()
        await until(lambda: keys(primary) == [])


@pytest.mark.asyncio
async def test_a_wait_that_is_answered_late(pair: list[Server]) -> None:
    primary, _ = pair
    async with Locker(primary.url, min_replicas=1) as locker:
        await acquired(locker)
        before = connections(primary).keys()
        side_transport(locker).pause_reading()
        with pytest.raises(ServerError, match="not answered within 20 ms"):
            await locker.try_acquire("job")
        side_transport(locker).resume_reading()
        assert await acquired(locker) < 1
        assert connections(primary).keys() == before
    assert keys(primary) == []


@pytest.mark.asyncio
async def test_a_thousand_locks_share_a_few_waits(pair: list[Server]) -> None:
    primary, replica = pair
    async with Locker(primary.url, min_replicas=1) as locker:
        before = calls(primary, "WAIT")
        since = time.monotonic()
        scopes = await asyncio.gather(*(locker.acquire(f"job {number}") for number in range(1000)))
        took, waits = time.monotonic() - since, calls(primary, "WAIT") - before
        found = replica.execute("DBSIZE")
        print(f"1000 locks in {took * 1000:.0f} ms with {waits} WAITs")
        assert isinstance(found, int)
        assert found >= 1000
        assert waits < 100
        assert took < 5
        await asyncio.gather(*(scope.release() for scope in scopes))
    assert keys(primary) == []


@pytest.mark.asyncio
async def test_nobody_else_pays_for_a_wait(pair: list[Server]) -> None:
    """While WAITs block, one after the other: a locker that waits for no replicas, and what the main
    connection of the locker that does carries for others of its locks, takes the usual time."""
    primary, replica = pair

    async def cycles(locker: Locker) -> float:
        times, end = [], time.monotonic() + 0.3
        while time.monotonic() < end:
            times.append(await acquired(locker, "unconcerned"))
        return statistics.median(times)

    async def round_trips(locker: Locker) -> float:
        """What RELEASE, READ and the questions of waiters cost: they go over the main connection."""
        node = internals.node(locker)
        assert node.connection is not None
        times, end = [], time.monotonic() + 0.3
        while time.monotonic() < end:
            since = time.perf_counter()
            await node.connection.call(b"*2\r\n$3\r\nGET\r\n" + bulk(key("unconcerned").encode()))
            times.append(time.perf_counter() - since)
        return statistics.median(times)

    options = {"min_replicas": 1, "try_next_after": 0.1}
    async with Locker(primary.url, **options) as locker, Locker(primary.url) as careless:  # type: ignore[arg-type]
        await acquired(locker)
        free = await cycles(careless), await round_trips(locker)
        replica.pause()
        before = calls(primary, "WAIT")
        waiting = [asyncio.create_task(locker.acquire(f"job {number}")) for number in range(50)]
        blocked = await cycles(careless), await round_trips(locker)
        waits = calls(primary, "WAIT") - before
        assert waits >= 3
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        for what, one, other in zip(("another locker's cycle", "main connection"), free, blocked, strict=True):
            print(f"{what}: {one * 1e6:.0f} µs, while {waits} WAITs block {other * 1e6:.0f} µs")
            # A WAIT takes up to 100 ms; whoever came behind one would wait for half of that.
            assert other < max(one * 3, 0.02)


@pytest.mark.asyncio
async def test_deleted_while_it_was_waited_for(pair: list[Server]) -> None:
    """The answer that was read before is no vote any more: no lock is held that was gone already."""
    primary, replica = pair
    async with Locker(primary.url, min_replicas=1, try_next_after=0.5) as locker:
        await acquired(locker)
        replica.pause()
        trying = asyncio.create_task(locker.try_acquire("job"))
        await until(lambda: "wait" in connections(primary).values())
        primary.execute("SET", key("job"), "somebody's", "PX", "300")
        await asyncio.sleep(0.02)
        replica.resume()
        with pytest.raises(Exception, match="somebody else holds it"):
            await asyncio.wait_for(trying, 5)
        assert primary.execute("GET", key("job")) == b"somebody's"


@pytest.mark.asyncio
async def test_the_key_is_there_after_a_failover(kind: str) -> None:
    with started(kind, 1) as (primary, replica):
        await in_sync(primary, replica)
        async with Locker(primary.url, min_replicas=1) as locker:
            scopes = await asyncio.gather(*(locker.acquire(f"job {number}") for number in range(20)))
            primary.kill()
            replica.execute("REPLICAOF", "NO", "ONE")
            for number in range(20):
                assert replica.execute("EXISTS", key(f"job {number}")) == 1
            assert len(scopes) == 20


@pytest.mark.asyncio
async def test_two_replicas(kind: str) -> None:
    with started(kind, 2) as (primary, one, two):
        await in_sync(primary, one, two)
        async with Locker(primary.url, min_replicas=2) as both, Locker(primary.url, min_replicas=1) as either:
            scope = await both.acquire("job")
            assert one.execute("EXISTS", key("job")) == two.execute("EXISTS", key("job")) == 1
            await scope.release()
            one.pause()
            await acquired(either)
            # The second: a busy machine's server is late to say so.
            with pytest.raises(ServerError, match=r"1 of 2 replicas have key|WAIT for 2 replicas was not answered"):
                await both.try_acquire("job")
            one.resume()


@pytest.mark.asyncio
async def test_without_permission_to_wait(pair: list[Server]) -> None:
    primary, _ = pair
    primary.execute("ACL", "SETUSER", "app", "on", ">secret", "~asynclock:*", "&*", "+@all", "-wait")
    url = primary.url.replace("redis://", "redis://app:secret@")
    async with Locker(url) as locker:
        await acquired(locker)
    with pytest.raises(ServerError, match=r"permission for WAIT is missing; grant it with ACL SETUSER"):
        async with Locker(url, min_replicas=1):
            pytest.fail("not connected")
    primary.execute("ACL", "SETUSER", "app", "+wait")
    async with Locker(url, min_replicas=1) as locker:
        await acquired(locker)
    primary.execute("ACL", "DELUSER", "app")


@pytest.mark.asyncio
async def test_over_resp2_and_without_tracking(pair: list[Server]) -> None:
    primary, replica = pair
    for url, options in ((primary.url + "?protocol=2", {}), (primary.url, {"client_side_caching": False})):
        async with Locker(url, min_replicas=1, **options) as locker:  # type: ignore[arg-type]
            scope = await locker.acquire("job")
            assert replica.execute("EXISTS", key("job")) == 1
            await scope.release()
    assert keys(primary) == []


@pytest.mark.asyncio
async def test_not_on_independent_servers(server: Server, pair: list[Server], own_server: Server) -> None:
    with pytest.raises(ConfigurationError, match=r"min_replicas=1: 3 independent servers"):
        async with Locker([server.url, pair[0].url, own_server.url], min_replicas=1):
            pytest.fail("not connected")


@pytest.mark.parametrize("name", ["job", "a:b", "{tag}x", "x{tag}y{z}", "ä"])
def test_a_marker_shares_the_slot_of_a_lock(name: str) -> None:
    tag = tag_of(key(name).encode())
    assert tag is not None
    assert Cluster.slot_of(f"asynclock:wait:{{{tag.decode()}}}") == Cluster.slot_of(key(name))


def test_where_it_is_not_as_simple_as_that() -> None:
    assert tag_of(b"a}b") is None
    assert tag_of(b"{}job") is None


@pytest.fixture(scope="module")
def cluster(kind: str) -> Iterator[Cluster]:
    with Cluster(kind) as cluster:
        yield cluster


def replica_of(cluster: Cluster, name: str, index: int = 0) -> Server:
    (replica,) = cluster.replicas_of(cluster.primary_of(key(name, index)))
    return replica


def copy(cluster: Cluster, name: str, index: int = 0) -> object:
    """Whether the replica has that key: 0 or 1. (It redirects who asks for the key itself.)"""
    slot = Cluster.slot_of(key(name, index))
    return replica_of(cluster, name, index).execute("CLUSTER", "COUNTKEYSINSLOT", slot)


@pytest.mark.asyncio
async def test_in_a_cluster(cluster: Cluster) -> None:
    async with Locker(cluster.url, min_replicas=1) as locker:
        for number in range(20):
            scope = await locker.acquire(name := f"job {number}")
            assert sum(copy(cluster, name, index) == 1 for index in range(3)) >= 2
            await scope.release()
        scopes = await asyncio.gather(*(locker.acquire(f"many {number}") for number in range(300)))
        await asyncio.gather(*(scope.release() for scope in scopes))
    for server in cluster.servers[:3]:
        await until(lambda server=server: keys(server) == [])  # type: ignore[misc]


@pytest.mark.asyncio
async def test_a_shard_without_its_replica(cluster: Cluster) -> None:
    async with Locker(cluster.url, min_replicas=1, key_majority=1) as locker:
        primary = cluster.primary_of(key("job"))
        elsewhere = next(f"x{n}" for n in range(99) if cluster.primary_of(key(f"x{n}")) is not primary)
        replica = replica_of(cluster, "job")
        try:
            replica.pause()
            with pytest.raises(ServerError, match=NOT_ENOUGH):
                await locker.try_acquire("job")
            await acquired(locker, elsewhere)  # the other shards go on
            await until(lambda: keys(primary) == [])
            waiting = asyncio.create_task(locker.acquire("job"))
        finally:
            replica.resume()
        await (await asyncio.wait_for(waiting, 20)).release()
    cluster.wait_until_ok()


@pytest.mark.asyncio
async def test_held_while_its_slot_moves(cluster: Cluster) -> None:
    """The slot of the marker moves with that of the lock: markers go to other slots."""
    source = cluster.primary_of(key("job"))
    target = next(server for server in cluster.servers[:3] if server is not source)
    slot = Cluster.slot_of(key("job"))
    async with Locker(cluster.url, min_replicas=1, key_majority=1, key_validity=1) as locker:
        holding = await body(await locker.acquire("job"))

        async def change(method: str, *arguments: object) -> None:
            await asyncio.to_thread(getattr(cluster, method), *arguments)
            await asyncio.sleep(1.2)  # longer than the validity: it is extended, and confirmed
            assert holding.scope.held, method

        await change("begin_migration", slot, target)
        await change("move_keys", slot, target)
        await change("finish_migration", slot, target)
        assert copy(cluster, "job") == 1
        holding.scope.cancel()
        await holding.task
    assert cluster.primary_of(key("job")) is target
    assert keys(target) == []


@pytest.mark.asyncio
async def test_a_confirmation_that_comes_late_brings_no_key_back(cluster: Cluster) -> None:
    """While an extension waits for its replica, somebody else takes its key."""
    spread = [each.decode() for each in Spread(b"asynclock", 3).keys(b"job")]
    homes = [cluster.primary_of(each) for each in spread]
    (replica,) = cluster.replicas_of(homes[0])
    options = {"spread_keys": True, "min_replicas": 1, "try_next_after": 1.0, "key_validity": 3.0}
    async with Locker(cluster.url, **options) as locker:  # type: ignore[arg-type]
        scope = await locker.acquire("job")
        lease = internals.lease(scope)
        await until(lambda: all(lease.votes) and not any(lease.in_flight) and not lease.untracked)
        try:
            replica.pause()
            await until(lambda: lease.in_flight == [1, 0, 0])  # the extension of key 0
            for home in homes[1:]:
                home.execute("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(ServerError):  # takes key 0 only, and gives it back
                await locker.force_acquire("job")
            await until(lambda: lease.in_flight == [1, 0, 0])
            assert lease.votes[0] == 0.0
        finally:
            replica.resume()
            for home in homes[1:]:
                home.execute("CONFIG", "SET", "maxmemory", "0")
        await until(lambda: not any(lease.in_flight))
        assert lease.votes[0] == 0.0 or homes[0].execute("GET", spread[0]) == lease.token
        await scope.release()
    cluster.wait_until_ok()


@pytest.mark.slow
@pytest.mark.asyncio
async def test_held_through_a_failover_of_sentinel(kind: str) -> None:
    """The only replica has the key when the primary dies: the lock is still held on the new primary, but
    cannot be extended there until that one has a replica."""
    if kind == "redis-6.2":
        pytest.skip("asynclock.testing has no Sentinels of Redis 6.2")
    with Sentinels(kind, replicas=1) as sentinels:
        options = {"min_replicas": 1, "key_validity": 20.0, "disconnect_grace": 15.0}
        async with Locker(sentinels.url, **options) as locker, Locker(sentinels.url) as other:  # type: ignore[arg-type]
            holding = await body(await locker.acquire("job"))
            old = sentinels.primary
            old.kill()
            new = await asyncio.to_thread(sentinels.wait_for_failover, old)
            assert new.execute("EXISTS", key("job")) == 1
            with pytest.raises(NotLockedError):
                await retried(other, "job")
            with pytest.raises(ServerError, match="0 of 1 replicas have key"):
                await retried(locker, "another")
            assert holding.scope.held
            await asyncio.to_thread(old.start)
            await (await locker.acquire("another", timeout=20)).release()
            assert holding.scope.held
            holding.scope.cancel()
            await holding.task
            assert keys(new) == []


async def retried(locker: Locker, name: str) -> None:
    """Try to acquire until the servers are found again."""
    async with asyncio.timeout(15):
        while True:
            try:
                await locker.try_acquire(name)
            except ServerError as error:
                if "replicas" in str(error):
                    raise
                await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_wait_for_replicas_of_a_server_that_loses_all_slots_is_no_wait_for_ever(kind: str) -> None:
    """The slots are asked for again, and the old server's connection is dropped after that."""
    if kind != "valkey-9.1":
        pytest.skip("moves slots by CLUSTER MIGRATESLOTS, which Valkey has")

    def third(name: str) -> int:
        return Cluster.slot_of(key(name)) * 3 // 16384

    waits, moved = (next(f"{x}{n}" for n in range(99) if third(f"{x}{n}") == third("job")) for x in "wx")
    with Cluster(kind) as cluster:
        source = cluster.primary_of(key("job"))
        target = next(server for server in cluster.servers[:3] if server is not source)
        ranges = cast(list[list[Any]], source.execute("CLUSTER", "SLOTS"))
        ((first, last),) = ((first, last) for first, last, (_, port, *_), *_ in ranges if port == source.port)
        (replica,) = cluster.replicas_of(source)
        options = {"key_majority": 1, "min_replicas": 1, "key_validity": 6.0, "try_next_after": 2.5}
        async with Locker(cluster.url, **options) as locker:  # type: ignore[arg-type]
            await acquired(locker, "job")
            replica.pause()
            try:
                waiting = asyncio.create_task(locker.acquire(waits, timeout=8))
                await asyncio.sleep(0.3)  # it waits for the replica
                node = target.execute("CLUSTER", "MYID")
                source.execute("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", first, last, "NODE", node)
                await until(lambda: cluster.owner(first) is target, 10)
                await acquired(locker, moved)  # is redirected, so the slots are asked for again
                await (await waiting).release()
            finally:
                replica.resume()
