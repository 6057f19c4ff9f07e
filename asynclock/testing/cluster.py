"""A real cluster of servers on loopback, whose slots and roles a test can move."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from .nodes import SLOTS, Node, follows, migrations, raw, slot_of, text, view
from .ports import hold_ports
from .servers import Server
from .started import Started

_START_LIMIT = 20.0  # seconds, like the next two
_CHANGE_LIMIT = 15.0
_POLL = 0.02
_MIGRATE_LIMIT = 5000  # milliseconds
_BATCH = 100


class Cluster(Started):
    """A cluster whose primaries share the slots evenly. It ends with the ``with`` block.

    :param kind: one of :data:`KINDS`, or the name or path of an executable
    :param primaries: number of primaries
    :param replicas: number of replicas of each primary
    :param config: lines of ``valkey.conf`` for all nodes. ``cluster-node-timeout`` is 1.5 s by default: a node that
        is silent for that long counts as failed, and its replica takes over within another second or two

    The methods ignore nodes that are killed or paused, until these are back. All of them block. If waiting takes too
    long, they raise ``TimeoutError``, whose message shows how each node saw the cluster. A server's error is raised as
    ``RuntimeError``.
    """

    def __init__(
        self,
        kind: str = "valkey-9.1",
        *,
        primaries: int = 3,
        replicas: int = 1,
        config: Mapping[str, str] | None = None,
    ) -> None:
        self._kind = kind
        self._primaries = primaries
        self._replicas = replicas
        self._config = {
            "cluster-enabled": "yes",
            "cluster-announce-ip": "127.0.0.1",
            "cluster-node-timeout": "1500",
            "cluster-migration-barrier": "100",  # a primary with fewer replicas gives none away: each stays where it is
            "repl-diskless-sync": "yes",
            "repl-diskless-sync-delay": "0",
        } | dict(config or {})
        self._resources = contextlib.ExitStack()
        self._ids: dict[Server, str] = {}
        self._elections: dict[Server, float] = {}  # when each was last made a primary
        self.servers: list[Server] = []
        """All nodes: first the primaries, in the order of their slots, then their replicas in the same order, round by
        round."""

    def start(self) -> None:
        """Start all nodes, and wait until all report a healthy cluster and every replica follows: 2 to 3 s."""
        if self.servers:
            return
        for _ in range(self._primaries * (1 + self._replicas)):
            port, bus_port = hold_ports()
            self._resources.callback(port.close)
            self._resources.callback(bus_port.close)
            self.servers.append(Server(self._kind, port=port.number, config=self._config))
            self._resources.callback(self.servers[-1].close)
        with ThreadPoolExecutor(len(self.servers)) as pool:
            list(pool.map(Server.start, self.servers))
        for server in self.servers:
            self._ids[server] = str(text(server.execute("CLUSTER", "MYID")))
        primaries, replicas = self.servers[: self._primaries], self.servers[self._primaries :]
        for number, primary in enumerate(primaries):
            start, end = (SLOTS * (number + step) // len(primaries) for step in (0, 1))
            primary.execute("CLUSTER", "ADDSLOTS", *range(start, end))
            # Else all have the same epoch, and it takes a while until they have settled that.
            primary.execute("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for number, server in enumerate(self.servers):
            for other in self.servers[:number]:
                server.execute("CLUSTER", "MEET", "127.0.0.1", other.port)
        self._wait(lambda: all(len(view(server)) == len(self.servers) for server in self.servers), _START_LIMIT)
        for number, replica in enumerate(replicas):
            replica.execute("CLUSTER", "REPLICATE", self._ids[primaries[number % len(primaries)]])
        self.wait_until_ok(_START_LIMIT)

    def close(self) -> None:
        """Kill all nodes and remove their directories. Does nothing the second time."""
        self._resources.close()
        self.servers.clear()
        self._ids.clear()
        self._elections.clear()

    slot_of = staticmethod(slot_of)
    """The hash slot of a key, 0 to 16383."""

    @property
    def urls(self) -> list[str]:
        """The URLs of all nodes, in the order of ``servers``."""
        return [server.url for server in self.servers]

    @property
    def url(self) -> str:
        """The URL of the first node, which starts as a primary."""
        return self.servers[0].url

    # -- who is who ------------------------------------------------------------------------------------------

    def owner(self, slot: int) -> Server:
        """The node that the cluster regards as the slot's primary: a dead one too, until its replica has taken over.

        If the nodes disagree, the newest claim counts, by the cluster's own rule (its epoch).

        :raises RuntimeError: no node has the slot
        """
        claims = [(node.epoch, node.port) for server in self._awake for node in view(server) if node.has(slot)]
        if not claims:
            raise RuntimeError(f"no node has slot {slot}")
        return self._by_port(max(claims)[1])

    def primary_of(self, key: str | bytes) -> Server:
        """The owner of the key's slot. Raises as :meth:`owner`."""
        return self.owner(slot_of(key))

    def replicas_of(self, server: Server) -> list[Server]:
        """The running nodes that report this one as their primary, whether it is dead or alive."""
        return [other for other in self._awake if self._myself(other).primary_id == self._ids[server]]

    def wait_until_ok(self, seconds: float = 10.0) -> None:
        """Wait until the cluster is healthy: all running nodes report ``cluster_state:ok``, agree on the owners of the
        slots and regard none of each other as failed; the owner of every slot runs, and every running replica is
        connected to its primary.

        After the ``kill()`` of a primary it therefore returns when a replica has taken over.

        :raises TimeoutError: this takes longer than that many seconds
        """
        self._wait(self._is_ok, seconds)

    # -- changes ---------------------------------------------------------------------------------------------

    def failover(self, replica: Server, force: bool = False) -> None:
        """Make the replica a primary, and wait until all running nodes know both roles.

        Without ``force`` the two nodes agree to change roles, so this first waits until both know their present ones.
        On Redis, if this call has made the same replica a primary before, it also waits until that was four times the
        node timeout ago.

        :param force: do it without the primary's consent
        :raises ValueError: the node is a primary
        """
        id, old_id = self._ids[replica], self._myself(replica).primary_id
        if old_id == "-":
            raise ValueError(f"{replica.url} is no replica")
        old = next(server for server in self.servers if self._ids[server] == old_id)
        if not force:
            # A primary ignores this request of a node that it does not know as its replica yet.
            self._wait(lambda: follows(replica) and self._agree([old], id, old_id), _CHANGE_LIMIT)
        self._wait_for_fresh_election(replica)
        replica.execute("CLUSTER", "FAILOVER", *(["FORCE"] if force else []))
        self._wait(lambda: self._agree(self._awake, id, "-"), _CHANGE_LIMIT)
        if old.awake:
            self._wait(lambda: self._agree(self._awake, old_id, id), _CHANGE_LIMIT)

    def migrate(self, slot: int, to: Server) -> None:
        """Move the slot and its keys the classic way, key by key, and wait until all running nodes know.

        :raises ValueError: ``to`` has the slot already
        """
        self.begin_migration(slot, to)
        self.move_keys(slot, to)
        self.finish_migration(slot, to)

    def begin_migration(self, slot: int, to: Server) -> None:
        """Begin to move the slot. From now on its owner answers ``ASK`` for keys of the slot that it does not have.

        :raises ValueError: ``to`` has the slot already
        """
        source = self._source(slot, to)
        to.execute("CLUSTER", "SETSLOT", slot, "IMPORTING", self._ids[source])
        source.execute("CLUSTER", "SETSLOT", slot, "MIGRATING", self._ids[to])

    def move_keys(self, slot: int, to: Server, *keys: str | bytes) -> None:
        """Move these keys of the slot; without any, all of them."""
        source = self._source(slot, to)
        if keys:
            self._move(source, to, keys)
            return
        while found := source.execute("CLUSTER", "GETKEYSINSLOT", slot, _BATCH):
            assert isinstance(found, list)
            self._move(source, to, tuple(key for key in found if isinstance(key, bytes)))

    def finish_migration(self, slot: int, to: Server) -> None:
        """Make ``to`` the owner, and wait until all running nodes know.

        :raises RuntimeError: the previous owner still has keys of the slot
        """
        source = self._source(slot, to)
        left = source.execute("CLUSTER", "COUNTKEYSINSLOT", slot)
        if left != 0:
            raise RuntimeError(f"{source.url} still has {left!r} keys of slot {slot}")
        # The new owner first, so that the slot always has one. It also tells the other nodes.
        for server in (to, source):
            server.execute("CLUSTER", "SETSLOT", slot, "NODE", self._ids[to])
        self._wait(lambda: self._agree_on_owner(slot, to), _CHANGE_LIMIT)

    def migrate_atomically(self, slot: int, to: Server) -> None:
        """Move the slot as a whole, as Valkey can from 9.0 on, and wait until all running nodes know.

        :raises RuntimeError: the server cannot do it, or the migration failed; the message says why
        """
        source = self._source(slot, to)
        before = {migration["name"] for migration in migrations(source)}
        source.execute("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", self._ids[to])

        def is_done() -> bool:
            (ours,) = (migration for migration in migrations(source) if migration["name"] not in before)
            if ours["state"] in ("failed", "canceled", "cancelled"):
                raise RuntimeError(f"the migration of slot {slot}: {ours['state']}: {ours.get('message')}")
            return ours["state"] == "success"

        self._wait(is_done, _CHANGE_LIMIT)
        self._wait(lambda: self._agree_on_owner(slot, to), _CHANGE_LIMIT)

    # -- helpers -----------------------------------------------------------------------------------------

    @property
    def _awake(self) -> list[Server]:
        return [server for server in self.servers if server.awake]

    def _by_port(self, port: int) -> Server:
        return next(server for server in self.servers if server.port == port)

    def _source(self, slot: int, to: Server) -> Server:
        owner = self.owner(slot)
        if owner is to:
            raise ValueError(f"slot {slot} is at {to.url} already")
        return owner

    def _myself(self, server: Server) -> Node:
        return next(node for node in view(server) if "myself" in node.flags)

    def _move(self, source: Server, to: Server, keys: tuple[str | bytes, ...]) -> None:
        password = self._config.get("requirepass")
        auth = ["AUTH", password] if password else []
        source.execute("MIGRATE", "127.0.0.1", to.port, "", 0, _MIGRATE_LIMIT, *auth, "KEYS", *keys)

    def _is_ok(self) -> bool:
        awake = self._awake
        ports = {server.port for server in awake}
        owners = set()
        for server in awake:
            if b"cluster_state:ok" not in raw(server.execute("CLUSTER", "INFO")):
                return False
            nodes = view(server)
            for node in nodes:
                if node.port in ports and node.flags & {"fail", "fail?", "handshake", "noaddr"}:
                    return False
                if node.slots and node.port not in ports:
                    return False
                if "myself" in node.flags and "slave" in node.flags and not follows(server):
                    return False
            owners.add(frozenset((node.id, node.slots) for node in nodes if node.slots))
        return len(owners) == 1

    def _wait_for_fresh_election(self, replica: Server) -> None:
        """In a second election of the same node, Redis still counts the votes of the first one until they are
        outdated. The node then claims the slots with the epoch of the first election, and the others ignore it."""
        outdated = self._elections.get(replica, -math.inf) + 4 * int(self._config["cluster-node-timeout"]) / 1000
        if b"server_name:valkey" not in raw(replica.execute("INFO", "server")):
            time.sleep(max(0.0, outdated + 0.2 - time.monotonic()))
        self._elections[replica] = time.monotonic()

    def _agree(self, asked: Sequence[Server], id: str, primary_id: str) -> bool:
        """Do all these servers see the node as a replica of ``primary_id``, or (``-``) as a primary with slots?"""
        nodes = [node for server in asked for node in view(server) if node.id == id]
        return len(nodes) == len(asked) and all(
            node.primary_id == primary_id and (node.slots or primary_id != "-") for node in nodes
        )

    def _agree_on_owner(self, slot: int, owner: Server) -> bool:
        awake = self._awake
        owners = [node.id for server in awake for node in view(server) if node.has(slot)]
        return owners == [self._ids[owner]] * len(awake)

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                views = "\n".join(
                    f"{server.port}:\n{text(server.execute('CLUSTER', 'NODES'))}" for server in self._awake
                )
                raise TimeoutError(f"the cluster did not get there within {seconds} s. How its nodes see it:\n{views}")
            time.sleep(_POLL)
