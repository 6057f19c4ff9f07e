"""Servers that keep their keys for good: one server with every key."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigurationError
from ..wire.node import Node


class Fixed:
    """Key ``i`` of every name lives on ``route[i]``."""

    def __init__(self, nodes: Sequence[Node], majority: int | None) -> None:
        if len(nodes) != 1:
            raise ConfigurationError(
                f"servers: {len(nodes)} of them, but this version takes one; "
                "a quorum of independent servers is to come, and will need an odd number"
            )
        self.nodes = tuple(nodes)
        self.majority = majority or 1
        self.route = (nodes[0],) * (2 * self.majority - 1)

    def indexes(self, node: Node) -> tuple[int, ...]:
        """The keys that live on ``node``."""
        return tuple(index for index, home in enumerate(self.route) if home is node)
