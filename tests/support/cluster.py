"""Names chosen by the nodes that serve their keys, the counters of a cluster's nodes, and rivals."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections.abc import AsyncIterator, Callable, Iterator

import redis

from asynclock import Locker, LockScope, NotLockedError, ServerError
from asynclock.testing import Cluster, Server
from asynclock.testing.nodes import slot_of, view
from tests.support.helpers import key

SHARDS = 3


def owner_of(cluster: Cluster) -> Callable[[str], Server]:
    """A function that returns the primary that serves a key, as a running node sees it now."""
    witness = next(server for server in cluster.servers if server.awake)
    nodes = [node for node in view(witness) if node.slots]
    servers = {server.port: server for server in cluster.servers}

    def owner(key: str) -> Server:
        slot = slot_of(key)
        return servers[next(node.port for node in nodes if node.has(slot))]

    return owner


def names(cluster: Cluster, fits: Callable[[list[Server]], bool], word: str = "job") -> Iterator[str]:
    """Names for which ``fits`` accepts the primaries that serve their three keys."""
    owner = owner_of(cluster)
    for number in itertools.count():
        name = f"{word} {number}"
        if fits([owner(key(name, index)) for index in range(3)]):
            yield name


def spread(cluster: Cluster, word: str = "job") -> Iterator[str]:
    """Names with a key on each shard."""
    return names(cluster, lambda owners: len(set(owners)) == SHARDS, word)


def on_one(cluster: Cluster, server: Server, count: int, word: str = "job") -> Iterator[str]:
    """Names with this number of keys on that node."""
    return names(cluster, lambda owners: owners.count(server) == count, word)


def primaries(cluster: Cluster) -> list[Server]:
    owner = owner_of(cluster)
    found: list[Server] = []
    for number in itertools.count():
        server = owner(str(number))
        if server not in found:
            found.append(server)
        if len(found) == SHARDS:
            return found
    raise AssertionError


def execute(cluster: Cluster, command: str, key: str, *arguments: str) -> object:
    """Send the command to the primary that serves the key."""
    return cluster.primary_of(key).execute(command, key, *arguments)


def keys(cluster: Cluster, only: str = "*") -> set[bytes]:
    """The keys that match ``only``, on all running nodes."""
    found: set[bytes] = set()
    for server in cluster.servers:
        if server.awake:
            listed = server.execute("KEYS", only)
            assert isinstance(listed, list)
            found |= {each for each in listed if isinstance(each, bytes)}
    return found


async def no_keys(cluster: Cluster, seconds: float = 2.0, only: str = "*") -> None:
    """Wait until no key is left, much sooner than it would expire. Replicas learn of a release a moment later."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while left := keys(cluster, only):
        assert loop.time() < end, f"left behind: {left}"
        await asyncio.sleep(0.02)


def counted(cluster: Cluster, section: str, what: str) -> int:
    """The sum of a counter in INFO, such as ``cmdstat_cluster|slots``, over all running nodes."""
    total = 0
    for server in cluster.servers:
        if server.awake:
            info = server.execute("INFO", section)
            assert isinstance(info, bytes)
            for found in re.findall(rf"^{re.escape(what)}:(?:calls|count)=(\d+)", info.decode(), re.MULTILINE):
                total += int(found)
    return total


def asking(server: Server, *command: str) -> object:
    """Send the command, after ``ASKING``, to a node that is importing the key's slot."""
    with redis.Redis(port=server.port, single_connection_client=True) as client:
        client.execute_command("ASKING")  # type: ignore[no-untyped-call]  # redis-py's own gap
        return client.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py's own gap


def moves_at_once(cluster: Cluster) -> bool:
    """Can these servers move a slot atomically (Valkey 9)?"""
    info = cluster.servers[0].execute("INFO", "server")
    assert isinstance(info, bytes)
    found = re.search(rb"valkey_version:(\d+)", info)
    return found is not None and int(found[1]) >= 9


@contextlib.asynccontextmanager
async def own_cluster(kind: str, replicas: int = 1, **config: str) -> AsyncIterator[Cluster]:
    cluster = Cluster(kind, replicas=replicas, config={name.replace("_", "-"): value for name, value in config.items()})
    try:
        await asyncio.to_thread(cluster.start)
        yield cluster
    finally:
        await asyncio.to_thread(cluster.close)


class Rival:
    """Somebody who tries to get locks all the time, and never may while another scope is held."""

    def __init__(self, locker: Locker, scopes: dict[str, LockScope]) -> None:
        self.got: dict[str, LockScope] = {}
        self.tries = 0
        self._locker = locker
        self._scopes = scopes
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            for name, scope in self._scopes.items():
                try:
                    rival = self.got[name] if name in self.got else await self._locker.try_acquire(name)
                except (NotLockedError, ServerError):
                    continue
                finally:
                    self.tries += 1
                self.got[name] = rival
                assert not (rival.held and scope.held), f"{name} is held twice"
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        for scope in self.got.values():
            await scope.release()
