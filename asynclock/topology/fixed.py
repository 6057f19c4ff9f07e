"""Servers whose keys never move: a single server with every key, or several independent servers with one key each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.lease import Lease
from ..core.operations import Operation
from ..core.port import Requests
from ..core.room import Room
from ..errors import ConfigurationError
from ..wire.node import Node
from ..wire.requests import Redirectable


class Fixed(Requests):
    """``_route[i]`` stores key ``i`` of every name: one key on each of ``nodes``, or all keys on a single server."""

    def __init__(self, nodes: Sequence[Node], majority: int | None) -> None:
        self.nodes = tuple(nodes)
        self.requests: Requests = self
        count = len(nodes)
        if count == 1:
            self.majority = majority or 1
            self._route = self.nodes * (2 * self.majority - 1)
            self.requests = nodes[0]  # without an extra call
            return
        self.majority = (count + 1) // 2
        self._route = self.nodes
        if majority not in (None, self.majority):
            raise ConfigurationError(
                f"key_majority={majority}: {count} independent servers store one key each, "
                f"so the majority is {self.majority}; leave the option out"
            )

    slotted = False

    @property
    def dispensable(self) -> int:
        return len(self.nodes) - self.majority if len(self.nodes) > 1 else 0

    def places(self, keys: tuple[bytes, ...]) -> tuple[int, ...]:
        return ()

    def home(self, room: Room[Any], index: int) -> Node | None:
        return self._route[index]

    def request(self, lease: Lease, index: int, operation: Operation, now: float) -> bool:
        return self._route[index].request(lease, index, operation, now)

    def redirected(self, request: Redirectable, error: str) -> bool:
        return False

    def disconnected(self) -> None: ...

    def drop(self) -> bool:
        more = [node.drop() for node in self.nodes]
        return any(more)

    async def aclose(self) -> None:
        for node in self.nodes:
            await node.aclose()
