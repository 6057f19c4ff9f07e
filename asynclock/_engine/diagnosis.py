"""What errors say: which servers are to blame, and why a lock was not acquired, or was lost."""

from __future__ import annotations

from typing import Any

from ..core.lease import Lease
from ..core.reasons import LossReason
from ..core.room import Room
from ..errors import AcquireTimeoutError, NotLockedError, ServerError
from ..topology import Topology
from ..wire.commands import key_text

NOTICED_LATE = "noticed only when the lock was released: lost at some time since it was acquired or last extended"


def where(topology: Topology) -> str:
    """The servers, without credentials."""
    return ", ".join(node.label for node in topology.nodes)


def unreachable(topology: Topology, room: Room[Any]) -> ServerError | None:
    """What is wrong with the servers, if too few of those that have the keys of this lock give votes now."""
    troubles: list[ServerError] = []
    for index in range(room.rules.keys):
        node = topology.home(room, index)
        trouble = ServerError(where(topology), "no node serves the key's slot now") if node is None else node.trouble
        if trouble is not None:
            troubles.append(trouble)
    if len(troubles) <= room.rules.keys - room.rules.majority:
        return None
    texts = {str(trouble): trouble for trouble in troubles}
    if len(texts) == 1:
        return troubles[0]
    servers = ", ".join(dict.fromkeys(trouble.server for trouble in troubles))
    return ServerError(servers, "; ".join(texts), lasting=all(trouble.lasting for trouble in troubles))


def timed_out(topology: Topology, room: Room[Any], timeout: float) -> AcquireTimeoutError:
    """Its cause is a ServerError if servers are the reason: callers may treat an outage in another way."""
    error = AcquireTimeoutError(room.name, timeout, _why_not(topology, room))
    error.__cause__ = unreachable(topology, room) or _last_error(room)
    return error


def not_locked(topology: Topology, room: Room[Any]) -> NotLockedError:
    return NotLockedError(room.name, _why_not(topology, room))


def failed(topology: Topology, room: Room[Any], validity: float) -> ServerError:
    """Acquiring has failed, and no server has said why."""
    return unreachable(topology, room) or ServerError(
        where(topology),
        f"the connection was lost, or answers took longer than key_validity={validity:g} s; try again",
    )


def loss(topology: Topology, lease: Lease, reason: LossReason, index: int | None) -> str:
    """``LockLostError.detail``: the key and the server that are to blame, or what is wrong with the servers.

    :param index: of the key that decided it, if one did
    """
    if reason is LossReason.CLOSED:
        return ""
    room = lease.room
    node = topology.home(room, index) if index is not None else None
    if reason in (LossReason.EXPIRED, LossReason.DISCONNECTED):
        trouble = node.trouble if node is not None else unreachable(topology, room)
        if reason is LossReason.DISCONNECTED:
            return str(trouble or lease.error or where(topology))  # lease.error may be another server's
        return str(lease.error or trouble or where(topology))
    label = where(topology) if node is None else node.label
    return f"key {key_text(room.keys[index or 0])} on {label}"


def _last_error(room: Room[Any]) -> Exception | None:
    """What a server answered to the last attempt, if that failed because of servers and not because of others."""
    lease = room.last_failed
    return None if lease is None or lease.refused_by_others(room.rules) else lease.error


def _why_not(topology: Topology, room: Room[Any]) -> str:
    trouble = unreachable(topology, room)
    if trouble is not None:
        return str(trouble)
    if room.forces:
        return "this process is taking it over by force"
    if room.holder is not None:
        return "this process holds it"
    if (error := _last_error(room)) is not None:
        return str(error)
    if room.contended or room.attempt is None:
        return f"somebody else holds it on {where(topology)}"
    return f"{where(topology)} has not answered yet"
