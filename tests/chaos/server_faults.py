"""What befalls servers, and what others do on them."""

from __future__ import annotations

import asyncio
import contextlib
import random

from .deployments import Clustered, Key, Monitored
from .faults import AWAY, LOOK, PUSH, kind
from .field import Field

WITH_DISK = ("one", "three")
WITH_REPLICAS = ("cluster", "sentinel")


def _downtime(field: Field, chance: random.Random) -> float:
    return chance.choice((0.0, 0.3, 1.2)) * field.validity


# Servers that keep their word


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
    seconds = chance.choice((0.1, 0.6, 1.3)) * field.validity
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
    seconds = chance.choice((0.1, 0.4, 1.2)) * field.validity
    which = chance.choice(("ALL", "WRITE"))
    async with field.fault(name, *servers, which, f"{seconds:.1f} s"):
        for server in servers:
            await field.execute(server, "CLIENT", "PAUSE", int(seconds * 1000), which)
        await asyncio.sleep(seconds)


@kind("DEBUG SLEEP", "servers")
async def slept(field: Field, chance: random.Random, name: str) -> None:
    servers = await field.pick_servers(chance)
    longest = field.deployment.patience  # or there is a failover, which is another fault
    seconds = min(chance.choice((0.1, 0.4, 1.2)) * field.validity, longest)
    async with field.fault(name, *servers, f"{seconds:.1f} s"):
        await asyncio.gather(*(field.execute(server, "DEBUG", "SLEEP", f"{seconds:.3f}") for server in servers))


# Servers that forget


@kind("server SIGKILL, back without its data", "servers", told=AWAY, only=("one", "cluster", "sentinel"))
async def killed_and_emptied(field: Field, chance: random.Random, name: str) -> None:
    await _emptied(field, chance, name, forgets=True)


async def _emptied(field: Field, chance: random.Random, name: str, forgets: bool) -> None:
    servers = await field.pick_servers(chance)
    async with field.fault(name, *servers) as forgot:
        keys = await field.keys_on(*servers)
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
    async with field.fault(name, *servers) as forgot:
        forgot.update(await field.keys_on(*servers))
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
    """Of one lock."""
    lock = field.pick_name(chance)
    return [(lock, index) for index in chance.sample(range(field.deployment.keys), field.deployment.majority)]


@kind("server's time of day jumps ahead", "servers", told=PUSH, only=WITH_DISK)
async def clock_jumps_ahead(field: Field, chance: random.Random, name: str) -> None:
    """Keys expire before their time."""
    await _clock_jumps(field, chance, name, chance.choice((0.3, 1.0, 3600.0)) * field.validity)


@kind("server's time of day jumps back", "servers", only=WITH_DISK, harmless=True)
async def clock_jumps_back(field: Field, chance: random.Random, name: str) -> None:
    """Keys live longer."""
    await _clock_jumps(field, chance, name, -chance.choice((0.3, 0.8)) * field.validity)


async def _clock_jumps(field: Field, chance: random.Random, name: str, off: float) -> None:
    server = (await field.pick_servers(chance))[0]
    clock = field.deployment.clocks[server.port]
    async with field.fault(name, server, f"{off:+.1f} s") as forgot:
        keys = await field.keys_on(server)
        if off > 0:
            forgot.update(keys)
        # It stays: going back would be the other fault.
        field.deployment.offsets[server.port] = offset = field.deployment.offsets.get(server.port, 0.0) + off
        clock.set(offset)


# Roles and slots that move


@kind("primary SIGKILL, replaced by its replica", "servers", told=AWAY, only=WITH_REPLICAS)
async def primary_killed(field: Field, chance: random.Random, name: str) -> None:
    await _replaced(field, chance, name, stop=False)


@kind("primary SIGSTOP, replaced by its replica", "servers", told=2.0, only=WITH_REPLICAS)
async def primary_stopped(field: Field, chance: random.Random, name: str) -> None:
    """Whoever holds a lock there counts on it until its time is over."""
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
    """The old primary accepts writes until it is told, and its clients look once a second."""
    deployment = field.deployment
    assert isinstance(deployment, Monitored)
    async with field.fault(name) as forgot:
        keys = await field.keys_on(*await field.homes())
        forgot.update(keys)
        await asyncio.to_thread(deployment.sentinels.failover)


@kind("planned failover of a shard", "servers", only=("cluster",))
async def shard_failed_over(field: Field, chance: random.Random, name: str) -> None:
    deployment = field.deployment
    assert isinstance(deployment, Clustered)
    server = (await field.pick_servers(chance))[0]
    async with field.fault(name, server):
        await asyncio.to_thread(deployment.failover, server)


@kind("slot migrated", "servers", only=("cluster",))
async def slot_migrated(field: Field, chance: random.Random, name: str) -> None:
    await _migrated(field, chance, name, atomically=False)


@kind("slot migrated atomically", "servers", only=("cluster",))
async def slot_migrated_atomically(field: Field, chance: random.Random, name: str) -> None:
    await _migrated(field, chance, name, atomically=True)


async def _migrated(field: Field, chance: random.Random, name: str, atomically: bool) -> None:
    deployment = field.deployment
    assert isinstance(deployment, Clustered)
    key = chance.choice(deployment.names), chance.randrange(deployment.keys)
    async with field.fault(name, *key):
        with contextlib.suppress(RuntimeError, TimeoutError):  # in a storm it may fail; that is a fault too
            await asyncio.to_thread(deployment.migrate, key, chance.random(), atomically)
