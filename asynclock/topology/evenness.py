"""Evenness: whether the shards of a cluster are such that spread keys survive the loss of one."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from ..core.keys import Spread
from ..messages import about
from ..wire.node import Node

log = logging.getLogger("asynclock")


class Evenness:
    """Warns when one shard serves a majority of the keys of some names. ``spread_keys`` only chooses slots; which shard
    serves them is up to the cluster.

    State: ``_even`` is true if no shard did so at the last look. A warning is logged when it becomes false, and not
    again before it was true.
    """

    def __init__(self, layout: Spread, majority: int) -> None:
        self._ranges = layout.ranges()
        self._majority = majority
        self._even = True

    def look(self, owners: Sequence[Node | None]) -> None:
        """The slots have new owners. It takes about 1 ms."""
        found: Counter[Node] = Counter()
        kinds = Counter(zip(*(owners[part.start : part.stop] for part in self._ranges), strict=True))
        for together, names in kinds.items():
            for node, keys in Counter(together).items():
                if node is not None and keys >= self._majority:
                    found[node] += names
        was_even, self._even = self._even, not found
        if found and was_even:
            node, names = found.most_common(1)[0]
            log.warning(
                "asynclock: spread_keys: %s serves a majority of the keys of %s of all names, whose locks would be "
                "lost with it; divide the slots over more shards, evenly, and in one range for each",
                node.label,
                f"{names / len(self._ranges[0]):.2%}",
                extra=about("keys_not_spread", server=node.label),
            )
