"""Slots on the move: a lock there stays held, is heard of, and can be had, before, during and after."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import redis
from redis.asyncio.cluster import RedisCluster

from asynclock import Locker, LockScope, NotLockedError
from asynclock import topology as topologies
from asynclock.core.operations import Operation
from asynclock.testing import Cluster, Proxy, Server
from asynclock.testing.nodes import text, view
from asynclock.wire.commands import split
from asynclock.wire.connection import Expects
from tests.support import internals
from tests.support.builds import only_pure
from tests.support.cluster import asking, counted, execute, moves_at_once, no_keys, owner_of, primaries, spread
from tests.support.helpers import AT_ONCE, body, key, until

BY_PUSH = 0.2  # seconds: a busy machine is slow, but the next extension would be a second later

FRESH = {"cluster-enabled": "yes", "cluster-announce-ip": "127.0.0.1"}

MOMENTS = ["begun", "key moved", "finished"]


@pytest_asyncio.fixture
async def locker(cluster: Cluster) -> AsyncIterator[Locker]:
    """With one key for each name, so that all depends on it."""
    async with Locker(cluster.url, key_majority=1) as locker:
        yield locker


@pytest_asyncio.fixture
async def other(cluster: Cluster) -> AsyncIterator[Locker]:
    async with Locker(cluster.urls[2], key_majority=1) as locker:
        yield locker


class Move:
    """A classic migration of a name's slot, up to some moment of it, and then the rest."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.key = key(name)
        self.slot = cluster.slot_of(self.key)
        self.source = cluster.owner(self.slot)
        self.target = next(server for server in primaries(cluster) if server is not self.source)

    async def up_to(self, moment: str) -> None:
        await asyncio.to_thread(self.cluster.begin_migration, self.slot, self.target)
        if moment != "begun":
            await asyncio.to_thread(self.cluster.move_keys, self.slot, self.target)
        if moment == "finished":
            await asyncio.to_thread(self.cluster.finish_migration, self.slot, self.target)

    async def finish(self) -> None:
        if self.cluster.owner(self.slot) is not self.target:
            await asyncio.to_thread(self.cluster.move_keys, self.slot, self.target)
            await asyncio.to_thread(self.cluster.finish_migration, self.slot, self.target)

    def execute(self, command: str, moment: str) -> object:
        """The command, where the key is at that moment."""
        if moment == "key moved":
            return asking(self.target, command, self.key)
        return (self.source if moment == "begun" else self.target).execute(command, self.key)


@pytest.mark.asyncio
@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_loss_is_told_at_once_wherever_the_key_is(
    cluster: Cluster, locker: Locker, other: Locker, moment: str
) -> None:
    took = []
    for number in range(3):
        name = f"{moment} {number}"
        holding = await body(await locker.acquire(name))
        move = Move(cluster, name)
        await move.up_to(moment)
        await asyncio.sleep(0.1)
        assert holding.scope.held
        with pytest.raises(NotLockedError):
            await other.try_acquire(name)
        since = time.monotonic()
        assert move.execute("DEL", moment) == 1
        error = await holding.lost_within(AT_ONCE, since)
        assert error.reason == "deleted" and holding.stopped is not None
        took.append(holding.stopped - since)
        await move.finish()
    assert statistics.median(took) < BY_PUSH, took
    await no_keys(cluster)


@pytest.mark.asyncio
@pytest.mark.parametrize("moment", MOMENTS)
async def test_who_waits_gets_it_wherever_the_key_is(
    cluster: Cluster, locker: Locker, other: Locker, moment: str
) -> None:
    took = []
    for number in range(3):
        name = f"{moment} {number}"
        scope = await locker.acquire(name)
        waiting = asyncio.create_task(other.acquire(name))
        await asyncio.sleep(0.03)
        move = Move(cluster, name)
        await move.up_to(moment)
        await asyncio.sleep(0.1)
        assert scope.held and not waiting.done()
        since = time.monotonic()
        await scope.release()
        async with await asyncio.wait_for(waiting, 5) as second:
            took.append(time.monotonic() - since)
            await move.finish()
            await asyncio.sleep(0.02)
            assert second.held
    assert statistics.median(took) < BY_PUSH, took
    await no_keys(cluster)


@pytest.mark.asyncio
@pytest.mark.parametrize("moment", ["begun", "finished"])
async def test_what_is_new_can_be_had_at_every_moment(
    cluster: Cluster, locker: Locker, other: Locker, moment: str
) -> None:
    move = Move(cluster, moment)
    await move.up_to(moment)
    since = time.monotonic()
    holding = await body(await locker.try_acquire(moment))
    assert time.monotonic() - since < AT_ONCE
    with pytest.raises(NotLockedError):
        await other.try_acquire(moment)
    # The key does not exist where the slot still is, so it was made where it will be.
    assert (asking if moment == "begun" else Server.execute)(move.target, "EXISTS", move.key) == 1
    await move.finish()
    await asyncio.sleep(0.05)
    assert holding.scope.held
    since = time.monotonic()
    move.target.execute("DEL", move.key)
    await holding.lost_within(AT_ONCE, since)
    await no_keys(cluster)


@pytest.mark.asyncio
async def test_extended_in_the_middle_and_after(cluster: Cluster) -> None:
    async with Locker(cluster.url, key_majority=1, key_validity=0.6) as locker:
        scope = await locker.acquire("long")
        move = Move(cluster, "long")
        for moment in MOMENTS:
            if moment == "begun":
                await move.up_to(moment)
            elif moment == "key moved":
                await asyncio.to_thread(cluster.move_keys, move.slot, move.target)
            else:
                await move.finish()
            for _ in range(8):
                await asyncio.sleep(0.1)
                assert scope.held, moment
        await scope.release()
    await no_keys(cluster)


@pytest.mark.asyncio
async def test_every_key_moves_and_the_lock_stays(cluster: Cluster) -> None:
    """At once, where the server can: then nobody answers ASK, and the first to know is who holds it."""
    migrate = cluster.migrate_atomically if moves_at_once(cluster) else cluster.migrate
    async with Locker(cluster.url, key_validity=1.0) as locker, Locker(cluster.urls[2]) as other:
        took = []
        for name in [name for name, _ in zip(spread(cluster, "whole"), range(2), strict=False)]:
            holding = await body(await locker.acquire(name))
            waiting = asyncio.create_task(other.acquire(name))
            for index in range(3):
                source = owner_of(cluster)(key(name, index))
                target = next(server for server in primaries(cluster) if server is not source)
                await asyncio.to_thread(migrate, cluster.slot_of(key(name, index)), target)
                assert holding.scope.held
            await asyncio.sleep(1.2)  # more than one validity
            assert holding.scope.held and not waiting.done()
            since = time.monotonic()
            execute(cluster, "DEL", key(name, 0))
            execute(cluster, "DEL", key(name, 1))
            assert (await holding.lost_within(AT_ONCE, since)).reason == "deleted"
            assert holding.stopped is not None
            took.append(holding.stopped - since)
            async with await asyncio.wait_for(waiting, 1) as scope:
                assert scope.held
    assert min(took) < BY_PUSH, took
    await no_keys(cluster)


@pytest.mark.asyncio
async def test_a_storm_of_redirections_is_one_reason_to_look(cluster: Cluster, locker: Locker) -> None:
    """CLUSTER SLOTS is asked for a few times at most, however many requests are sent on."""
    names = [f"{{storm}} {number}" for number in range(300)]

    def looks() -> int:
        return counted(cluster, "commandstats", "cmdstat_cluster|slots") + counted(
            cluster,
            "commandstats",
            "cmdstat_cluster",  # before Redis 7: all of its subcommands
        )

    async def storm(kind: str, most: int) -> None:
        sent_on, looked = counted(cluster, "errorstats", f"errorstat_{kind}"), looks()
        async with asyncio.timeout(10):
            scopes = await asyncio.gather(*(locker.acquire(name) for name in names))
            assert counted(cluster, "errorstats", f"errorstat_{kind}") - sent_on >= 300
            await asyncio.sleep(0.5)
            assert looks() - looked <= most
            assert all(scope.held for scope in scopes)
            await asyncio.gather(*(scope.release() for scope in scopes))

    move = Move(cluster, names[0])
    await move.up_to("begun")
    await storm("ASK", 1)  # and they stay where they are asked for
    await move.finish()
    await storm("MOVED", 4)
    await no_keys(cluster)


@pytest.mark.asyncio
async def test_tryagain_is_for_commands_with_several_keys(cluster: Cluster, locker: Locker) -> None:
    """Half of the keys of a slot have moved. All commands here have one key, and none is told to try again."""
    async with Locker(cluster.urls[1]) as three:
        name = "{half}"
        before = counted(cluster, "errorstats", "errorstat_TRYAGAIN")
        scope = await three.acquire(name)
        await asyncio.sleep(0.05)
        move = Move(cluster, name)
        await move.up_to("begun")
        await asyncio.to_thread(cluster.move_keys, move.slot, move.target, key(name, 1))
        with pytest.raises(redis.exceptions.TryAgainError):
            asking(move.target, "MGET", key(name, 0), key(name, 1))
        await until(lambda: scope.held and scope.remaining() > 4)
        await scope.release()
        async with three.with_context(name):
            pass
        await move.finish()
        assert counted(cluster, "errorstats", "errorstat_TRYAGAIN") == before + 1
    await no_keys(cluster)


@pytest.mark.asyncio
@pytest.mark.parametrize("answer", ["ASK", "MOVED"])
async def test_cancelled_or_closed_while_requests_are_sent_on(cluster: Cluster, locker: Locker, answer: str) -> None:
    """At every stage between the first request and its answer from the other node: nothing is left."""
    move = Move(cluster, "{sent on}")
    for turns in range(12):
        # A busy machine's nodes may take longer than 20 ms to answer, and closing waits for no longer than this.
        async with Locker(cluster.url, key_majority=2, try_next_after=0.3) as another:
            if turns == 0:
                await move.up_to("begun")
            first = await another.acquire("{sent on}", timeout=5)
            tasks = [asyncio.create_task(another.acquire(f"{{sent on}} {number}")) for number in range(20)]
            for _ in range(turns):
                await asyncio.sleep(0)
            await asyncio.sleep(0.0005 * (turns % 4))
            if turns % 3 == 0:
                closing = asyncio.create_task(another.aclose())
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, LockScope):
                    await result.release()
            if turns % 3 == 0:
                await closing
            await first.release()
            since = time.monotonic()
        assert time.monotonic() - since < 1
        await no_keys(cluster)
        if answer == "MOVED":
            await move.finish()
            move = Move(cluster, "{sent on}")
            await move.up_to("begun")
    await move.finish()


class Behind:
    """A locker that reaches one of the nodes through a proxy, and a name whose only key is there."""

    def __init__(self, cluster: Cluster, proxy: Proxy, name: str) -> None:
        self.move = Move(cluster, name)
        port = self.move.source.port
        assert proxy.target_port == port
        self.client = RedisCluster.from_url(
            self.move.target.url,
            address_remap=lambda address: (address[0], proxy.port) if address[1] == port else address,
        )
        self.locker = Locker(self.client, key_majority=1, key_validity=20.0)

    async def knows(self) -> None:
        """The locker has heard whose slot it is now."""
        topology = internals.topology(self.locker)
        assert isinstance(topology, topologies.Cluster)
        topology.refresh_soon()
        await until(lambda: str(topology._owners[self.move.slot].connector.port) in self.move.target.url)


@pytest.mark.asyncio
async def test_an_answer_that_comes_after_the_slot_and_the_release(cluster: Cluster) -> None:
    """A request was held up on its way to the old owner. Sent on to the new one only now, it would come
    after its own release."""
    async with Proxy(cluster.primary_of(key("late")).port) as proxy:
        behind = Behind(cluster, proxy, "late")
        async with behind.locker as locker:
            proxy.freeze()
            acquiring = asyncio.create_task(locker.acquire("late"))
            await asyncio.sleep(0.02)
            await behind.move.up_to("finished")
            await behind.knows()
            acquiring.cancel()
            await asyncio.gather(acquiring, return_exceptions=True)
            proxy.thaw()
            await asyncio.sleep(0.2)
            assert execute(cluster, "EXISTS", key("late")) == 0
            async with locker.try_with_context("late") as scope:
                assert scope.held
        await behind.client.aclose()


@only_pure
@pytest.mark.asyncio
async def test_a_slot_that_goes_between_the_two_commands_of_one_question(
    cluster: Cluster, locker: Locker, other: Locker
) -> None:
    """The key was set, and has moved on with its slot when its time to live is asked for. Where it is now it is not
    somebody else's: asked anew, it would refuse its own owner, and nobody would release it."""
    name = "between"
    held = await other.acquire(name)
    waiting = asyncio.create_task(locker.acquire(name))
    await asyncio.sleep(0.05)
    node = internals.topology(locker).home(internals.rooms(locker)[name], 0)
    assert node is not None and node.connection is not None
    wire, send = node.connection, node.connection.send
    rest: list[bytes] = []

    def halves(data: bytes, expects: Expects, replies: int, now: float) -> None:
        if getattr(expects, "operation", None) is Operation.TAKE_TTL and not rest:
            data, second = split(data)
            rest.append(second)
        send(data, expects, replies, now)

    wire.send = halves  # type: ignore[method-assign]
    move = Move(cluster, name)
    await held.release()
    await until(lambda: rest and move.execute("EXISTS", "begun"))
    await move.up_to("finished")
    wire._transport.write(rest[0])
    scope = await asyncio.wait_for(waiting, 2)
    await asyncio.sleep(0.1)
    assert scope.held
    await scope.release()
    await no_keys(cluster)


@pytest.mark.asyncio
async def test_a_release_that_is_owed_follows_the_key(cluster: Cluster) -> None:
    """The old owner could not be reached when the lock was released; it can again when the key has moved."""
    async with Proxy(cluster.primary_of(key("owed")).port) as proxy:
        behind = Behind(cluster, proxy, "owed")
        async with behind.locker as locker:
            scope = await locker.acquire("owed")
            proxy.freeze()
            proxy.reset()
            await asyncio.sleep(0.02)
            await scope.release()
            await behind.move.up_to("finished")
            await behind.knows()
            assert execute(cluster, "EXISTS", key("owed")) == 1
            proxy.thaw()
            await no_keys(cluster, 5)
        await behind.client.aclose()


@pytest.mark.asyncio
async def test_to_a_node_that_had_no_slots(kind: str) -> None:
    """Nobody has heard of it before the first redirection."""
    with Cluster(kind, replicas=0) as cluster, Server(kind, config=FRESH) as fresh:
        async with Locker(cluster.url, key_majority=1) as locker, Locker(cluster.urls[1], key_majority=1) as other:
            holding = await body(await locker.acquire("job"))
            waiting = asyncio.create_task(other.acquire("job"))
            slot, source = cluster.slot_of(key("job")), cluster.primary_of(key("job"))
            fresh.execute("CLUSTER", "MEET", "127.0.0.1", source.port)
            await until(lambda: all(len(view(server)) == 4 for server in (*cluster.servers, fresh)), 10)
            await until(lambda: "cluster_state:ok" in text(fresh.execute("CLUSTER", "INFO")), 10)
            fresh_id, source_id = (text(server.execute("CLUSTER", "MYID")) for server in (fresh, source))
            fresh.execute("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
            source.execute("CLUSTER", "SETSLOT", slot, "MIGRATING", fresh_id)
            source.execute("MIGRATE", "127.0.0.1", fresh.port, key("job"), 0, 5000)
            # Until both have found it there, and it is tracked for them.
            await until(lambda: "tracking_total_items:2" in text(fresh.execute("INFO", "stats")), 10)
            assert holding.scope.held and not waiting.done()
            since = time.monotonic()
            assert asking(fresh, "DEL", key("job")) == 1
            await holding.lost_within(AT_ONCE, since)
            async with await asyncio.wait_for(waiting, 1) as scope:
                for server in (fresh, source):
                    server.execute("CLUSTER", "SETSLOT", slot, "NODE", fresh_id)
                await asyncio.sleep(0.2)
                assert scope.held and fresh.execute("EXISTS", key("job")) == 1
                with pytest.raises(NotLockedError):
                    await locker.try_acquire("job")
            assert fresh.execute("EXISTS", key("job")) == 0
