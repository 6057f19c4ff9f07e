"""Where faults happen: the servers, the wires and the workers of a run; and what is written down of each fault."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import AsyncIterator

from asynclock.testing import Proxy, Server

from .crew import Crew
from .deployments import PACE, Deployment, Key
from .logs import Log, now

UNASKED = "failover that nobody asked for"
WATCH_EVERY = 0.2  # seconds between two looks at who is who
BEGUN = 1.5  # seconds before that, at most, in which a new primary has begun to accept what the old one does not know


class Field:
    def __init__(self, deployment: Deployment, crew: Crew, log: Log) -> None:
        self.deployment = deployment
        self.crew = crew
        self.log = log
        self.active: list[str] = []
        self.solo = False  # no other fault happens at the same time
        self._count = 0
        self._moved = -math.inf  # when there was a fault last that moves roles

    @property
    def pace(self) -> float:
        """Seconds that a fault's duration is a multiple of."""
        return PACE

    @contextlib.asynccontextmanager
    async def fault(self, kind: str, *on: object, harmless: bool = False) -> AsyncIterator[set[Key]]:
        """It lasts as long as the block. ``on``: what it was done to, for people. ``harmless``: it is over so soon that
        it costs nobody a lock, if it comes alone."""
        self._count += 1
        number = self._count
        self.active.append(kind)
        self.log(
            "fault",
            number=number,
            kind=kind,
            on=" ".join(str(each.port if isinstance(each, Server) else each) for each in on),
            solo=self.solo,
            harmless=harmless,
        )
        forgot: set[Key] = set()
        try:
            yield forgot
        finally:
            self.active.remove(kind)
            if _moves(kind):
                self._moved = now()
            self.log("over", number=number, forgot=sorted(forgot))

    async def watch_roles(self) -> None:
        """Writes it down as a fault when other servers than before have the keys that count, and no fault that is under
        way means them to."""
        before = await self.homes()
        while True:
            await asyncio.sleep(WATCH_EVERY)
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                homes = await self.homes()
                new = [server for server in homes if server not in before]
                before = homes
                seen = now()
                if any(_moves(kind) for kind in self.active):
                    self._moved = seen
                elif new and seen - self._moved > 3 * WATCH_EVERY:
                    self._count += 1
                    self.log(
                        "fault", at=seen - BEGUN, number=self._count, kind=UNASKED, on=str(new[0].port), solo=False
                    )
                    self.log("over", number=self._count, forgot=sorted(await self.keys_on(*new)))

    async def homes(self) -> list[Server]:
        """The servers whose keys count now."""
        return await asyncio.to_thread(self.deployment.homes)

    async def pick_servers(self, chance: random.Random) -> list[Server]:
        """Mostly one of those whose keys count now, sometimes several."""
        servers = await self.homes()
        count = chance.choice((1, 1, 1, self.deployment.majority, len(servers)))
        return chance.sample(servers, min(count, len(servers)))

    @contextlib.asynccontextmanager
    async def rate(self, server: Server) -> AsyncIterator[None]:
        """Writes down how many commands a second the server gets for as long as the block lasts, and how many it got
        in the second before that."""
        number, since, first = self._count, now(), await asyncio.to_thread(_commands, server)
        await asyncio.sleep(1.0)
        at, second = now(), await asyncio.to_thread(_commands, server)
        yield
        third = await asyncio.to_thread(_commands, server)
        self.log("rate", number=number, before=(second - first) / (at - since), during=(third - second) / (now() - at))

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

    def wires_of(self, place: int) -> list[Proxy]:
        return list(self.deployment.proxies[place].values())

    def wires(self, chance: random.Random) -> list[Proxy]:
        """Some of the connections: all of one worker, all to one server, or all."""
        proxies = self.deployment.proxies
        match chance.randrange(3):
            case 0:
                return self.wires_of(chance.randrange(len(proxies)))
            case 1:
                port = chance.choice(self.deployment.servers).port
                return [of_place[port] for of_place in proxies]
            case _:
                return [proxy for of_place in proxies for proxy in of_place.values()]

    async def keys_on(self, *servers: Server) -> list[Key]:
        return [key for server in servers for key in await asyncio.to_thread(self.deployment.keys_on, server)]


def _commands(server: Server) -> int:
    told = server.execute("INFO", "stats")
    assert isinstance(told, bytes)
    return int(told.split(b"total_commands_processed:")[1].split()[0])


def _moves(kind: str) -> bool:
    return "failover" in kind or "replaced" in kind
