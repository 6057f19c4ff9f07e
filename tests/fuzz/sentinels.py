"""One case: mutated answers of Sentinels, and then correct ones for the same locker. They come over real sockets, since
redis-py reads them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

from asynclock import AsyncLockError, Locker, ServerError
from asynclock.testing import Sentinels
from asynclock.wire.sentinel import SentinelConnector
from tests.support import internals
from tests.support.interceptor import Interceptor

from .mutations import mutated
from .recording import Recording, shape

LIES = 0.3  # seconds with mutated answers
WELL_AGAIN = 10.0  # seconds within which the primary must be found again: a reconnect takes at most 1.2 s


class SentinelCase:
    def __init__(self, seed: int, recording: Recording, group: Sentinels) -> None:
        self.random = r = random.Random(seed)
        self.recording = recording
        self.others = recording.everything
        self.group = group
        self.primary = ("127.0.0.1", group.servers[0].port)
        self.lies = r.choice((0.05, 0.2, 0.5, 1.0))  # share of the answers that are mutated
        self.liars = r.choice((1, 2, 3))
        self.told: list[tuple[bytes, bytes]] = []
        self.wrong: list[str] = []

    def answer(self, command: bytes) -> bytes | None:
        r = self.random
        if b"SENTINEL" not in command or r.random() > self.lies:
            return None
        reply = r.choice(self.recording.replies.get(shape(command)) or self.others)
        reply = mutated(reply, r, self.others)
        self.told.append((command, reply))
        return reply

    async def run(self) -> list[str]:
        async with contextlib.AsyncExitStack() as stack:
            liars = [await stack.enter_async_context(Interceptor(port)) for _, port in self.group.addresses]
            hosts = ",".join(f"127.0.0.1:{liar.port}" for liar in liars)
            locker = Locker(f"redis+sentinel://{hosts}/{self.group.name}", key_validity=5)
            connector = internals.connector(locker)
            assert isinstance(connector, SentinelConnector)
            self.go_nowhere_else(connector)
            name = f"job {self.random.random()}"
            await self.to_be_had(locker, name)
            for liar in self.random.sample(liars, self.liars):
                liar.answer = self.answer
            end = time.monotonic() + LIES
            while time.monotonic() < end:
                internals.drop(locker)
                with contextlib.suppress(AsyncLockError):
                    async with locker.with_context(name, timeout=0.05):
                        pass
                await asyncio.sleep(0.01)
            for liar in liars:
                liar.answer = None
            for _ in range(2):  # first the last bad answer's effect, then an ordinary reconnect
                await self.to_be_had(locker, name)
                internals.drop(locker)
            await self.to_be_had(locker, name)
            if not internals.refreshing(locker).running:
                self.wrong.append("the check for another primary no longer runs")
            await locker.aclose()
        return self.wrong

    def go_nowhere_else(self, connector: SentinelConnector) -> None:
        """Mutated answers may name any address: connect to the real primary only."""
        enter = connector._open

        async def guarded(protocol: int) -> asyncio.StreamWriter:
            if (address := connector._kwargs["connection_pool"]._address) != self.primary:
                raise ServerError(connector.label, f"{address} is not the primary of this test")
            return await enter(protocol)

        connector._open = guarded  # type: ignore[method-assign]

    async def to_be_had(self, locker: Locker, name: str) -> None:
        end = time.monotonic() + WELL_AGAIN
        while True:
            try:
                async with locker.with_context(name, timeout=WELL_AGAIN) as scope:
                    scope.check()
                return
            except AsyncLockError as error:
                if time.monotonic() > end:
                    self.wrong.append(f"the primary is not found again: {error}")
                    return
                await asyncio.sleep(0.02)
            except Exception as error:
                self.wrong.append(f"{type(error).__name__} came out of a block: {error}")
                return
