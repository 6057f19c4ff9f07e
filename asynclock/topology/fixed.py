"""Servers that keep their keys for good: one with every key, or several independent ones with a key each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..core.lease import Lease
from ..core.operations import Operation
from ..core.room import Room
from ..errors import ConfigurationError
from ..wire.node import Node
from ..wire.requests import OwedRelease, Request


class Fixed:
    """Key ``i`` of every name lives on ``_route[i]``: a quorum over ``nodes``, or all keys on the only one."""

    def __init__(self, nodes: Sequence[Node], majority: int | None) -> None:
        self.nodes = tuple(nodes)
        self.request: Callable[[Lease, int, Operation, float], bool]  # as core.port.Port.request
        count = len(nodes)
        if count == 1:
            self.majority = majority or 1
            self._route = self.nodes * (2 * self.majority - 1)
            self.request = nodes[0].request
            return
        self.majority = (count + 1) // 2
        self._route = self.nodes
        self.request = self._request
        if majority not in (None, self.majority):
            raise ConfigurationError(
                f"key_majority={majority}: {count} independent servers hold a key each, "
                f"which makes it {self.majority}; leave it out"
            )

    def places(self, keys: tuple[bytes, ...]) -> tuple[int, ...]:
        return ()

    def home(self, room: Room[Any], index: int) -> Node | None:
        return self._route[index]

    def _request(self, lease: Lease, index: int, operation: Operation, now: float, /) -> bool:
        return self._route[index].request(lease, index, operation, now)

    def redirected(self, request: Request | OwedRelease, error: str) -> bool:
        return False

    def disconnected(self, node: Node) -> None: ...

    def drop(self) -> bool:
        more = [node.drop() for node in self.nodes]
        return any(more)

    async def aclose(self) -> None:
        for node in self.nodes:
            await node.aclose()
