"""What tests look at inside a locker: the only module of tests/ that knows how to get there.

Everything here is internal and changes without notice. A test uses it for what the public interface does not show, such
as when a connection is lost, or to replace a method by one that fails.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from asynclock import Locker, LockScope
from asynclock.semaphore import PermitScope

if TYPE_CHECKING:
    from asynclock._engine.manager import LockManager
    from asynclock.core.lease import Lease
    from asynclock.core.room import Room
    from asynclock.integrations.fastapi import Locks
    from asynclock.options import Options
    from asynclock.topology.servers import Servers
    from asynclock.wire.background import Loop
    from asynclock.wire.connector import Connector
    from asynclock.wire.node import Node


def manager(locker: Locker) -> LockManager:
    return locker._manager


def options(locker: Locker) -> Options:
    return locker._manager.options


def servers(locker: Locker) -> Servers:
    """What the argument ``servers`` of the locker was parsed into."""
    return locker._manager.clients.servers


# Servers


def topology(locker: Locker) -> Any:
    """Which server serves which key."""
    return locker._manager.topology


def nodes(locker: Locker) -> Any:
    """The servers that the locker is, or wants to be, connected to."""
    return locker._manager.topology.nodes


def node(locker: Locker) -> Node:
    """The server of a locker that has one."""
    (only,) = locker._manager.topology.nodes
    return only


def connector(locker: Locker) -> Connector:
    """What opens the connections to the server of a locker that has one."""
    (only,) = locker._manager.clients.servers.connectors
    return only


def up(locker: Locker) -> bool:
    """Is every server connected now?"""
    return all(node.connection is not None for node in locker._manager.topology.nodes)


def drop(locker: Locker) -> None:
    """Abort every connection of the locker, as if they had been lost."""
    for node in locker._manager.topology.nodes:
        if node.connection is not None:
            node.connection.abort()


def trouble(locker: Locker) -> str:
    """Why the server of a locker that has one gives no votes now, or ``None`` as a string."""
    return str(node(locker).trouble)


def opening(locker: Locker) -> asyncio.Task[None]:
    """The task that connects a locker which is not connected yet."""
    task = locker._manager.life.opening
    assert task is not None
    return task


def refreshing(locker: Locker) -> Loop:
    """The background task that refreshes a cluster's slots, or asks the Sentinels for the primary."""
    found: Loop = locker._manager.topology.refreshing  # type: ignore[attr-defined]
    return found


async def disconnect(locker: Locker) -> None:
    """Close the connections of the locker, and not the locker."""
    await locker._manager.disconnect()


# Locks


def rooms(locker: Locker) -> dict[str, Room[Any]]:
    """For each name that is held, acquired or waited for: its room."""
    return locker._manager.rooms


def room(locker: Locker, name: str) -> Room[Any] | None:
    return locker._manager.rooms.get(name)


def busy(locker: Locker) -> list[str]:
    """The names that are held, acquired or waited for."""
    return locker._manager.busy()


def lose(locker: Locker, name: str) -> None:
    """Take the lock from its holder in this turn of the event loop, as if the server of its first key were gone."""
    if (room := locker._manager.rooms.get(name)) is not None:
        room.gone(0, locker._manager.clock())


def lease(scope: LockScope) -> Lease | None:
    return scope._lease


def expire(locker: Locker, name: str) -> None:
    """The deadline of that lock has passed, and its room has not noticed it yet."""
    held = room(locker, name)
    assert held is not None and held.holder is not None
    for index in range(len(held.holder.votes)):
        held.holder.vote(index, manager(locker).clock())


def slot(scope: LockScope) -> int:
    """The slot of a semaphore that the scope has."""
    assert isinstance(scope, PermitScope)
    return scope._slot


def board(locker: Locker, name: str) -> Any:
    """What is known of the slots of that semaphore; None: nothing yet."""
    return next((each.board for each in locker._manager.semaphores if each.name == name and each.open), None)


def pause_after_failure(locker: Locker, name: str) -> float:
    """How long those who wait for a permit of that semaphore leave the servers alone, which have failed an attempt."""
    found = board(locker, name)
    return 0.0 if found is None else float(found._try_pause)


def looks(locker: Locker) -> bool:
    """Is it looking at the slots of a semaphore just now?"""
    return any(permits.open and permits.board.looking for permits in locker._manager.semaphores)


def votes(scope: LockScope) -> list[float]:
    """For each key that the scope counts on: for how many seconds it still does."""
    lease = scope._lease
    return [] if lease is None else [until - scope._manager.clock() for until in lease.votes if until]


def votes_of(scope: LockScope) -> dict[str, list[float]]:
    """As ``votes``, for each name of the scope."""
    parts = getattr(scope, "_parts", None)
    leases = [scope._lease] if parts is None else [part.lease for part in parts]
    now = scope._manager.clock()
    return {lease.room.name: [until - now for until in lease.votes if until] for lease in leases if lease is not None}


def lost_name(scope: LockScope) -> str:
    """Which of its names was lost; the first, if none was."""
    return getattr(scope, "_lost_name", "") or scope.name


def let_go_of_locker(scope: LockScope) -> None:
    """Drop the scope's reference to its locker, which keeps the locker from being collected."""
    scope._locker = None


# Integrations


@contextlib.contextmanager
def locks_on(locks: Locks, url: str, timeout: float) -> Iterator[None]:
    """Let the locks of a module, which were made when it was imported, be on the server of a test."""
    before = locks._servers, locks._timeout
    locks._servers, locks._timeout = url, timeout
    try:
        yield
    finally:
        locks._servers, locks._timeout = before
