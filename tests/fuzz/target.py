"""One case: a locker with mutated replies, and then the same locker with a real server."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import Any

from asynclock import AsyncLockError, Locker, LockLostError, ServerError
from asynclock.testing.resp import FrameSplitter
from tests.support import internals

from .mutations import mutated
from .recording import TOKEN, Recording, shape

BLOCKED = 0.25  # seconds of CPU time that one read may take, at most
WELL_AGAIN = 10.0  # seconds within which every lock must be free again: a reconnect takes 1 s, and other cases run


class Liar:
    """A transport without a server: it answers each command with a recorded reply to a similar one, perhaps mutated, in
    pieces of any size."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._random = case.random
        self._splitter = FrameSplitter()
        self._command = b""
        self._out = b""
        self._closing = False
        self._token = b"asynclock:n:0:0"
        self._protocol: asyncio.Protocol
        self.transport = self  # as a StreamWriter has it

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._closing

    def write(self, data: bytes) -> None:
        for part in self._splitter.feed(data):
            self._command += part.data
            if part.last:
                self._answer(self._command)
                self._command = b""

    def close(self) -> None:
        self.abort()

    def abort(self, error: Exception | None = None) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, error)

    def _answer(self, command: bytes) -> None:
        case, r = self._case, self._random
        if found := TOKEN.search(command):
            self._token = found[0]
        reply = r.choice(case.recording.replies.get(shape(command)) or [b"+OK\r\n"])
        if r.random() < 0.8 and (found := TOKEN.search(reply)):
            reply = b"$%d\r\n%b\r\n" % (len(self._token), self._token)
        if r.random() < case.pushes:
            push = r.choice(case.recording.pushes)
            reply = (mutated(push, r, case.others) if r.random() < case.lies else push) + reply
        if r.random() < case.lies:
            reply = mutated(reply, r, case.others)
        case.told.append((command, reply))
        if not self._out:
            asyncio.get_running_loop().call_soon(self._say)
        self._out += reply

    def _say(self) -> None:
        size = self._random.choice((1, 7, 64, 1 << 20))
        data, self._out = self._out[:size], self._out[size:]
        if self._closing or not data:
            return
        since = time.process_time()
        try:
            self._protocol.data_received(data)
        except Exception as error:
            # As an event loop does: report it, and close the connection.
            self._case.wrong.append(f"{type(error).__name__} left data_received: {error}")
            self.abort(error)
        if (took := time.process_time() - since) > BLOCKED:
            self._case.wrong.append(f"{len(data)} bytes took {took:.2f} s")
        if self._out:
            asyncio.get_running_loop().call_soon(self._say)


class Case:
    def __init__(self, seed: int, recording: Recording, url: str) -> None:
        self.seed = seed
        self.random = r = random.Random(seed)
        self.recording = recording
        self.others = recording.everything
        self.url = url
        self.lies = r.choice((0.01, 0.05, 0.2, 0.5))  # share of the replies that are mutated
        self.pushes = r.choice((0.0, 0.05, 0.3))
        self.told: list[tuple[bytes, bytes]] = []  # the commands and their replies
        self.wrong: list[str] = []

    async def run(self) -> list[str]:
        r = self.random
        locker = Locker(self.url, key_validity=0.5, key_majority=r.choice((None, 2)), try_next_after=0.01)
        names = [f"{self.seed}{letter}" for letter in "ab"]
        liars: list[Liar] = []
        connectors = internals.servers(locker).connectors
        honest = [connector.open for connector in connectors]

        async def open_to_a_liar() -> Any:
            liars.append(Liar(self))
            return liars[-1]

        for connector in connectors:
            connector.open = open_to_a_liar  # type: ignore[method-assign]
        waiting = [asyncio.create_task(self.wait_for(locker, name)) for name in names]
        await asyncio.gather(*(self.use(locker, r.choice(names)) for _ in range(4)))
        for connector, open_honestly in zip(connectors, honest, strict=True):
            connector.open = open_honestly  # type: ignore[method-assign]
        for liar in liars:
            liar.abort()
        await self.well_again(locker, names, waiting)
        for node in internals.nodes(locker):  # the node must survive another reconnect, too
            if node.connection is not None:
                node.connection.abort()
        await self.well_again(locker, names, [])
        await locker.aclose()
        if internals.busy(locker):
            self.wrong.append(f"left: {internals.busy(locker)}")
        return self.wrong

    async def wait_for(self, locker: Locker, name: str) -> None:
        with contextlib.suppress(AsyncLockError):
            async with locker.with_context(name):
                await asyncio.sleep(0.001)

    async def use(self, locker: Locker, name: str) -> None:
        """Use a lock as a caller does: only asynclock's own errors may come out."""
        r = self.random
        for _ in range(3):
            stays = r.choice((None, None, 0.02))
            match r.randrange(4):
                case 0:
                    context = locker.try_with_context(name, at_least=stays)
                case 1:
                    context = locker.with_context(name, timeout=0.03, at_least=stays)
                case 2:
                    context = locker.with_context(name, timeout=0.002, at_least=stays)
                case _:
                    context = locker.force_with_context(name, at_least=stays)
            try:
                async with asyncio.timeout(0.1):
                    async with context as scope:
                        scope.create_task(asyncio.sleep(r.random() * 0.004))
                        repr(scope)
                        if r.random() < 0.3:
                            await scope.fencing_token()
            except (AsyncLockError, TimeoutError) as error:
                str(error)
            except Exception as error:
                self.wrong.append(f"{type(error).__name__} came out of a block: {error}")

    async def well_again(self, locker: Locker, names: list[str], waiting: list[asyncio.Task[None]]) -> None:
        stuck = (await asyncio.wait(waiting, timeout=WELL_AGAIN))[1] if waiting else set()
        if stuck:
            self.wrong.append(f"{len(stuck)} waiters wait for ever")
            for task in stuck:
                task.cancel()
            await asyncio.wait(stuck)
        for task in waiting:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.wrong.append(f"{type(error).__name__} came out of a block: {error}")
        end = time.monotonic() + WELL_AGAIN
        for name in names:
            try:
                await self.to_be_had(locker, name, end)
            except AsyncLockError as error:
                self.wrong.append(f"a lock cannot be acquired again: {error}")
            except Exception as error:
                self.wrong.append(f"{type(error).__name__} came out of a block: {error}")

    async def to_be_had(self, locker: Locker, name: str, end: float) -> None:
        while True:
            try:
                async with locker.with_context(name, timeout=max(0.5, end - time.monotonic())) as scope:
                    await scope.fencing_token()
                return
            except LockLostError:  # on a busy machine, since the validity is short
                await asyncio.sleep(0.02)
            except ServerError:  # the last problem, until the next reconnect
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.02)
