"""Opens the first connections, and chooses the topology by what the servers say they are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from ..errors import ConfigurationError, ServerError
from ..messages import about
from ..options import Options
from ..wire.connector import Connector
from ..wire.node import Node
from ..wire.sentinel import SentinelConnector
from .base import Address, Topology, TopologyListener
from .cluster import Cluster
from .fixed import Fixed
from .sentinel import Monitored

log = logging.getLogger("asynclock")


async def connect(
    connectors: Sequence[Connector],
    options: Options,
    listener: TopologyListener,
    clock: Callable[[], float],
    remap: Callable[[Address], Address] | None = None,
) -> Topology:
    """Connect to a majority of independent servers, or to any node of a cluster. Unreachable servers are retried in the
    background.

    :raises ServerError: too few servers are reachable
    :raises ConfigurationError: the servers are of different kinds, or do not fit the options
    """
    quarantine = len(connectors) >= 3 and options.restart_quarantine is not False
    nodes = [Node(connector, options, listener, clock, quarantine=quarantine) for connector in connectors]
    topology: Topology | None = None
    try:
        await _first_connections(nodes, options.try_next_after)
        connected = [node for node in nodes if node.connection is not None]
        clusters = [node for node in connected if node.capabilities.mode == "cluster"]
        if not clusters:
            if len(nodes) % 2 == 0:
                raise ConfigurationError(
                    f"servers: {len(nodes)} of them, and {connected[0].label} is not part of a cluster; independent "
                    "servers vote by majority: give an odd number of them"
                )
            if options.min_replicas and len(nodes) > 1:
                raise ConfigurationError(
                    f"min_replicas={options.min_replicas}: {len(nodes)} independent servers vote by majority, and "
                    "no replica may take over for one; leave it out"
                )
            if options.spread_keys:
                raise ConfigurationError(
                    f"spread_keys=True: {nodes[0].label} is not part of a cluster, and only there keys have slots; "
                    "leave it out"
                )
            monitored = any(isinstance(connector, SentinelConnector) for connector in connectors)
            topology = (Monitored if monitored else Fixed)(nodes, options.key_majority)
            for node in nodes:
                node.no_cluster = True
            _warn_of_one_server_twice(connected)
        elif len(clusters) == len(connected):
            topology = cluster = Cluster(nodes, options, listener, clock, remap)
            await cluster.discover()
        else:
            other = next(node for node in connected if node not in clusters)
            raise ConfigurationError(
                f"servers: {clusters[0].label} is part of a cluster and {other.label} is not; "
                "give a cluster's nodes, or independent servers"
            )
    except BaseException:
        closing = asyncio.get_running_loop().create_task(_close(topology, nodes))
        while not closing.done():
            # The locker's aclose may cancel this task during the clean-up. Finish it, and raise the error.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([closing])
        raise
    return topology


async def _close(topology: Topology | None, nodes: Sequence[Node]) -> None:
    if topology is not None:
        await topology.aclose()
    for node in nodes:
        await node.aclose()


async def _first_connections(nodes: Sequence[Node], patience: float) -> None:
    """Wait until a majority, or one node of a cluster, is connected. The others get ``patience`` seconds more."""
    majority = len(nodes) // 2 + 1
    tries = [node.start() for node in nodes]
    pending = set(tries)
    problems: list[ServerError | ConfigurationError] = []
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        problems += [problem for first in done if (problem := first.result()) is not None]
        for problem in problems:
            if isinstance(problem, ConfigurationError):
                raise problem
        connected = [node for node in nodes if node.connection is not None]
        if len(connected) >= majority or any(node.capabilities.mode == "cluster" for node in connected):
            if pending:
                _, pending = await asyncio.wait(pending, timeout=patience)
            for first in tries:
                if first in pending:
                    first.add_done_callback(_warn)  # the node itself logs later attempts only
                else:
                    _warn(first)
            return
        if connected and len(nodes) % 2 == 0:
            return  # an even number of independent servers is refused, whatever the others answer
        if connected and len(problems) > len(nodes) - majority:
            break  # no majority is left. (While nothing is connected, one node of a cluster would do.)
    # Some may have connected and been lost again before this loop saw it.
    lost = [node for node, first in zip(nodes, tries, strict=True) if first not in pending and not first.result()]
    problems += [trouble for node in lost if node.connection is None and (trouble := node.trouble) is not None]
    first_problem = problems[0]
    if len(nodes) == 1:
        raise first_problem
    assert isinstance(first_problem, ServerError)
    few = f"fewer than {majority} of {len(nodes)}" if len(nodes) % 2 else f"none of {len(nodes)}"
    raise ServerError(
        ", ".join(node.label for node in nodes),
        f"{few} servers can be used: " + "; ".join(map(str, problems)),
        lasting=first_problem.lasting,
    )


def _warn(first: asyncio.Future[ServerError | ConfigurationError | None]) -> None:
    if (problem := first.result()) is not None:
        log.warning(
            "asynclock: a server is not connected: %s",
            problem,
            extra=about("server_missing", error=str(problem)),
        )


def _warn_of_one_server_twice(nodes: Sequence[Node]) -> None:
    known: dict[str, Node] = {}
    for node in nodes:
        twin = known.setdefault(node.capabilities.run_id, node)
        if twin is not node and node.capabilities.run_id:
            log.warning(
                "asynclock: %s and %s are the same server: they are no quorum of independent servers",
                twin.label,
                node.label,
                extra=about("same_server", server=node.label, other=twin.label),
            )
