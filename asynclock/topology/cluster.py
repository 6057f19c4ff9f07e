"""A Redis or Valkey cluster: keys hash to slots, slots belong to primaries, and all of it can change."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from redis.crc import key_slot

from ..core.lease import Lease
from ..core.operations import Operation
from ..core.room import Room
from ..errors import ServerError
from ..options import Options
from ..wire.background import Loop
from ..wire.commands import is_error, packed, unbulk
from ..wire.node import Node
from ..wire.requests import OwedRelease, Request
from .base import Address, Owner

log = logging.getLogger("asynclock")

SLOTS = 16384
CALM = 0.1  # seconds between two looks at the slots, at least: a storm of errors is one reason to look
MAX_PAUSE = 0.5  # ... and at most, while the owner of a slot is not connected
PATIENCE = 1.0  # seconds for a node to tell the slots, or to finish what it was asked before it is left
_CLUSTER_SLOTS = packed(b"CLUSTER", b"SLOTS")


class Cluster:
    """The primaries of a cluster, and whose slot is whose.

    State: ``_owners[slot]`` is what the cluster said last, None for a slot that nobody serves;
    ``_nodes`` are those owners and a few that redirections have named, all of them started.
    ``_owners`` changes in ``_apply`` alone: a redirection sends one request on and is a reason to
    look at the whole again, but an old one changes nothing.
    """

    def __init__(
        self,
        seeds: Sequence[Node],
        options: Options,
        owner: Owner,
        clock: Callable[[], float],
        remap: Callable[[Address], Address] | None = None,
    ) -> None:
        self.majority = options.key_majority or 2
        self._seeds = tuple(seeds)  # asked while no owner of a slot is connected, and closed after that
        self._connectors = tuple(seed.connector for seed in seeds)
        self._options = options
        self._owner = owner
        self._clock = clock
        self._remap = remap
        self._unmapped: set[Address] = set()  # for which it has raised
        self._nodes: dict[Address, Node] = {}
        self._owners: list[Node | None] = [None] * SLOTS
        # Nodes that only redirections have named, and until when they are kept. Keys are tracked there,
        # and looked at again within one validity.
        self._aside: dict[Address, float] = {}
        self._keep_aside = 2 * options.key_validity
        self._doubtful = False
        self.looking = Loop(f"{self!r} looking at the slots", self._look, self._look_failed)
        self._pause = CALM  # before the next look, if that is not enough
        self._looked_at = float("-inf")
        self._retiring: dict[asyncio.Task[None], Node] = {}
        self._closed = False

    @property
    def nodes(self) -> Collection[Node]:
        return self._nodes.values() or self._seeds

    def places(self, keys: tuple[bytes, ...]) -> tuple[int, ...]:
        return tuple(key_slot(unbulk(key)) for key in keys)

    def home(self, room: Room[Any], index: int) -> Node | None:
        node = self._owners[room.places[index]]
        if node is None:
            self.doubt()
        return node

    def request(self, lease: Lease, index: int, operation: Operation, now: float, /) -> bool:
        node = self.home(lease.room, index)
        return node is not None and node.request(lease, index, operation, now)

    # What tells of a change

    def redirected(self, request: Request | OwedRelease, error: str) -> bool:
        if self._closed:
            return False
        word, *rest = error.split()
        if word != "ASK":  # that is how it should be until the slot has moved
            self.doubt()
        if word not in ("MOVED", "ASK") or len(rest) < 2:
            return False
        host, _, port = rest[1].rpartition(":")
        if not (port.isascii() and port.isdigit() and len(port) <= 5):
            return False
        asked = request.node
        assert isinstance(asked, Node)
        address = self._address(host, int(port), asked)
        node = self._nodes.get(address)
        if node is None or address in self._aside:
            self._aside[address] = self._clock() + self._keep_aside
        if node is None:
            node = self._start(address)
        node.take_on(request, asking=word == "ASK")
        return True

    def disconnected(self, node: Node) -> None:
        self.doubt()

    def doubt(self) -> None:
        """Look at the slots again, soon."""
        self._doubtful = True
        if not self._closed and not self.looking.running:
            self._pause = CALM
            self.looking.start(max(0.0, self._looked_at + CALM - self._clock()))

    def __repr__(self) -> str:
        return f"<Cluster of {self._connectors[0].label} with {len(self._nodes)} nodes>"

    # Looking at the slots

    async def explore(self) -> None:
        """The first look, through a seed: start a connection to every owner of a slot, and wait for
        those that answer soon. :raises ServerError: there are none"""
        await self._ask_for_slots()
        tries = [node.first for node in self._nodes.values()]
        _, late = await asyncio.wait(tries, timeout=PATIENCE)
        while late and not self._connected():
            _, late = await asyncio.wait(late, return_when=asyncio.FIRST_COMPLETED)
        if not self._connected():
            trouble = next(iter(self._nodes.values())).trouble
            assert trouble is not None
            raise trouble
        if not self._complete():
            self.doubt()
        self._leave_seeds()

    async def _look(self) -> float | None:
        self._doubtful = False
        await self._look_once()
        if not self._doubtful:
            return None
        pause = self._pause * (0.5 + random.random() / 2)
        self._pause = min(self._pause * 2, MAX_PAUSE)
        return max(pause, self._looked_at + CALM - self._clock())

    def _look_failed(self, error: Exception) -> None:
        self._doubtful = True  # no other sign may come

    async def _look_once(self) -> None:
        try:
            await self._ask_for_slots()
        except ServerError as error:
            log.info("asynclock: %s", error)
            self._doubtful = True
        if self._connected():
            self._leave_seeds()
        else:
            self._return_to_seeds()
        if not self._complete():
            self._doubtful = True

    def _complete(self) -> bool:
        """Is every slot served by a node that is connected?"""
        return all(node is not None and node.connection is not None for node in set(self._owners))

    def _connected(self) -> list[Node]:
        return [node for node in self._nodes.values() if node.connection is not None]

    async def _ask_for_slots(self) -> None:
        """:raises ServerError: nobody tells them"""
        connected = self._connected()
        random.shuffle(connected)
        problem = ServerError(self._connectors[0].label, "no node of the cluster is connected")
        for node in [*connected, *self._seeds]:
            if node.connection is None:
                continue
            self._looked_at = self._clock()
            try:
                async with asyncio.timeout(PATIENCE):  # wait_for may lose the cancellation by aclose (cancellation.py)
                    reply = await node.connection.call(_CLUSTER_SLOTS)
            except (TimeoutError, ConnectionError) as error:
                problem = ServerError(node.label, f"does not tell the slots: {str(error) or 'no answer'}")
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
                # It may be new, or have lost its nodes.conf: the others know more.
                problem = ServerError(node.label, "the cluster that it knows serves no slots yet")
                continue
            self._apply(ranges)
            return
        raise problem

    def _ranges(self, reply: Any, told_by: Node) -> list[tuple[int, int, Address]]:
        """The first and the last slot of each range, and where its owner is."""
        ranges: list[tuple[int, int, Address]] = []
        for first, last, primary, *_ in reply:
            host, port = (primary[0] or b"").decode(), primary[1]
            if not (type(first) is type(last) is type(port) is int and 0 <= first <= last < SLOTS):
                raise ValueError("no range of slots")
            ranges.append((first, last, self._address(host, port, told_by)))
        return ranges

    def _address(self, host: str, port: int, told_by: Node) -> Address:
        """Where to reach a node of which another one has told. One that does not know its own host
        is where it was asked."""
        address = (host if host not in ("", "?") else told_by.connector.host, port)
        if self._remap is None:
            return address
        try:
            host, port = self._remap(address)
        except Exception as error:  # the user's own code, and what has come is to be read to its end
            if address not in self._unmapped:
                self._unmapped.add(address)
                log.warning(
                    "asynclock: address_remap of the RedisCluster client raised %s: %s for %r; that address is used "
                    "as it is. Return the address itself for nodes that need no mapping",
                    type(error).__name__,
                    error,
                    address,
                )
            return address
        return host, port

    def _apply(self, ranges: Iterable[tuple[int, int, Address]]) -> None:
        """This is whose slot is whose now."""
        now = self._clock()
        owners: list[Node | None] = [None] * SLOTS
        wanted = {address for address, until in self._aside.items() if until > now}
        for first, last, address in ranges:
            wanted.add(address)
            node = self._nodes.get(address) or self._start(address)
            owners[first : last + 1] = [node] * (last + 1 - first)
        changed = {slot for slot in range(SLOTS) if owners[slot] is not self._owners[slot]}
        self._owners = owners
        self._aside = {address: until for address, until in self._aside.items() if address in wanted}
        for address in [address for address in self._nodes if address not in wanted]:
            self._retire(self._nodes.pop(address))
        if changed:
            for room in list(self._owner.all_rooms()):
                for index, slot in enumerate(room.places):
                    if slot in changed:
                        self._owner.moved(room, index)

    # Nodes come and go

    def _start(self, address: Address) -> Node:
        for seed in self._seeds:
            if (seed.connector.host, seed.connector.port) == address:
                node = seed
                break
        else:
            node = Node(self._connectors[0].at(*address), self._options, self._owner, self._clock)
            node.start()
        self._nodes[address] = node
        return node

    def _leave_seeds(self) -> None:
        """Their addresses are kept; the connections are those to the owners now."""
        seeds, self._seeds = self._seeds, ()
        for seed in seeds:
            if seed not in self._nodes.values():
                self._retire(seed)

    def _return_to_seeds(self) -> None:
        """Every owner that was known is gone: the cluster may have got new addresses, but not these."""
        if not self._seeds:
            self._seeds = tuple(
                Node(connector, self._options, self._owner, self._clock) for connector in self._connectors
            )
            for seed in self._seeds:
                seed.start()

    def _retire(self, node: Node) -> None:
        task = asyncio.get_running_loop().create_task(self._let_finish(node), name=f"{self!r} leaving {node.label}")
        self._retiring[task] = node
        task.add_done_callback(lambda task: self._retiring.pop(task, None))

    async def _let_finish(self, node: Node) -> None:
        """What is under way there is answered, mostly by a redirection. What it still has to release
        is the business of the new owner."""
        until = self._clock() + PATIENCE
        while node.connection is not None and node.connection.waiting and self._clock() < until:
            await asyncio.sleep(0.01)
        if node.connection is not None:
            node.connection.abort()  # what is not answered by now is owed
            await node.connection.closed
        for key, token in node.owed.take():
            # Whoever it is sends it on, if the slot is another's.
            owner = self._owners[key_slot(unbulk(key))] or next(iter(self._connected()), None)
            if owner is not None:
                owner.release(key, token)
        await node.aclose()

    def _busy(self, node: Node) -> bool:
        """Are there answers still to come, as far as can be seen?"""
        if node.connection is None or not node.connection.waiting:
            return False
        return not node.silent(self._clock(), self._options.try_next_after)

    def drop(self) -> bool:
        self._closed = True
        tasks = [task for task in self._retiring if not task.done()]
        for task in tasks:
            task.cancel()
        more = [self.looking.drop(), *(node.drop() for node in {*self._nodes.values(), *self._seeds})]
        return any(more) or bool(tasks)

    async def aclose(self) -> None:
        # A release that is under way may have to be sent on. A server that says nothing is not waited for.
        until = self._clock() + PATIENCE
        while self._clock() < until and any(self._busy(node) for node in self._nodes.values()):
            await asyncio.sleep(0.001)
        self._closed = True
        nodes: set[Node] = set()
        # As long as a task runs, it may start a node, or begin to leave one: each time, look again what there is.
        await self.looking.aclose()
        while tasks := [task for task in self._retiring if not task.done()]:
            nodes.update(self._retiring.values())
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.01)  # on Python 3.11 a cancellation may get lost (cancellation.py)
        nodes.update(self._nodes.values(), self._seeds)
        for node in nodes:
            await node.aclose()
