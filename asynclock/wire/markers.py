"""The key that is written before each ``WAIT``; ``replicas.py`` says why."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from ..core.operations import RELEASE
from ..core.slots import hash_tag, slot_of
from .commands import OK, Capabilities, Commands, bulk, packed, unbulk
from .connection import Connection, Expects
from .requests import Ignored

LIFE = b"10000"  # ms: for a marker that was not deleted because its connection was lost
GUESSES = 8  # how many recent locks' slots to try, and how many random ones in addition

_ELSEWHERE = ("MOVED ", "ASK ", "TRYAGAIN", "CLUSTERDOWN")


class Markers:
    """Writes markers: keys that no lock can have, deleted at once.

    A node of a cluster accepts only keys in its own slots. So several keys are tried until one is accepted. That one
    is used until its slot moves.

    State: ``_known`` is the key that was accepted last (packed). ``written`` and ``refusal`` are the outcome of the
    last ``write``: whether a key was accepted, and the error if not.
    """

    def __init__(self, prefix: str, capabilities: Capabilities) -> None:
        # Scripts are sent in full: nothing here would handle NOSCRIPT.
        self._commands = Commands(capabilities._replace(evalsha=False))
        self._prefix = f"{prefix}:wait:".encode()
        self.token = b"asynclock:w:" + os.urandom(16).hex().encode()
        self._known: bytes | None = None
        self.written = False
        self.refusal: Any = None

    def only_one(self) -> bytes:
        """The marker for a server that accepts any key."""
        self._known = bulk(self._prefix + b"{%b}" % self.token)
        return self._known

    def set(self, marker: bytes) -> bytes:
        return packed(b"SET", unbulk(marker), self.token, b"PX", LIFE)

    def delete(self, marker: bytes) -> bytes:
        return self._commands.packers[RELEASE](marker, self.token, b"")

    def write(self, connection: Connection, locks: Sequence[bytes], now: float) -> None:
        """Write and delete a marker.

        :param locks: keys (packed) that the server has just accepted, the latest last
        """
        self.written, self.refusal = False, None
        for marker in [self._known] if self._known is not None else self._guesses(locks):
            connection.send(self.set(marker), _Written(self, marker), 1, now)
            connection.send(self.delete(marker), Ignored(), 1, now)

    @property
    def elsewhere(self) -> bool:
        """Were all keys refused because other nodes own their slots? Then try other keys (``forget``)."""
        return not self.written and str(self.refusal).startswith(_ELSEWHERE)

    def forget(self) -> None:
        """The slot of the known marker has moved."""
        self._known = None

    def _guesses(self, locks: Sequence[bytes]) -> Iterable[bytes]:
        """Keys in the slots of the locks and, in case those have just moved, in random slots."""
        tags = dict.fromkeys(tag for lock in locks[-GUESSES:] if (tag := tag_of(unbulk(lock))))
        others = [os.urandom(4).hex().encode() for _ in range(GUESSES)]
        return [bulk(self._prefix + b"{%b}" % tag) for tag in (*tags, *others)]

    def answered(self, marker: bytes, reply: Any) -> None:
        if reply == OK:
            self.written = True
            self._known = marker
        elif self.refusal is None or not str(reply).startswith(_ELSEWHERE):
            self.refusal = reply


class _Written(Expects):
    """Waits for the reply to the SET of one marker."""

    __slots__ = ("_marker", "_markers")

    def __init__(self, markers: Markers, marker: bytes) -> None:
        self._markers = markers
        self._marker = marker

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        self._markers.answered(self._marker, reply)

    def dropped(self) -> None: ...


def tag_of(key: bytes) -> bytes | None:
    """A hash tag for the slot of ``key``; None: a tag made from the key cannot reach it."""
    tag = hash_tag(key) or key
    return tag if b"}" not in tag and slot_of(b"{%b}" % tag) == slot_of(key) else None
