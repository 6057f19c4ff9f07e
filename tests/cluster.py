"""Names by where a cluster keeps them, and what its nodes count."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable, Iterator

import redis

from asynclock.testing import Cluster, Server
from asynclock.testing.nodes import slot_of, view
from tests.helpers import key

SHARDS = 3


def owner_of(cluster: Cluster) -> Callable[[str], Server]:
    """Whose key it is, as a running node sees it now."""
    witness = next(server for server in cluster.servers if server.awake)
    nodes = [node for node in view(witness) if node.slots]
    servers = {server.port: server for server in cluster.servers}

    def owner(key: str) -> Server:
        slot = slot_of(key)
        return servers[next(node.port for node in nodes if node.has(slot))]

    return owner


def names(cluster: Cluster, fits: Callable[[list[Server]], bool], word: str = "job") -> Iterator[str]:
    """Names for which the owners of the three keys are as wanted."""
    owner = owner_of(cluster)
    for number in itertools.count():
        name = f"{word} {number}"
        if fits([owner(key(name, index)) for index in range(3)]):
            yield name


def spread(cluster: Cluster, word: str = "job") -> Iterator[str]:
    """Names with a key on each shard."""
    return names(cluster, lambda owners: len(set(owners)) == SHARDS, word)


def on_one(cluster: Cluster, server: Server, count: int, word: str = "job") -> Iterator[str]:
    """Names with so many keys on that node."""
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
    """The command, at the key's owner."""
    return cluster.primary_of(key).execute(command, key, *arguments)


def keys(cluster: Cluster, only: str = "*") -> set[bytes]:
    """Those that there are, on any running node."""
    found: set[bytes] = set()
    for server in cluster.servers:
        if server.awake:
            listed = server.execute("KEYS", only)
            assert isinstance(listed, list)
            found |= {each for each in listed if isinstance(each, bytes)}
    return found


async def no_keys(cluster: Cluster, seconds: float = 2.0, only: str = "*") -> None:
    """Nothing is left, well before it would have expired. Replicas hear of a release a moment later."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while left := keys(cluster, only):
        assert loop.time() < end, f"left behind: {left}"
        await asyncio.sleep(0.02)


def counted(cluster: Cluster, section: str, what: str) -> int:
    """The sum over all running nodes of a counter in INFO, such as ``cmdstat_cluster|slots``."""
    total = 0
    for server in cluster.servers:
        if server.awake:
            info = server.execute("INFO", section)
            assert isinstance(info, bytes)
            for found in re.findall(rf"^{re.escape(what)}:(?:calls|count)=(\d+)", info.decode(), re.MULTILINE):
                total += int(found)
    return total


def asking(server: Server, *command: str) -> object:
    """The command at a node that is importing the key's slot."""
    with redis.Redis(port=server.port, single_connection_client=True) as client:
        client.execute_command("ASKING")  # type: ignore[no-untyped-call]  # redis-py's own gap
        return client.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py's own gap


def moves_at_once(cluster: Cluster) -> bool:
    """Can these servers move a slot as a whole (Valkey 9)?"""
    info = cluster.servers[0].execute("INFO", "server")
    assert isinstance(info, bytes)
    found = re.search(rb"valkey_version:(\d+)", info)
    return found is not None and int(found[1]) >= 9
