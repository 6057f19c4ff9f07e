"""Records a real server's replies to a locker."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import defaultdict

import redis.asyncio as redis

from asynclock import AcquireTimeoutError, Locker, NotLockedError
from asynclock.testing import Sentinels, Server
from tests.support.interceptor import Interceptor

TOKEN = re.compile(rb"asynclock:[nf]:[0-9a-f]+:[0-9a-f]+")
_NUMBER = re.compile(rb"\d{4,}")
_KEY = re.compile(rb"asynclock:\d+:\w*")


def shape(command: bytes) -> bytes:
    """The command without key, value and time: the same for all commands of a kind."""
    words = [word for word in command.split(b"\r\n") if word[:1] not in (b"*", b"$")]
    return b" ".join(_NUMBER.sub(b"N", _KEY.sub(b"K", TOKEN.sub(b"T", word))) for word in words).strip()


class Recording:
    """``replies``: all replies for each shape of command; ``pushes``: all pushes."""

    def __init__(self) -> None:
        self.replies: dict[bytes, list[bytes]] = defaultdict(list)
        self.pushes: list[bytes] = []

    def add(self, command: bytes, reply: bytes) -> None:
        known = self.replies[shape(command)]
        if reply not in known and len(known) < 20:
            known.append(reply)

    @property
    def everything(self) -> list[bytes]:
        return [reply for replies in self.replies.values() for reply in replies] + self.pushes


class _Recorder(Interceptor):
    def __init__(self, port: int, into: Recording) -> None:
        super().__init__(port)
        self._into = into

    def heard(self, command: bytes | None, reply: bytes) -> None:
        if command is None:
            self._into.pushes.append(reply)
        else:
            self._into.add(command, reply)


async def record(server: Server) -> Recording:
    """Record everything that a locker does: alone, under contention, taken over by force, extended, lost."""
    recording = Recording()
    for majority in (1, 2):
        async with (
            _Recorder(server.port, recording) as recorder,
            Locker(recorder.url, key_validity=0.2, key_majority=majority) as locker,
            Locker(server.url, key_majority=majority) as other,
        ):
            async with locker.with_context("job") as scope:
                await scope.fencing_token()
                await asyncio.sleep(0.25)  # through two extensions
            busy = await other.acquire("busy")
            with contextlib.suppress(NotLockedError):
                await locker.try_acquire("busy")
            with contextlib.suppress(AcquireTimeoutError):
                await locker.acquire("busy", timeout=0.05)
            waiting = asyncio.create_task(locker.acquire("busy"))
            await asyncio.sleep(0.02)
            await busy.release()
            scope = await waiting
            taken = await other.force_acquire("busy")
            await scope.release()
            await (await locker.force_acquire("busy")).release()
            await taken.release()
            scope = await locker.acquire("job")
            server.execute("FLUSHALL")
            await scope.wait_lost()
    return recording


async def record_sentinels(group: Sentinels) -> Recording:
    """Record the Sentinels' answers for the group's name, and for an unknown name."""
    recording = Recording()
    for _, port in group.addresses:
        async with _Recorder(port, recording) as recorder:
            for name in (group.name, "another"):
                async with redis.Redis(port=recorder.port, protocol=2) as sentinel:
                    await sentinel.execute_command("SENTINEL MASTERS")
                    await sentinel.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", name)
    return recording
