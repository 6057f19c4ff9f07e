"""A Redis or Valkey cluster: keys hash to slots, each slot has an owner (a primary), and slots can move."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from ..core.keys import Spread
from ..core.lease import Lease
from ..core.operations import Operation
from ..core.port import Requests
from ..core.room import Room
from ..core.slots import SLOTS, slot_of
from ..errors import ServerError
from ..messages import about
from ..options import Options
from ..wire.background import Loop, end
from ..wire.commands import is_error, packed, unbulk
from ..wire.node import Node
from ..wire.requests import Redirectable
from .base import Address, TopologyListener
from .evenness import Evenness

log = logging.getLogger("asynclock")

MIN_INTERVAL = 0.1  # seconds between two CLUSTER SLOTS, at least: many errors at once cause one refresh
MAX_PAUSE = 0.5  # ... and at most, while the owner of a slot is not connected
NODE_TIMEOUT = 1.0  # seconds for a node to answer CLUSTER SLOTS, or to answer pending requests before it is closed
_CLUSTER_SLOTS = packed(b"CLUSTER", b"SLOTS")


class Cluster(Requests):
    """The primaries of a cluster, and which slots each of them owns.

    State: ``_owners[slot]`` is the owner in the latest reply to CLUSTER SLOTS, None if the slot has none. ``_nodes``
    are those owners and a few nodes that redirections have named, all of them started. Only ``_apply`` changes
    ``_owners``: a redirection forwards one request and triggers a refresh, so an outdated one does no harm.
    """

    def __init__(
        self,
        seeds: Sequence[Node],
        options: Options,
        listener: TopologyListener,
        clock: Callable[[], float],
        remap: Callable[[Address], Address] | None = None,
    ) -> None:
        self.majority = majority = options.key_majority or 2
        self._evenness: Evenness | None = None
        if options.spread_keys:
            self._evenness = Evenness(Spread(options.key_prefix.encode(), 2 * majority - 1), majority)
        self._seeds = tuple(seeds)  # used while no owner of a slot is connected, then closed
        self._connectors = tuple(seed.connector for seed in seeds)
        self._options = options
        self._listener = listener
        self._clock = clock
        self._remap = remap
        self._unmapped: set[Address] = set()  # addresses for which ``_remap`` has raised: one warning each
        self._nodes: dict[Address, Node] = {}
        self._owners: list[Node | None] = [None] * SLOTS
        # Nodes that only redirections have named, and until when they are kept: their keys are tracked on them, and
        # are read again within one validity.
        self._temporary: dict[Address, float] = {}
        self._keep_temporary = 2 * options.key_validity
        self._stale = False
        self.refreshing = Loop(f"{self!r} refreshing its slots", self._refresh, self._refresh_failed)
        self._pause = MIN_INTERVAL  # before the next refresh, if this one does not find every slot served
        self._asked_at = float("-inf")
        self._retiring: dict[asyncio.Task[None], Node] = {}
        self._closed = False

    slotted = True
    dispensable = 0  # each node has the only copy of its slots

    @property
    def nodes(self) -> Collection[Node]:
        return self._nodes.values() or self._seeds

    def places(self, keys: tuple[bytes, ...]) -> tuple[int, ...]:
        return tuple(slot_of(unbulk(key)) for key in keys)

    def home(self, room: Room[Any], index: int) -> Node | None:
        node = self._owners[room.places[index]]
        if node is None:
            self.refresh_soon()
        return node

    @property
    def requests(self) -> Requests:
        return self

    def request(self, lease: Lease, index: int, operation: Operation, now: float) -> bool:
        node = self.home(lease.room, index)
        return node is not None and node.request(lease, index, operation, now)

    # Signs of a change

    def redirected(self, request: Redirectable, error: str) -> bool:
        if self._closed:
            return False
        word, *rest = error.split()
        if word != "ASK":  # ASK is normal while a slot moves
            self.refresh_soon()
        if word not in ("MOVED", "ASK") or len(rest) < 2:
            return False
        host, _, port = rest[1].rpartition(":")
        if not (port.isascii() and port.isdigit() and len(port) <= 5):
            return False
        asked = request.node
        assert isinstance(asked, Node)
        address = self._address(host, int(port), asked)
        node = self._nodes.get(address)
        if node is None or address in self._temporary:
            self._temporary[address] = self._clock() + self._keep_temporary
        if node is None:
            node = self._start(address)
        node.resend(request, asking=word == "ASK")
        return True

    def disconnected(self) -> None:
        self.refresh_soon()

    def refresh_soon(self) -> None:
        """Refresh the slots, at most once per ``MIN_INTERVAL``."""
        self._stale = True
        if not self._closed and not self.refreshing.running:
            self._pause = MIN_INTERVAL
            self.refreshing.start(max(0.0, self._asked_at + MIN_INTERVAL - self._clock()))

    def __repr__(self) -> str:
        return f"<Cluster of {self._connectors[0].label} with {len(self._nodes)} nodes>"

    # Refresh the slots

    async def discover(self) -> None:
        """Get the slots from a seed, connect to every owner, and wait until those that answer soon are connected.

        :raises ServerError: no owner can be connected to
        """
        await self._ask_for_slots()
        tries = [node.first for node in self._nodes.values()]
        _, late = await asyncio.wait(tries, timeout=NODE_TIMEOUT)
        while late and not self._connected():
            _, late = await asyncio.wait(late, return_when=asyncio.FIRST_COMPLETED)
        if not self._connected():
            trouble = next(iter(self._nodes.values())).trouble
            assert trouble is not None
            raise trouble
        if not self._complete():
            self.refresh_soon()
        self._leave_seeds()

    async def _refresh(self) -> float | None:
        self._stale = False
        await self._refresh_once()
        if not self._stale:
            return None
        pause = self._pause * (0.5 + random.random() / 2)
        self._pause = min(self._pause * 2, MAX_PAUSE)
        return max(pause, self._asked_at + MIN_INTERVAL - self._clock())

    def _refresh_failed(self, error: Exception) -> None:
        self._stale = True  # no other event may trigger the next refresh

    async def _refresh_once(self) -> None:
        try:
            await self._ask_for_slots()
        except ServerError as error:
            log.info("asynclock: %s", error, extra=about("slots_unknown", server=error.server, error=error.problem))
            self._stale = True
        if self._connected():
            self._leave_seeds()
        else:
            self._return_to_seeds()
        if not self._complete():
            self._stale = True

    def _complete(self) -> bool:
        """Is every slot served by a node that is connected?"""
        return all(node is not None and node.connection is not None for node in set(self._owners))

    def _connected(self) -> list[Node]:
        return [node for node in self._nodes.values() if node.connection is not None]

    async def _ask_for_slots(self) -> None:
        """:raises ServerError: no node answers CLUSTER SLOTS"""
        connected = self._connected()
        random.shuffle(connected)
        problem = ServerError(self._connectors[0].label, "no node of the cluster is connected")
        for node in [*connected, *self._seeds]:
            if node.connection is None:
                continue
            self._asked_at = self._clock()
            try:
                # Not wait_for: it may lose the cancellation by aclose (cancellation.py).
                async with asyncio.timeout(NODE_TIMEOUT):
                    reply = await node.connection.call(_CLUSTER_SLOTS)
            except (TimeoutError, ConnectionError) as error:
                problem = ServerError(node.label, f"CLUSTER SLOTS failed: {str(error) or 'no answer'}")
                continue
            if is_error(reply):
                hint = "; grant CLUSTER|SLOTS with ACL SETUSER" if str(reply).startswith("NOPERM") else ""
                problem = ServerError(
                    node.label, f"refused CLUSTER SLOTS: {node.redact(reply)}{hint}", lasting=bool(hint)
                )
                continue
            try:
                ranges = self._ranges(reply, node)
            except (TypeError, ValueError, IndexError, AttributeError):
                problem = ServerError(node.label, f"answered CLUSTER SLOTS with {node.redact(reply)}")
                continue
            if not ranges:
                # It may be new, or have lost its nodes.conf. Ask the next node.
                problem = ServerError(
                    node.label, "its cluster serves no slots yet; was it set up (redis-cli --cluster create)?"
                )
                continue
            self._apply(ranges)
            return
        raise problem

    def _ranges(self, reply: Any, source: Node) -> list[tuple[int, int, Address]]:
        """The first slot, the last slot and the owner's address of each range."""
        ranges: list[tuple[int, int, Address]] = []
        for first, last, primary, *_ in reply:
            host, port = (primary[0] or b"").decode(), primary[1]
            if not (type(first) is type(last) is type(port) is int and 0 <= first <= last < SLOTS):
                raise ValueError("not a range of slots")
            ranges.append((first, last, self._address(host, port, source)))
        return ranges

    def _address(self, host: str, port: int, source: Node) -> Address:
        """Where to reach a node that ``source`` has named. A node that does not know its own host leaves it empty:
        then the host of ``source`` is meant."""
        address = (host if host not in ("", "?") else source.connector.host, port)
        if self._remap is None:
            return address
        try:
            host, port = self._remap(address)
        except Exception as error:  # user code: it must not keep the rest of the reply from being used
            if address not in self._unmapped:
                self._unmapped.add(address)
                log.warning(
                    "asynclock: address_remap of the RedisCluster client raised %s: %s for %r; that address is used "
                    "as it is. Return the address itself for nodes that need no mapping",
                    type(error).__name__,
                    error,
                    address,
                    extra=about("remap_failed", address=address),
                )
            return address
        return host, port

    def _apply(self, ranges: Iterable[tuple[int, int, Address]]) -> None:
        """Make these the owners of the slots."""
        now = self._clock()
        owners: list[Node | None] = [None] * SLOTS
        wanted = {address for address, until in self._temporary.items() if until > now}
        for first, last, address in ranges:
            wanted.add(address)
            node = self._nodes.get(address) or self._start(address)
            owners[first : last + 1] = [node] * (last + 1 - first)
        changed = {slot for slot in range(SLOTS) if owners[slot] is not self._owners[slot]}
        self._owners = owners
        self._temporary = {address: until for address, until in self._temporary.items() if address in wanted}
        for address in [address for address in self._nodes if address not in wanted]:
            self._retire(self._nodes.pop(address))
        if changed:
            if self._evenness is not None:
                self._evenness.look(owners)
            for room in list(self._listener.all_rooms()):
                for index, slot in enumerate(room.places):
                    if slot in changed:
                        self._listener.moved(room, index)

    # Nodes come and go

    def _start(self, address: Address) -> Node:
        for seed in self._seeds:
            if (seed.connector.host, seed.connector.port) == address:
                node = seed
                break
        else:
            node = Node(self._connectors[0].at(*address), self._options, self._listener, self._clock)
            node.start()
        self._nodes[address] = node
        return node

    def _leave_seeds(self) -> None:
        """Close the connections to the seeds: those to the owners replace them. ``_connectors`` keep the addresses."""
        seeds, self._seeds = self._seeds, ()
        for seed in seeds:
            if seed not in self._nodes.values():
                self._retire(seed)

    def _return_to_seeds(self) -> None:
        """No owner is reachable. The cluster may have new addresses, but the seeds' are expected to stay valid."""
        if not self._seeds:
            self._seeds = tuple(
                Node(connector, self._options, self._listener, self._clock) for connector in self._connectors
            )
            for seed in self._seeds:
                seed.start()

    def _retire(self, node: Node) -> None:
        task = asyncio.get_running_loop().create_task(self._drain(node), name=f"{self!r} leaving {node.label}")
        self._retiring[task] = node
        task.add_done_callback(lambda task: self._retiring.pop(task, None))

    async def _drain(self, node: Node) -> None:
        """Let the node answer pending requests, mostly by redirections, and close it. Keys that it still has to release
        are released through their new owners."""
        until = self._clock() + NODE_TIMEOUT
        while node.connection is not None and node.connection.waiting and self._clock() < until:
            await asyncio.sleep(0.01)
        if node.connection is not None:
            node.connection.abort()  # unanswered releases go to ``node.owed``
            await node.connection.closed
        for owed in node.owed.take():
            # Without a known owner, any node will do: it answers with a redirection.
            owner = self._owners[slot_of(unbulk(owed.key))] or next(iter(self._connected()), None)
            if owner is not None:
                owner.release(owed)
        await node.aclose()

    def _busy(self, node: Node) -> bool:
        """Are answers pending, from a server that is not silent?"""
        if node.connection is None or not node.connection.waiting:
            return False
        return not node.silent(self._clock(), self._options.try_next_after)

    def drop(self) -> bool:
        self._closed = True
        tasks = [task for task in self._retiring if not task.done()]
        for task in tasks:
            task.cancel()
        more = [self.refreshing.drop(), *(node.drop() for node in {*self._nodes.values(), *self._seeds})]
        return any(more) or bool(tasks)

    async def aclose(self) -> None:
        # A pending release may have to be redirected. But do not wait for a silent server.
        until = self._clock() + NODE_TIMEOUT
        while self._clock() < until and any(self._busy(node) for node in self._nodes.values()):
            await asyncio.sleep(0.001)
        self._closed = True
        nodes: set[Node] = set()
        # A task that still runs may start or retire a node, so collect the nodes anew each time.
        await self.refreshing.aclose()
        while tasks := [task for task in self._retiring if not task.done()]:
            nodes.update(self._retiring.values())
            await end(tasks)
        nodes.update(self._nodes.values(), self._seeds)
        for node in nodes:
            await node.aclose()
