"""What faults act on, the servers, the wires and the workers of a run; and the log of the faults."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import AsyncIterator, Iterable

from asynclock.testing import Proxy, Server

from .crew import Crew
from .deployments import PACE, Deployment, Key
from .logs import Log, now, semaphore_of

UNASKED = "failover that nobody asked for"
WATCH_EVERY = 0.2  # seconds between two checks of which servers are primaries
BEGUN = 1.5  # seconds before a check, at most, since when a new primary that it finds may have accepted writes


class Field:
    def __init__(self, deployment: Deployment, crew: Crew, log: Log) -> None:
        self.deployment = deployment
        self.crew = crew
        self.log = log
        self.active: list[str] = []
        self.solo = False  # True: one fault at a time
        self._count = 0
        self._moved = -math.inf  # when a fault last moved roles

    @property
    def pace(self) -> float:
        """Seconds; the durations of faults are multiples of it."""
        return PACE

    @contextlib.asynccontextmanager
    async def fault(
        self, kind: str, *on: object, harmless: bool = False, emptied: Iterable[Key] = ()
    ) -> AsyncIterator[set[Key]]:
        """Log a fault, which lasts as long as the block. Keys that servers lose must be added to the set, unless a
        quarantine makes up for the loss.

        :param on: what it acts on, for human readers
        :param harmless: it is so short that no lock may be lost, if it happens alone
        :param emptied: the keys on servers that lose all their data: the counters of fencing tokens, too
        """
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
            self.log("over", number=number, forgot=sorted(forgot), emptied=sorted(emptied))

    async def watch_roles(self) -> None:
        """Log a failover that no injected fault has caused as a fault of its own."""
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
        """The current primaries."""
        return await asyncio.to_thread(self.deployment.homes)

    async def pick_servers(self, chance: random.Random) -> list[Server]:
        """Mostly one of the current primaries, sometimes several."""
        servers = await self.homes()
        count = chance.choice((1, 1, 1, self.deployment.majority, len(servers)))
        return chance.sample(servers, min(count, len(servers)))

    @contextlib.asynccontextmanager
    async def rate(self, server: Server) -> AsyncIterator[None]:
        """Log the server's rate of commands a second: during the block, and in the second before it."""
        number, since, first = self._count, now(), await asyncio.to_thread(_commands, server)
        await asyncio.sleep(1.0)
        at, second = now(), await asyncio.to_thread(_commands, server)
        yield
        third = await asyncio.to_thread(_commands, server)
        self.log("rate", number=number, before=(second - first) / (at - since), during=(third - second) / (now() - at))

    async def execute(self, server: Server, *command: str | int) -> None:
        """It may fail because of another fault; that does not matter."""
        with contextlib.suppress(OSError, RuntimeError):
            await asyncio.to_thread(server.execute, *command)

    async def on_key(self, key: Key, *command: str | int) -> None:
        for server in await self.homes():
            if key in await self.keys_on(server):
                await self.execute(server, *command)

    def pick_name(self, chance: random.Random, slots: bool = True) -> str:
        """Preferably a name that is held for long: the others may be free just then.

        :param slots: of semaphores, too
        """
        names = [name for name in self.deployment.names if slots or not semaphore_of(name)]
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
