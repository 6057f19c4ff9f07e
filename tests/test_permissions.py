"""The ACL users of docs/deployments/tls-and-acl.md can do what the page says, on every kind of server."""

from __future__ import annotations

import asyncio
import re
import shlex
from pathlib import Path

import pytest
from redis.exceptions import NoPermissionError

from asynclock import Locker, NotLockedError, ServerError
from asynclock.testing import Cluster, Server
from tests.support.cluster import keys, no_keys, spread
from tests.support.helpers import key

PAGE = (Path(__file__).parent.parent / "docs/deployments/tls-and-acl.md").read_text()


def user(kind: str) -> list[str]:
    """The command that makes the user for locks on one server."""
    valkey_9, others = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    _cli, *command = shlex.split((valkey_9 if kind == "valkey-9.1" else others).replace("\\\n", " "))
    assert command[:3] == ["ACL", "SETUSER", "locks"]
    return command


def more_for(what: str) -> list[str]:
    """What the table adds."""
    (found,) = re.findall(rf"^\| {re.escape(what)} \| `([^`]+)`", PAGE, re.MULTILINE)
    return str(found).split()


@pytest.mark.asyncio
@pytest.mark.parametrize("tracking", [True, False])
async def test_the_least_privileged_user_can_lock(server: Server, kind: str, tracking: bool) -> None:
    command = user(kind)
    if not tracking:
        command = [word for word in command if not word.startswith("+client")]
    server.execute(*command)
    try:
        url = f"redis://locks:secret@127.0.0.1:{server.port}/0"
        async with Locker(url, key_validity=0.6, client_side_caching=tracking) as locker:
            scope = await locker.acquire("job")
            taken = await locker.force_acquire("job")
            await scope.wait_lost()
            assert scope.lost_reason == "taken over"
            await asyncio.sleep(0.8)  # longer than a key lives that is not extended
            assert taken.held
            assert await taken.fencing_token()
            await taken.release()
            assert server.execute("EXISTS", key("job")) == 0
            async with locker.semaphore("job", 1).with_context() as permit:
                with pytest.raises(NotLockedError):
                    await locker.semaphore("job", 1).try_acquire()
                await asyncio.sleep(0.8)
                assert permit.held
    finally:
        server.execute("ACL", "DELUSER", "locks")


@pytest.mark.asyncio
async def test_the_least_privileged_user_of_a_cluster_can_lock(cluster: Cluster, kind: str) -> None:
    """On every node, while a slot moves too. ``locker.client`` needs one permission more."""

    def grant(*rights: str) -> None:
        for server in cluster.servers:
            server.execute(*user(kind), *rights)

    async def use_client() -> None:
        async with Locker(url) as locker, locker.with_context(name):
            assert await locker.client.set("asynclock:of the user", "x", px=1)

    name = next(spread(cluster))
    slot = cluster.slot_of(key(name, 0))
    owner = cluster.owner(slot)
    target = cluster.primary_of(key(name, 1))
    url = "redis://locks:secret@" + cluster.url.removeprefix("redis://")
    needed = more_for("a cluster")
    try:
        grant()
        with pytest.raises(ServerError, match=r"grant CLUSTER\|SLOTS"):
            await Locker(url).acquire(name)
        grant(*needed)
        async with Locker(url, key_validity=0.6) as locker:
            await asyncio.to_thread(cluster.begin_migration, slot, target)
            async with locker.with_context(name) as scope:
                await asyncio.sleep(0.8)  # longer than a key lives that is not extended
                assert scope.held and len(keys(cluster, f"asynclock:*:{name}")) == 3
                assert await scope.fencing_token()
            await no_keys(cluster, only=f"asynclock:[0-9]:{name}")
        with pytest.raises(NoPermissionError, match="'command'"):
            await use_client()
        grant(*needed, *more_for("`locker.client` on a cluster"))
        await use_client()
    finally:
        for server in cluster.servers:
            server.execute("ACL", "DELUSER", "locks")
        await asyncio.to_thread(cluster.finish_migration, slot, target)
        await asyncio.to_thread(cluster.migrate, slot, owner)
