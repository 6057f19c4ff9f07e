"""Reading: who holds a lock now, as the servers that have its keys say; and which locks there are."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from ..core.holders import Holder, KeyState, holder_of, is_unknown
from ..core.room import Room
from ..errors import ServerError
from ..topology import Topology
from ..wire.commands import packed
from ..wire.node import Node
from ..wire.requests import KeyRead

_SPECIAL = b"\\*?[]"  # in the patterns of SCAN


class Reading:
    """All keys of one lock, each read once, to see who holds it.

    Invariant: ``done`` is set as soon as each key was read, or could not be. That always comes: a server that does not
    answer has its connection dropped.
    """

    __slots__ = ("_answered", "_keys", "_prefixes", "_room", "_topology", "done")

    def __init__(self, topology: Topology, room: Room[Any], prefixes: list[bytes]) -> None:
        self._topology = topology
        self._room = room
        self._prefixes = prefixes
        self._keys: list[KeyState | None] = [None] * room.rules.keys
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for index in range(room.rules.keys):
            read_key(topology, room, index, partial(self._read, index))

    def _read(self, index: int, server: str, value: bytes | None, ttl: int | None, error: ServerError | None) -> None:
        self._keys[index] = key_state(self._prefixes[index], self._room, server, value, ttl, error)
        if None not in self._keys and not self.done.done():
            self.done.set_result(None)

    async def holder(self) -> Holder | None:
        """Wait until each key was read, or could not be. None: nobody holds the lock.

        :raises ServerError: too few keys could be read to say so
        """
        await asyncio.wait([self.done])
        keys = self._keys_now()
        if is_unknown(keys, self._room.rules.majority):
            problems = [state for state in keys if state.problem]
            servers = ", ".join(dict.fromkeys(state.server for state in problems))
            raise ServerError(servers, "; ".join(dict.fromkeys(state.problem for state in problems)))
        return self.result()

    async def holder_within(self, seconds: float) -> Holder | None:
        """The same, after this time at the latest, and without an error. None: nobody, or it is unknown."""
        await asyncio.wait([self.done], timeout=seconds)
        return self.result()

    def result(self) -> Holder | None:
        """The holder, by the answers until now. None: nobody, or it is unknown."""
        keys, majority = self._keys_now(), self._room.rules.majority
        return None if is_unknown(keys, majority) else holder_of(self._room.name, keys, majority)

    def _keys_now(self) -> list[KeyState]:
        return [
            state or KeyState(self._prefixes[index].decode() + self._room.name, "", None, None, "has not answered yet")
            for index, state in enumerate(self._keys)
        ]


def read_key(topology: Topology, room: Room[Any], index: int, answered: KeyRead) -> None:
    """Read one key. ``answered`` may be called before this returns."""
    node = topology.home(room, index)
    if node is None:
        servers = ", ".join(each.label for each in topology.nodes)
        answered(servers, None, None, ServerError(servers, "no node serves the key's slot now"))
    else:
        node.peek(room, index, answered)


def key_state(
    prefix: bytes, room: Room[Any], server: str, value: bytes | None, ttl: int | None, error: ServerError | None
) -> KeyState:
    remaining = ttl / 1000 if value is not None and ttl is not None and ttl >= 0 else None
    return KeyState(prefix.decode() + room.name, server, value, remaining, "" if error is None else error.problem)


async def names(topology: Topology, prefixes: list[bytes]) -> list[str]:
    """The names that have a key on any server.

    :raises ServerError: servers are unavailable or refuse, and all keys of a held lock may be on these
    """
    found: dict[str, None] = {}
    away: list[ServerError] = []
    for node in list(topology.nodes):
        try:
            async for key in _scan(node, prefixes[0].rsplit(b":", 2)[0]):
                for prefix in prefixes:
                    if key.startswith(prefix):
                        found[key[len(prefix) :].decode(errors="replace")] = None
        except ServerError as error:
            away.append(error)
            if len(away) > topology.dispensable:
                raise
    return sorted(found)


async def _scan(node: Node, prefix: bytes) -> Any:
    """Every key there that begins with the prefix."""
    escaped = b"".join(b"\\%c" % byte if byte in _SPECIAL else b"%c" % byte for byte in prefix)
    cursor = b"0"
    while True:
        connection = node.connection
        if connection is None:
            assert node.trouble is not None
            raise node.trouble
        try:
            reply = await connection.call(packed(b"SCAN", cursor, b"MATCH", escaped + b":*", b"COUNT", b"1000"))
        except ConnectionError as error:
            raise ServerError(node.label, "the connection was lost; try again") from error
        if type(reply) is not list or len(reply) != 2 or type(reply[0]) is not bytes or type(reply[1]) is not list:
            raise ServerError(
                node.label, f"answered SCAN with {node.redact(reply)}; name the locks, or grant +scan", lasting=True
            )
        cursor = reply[0]
        for key in reply[1]:
            if type(key) is bytes:
                yield key
        if cursor == b"0":
            return
