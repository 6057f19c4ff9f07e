"""Faults of servers, and commands that other clients send them."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

from asynclock.testing import Proxy, Server

from .admin import Admin
from .deployments import Clustered, Key, Monitored
from .faults import AWAY, CROWDED_OUT, FREED, LOOK, PUSH, kind
from .field import Field

CROWDED = ("one", "redis-6.2", "redis-8.2", "evicting")
SINGLE = (*CROWDED, "long")
WITH_DISK = (*SINGLE, "three")
CLUSTERS = ("cluster", "spread")
WITH_REPLICAS = (*CLUSTERS, "sentinel")


def _downtime(field: Field, chance: random.Random) -> float:
    return chance.choice((0.0, 0.3, 1.2)) * field.pace


# Servers that keep their keys


@kind("server SIGKILL, back with its data", "servers", only=WITH_DISK)
async def killed(field: Field, chance: random.Random, name: str) -> None:
    servers = await field.pick_servers(chance)
    async with field.fault(name, *servers):
        for server in servers:
            server.kill()
        await asyncio.sleep(_downtime(field, chance))
        for server in servers:
            await asyncio.to_thread(server.start)


@kind("server SIGKILL, back without its data (quarantine)", "servers", only=("three",))
async def killed_in_quarantine(field: Field, chance: random.Random, name: str) -> None:
    await _emptied(field, chance, name, forgets=False)


@kind("server SIGSTOP", "servers", only=WITH_DISK)
async def stopped(field: Field, chance: random.Random, name: str) -> None:
    servers = await field.pick_servers(chance)
    seconds = chance.choice((0.1, 0.6, 1.3)) * field.pace
    async with field.fault(name, *servers, f"{seconds:.1f} s"):
        for server in servers:
            server.pause()
        await asyncio.sleep(seconds)
        for server in servers:
            server.resume()


@kind("CLIENT KILL", "servers", harmless=True)
async def clients_killed(field: Field, chance: random.Random, name: str) -> None:
    servers = await field.pick_servers(chance)
    async with field.fault(name, *servers):
        for server in servers:
            await field.execute(server, "CLIENT", "KILL", "TYPE", "normal")


@kind("CLIENT PAUSE", "servers")
async def clients_paused(field: Field, chance: random.Random, name: str) -> None:
    servers = await field.pick_servers(chance)
    seconds = chance.choice((0.1, 0.4, 1.2)) * field.pace
    which = chance.choice(("ALL", "WRITE"))
    async with field.fault(name, *servers, which, f"{seconds:.1f} s"):
        for server in servers:
            await field.execute(server, "CLIENT", "PAUSE", int(seconds * 1000), which)
        await asyncio.sleep(seconds)


@kind("DEBUG SLEEP", "servers")
async def slept(field: Field, chance: random.Random, name: str) -> None:
    servers = await field.pick_servers(chance)
    longest = field.deployment.patience  # longer would cause a failover, which is a fault of its own
    seconds = min(chance.choice((0.1, 0.4, 1.2)) * field.pace, longest)
    async with field.fault(name, *servers, f"{seconds:.1f} s"):
        await asyncio.gather(*(field.execute(server, "DEBUG", "SLEEP", f"{seconds:.3f}") for server in servers))


# Servers that are up, but refuse commands


Refusal = contextlib.AbstractAsyncContextManager[None]


async def _refusing(field: Field, name: str, *refusals: Refusal, seconds: float, harmless: bool = False) -> None:
    """Servers refuse for ``seconds``. Locks survive if that is short. Refused releases are retried soon after it."""
    async with field.fault(name, f"{seconds:.1f} s", harmless=harmless or seconds <= 0.3 * field.pace):
        async with contextlib.AsyncExitStack() as stack:
            for refusal in refusals:
                await stack.enter_async_context(refusal)
            await asyncio.sleep(seconds)


def _while(field: Field, chance: random.Random) -> float:
    return chance.choice((0.1, 0.3, 0.3, 1.2)) * field.pace


@contextlib.asynccontextmanager
async def _setting(field: Field, server: Server, name: str, value: str | int, after: str | int) -> AsyncIterator[None]:
    await field.execute(server, "CONFIG", "SET", name, value)
    try:
        yield
    finally:
        await field.execute(server, "CONFIG", "SET", name, after)


@kind("NOREPLICAS", "servers", free=FREED)
async def no_replicas(field: Field, chance: random.Random, name: str) -> None:
    """``min-replicas-to-write`` is higher than the number of replicas."""
    servers = await field.pick_servers(chance)
    refusals = [_setting(field, server, "min-replicas-to-write", 9, 0) for server in servers]
    await _refusing(field, name, *refusals, seconds=_while(field, chance))


@kind("OOM", "servers", only=("one", "redis-6.2", "redis-8.2", "long", "three", *WITH_REPLICAS), free=FREED)
async def out_of_memory(field: Field, chance: random.Random, name: str) -> None:
    """New locks need memory. Extending a lock needs none, so held locks are kept (unless replicas must confirm, which
    needs a new key)."""
    servers = await field.pick_servers(chance)
    refusals = [_setting(field, server, "maxmemory", 1, 0) for server in servers]
    kept = not field.deployment.has_roles
    await _refusing(field, name, *refusals, seconds=_while(field, chance), harmless=kept)


@kind("BUSY", "servers", free=FREED)
async def busy(field: Field, chance: random.Random, name: str) -> None:
    servers = await field.pick_servers(chance)
    seconds = min(_while(field, chance), field.deployment.patience)
    await _refusing(field, name, *(_script(field, server) for server in servers), seconds=seconds)


@contextlib.asynccontextmanager
async def _script(field: Field, server: Server) -> AsyncIterator[None]:
    """A script that never ends."""
    await field.execute(server, "CONFIG", "SET", "lua-time-limit", 10)
    script = asyncio.create_task(field.execute(server, "EVAL", "while true do end", 0))
    try:
        yield
    finally:
        while not script.done():  # it may not have started yet
            await field.execute(server, "SCRIPT", "KILL")
            await asyncio.wait([script], timeout=0.05)


@kind("READONLY", "servers", only=WITH_DISK, free=FREED)
async def read_only(field: Field, chance: random.Random, name: str) -> None:
    """The server becomes a replica of an address where no server is."""
    servers = await field.pick_servers(chance)
    await _refusing(field, name, *(_demoted(field, server) for server in servers), seconds=_while(field, chance))


@contextlib.asynccontextmanager
async def _demoted(field: Field, server: Server) -> AsyncIterator[None]:
    await field.execute(server, "REPLICAOF", "127.0.0.1", 1)
    try:
        yield
    finally:
        await field.execute(server, "REPLICAOF", "NO", "ONE")


@kind("MISCONF", "servers", only=WITH_DISK, free=FREED)
async def not_saved(field: Field, chance: random.Random, name: str) -> None:
    servers = await field.pick_servers(chance)
    await _refusing(field, name, *(_unsaved(field, server) for server in servers), seconds=_while(field, chance))


@contextlib.asynccontextmanager
async def _unsaved(field: Field, server: Server) -> AsyncIterator[None]:
    """A directory has the name of its snapshot file, so that saving fails."""
    told = await asyncio.to_thread(server.execute, "CONFIG", "GET", "dir")
    assert isinstance(told, list) and isinstance(told[1], bytes)
    obstacle = Path(told[1].decode()) / "dump.rdb"
    obstacle.mkdir()
    try:
        await field.execute(server, "BGSAVE")
        async with _setting(field, server, "save", "3600 1000000", ""):
            yield
    finally:
        obstacle.rmdir()


@kind("maxclients at the reconnect", "servers", only=WITH_DISK, free=FREED)
async def too_many_clients(field: Field, chance: random.Random, name: str) -> None:
    """A server that answers a new connection with an error is not gone."""
    servers = await field.pick_servers(chance)
    seconds = chance.choice((0.05, 0.1, 0.5)) * field.pace
    async with field.fault(name, *servers, f"{seconds:.1f} s", harmless=seconds <= 0.1 * field.pace):
        with contextlib.ExitStack() as stack:
            for server in servers:
                admin = await asyncio.to_thread(
                    stack.enter_context, Admin(server)
                )  # opened before: a new connection would be refused, too
                before = await asyncio.to_thread(admin, "CONFIG", "GET", "maxclients")
                assert isinstance(before, list)
                stack.callback(admin, "CONFIG", "SET", "maxclients", before[1])
                await asyncio.to_thread(admin, "CONFIG", "SET", "maxclients", 1)
                await asyncio.to_thread(admin, "CLIENT", "KILL", "TYPE", "normal")
            await asyncio.sleep(seconds)


@kind("FLUSHDB of another database", "servers", only=CROWDED)
async def flushed_elsewhere(field: Field, chance: random.Random, name: str) -> None:
    """All clients get a push, as if every key were gone. No lock is lost, and checks must not overload the server."""
    server = (await field.pick_servers(chance))[0]
    async with field.fault(name, server, harmless=True), field.rate(server):
        with await asyncio.to_thread(Admin, server) as admin:
            await asyncio.to_thread(admin, "SELECT", 1)
            for _ in range(100):
                await asyncio.to_thread(admin, "FLUSHDB")
                await asyncio.sleep(0.02)


@kind("restart by a clock that was off, with one server away", "servers", only=("three",))
async def restarted_by_a_wrong_clock(field: Field, chance: random.Random, name: str) -> None:
    """A server restarts without its data, and claims to have been up for an hour. It must be in quarantine all the
    same: the locks were on it and one other server, since the third was away. That one is back, without the keys,
    before some holders have noticed anything."""
    first, second = chance.sample(field.deployment.servers, 2)
    clock, offset = field.deployment.clocks[second.port], field.deployment.offsets.get(second.port, 0.0)
    proxies = field.deployment.proxies
    unaware = chance.sample(range(len(proxies)), 2)
    away = [of_place[first.port] for of_place in proxies]
    others = [of_place[second.port] for place, of_place in enumerate(proxies) if place not in unaware]
    silent = [proxies[place][second.port] for place in unaware]
    emptied = await field.keys_on(second)
    async with field.fault(name, first, second, emptied=emptied):
        _refuse(away)
        try:
            await asyncio.sleep(1.2 * field.pace)
            _refuse(others)
            for proxy in silent:
                proxy.freeze()
            second.kill()
            second.wipe()
            clock.set(offset - 3600.0)
            await asyncio.to_thread(second.start)
            clock.set(offset)
        finally:
            for proxy in (*others, *away):
                proxy.accept()
        await asyncio.sleep(1.1 * field.pace)
        for proxy in silent:
            proxy.thaw()


def _refuse(proxies: list[Proxy]) -> None:
    for proxy in proxies:
        proxy.refuse()
        proxy.reset()


# Servers that lose keys


@kind("keys evicted", "servers", told=PUSH, only=("evicting",))
async def evicted(field: Field, chance: random.Random, name: str) -> None:
    """Evictions happen during commands of all clients, including the holders' own."""
    server = (await field.pick_servers(chance))[0]
    keys = await field.keys_on(server)
    async with field.fault(name, server, emptied=keys) as forgot:
        forgot.update(keys)
        for place in field.crew.working:
            field.crew.order(place, "swell 1.0")
        memory = await asyncio.to_thread(server.execute, "INFO", "memory")
        assert isinstance(memory, bytes)
        used = int(memory.split(b"used_memory:")[1].split()[0])
        async with _setting(field, server, "maxmemory", used + 2000, 0):
            await asyncio.sleep(1.0)


@kind("the tracking table is full, DEL", "servers", told=CROWDED_OUT, only=CROWDED)
async def tracking_table_full(field: Field, chance: random.Random, name: str) -> None:
    """Each key that is read displaces another one."""
    server = (await field.pick_servers(chance))[0]
    crowd = field.deployment.crowd
    keys = [(lock, 0) for lock in (*field.deployment.names, *chance.sample(crowd, min(10, len(crowd))))]
    async with field.fault(name, server) as forgot, field.rate(server):
        forgot.update(keys)
        async with _setting(field, server, "tracking-table-max-keys", 10, 1_000_000):
            await asyncio.sleep(1.0)
            for key in keys:
                await field.execute(server, "DEL", field.deployment.key(key))
            await asyncio.sleep(CROWDED_OUT)


@kind("server SIGKILL, back without its data", "servers", told=AWAY, only=(*SINGLE, *WITH_REPLICAS))
async def killed_and_emptied(field: Field, chance: random.Random, name: str) -> None:
    await _emptied(field, chance, name, forgets=True)


async def _emptied(field: Field, chance: random.Random, name: str, forgets: bool) -> None:
    servers = await field.pick_servers(chance)
    keys = await field.keys_on(*servers)
    async with field.fault(name, *servers, emptied=keys) as forgot:
        if forgets:
            forgot.update(keys)
        for server in servers:
            server.kill()
            server.wipe()
        await asyncio.sleep(min(_downtime(field, chance), field.deployment.patience))
        for server in servers:
            await asyncio.to_thread(server.start)


@kind("FLUSHALL", "servers", told=PUSH)
async def flushed(field: Field, chance: random.Random, name: str) -> None:
    servers = await field.pick_servers(chance)
    keys = await field.keys_on(*servers)
    async with field.fault(name, *servers, emptied=keys) as forgot:
        forgot.update(keys)
        for server in servers:
            await field.execute(server, "FLUSHALL")


@kind("DEL", "servers", told=PUSH)
async def deleted(field: Field, chance: random.Random, name: str) -> None:
    async with field.fault(name, *(keys := _some_keys(field, chance))) as forgot:
        forgot.update(keys)
        for key in keys:
            await field.on_key(key, "DEL", field.deployment.key(key))


@kind("key overwritten", "servers", told=PUSH)
async def overwritten(field: Field, chance: random.Random, name: str) -> None:
    async with field.fault(name, *(keys := _some_keys(field, chance))) as forgot:
        forgot.update(keys)
        for key in keys:
            await field.on_key(key, "SET", field.deployment.key(key), "somebody else's", "PX", 300)
        await asyncio.sleep(0.3)


def _some_keys(field: Field, chance: random.Random) -> list[Key]:
    """Some keys of one lock."""
    lock = field.pick_name(chance)
    return [(lock, index) for index in chance.sample(range(field.deployment.keys), field.deployment.majority)]


@kind("server's time of day jumps ahead", "servers", told=PUSH, only=WITH_DISK)
async def clock_jumps_ahead(field: Field, chance: random.Random, name: str) -> None:
    """Keys expire before their time."""
    await _clock_jumps(field, chance, name, chance.choice((0.3, 1.0, 3600.0)) * field.pace)


@kind("server's time of day jumps back", "servers", only=WITH_DISK, harmless=True)
async def clock_jumps_back(field: Field, chance: random.Random, name: str) -> None:
    """Keys live longer."""
    await _clock_jumps(field, chance, name, -chance.choice((0.3, 0.8)) * field.pace)


async def _clock_jumps(field: Field, chance: random.Random, name: str, off: float) -> None:
    server = (await field.pick_servers(chance))[0]
    clock = field.deployment.clocks[server.port]
    async with field.fault(name, server, f"{off:+.1f} s") as forgot:
        keys = await field.keys_on(server)
        if off > 0:
            forgot.update(keys)
        # The clock stays like that: setting it back would be the other fault.
        field.deployment.offsets[server.port] = offset = field.deployment.offsets.get(server.port, 0.0) + off
        clock.set(offset)
        field.log("clock", server=server.port, offset=offset)


# Roles and slots that move


@kind("primary SIGKILL, replaced by its replica", "servers", told=AWAY, only=WITH_REPLICAS)
async def primary_killed(field: Field, chance: random.Random, name: str) -> None:
    await _replaced(field, chance, name, stop=False)


@kind("primary SIGSTOP, replaced by its replica", "servers", told=2.0, only=WITH_REPLICAS)
async def primary_stopped(field: Field, chance: random.Random, name: str) -> None:
    """Holders on the old primary count on their locks until the deadline."""
    await _replaced(field, chance, name, stop=True)


async def _replaced(field: Field, chance: random.Random, name: str, stop: bool) -> None:
    server = (await field.pick_servers(chance))[0]
    async with field.fault(name, server) as forgot:
        keys = await field.keys_on(server)
        forgot.update(keys)
        if stop:
            server.pause()
        else:
            server.kill()
        await asyncio.to_thread(field.deployment.wait_until_replaced, server)
        if stop:
            server.resume()
        else:
            await asyncio.to_thread(server.start)


@kind("planned failover", "servers", told=LOOK, only=("sentinel",))
async def failed_over(field: Field, chance: random.Random, name: str) -> None:
    """The old primary accepts writes until it is demoted, and its clients ask the Sentinels once a second."""
    deployment = field.deployment
    assert isinstance(deployment, Monitored)
    async with field.fault(name) as forgot:
        keys = await field.keys_on(*await field.homes())
        forgot.update(keys)
        await asyncio.to_thread(deployment.sentinels.failover)


@kind("planned failover of a shard", "servers", only=CLUSTERS)
async def shard_failed_over(field: Field, chance: random.Random, name: str) -> None:
    deployment = field.deployment
    assert isinstance(deployment, Clustered)
    server = (await field.pick_servers(chance))[0]
    async with field.fault(name, server):
        await asyncio.to_thread(deployment.failover, server)


@kind("slot migrated", "servers", only=CLUSTERS)
async def slot_migrated(field: Field, chance: random.Random, name: str) -> None:
    await _migrated(field, chance, name, atomically=False)


@kind("slot migrated atomically", "servers", only=CLUSTERS)
async def slot_migrated_atomically(field: Field, chance: random.Random, name: str) -> None:
    await _migrated(field, chance, name, atomically=True)


async def _migrated(field: Field, chance: random.Random, name: str, atomically: bool) -> None:
    deployment = field.deployment
    assert isinstance(deployment, Clustered)
    key = chance.choice(deployment.names), chance.randrange(deployment.keys)
    async with field.fault(name, *key):
        with contextlib.suppress(
            RuntimeError, TimeoutError
        ):  # during other faults it may fail, and leave the slot half migrated: that is a fault, too
            await asyncio.to_thread(deployment.migrate, key, chance.random(), atomically)
