"""Which servers are connected, and which other lockers are connected to them, as far as the servers say.

A server does not tell which client waits for which lock: it knows which keys a client tracks, and has no command that
shows them. What it shows is its connections (``CLIENT LIST``), and those of asynclock have its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from asynclock import Locker
from asynclock.wire.commands import is_error, packed
from asynclock.wire.node import Node

_LIST = packed(b"CLIENT", b"LIST", b"TYPE", b"NORMAL")  # not the second connection that a locker has with RESP2
_ID = packed(b"CLIENT", b"ID")
_NAME = re.compile(r"asynclock-[^:]*:?(.*)")
_LIBRARY = "redis-py(asynclock"


@dataclass(frozen=True, slots=True)
class Connected:
    """The other lockers that are connected to one server."""

    server: str  #: its address, without credentials
    owners: tuple[str, ...]  #: one for each locker; empty: its connection does not say
    problem: str = ""  #: why they are not known


def away(locker: Locker) -> list[str]:
    """The servers that are not connected now."""
    return [node.label for node in locker._manager.topology.nodes if node.connection is None]


async def connected_lockers(locker: Locker) -> list[Connected]:
    """For each server of this locker, which must be open."""
    return [await _at(node) for node in list(locker._manager.topology.nodes)]


async def _at(node: Node) -> Connected:
    connection = node.connection
    if connection is None:
        return Connected(node.label, (), "not connected")
    try:
        own, clients = [await reply for reply in (connection.call(_ID), connection.call(_LIST))]
    except ConnectionError:
        return Connected(node.label, (), "the connection was lost")
    for reply in (own, clients):
        if is_error(reply):
            return Connected(node.label, (), node.redact(reply))
    return Connected(node.label, owners_in(clients, own))


def owners_in(clients: Any, own: Any) -> tuple[str, ...]:
    """The owners in the reply to ``CLIENT LIST``, sorted, without that of the connection with id ``own``."""
    if not isinstance(clients, bytes):
        return ()
    owners: list[str] = []
    for line in clients.decode(errors="backslashreplace").splitlines():
        fields = dict(field.partition("=")[::2] for field in line.split(" "))
        name = fields.get("name", "")
        ours = _NAME.fullmatch(name)
        if fields.get("id") != str(own) and (ours or fields.get("lib-name", "").startswith(_LIBRARY)):
            owners.append(ours[1] if ours else name)
    return tuple(sorted(owners))
