"""What befalls servers, and what others do on them."""

from __future__ import annotations

import asyncio
import random

from .faults import kind
from .field import Field

PUSH = 0.05  # a push: a millisecond or two, and two cores that do other work besides
AWAY = 0.1  # refused, and refused again: tens of milliseconds


@kind("restart without data", "servers", told=AWAY, only=("one",))
async def restarted_empty(field: Field, chance: random.Random, name: str) -> None:
    server = field.pick_server(chance)
    if server is None:
        return
    keys = await field.keys_on(server)
    async with field.fault(name, server.port) as mark:
        mark.forgot.update(keys)
        mark.away.update(keys)
        server.kill()
        server.wipe()
        await asyncio.sleep(chance.choice((0.0, 0.3, 1.5)) * field.validity)
        await asyncio.to_thread(server.start)


@kind("DEL", "servers", told=PUSH)
async def deleted(field: Field, chance: random.Random, name: str) -> None:
    server = field.pick_server(chance)
    if server is None:
        return
    key = chance.choice(await field.keys_on(server))
    async with field.fault(name, server.port, *key) as mark:
        mark.forgot.add(key)
        await asyncio.to_thread(server.execute, "DEL", field.deployment.key(key))
