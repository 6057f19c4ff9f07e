"""The clusters that other tests stand on: each call does what it says, on real nodes."""

import os
import time
from collections.abc import Iterator

import pytest

from asynclock.testing import Cluster, Server
from asynclock.testing.nodes import SLOTS, slot_of
from tests.support.kinds import each, needs

pytestmark = pytest.mark.serverless


@pytest.fixture(scope="module", params=each("valkey-9.1", "redis-8.2"))
def shared_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with Cluster(request.param) as cluster:
        cluster.start()  # has been
        yield cluster
        pids = [server.pid for server in cluster.servers if server.running]
    cluster.close()
    assert pids and cluster.servers == []
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """Well, and with the roles and slots that the tests before have left."""
    for server in shared_cluster.servers:
        server.start()
    shared_cluster.wait_until_ok()
    return shared_cluster


def answer(server: Server, *command: str) -> str:
    """The reply, or the error, as text."""
    try:
        return str(server.execute(*command))
    except RuntimeError as error:
        return str(error)


def other_primary(cluster: Cluster, owner: Server) -> Server:
    return next(server for server in map(cluster.owner, range(0, SLOTS, 1000)) if server is not owner)


def test_it_comes_up_whole(cluster: Cluster) -> None:
    assert cluster.urls == [server.url for server in cluster.servers] and len(cluster.urls) == 6
    assert cluster.url == cluster.servers[0].url
    owners = [cluster.owner(slot) for slot in (0, 5460, 5461, 10921, 10922, 16383)]
    assert owners == [server for server in cluster.servers[:3] for _ in range(2)]
    for number, primary in enumerate(cluster.servers[:3]):
        assert cluster.replicas_of(primary) == [cluster.servers[3 + number]]
        assert primary.execute("ROLE")[0] == b"master"  # type: ignore[index]
    with pytest.raises(RuntimeError, match="no node has slot"):
        cluster.owner(SLOTS)


@needs("redis-6.2")
def test_redis_6_2_can_do_it_too_without_replicas() -> None:
    with Cluster("redis-6.2", replicas=0) as cluster:
        assert len(cluster.servers) == 3 and cluster.owner(16383) is cluster.servers[2]
        key = "a"
        cluster.migrate(slot_of(key), cluster.servers[0])
        assert cluster.primary_of(key) is cluster.servers[0]


@pytest.mark.parametrize(
    "key",
    ["foo", "123456789", "{user1000}.following", "foo{}{bar}", "foo{{bar}}zap", "a{b}c{d}", "{", "a}b{c", "ü", ""],
)
def test_slot_of_is_what_the_server_says(key: str, server: Server) -> None:
    assert slot_of(key) == slot_of(key.encode()) == server.execute("CLUSTER", "KEYSLOT", key)


def test_a_slot_migrates_step_by_step(cluster: Cluster) -> None:
    moved, left, new = "{classic}1", "{classic}2", "{classic}3"
    slot = slot_of(moved)
    source = cluster.primary_of(moved)
    target = other_primary(cluster, source)
    for key in (moved, left):
        source.execute("SET", key, key, "PX", 60_000)

    cluster.begin_migration(slot, target)
    assert cluster.owner(slot) is source
    assert answer(source, "GET", moved) == repr(moved.encode())
    assert answer(source, "GET", new) == f"ASK {slot} 127.0.0.1:{target.port}"
    assert answer(target, "GET", moved) == f"MOVED {slot} 127.0.0.1:{source.port}"

    cluster.move_keys(slot, target, moved)
    assert answer(source, "GET", moved) == f"ASK {slot} 127.0.0.1:{target.port}"
    assert answer(source, "MGET", moved, left).startswith("TRYAGAIN")
    with pytest.raises(RuntimeError, match="1 keys"):
        cluster.finish_migration(slot, target)
    assert cluster.owner(slot) is source

    cluster.move_keys(slot, target)
    cluster.finish_migration(slot, target)
    assert cluster.owner(slot) is target
    assert answer(target, "MGET", moved, left) == str([moved.encode(), left.encode()])
    assert 50_000 < int(answer(target, "PTTL", left)) <= 60_000
    with pytest.raises(ValueError, match="already"):
        cluster.begin_migration(slot, target)
    for server in cluster.servers:
        if server is not target:
            assert answer(server, "GET", moved) == f"MOVED {slot} 127.0.0.1:{target.port}"


def test_a_slot_migrates_with_many_keys(cluster: Cluster) -> None:
    source = cluster.primary_of("{many}")
    target = other_primary(cluster, source)
    for number in range(250):
        source.execute("SET", f"{{many}}{number}", number)
    cluster.migrate(slot_of("{many}"), target)
    assert cluster.primary_of("{many}") is target
    assert target.execute("CLUSTER", "COUNTKEYSINSLOT", slot_of("{many}")) == 250


def test_a_slot_migrates_atomically_where_the_server_can(cluster: Cluster) -> None:
    source = cluster.primary_of("{atomic}")
    target = other_primary(cluster, source)
    source.execute("SET", "{atomic}", "value")
    if b"server_name:valkey" in source.execute("INFO", "server"):  # type: ignore[operator]
        cluster.migrate_atomically(slot_of("{atomic}"), target)
        assert cluster.primary_of("{atomic}") is target
        assert target.execute("GET", "{atomic}") == b"value"
        cluster.migrate_atomically(slot_of("{atomic}"), source)  # a finished one does not count
        assert cluster.primary_of("{atomic}") is source
    else:
        with pytest.raises(RuntimeError, match=r"(?i)unknown"):
            cluster.migrate_atomically(slot_of("{atomic}"), target)
        assert cluster.primary_of("{atomic}") is source


def test_a_planned_failover_and_back(cluster: Cluster) -> None:
    primary = cluster.primary_of("key")
    primary.execute("SET", "key", "value")
    (replica,) = cluster.replicas_of(primary)
    for new, old in ((replica, primary), (primary, replica)):
        cluster.failover(new)
        assert cluster.primary_of("key") is new and cluster.replicas_of(new) == [old]
        assert new.execute("GET", "key") == b"value" and answer(new, "SET", "key", "value") == "OK"
        for server in cluster.servers:
            if server is not new:
                assert answer(server, "GET", "key") == f"MOVED {slot_of('key')} 127.0.0.1:{new.port}"
    with pytest.raises(ValueError, match="no replica"):
        cluster.failover(primary)


def test_a_dead_primary_is_the_owner_until_its_replica_takes_over(cluster: Cluster) -> None:
    primary = cluster.owner(0)
    (replica,) = cluster.replicas_of(primary)
    primary.kill()
    assert cluster.owner(0) is primary and cluster.replicas_of(primary) == [replica]
    with pytest.raises(TimeoutError, match=f"{replica.port}:\n"):
        cluster.wait_until_ok(0.1)
    cluster.wait_until_ok()
    assert cluster.owner(0) is replica
    primary.start()
    cluster.wait_until_ok()
    assert cluster.replicas_of(replica) == [primary]


def test_a_forced_failover_does_not_ask_the_primary(cluster: Cluster) -> None:
    primary = cluster.owner(16383)
    (replica,) = cluster.replicas_of(primary)
    primary.pause()
    cluster.failover(replica, force=True)
    assert cluster.owner(16383) is replica
    primary.resume()
    cluster.wait_until_ok()
    assert cluster.replicas_of(replica) == [primary]


def test_what_cannot_start_leaves_nothing() -> None:
    cluster = Cluster(config={"maxclients": "many"})
    with pytest.raises(RuntimeError, match="maxclients"):
        cluster.start()
    cluster.close()
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="maxclients"):
        cluster.__enter__()
    assert time.monotonic() - start < 5 and cluster.servers == []
