"""The interface between the lock manager and a topology."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from ..core.port import Requests
from ..core.room import Room
from ..wire.node import Listener, Node
from ..wire.requests import Redirectable

Address = tuple[str, int]


class TopologyListener(Listener, Protocol):
    """Is notified when servers or slots change: the lock manager."""

    def all_rooms(self) -> Collection[Room[Any]]:
        """One room for each name that is held, acquired or waited for in this process."""

    def moved(self, room: Room[Any], index: int) -> None:
        """Another server stores key ``index`` now. Invalidations may have been missed during the move."""


class Topology(Protocol):
    """Where the keys of a locker are, and the connections to their servers."""

    @property
    def majority(self) -> int:
        """How many keys of a name a holder must have."""

    @property
    def dispensable(self) -> int:
        """How many of the nodes may be away, and every held lock still has a key on another one."""

    @property
    def slotted(self) -> bool:
        """Is it a cluster, in which the slot of a key decides where it is?"""

    @property
    def nodes(self) -> Collection[Node]:
        """Every server that is connected or reconnecting."""

    def places(self, keys: tuple[bytes, ...]) -> tuple[int, ...]:
        """What ``home`` needs to find these keys, computed once for each room (``Room.places``)."""

    def home(self, room: Room[Any], index: int) -> Node | None:
        """The server that stores key ``index``; None: no server does now."""

    @property
    def requests(self) -> Requests:
        """As ``core.port.Port.requests``."""

    def redirected(self, request: Redirectable, error: str) -> bool:
        """As ``wire.node.Listener.redirected``."""

    def disconnected(self) -> None:
        """The connection to one of the servers is lost."""

    def drop(self) -> bool:
        """Flush and close every connection, as far as possible without waiting. True: ``aclose`` has work left."""

    async def aclose(self) -> None:
        """Close every connection, and end every background task."""
