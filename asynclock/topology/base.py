"""What a keeper needs of a topology."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from ..core.lease import Lease
from ..core.operations import Operation
from ..core.room import Room
from ..wire.node import Listener, Node
from ..wire.requests import OwedRelease, Request

Address = tuple[str, int]


class Owner(Listener, Protocol):
    """Whoever uses a topology."""

    def all_rooms(self) -> Collection[Room[Any]]: ...
    def moved(self, room: Room[Any], index: int) -> None:
        """Key ``index`` has another home now: what was pushed meanwhile is lost."""


class Topology(Protocol):
    @property
    def majority(self) -> int:
        """How many of a name's keys make it held."""

    @property
    def nodes(self) -> Collection[Node]:
        """Every server that there is a connection to, or should be."""

    def places(self, keys: tuple[bytes, ...]) -> tuple[int, ...]:
        """What ``home`` needs to know of these keys, worked out once: ``Room.places``."""

    def home(self, room: Room[Any], index: int) -> Node | None:
        """The server that answers for key ``index``; None: none does now."""

    def request(self, lease: Lease, index: int, operation: Operation, now: float, /) -> bool:
        """As ``core.room.Port.request``."""

    def redirected(self, request: Request | OwedRelease, error: str) -> bool:
        """As ``connection.node.Listener.redirected``."""

    def disconnected(self, node: Node) -> None:
        """That server is gone, perhaps for good."""

    def drop(self) -> bool:
        """Send what there is, and close every connection, as far as that can be done without waiting. Is there more
        to it, for ``aclose``?"""

    async def aclose(self) -> None:
        """Close every connection; nothing runs on."""
