"""``client_side_caching=False``: for servers that cannot track keys, or do not let this user."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Iterator

import pytest

from asynclock import Locker, NotLockedError, ServerError
from asynclock.testing import Server
from tests.support.helpers import AT_ONCE, body, key, until
from tests.support.tap import Tap

each_majority = pytest.mark.parametrize("majority", [1, 2])


@pytest.mark.asyncio
@pytest.mark.parametrize("caching", [False, True])
async def test_no_tracking_command_is_ever_sent(server: Server, caching: bool) -> None:
    """Connecting, waiting, extending, losing and reconnecting. With caching, the test sees tracking."""

    def connections() -> dict[str, bool]:
        """The ids of asynclock's connections, and whether they track."""
        listed = server.execute("CLIENT", "LIST")
        assert isinstance(listed, bytes)
        clients = [dict(word.split("=", 1) for word in line.split()) for line in listed.decode().splitlines()]
        return {client["id"]: "t" in client["flags"] for client in clients if client["name"].startswith("asynclock")}

    options = {"client_side_caching": caching, "key_validity": 0.4}
    async with Tap(server) as tap, Locker(tap.url, **options) as locker, Locker(tap.url, **options) as other:
        holding = await body(await locker.acquire("job"))
        waiting = asyncio.create_task(other.acquire("job"))
        await asyncio.sleep(0.5)
        assert holding.scope.held
        first = connections()
        assert [*first.values()] == [caching, caching]
        server.execute("DEL", key("job"))
        await holding.lost_within(AT_ONCE, time.monotonic())
        scope = await asyncio.wait_for(waiting, 2)
        for client in first:
            server.execute("CLIENT", "KILL", "ID", client)
        await until(lambda: len(connections().keys() - first.keys()) == 2)
        assert [*connections().values()] == [caching, caching]
        assert scope.held
        await scope.release()
    asked = [seen.words for seen in tap.commands("CLIENT")]
    assert any(b"TRACKING" in words for words in asked) is caching, asked
    assert not tap.commands("SUBSCRIBE")


@pytest.mark.asyncio
@each_majority
async def test_a_waiter_asks_at_least_every_interval_and_not_much_more(server: Server, majority: int) -> None:
    async with (
        Tap(server) as tap,
        Locker(
            tap.url, client_side_caching=False, key_validity=0.6, extend_interval=0.2, key_majority=majority
        ) as locker,
    ):
        keys = 2 * majority - 1
        for index in range(keys):
            server.execute("SET", key("job", index), "somebody's", "PX", "60000")
        waiting = [asyncio.create_task(locker.acquire("job")) for _ in range(50)]
        await asyncio.sleep(1.5)
        times = [seen.at for seen in tap.commands("SET") if seen.words[1] == key("job").encode()]
        assert not any(task.done() for task in waiting)
        # Each pause is 0.1 to 0.2 s, by chance; the first two attempts are one, which then asks for the TTL.
        assert 4 <= len(times) <= 17
        pauses = [later - earlier for earlier, later in itertools.pairwise(times[1:])]
        assert all(0.095 < pause < 0.2 + AT_ONCE for pause in pauses), pauses
        assert statistics.median(pauses) < 0.25, pauses
        assert max(pauses) - min(pauses) > 0.01, pauses  # many clients do not ask all at once
        for index in range(keys):
            server.execute("DEL", key("job", index))
        for task in waiting:
            await (await asyncio.wait_for(task, 2)).release()
        assert server.execute("DBSIZE") == 0


@pytest.mark.asyncio
@each_majority
async def test_a_waiter_asks_when_the_holders_time_is_over(server: Server, majority: int) -> None:
    """Long before the interval is over."""
    async with Locker(server.url, client_side_caching=False, key_validity=20, key_majority=majority) as locker:
        for ttl in (0.05, 0.3):
            since = time.monotonic()
            for index in range(2 * majority - 1):
                server.execute("SET", key("job", index), "somebody's", "PX", round(ttl * 1000))
            scope = await asyncio.wait_for(locker.acquire("job"), 5)
            assert ttl - 0.005 < time.monotonic() - since < ttl + AT_ONCE
            await scope.release()


@pytest.mark.asyncio
@pytest.mark.fast
@each_majority
async def test_a_release_is_found_within_the_interval(server: Server, majority: int) -> None:
    options = {"client_side_caching": False, "extend_interval": 0.3, "key_majority": majority}
    async with Locker(server.url, **options) as locker, Locker(server.url, **options) as other:
        scope = await other.acquire("job")
        with pytest.raises(NotLockedError):
            await locker.try_acquire("job")
        waiting = asyncio.create_task(locker.acquire("job"))
        await asyncio.sleep(0.7)  # the holder extends
        assert not waiting.done()
        await scope.release()
        since = time.monotonic()
        taken = await asyncio.wait_for(waiting, 2)
        assert time.monotonic() - since < 0.3 + AT_ONCE
        await taken.release()


@pytest.mark.asyncio
@each_majority
@pytest.mark.parametrize(
    ("what", "reason"), [("DEL", "deleted"), ("SET", "overwritten"), ("FLUSHALL", "deleted"), ("force", "taken over")]
)
async def test_a_loss_is_found_at_the_next_extension(server: Server, what: str, reason: str, majority: int) -> None:
    options = {"client_side_caching": False, "key_majority": majority}
    async with (
        Locker(server.url, extend_interval=0.3, **options) as locker,
        Locker(server.url, **options) as other,
    ):
        holding = await body(await locker.acquire("job"))
        since = time.monotonic()
        if what == "force":
            scope = await other.force_acquire("job")
        elif what == "FLUSHALL":
            server.execute("FLUSHALL")
        else:
            for index in range(majority):
                server.execute(what, key("job", index), *(["somebody's"] if what == "SET" else []))
        error = await holding.lost_within(0.3 + AT_ONCE, since)
        assert error.reason == reason
        if what == "force":
            await asyncio.sleep(0.05)
            assert scope.held
            assert server.execute("EXISTS", key("job")) == 1  # the loser's release has not touched it
            await scope.release()


@pytest.mark.asyncio
async def test_with_and_without_tracking_side_by_side(server: Server) -> None:
    """The same locks: one process tracks, the other does not."""
    inside = turns = 0
    async with (
        Locker(server.url, client_side_caching=False, key_validity=0.2) as without,
        Locker(server.url, local_handoffs=2) as with_,
    ):

        async def service(locker: Locker, times: int) -> None:
            nonlocal inside, turns
            for _ in range(times):
                async with locker.with_context("job"):
                    assert inside == 0
                    inside += 1
                    turns += 1
                    await asyncio.sleep(0.001)
                    inside -= 1
                await asyncio.sleep(0.002)

        async with asyncio.timeout(30):
            await asyncio.gather(service(with_, 50), service(with_, 50), service(without, 25), service(without, 25))
    assert turns == 150
    assert server.execute("DBSIZE") == 0


@pytest.fixture(params=["ACL", "rename-command"])
def without_client(request: pytest.FixtureRequest, kind: str) -> Iterator[Server]:
    """A server that refuses CLIENT to the user app, or does not know it at all, as some services have it."""
    renamed = {"rename-command": 'CLIENT ""'} if request.param == "rename-command" else {}
    with Server(kind, config=renamed) as server:
        server.execute("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "-client")
        yield server


@pytest.mark.asyncio
async def test_where_client_is_forbidden(without_client: Server) -> None:
    url = without_client.url.replace("redis://", "redis://app:secret@")
    options = {"client_side_caching": False, "key_validity": 0.4, "key_majority": 2}
    async with Locker(url, **options) as locker, Locker(url, **options) as other:
        scope = await locker.acquire("job")
        waiting = asyncio.create_task(other.acquire("job"))
        await asyncio.sleep(1.0)  # more than two validities
        assert scope.held
        assert not waiting.done()
        await scope.release()
        holding = await body(await asyncio.wait_for(waiting, 2))
        taken = await locker.force_acquire("job")
        error = await holding.lost_within(0.2 + AT_ONCE, time.monotonic())
        assert error.reason == "taken over"
        await taken.release()
        assert without_client.execute("DBSIZE") == 0
        assert await locker.client.ping()  # the client for the app's own commands is none the worse


@pytest.mark.asyncio
async def test_where_client_is_forbidden_and_tracking_wanted(without_client: Server) -> None:
    url = without_client.url.replace("redis://", "redis://app:secret@")
    with pytest.raises(ServerError, match="client_side_caching=False"):
        async with Locker(url):
            pytest.fail("not connected")
    # A name that the user gives is not dropped without a word.
    with pytest.raises(ServerError, match=r"(?i)client"):
        async with Locker(url + "?client_name=mine", client_side_caching=False):
            pytest.fail("not connected")
