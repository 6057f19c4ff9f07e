"""Reading: who holds a lock now, as the servers that have its keys say; and which locks there are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from ..core.holders import Holder, KeyState, holder_of, is_clear, is_unknown
from ..core.keys import Layout
from ..core.room import Room
from ..errors import ServerError
from ..options import MAX_NAME
from ..topology import Topology
from ..wire.commands import key_text, packed
from ..wire.node import Node
from ..wire.requests import KeyRead
from .changes import Changes

_SPECIAL = b"\\*?[]"  # in the patterns of SCAN


class Reading:
    """All keys of one lock, each read once, to see who holds it. Any number of tasks may wait for that.

    Invariants: ``holder`` follows from ``_keys``, and each answer is told to ``_changes``. Each key is answered for in
    the end: a server that is silent has its connection dropped. After ``patience`` seconds (``_timer``), it is enough
    that the answers until then say who holds the lock.
    """

    __slots__ = ("_changes", "_clear", "_keys", "_late", "_room", "_then", "_timer", "_topology", "holder")

    def __init__(self, topology: Topology, room: Room[Any], patience: float) -> None:
        """:param patience: seconds"""
        self._topology = topology
        self._room = room
        self._keys: list[KeyState | None] = [None] * room.rules.keys
        self._clear = self._late = False
        self._changes = Changes()
        self._then: list[Callable[[], object]] = []  # called once it is complete
        self.holder: Holder | None = None  #: by the answers until now; None: nobody, or it is not ``known``
        self._timer = asyncio.get_running_loop().call_later(patience, self._patience_is_over)
        for index in range(room.rules.keys):
            read_key(topology, room, index, partial(self._read, index))

    def _read(self, index: int, server: str, value: bytes | None, ttl: int | None, error: ServerError | None) -> None:
        self._keys[index] = key_state(self._room, index, server, value, ttl, error)
        keys, majority = self._keys_now(), self._room.rules.majority
        self.holder = None if is_unknown(keys, majority) else holder_of(self._room.name, keys, majority)
        self._clear = is_clear(keys, majority)
        self._changes.tell()
        if self.complete:
            self._timer.cancel()
            then, self._then = self._then, []
            for callback in then:
                callback()

    def _patience_is_over(self) -> None:
        self._late = True
        self._changes.tell()

    def when_complete(self, callback: Callable[[], object]) -> None:
        """Call it once each key was read, or is known not to be readable; perhaps now."""
        if self.complete:
            callback()
        else:
            self._then.append(callback)

    @property
    def complete(self) -> bool:
        """Was each key read, or is known not to be readable?"""
        return None not in self._keys

    @property
    def known(self) -> bool:
        """Do the answers until now say who holds the lock, or that nobody does?"""
        return not is_unknown(self._keys_now(), self._room.rules.majority)

    async def wait(self) -> Holder | None:
        """Wait for every key; after ``patience`` only until it is clear who holds the lock. None: nobody.

        :raises ServerError: too few keys could be read to say so
        """
        while not (self.complete or (self._late and self._clear)):
            await self._changes.after(self._changes.count)
        if not self.known:
            problems = [state for state in self._keys_now() if state.problem]
            servers = ", ".join(dict.fromkeys(state.server for state in problems))
            raise ServerError(servers, "; ".join(dict.fromkeys(state.problem for state in problems)))
        return self.holder

    async def wait_for_patience(self) -> Holder | None:
        """Wait until it is clear who holds the lock, or ``patience`` is over. None: nobody, or it is unknown."""
        while not (self.complete or self._clear or self._late):
            await self._changes.after(self._changes.count)
        return self.holder

    def _keys_now(self) -> list[KeyState]:
        return with_unread(self._keys, self._room)


def read_key(topology: Topology, room: Room[Any], index: int, answered: KeyRead) -> None:
    """Read one key. ``answered`` may be called before this returns."""
    node = topology.home(room, index)
    if node is None:
        servers = ", ".join(each.label for each in topology.nodes)
        answered(servers, None, None, ServerError(servers, "no node serves the key's slot now"))
    else:
        node.peek(room, index, answered)


def key_state(
    room: Room[Any], index: int, server: str, value: bytes | None, ttl: int | None, error: ServerError | None
) -> KeyState:
    remaining = ttl / 1000 if value is not None and ttl is not None and ttl >= 0 else None
    return KeyState(key_text(room.keys[index]), server, value, remaining, "" if error is None else error.problem)


def with_unread(keys: list[KeyState | None], room: Room[Any]) -> list[KeyState]:
    """All keys of a lock. Those that are not read yet are among the unreadable ones."""
    return [
        state or KeyState(key_text(room.keys[index]), "", None, None, "has not answered yet")
        for index, state in enumerate(keys)
    ]


async def names(topology: Topology, prefix: bytes, layout: Layout, not_ours: Callable[[bytes], object]) -> list[str]:
    """The names that have a key on any server.

    :param not_ours: called with every other key that begins with the prefix
    :raises ServerError: servers are unavailable or refuse, and all keys of a held lock may be on these
    """
    found: dict[str, None] = {}
    away: list[ServerError] = []
    for node in list(topology.nodes):
        try:
            async for key in _scan(node, prefix):
                parsed = layout.parsed(key)
                if parsed is None:
                    not_ours(key)
                elif 0 < len(parsed[1]) <= MAX_NAME:
                    found[parsed[1].decode(errors="replace")] = None
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
