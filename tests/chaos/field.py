"""Where faults happen: the servers, the wires and the workers of a run; and what is written down of each fault."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

from asynclock.testing import Proxy, Server

from .crew import Crew
from .deployments import Deployment, Key
from .logs import Log


class Field:
    def __init__(self, deployment: Deployment, crew: Crew, log: Log) -> None:
        self.deployment = deployment
        self.crew = crew
        self.log = log
        self.active: list[str] = []
        self.solo = False  # no other fault happens at the same time
        self._count = 0

    @property
    def validity(self) -> float:
        return self.deployment.validity

    @contextlib.asynccontextmanager
    async def fault(self, kind: str, *on: object) -> AsyncIterator[set[Key]]:
        """It lasts as long as the block. ``on``: what it was done to, for people."""
        number = self._count
        self._count += 1
        self.active.append(kind)
        self.log(
            "fault",
            number=number,
            kind=kind,
            on=" ".join(str(each.port if isinstance(each, Server) else each) for each in on),
            solo=self.solo,
        )
        forgot: set[Key] = set()
        try:
            yield forgot
        finally:
            self.active.remove(kind)
            self.log("over", number=number, forgot=sorted(forgot))

    async def homes(self) -> list[Server]:
        """The servers whose keys count now."""
        return await asyncio.to_thread(self.deployment.homes)

    async def pick_servers(self, chance: random.Random) -> list[Server]:
        """Mostly one of those whose keys count now, sometimes several."""
        servers = await self.homes()
        count = chance.choice((1, 1, 1, self.deployment.majority, len(servers)))
        return chance.sample(servers, min(count, len(servers)))

    async def execute(self, server: Server, *command: str | int) -> None:
        """What comes to nothing because of another fault is no harm."""
        with contextlib.suppress(OSError, RuntimeError):
            await asyncio.to_thread(server.execute, *command)

    async def on_key(self, key: Key, *command: str | int) -> None:
        for server in await self.homes():
            if key in await self.keys_on(server):
                await self.execute(server, *command)

    def pick_name(self, chance: random.Random) -> str:
        """Rather one that is held for long: another may be free just then."""
        names = self.deployment.names
        return chance.choice([*names, *[name for name in names if name.startswith("long")] * 3])

    def pick_worker(self, chance: random.Random) -> int | None:
        working = self.crew.working
        return chance.choice(working) if working else None

    def wires(self, chance: random.Random) -> list[Proxy]:
        """Some of the connections: all of one worker, all to one server, or all."""
        proxies = self.deployment.proxies
        match chance.randrange(3):
            case 0:
                return list(chance.choice(proxies).values())
            case 1:
                port = chance.choice(self.deployment.servers).port
                return [of_place[port] for of_place in proxies]
            case _:
                return [proxy for of_place in proxies for proxy in of_place.values()]

    async def keys_on(self, *servers: Server) -> list[Key]:
        return [key for server in servers for key in await asyncio.to_thread(self.deployment.keys_on, server)]
