"""Hash slots, and what a node of a cluster reports about itself and the others."""

import binascii
from typing import NamedTuple

from .servers import Server

SLOTS = 16384


def slot_of(key: str | bytes) -> int:
    """The hash slot of a key, 0 to 16383; only the part between the first ``{`` and the next ``}`` counts, if any."""
    data = key.encode() if isinstance(key, str) else key
    _, brace, rest = data.partition(b"{")
    tag, closing, _ = rest.partition(b"}")
    return binascii.crc_hqx(tag if brace and closing and tag else data, 0) % SLOTS


class Node(NamedTuple):
    """A line of ``CLUSTER NODES``: one node, as the node that answers sees it."""

    id: str
    port: int
    flags: frozenset[str]
    primary_id: str
    """Or ``-``."""
    epoch: int
    slots: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, line: str) -> "Node":
        id, address, flags, primary_id, _, _, epoch, _, *slots = line.split(" ")
        return cls(
            id=id,
            port=int(address.partition("@")[0].rpartition(":")[2]),
            flags=frozenset(flags.split(",")),
            primary_id=primary_id,
            epoch=int(epoch),
            # "12", "3-7"; "[12->-…]" is a slot that is being moved, which its owner lists among its slots as well.
            slots=tuple((int(a), int(b or a)) for a, _, b in (s.partition("-") for s in slots if s[0] != "[")),
        )

    def has(self, slot: int) -> bool:
        return any(start <= slot <= end for start, end in self.slots)


def view(server: Server) -> list[Node]:
    """All nodes, as this server sees them."""
    return [Node.parse(line) for line in text(server.execute("CLUSTER", "NODES")).splitlines()]


def follows(replica: Server) -> bool:
    return b"master_link_status:up" in raw(replica.execute("INFO", "replication"))


def migrations(server: Server) -> list[dict[str, str]]:
    """The slot migrations that a Valkey 9 node remembers, running or finished."""
    found = server.execute("CLUSTER", "GETSLOTMIGRATIONS")
    assert isinstance(found, list)
    result = []
    for fields in found:
        assert isinstance(fields, list)
        texts = [text(field) if isinstance(field, bytes) else str(field) for field in fields]
        result.append(dict(zip(texts[::2], texts[1::2], strict=True)))
    return result


def raw(reply: object) -> bytes:
    assert isinstance(reply, bytes)
    return reply


def text(reply: object) -> str:
    return raw(reply).decode()
