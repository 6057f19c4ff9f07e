"""What makes a holder lose its lock, by the reason that the holder then reports: each is done to a real server.

Each is an async context manager, which runs outside of the test's event loop (``elsewhere.py``). On entry it does it,
and yields whether the lock was still held when it was done; on exit it clears up what would last: the key of somebody
else, a server that is down.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import LossReason
from ..locker import Locker
from .servers import Server

# How the key of a semaphore's slot begins: without braces in the prefix, with an opening one, with both (core/keys.py).
_OF_A_PERMIT = re.compile(rb":p\d+:\{\w{3}\}$|\{.*:p\d+:\w{3}\}$|\}.*:p\d+$", re.DOTALL)
_VALUE = b"written by somebody else (asynclock.testing)"
_MARGIN = 0.02  # seconds after which a key that should have expired certainly has

# KEYS: the keys of the lock. Each script checks and acts in one step: the holder may release the lock at any moment.
_FLUSH = "if redis.call('EXISTS', unpack(KEYS)) == 0 then return 0 end redis.call('FLUSHALL') return 1"
_OVERWRITE = """
local done = 0
for _, key in ipairs(KEYS) do
    local ttl = redis.call('PTTL', key)
    if ttl > 0 then redis.call('SET', key, ARGV[1], 'PX', ttl) done = done + 1 end
end
return done
"""
_DELETE_IF = "for _, key in ipairs(KEYS) do if redis.call('GET', key) == ARGV[1] then redis.call('DEL', key) end end"


@dataclass(frozen=True)
class HeldKeys:
    """The keys of a lock that is held, whoever holds it."""

    name: str
    prefix: str
    keys: tuple[bytes, ...]
    highest: int  # the index of a key

    @property
    def majority(self) -> int:
        """The smallest ``key_majority`` with which there is a key of that index: there are ``2 * majority - 1``."""
        return (self.highest + 3) // 2

    def on(self, server: Server, script: str, *arguments: str | bytes) -> object:
        return server.execute("EVAL", script, len(self.keys), *self.keys, *arguments)

    def values(self, server: Server) -> object:
        return server.execute("MGET", *self.keys)


def find(server: Server, name: str) -> HeldKeys | None:
    """The keys of the lock in database 0, with any ``key_prefix``; ``None`` if it is free. The permits of a semaphore
    of that name are no lock."""
    pattern = re.compile(rb"(.+):(\d+):%b" % re.escape(name.encode()), re.DOTALL)
    found: dict[bytes, dict[int, bytes]] = {}
    keys = server.execute("KEYS", b"*:" + re.sub(rb"([\\*?\[\]])", rb"\\\1", name.encode()))
    assert isinstance(keys, list)
    for key in keys:
        if isinstance(key, bytes) and (match := pattern.fullmatch(key)) and not _OF_A_PERMIT.search(match[1]):
            found.setdefault(match[1], {})[int(match[2])] = key
    if len(found) > 1:
        prefixes = ", ".join(repr(prefix.decode(errors="replace")) for prefix in sorted(found))
        raise RuntimeError(f"lock {name!r} is held under several values of key_prefix: {prefixes}; choose another name")
    for prefix, indexed in found.items():
        return HeldKeys(name, prefix.decode(), tuple(indexed[index] for index in sorted(indexed)), max(indexed))
    return None


@contextlib.asynccontextmanager
async def _deleted(server: Server, held: HeldKeys) -> AsyncIterator[bool]:
    yield bool(server.execute("DEL", *held.keys))


@contextlib.asynccontextmanager
async def _overwritten(server: Server, held: HeldKeys) -> AsyncIterator[bool]:
    done = held.on(server, _OVERWRITE, _VALUE)
    try:
        yield bool(done)
    finally:
        if server.awake:
            held.on(server, _DELETE_IF, _VALUE)


@contextlib.asynccontextmanager
async def _flushed(server: Server, held: HeldKeys) -> AsyncIterator[bool]:
    yield bool(held.on(server, _FLUSH))


@contextlib.asynccontextmanager
async def _expired(server: Server, held: HeldKeys) -> AsyncIterator[bool]:
    """The server is silent until the keys have expired, so that the holder cannot extend them."""
    before = held.values(server)
    while (left := _life(server, held)) > 0 and held.values(server) == before:
        server.pause()  # an extension may have come just before: then the keys live on, and it takes another silence
        try:
            await asyncio.sleep(left + _MARGIN)
        finally:
            server.resume()
        if held.values(server) != before:
            yield True
            return
    yield False  # released meanwhile


def _life(server: Server, held: HeldKeys) -> float:
    """Seconds that the longest-lived key has left."""
    left = [server.execute("PTTL", key) for key in held.keys]
    return max(ttl for ttl in left if isinstance(ttl, int)) / 1000


@contextlib.asynccontextmanager
async def _taken_over(server: Server, held: HeldKeys) -> AsyncIterator[bool]:
    async with Locker(server.url, key_prefix=held.prefix, key_majority=held.majority) as other:
        scope = await other.force_acquire(held.name)
        try:
            yield True
        finally:
            await scope.release()


@contextlib.asynccontextmanager
async def _forgotten(server: Server, held: HeldKeys) -> AsyncIterator[bool]:
    """The connections break, and the server that the holder finds afterwards does not have the keys: as behind a
    load balancer whose server was replaced, or after a failover. In one step: the holder must see nothing in between.
    """
    replies = server.transaction(("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"), ("DEL", *held.keys))
    yield bool(replies[-1])


@contextlib.asynccontextmanager
async def _disconnected(server: Server, held: HeldKeys) -> AsyncIterator[bool]:
    server.kill()
    try:
        yield True
    finally:
        server.start()  # unless the test has


Cause: TypeAlias = Callable[[Server, HeldKeys], AbstractAsyncContextManager[bool]]

CAUSES: dict[LossReason, Cause] = {
    LossReason.DELETED: _deleted,
    LossReason.OVERWRITTEN: _overwritten,
    LossReason.EXPIRED: _expired,
    LossReason.FLUSHED: _flushed,
    LossReason.TAKEN_OVER: _taken_over,
    LossReason.FORGOTTEN: _forgotten,
    LossReason.DISCONNECTED: _disconnected,
}

_FROM_INSIDE = {
    LossReason.CLOSED: "no event on a server causes it: call 'await locker.aclose()' on the locker that holds the lock",
    LossReason.RELEASED: "it is no loss: call 'await scope.release()' on the scope that holds the lock",
}


def cause_of(reason: str) -> Cause:
    """:raises ValueError: nothing that happens to a server causes it; the message says what to do instead"""
    try:
        known = LossReason(reason)
    except ValueError:
        raise ValueError(f"reason={reason!r}: must be one of {', '.join(map(repr, map(str, CAUSES)))}") from None
    if known in _FROM_INSIDE:
        raise ValueError(f"reason={str(known)!r}: {_FROM_INSIDE[known]}")
    return CAUSES[known]
