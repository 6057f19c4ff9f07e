"""``spread_keys=True``: each key of a lock in another part of a cluster's slots. A lock there is one like any other.

``test_spread_failover.py`` has what it is for; ``core/test_keys.py`` where the keys lie.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import asynclock.sync
from asynclock import (
    AcquireTimeoutError,
    ConfigurationError,
    Holder,
    Locker,
    LockLostError,
    LossReason,
    NotLockedError,
    ServerError,
)
from asynclock.core.counters import counter_of
from asynclock.core.keys import Spread
from asynclock.core.slots import SLOTS, slot_of
from asynclock.testing import Cluster, Sentinels, Server
from asynclock.topology.evenness import Evenness
from tests.support.cluster import asking, counted, execute, no_keys, owner_of, primaries
from tests.support.cluster import keys as all_keys
from tests.support.helpers import AT_ONCE, body, key, until
from tests.support.shell import running, shell

ODD = ["my_lock", "{}", "{a}", "{a}{b}", "}{", "}:", "s0:{000}:x", "0:job", "\N{LOCK} é", "a b\r\n\0", "x" * 5000]


def spread_keys(name: str = "job", count: int = 3, prefix: str = "asynclock") -> list[str]:
    return [found.decode() for found in Spread(prefix.encode(), count).keys(name.encode())]


@pytest_asyncio.fixture
async def locker(cluster: Cluster) -> AsyncIterator[Locker]:
    async with Locker(cluster.url, spread_keys=True, owner="a") as locker:
        yield locker


@pytest_asyncio.fixture
async def other(cluster: Cluster) -> AsyncIterator[Locker]:
    async with Locker(cluster.urls[2], spread_keys=True, owner="b") as locker:
        yield locker


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    """A function: the warnings until now that have this id."""
    with caplog.at_level(logging.WARNING, "asynclock"):

        def found(known_as: str) -> list[logging.LogRecord]:
            return [record for record in caplog.records if getattr(record, "asynclock_message", "") == known_as]

        yield found


# Names and keys


@pytest.mark.parametrize("name", ODD, ids=lambda name: repr(name)[:12])
def test_slots_are_those_of_the_server(cluster: Cluster, name: str) -> None:
    for found in [*spread_keys(name), *spread_keys(name, 5, "a}b"), key(name)]:
        assert cluster.servers[0].execute("CLUSTER", "KEYSLOT", found) == slot_of(found.encode())


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ODD, ids=lambda name: repr(name)[:12])
async def test_any_name_there_and_back(cluster: Cluster, locker: Locker, other: Locker, name: str) -> None:
    """Its keys are what they are meant to be, its name is found by a search, and its loss by a push."""
    holding = await body(await locker.acquire(name))
    expected = {found.encode() for found in spread_keys(name)}
    await until(lambda: all_keys(cluster) == expected)
    assert await other.names() == [name]
    with pytest.raises(NotLockedError) as refused:
        await other.try_acquire(name)
    assert refused.value.holder is not None and refused.value.holder.owner == "a"
    await asyncio.sleep(0.03)  # until its keys are tracked
    since = time.monotonic()
    for found in spread_keys(name)[:2]:
        execute(cluster, "DEL", found)
    error = await holding.lost_within(AT_ONCE, since)
    # The push of the second may be read first.
    assert error.reason is LossReason.DELETED and any(found in str(error) for found in spread_keys(name)[:2])
    await no_keys(cluster)


@pytest.mark.asyncio
async def test_the_keys_of_300_names_lie_on_three_shards_each(cluster: Cluster, locker: Locker) -> None:
    names = [f"job {number}" for number in range(300)]
    owner = owner_of(cluster)
    for name in names:
        parts = sorted(slot_of(found.encode()) * 3 // SLOTS for found in spread_keys(name))
        assert parts == [0, 1, 2]
        assert len({owner(found) for found in spread_keys(name)}) == 3
    plain = [len({owner(key(name, index)) for index in range(3)}) for name in names]
    assert 30 < plain.count(3) < 130, "that is not so by itself"
    scopes = await asyncio.gather(*map(locker.acquire, names))
    await until(lambda: all(server.execute("DBSIZE") == 300 for server in primaries(cluster)))
    assert await locker.names() == sorted(names)
    await asyncio.gather(*(scope.release() for scope in scopes))
    await no_keys(cluster)


# A lock like any other


@pytest.mark.asyncio
@pytest.mark.fast
async def test_acquire_try_and_force(cluster: Cluster, locker: Locker, other: Locker) -> None:
    holding = await body(await locker.acquire("job"))
    with pytest.raises(NotLockedError, match="somebody else"):
        await other.try_acquire("job")
    with pytest.raises(AcquireTimeoutError):
        await other.acquire("job", timeout=0.1)
    assert holding.scope.held
    since = time.monotonic()
    taken = await other.force_acquire("job")
    error = await holding.lost_within(AT_ONCE, since)
    assert error.reason is LossReason.TAKEN_OVER and taken.held
    await taken.release()
    await no_keys(cluster)


@pytest.mark.asyncio
@pytest.mark.parametrize("majority", [2, 3, 8])
async def test_other_majorities(cluster: Cluster, majority: int) -> None:
    """With more keys than shards, no shard has a majority of them."""
    options: dict[str, Any] = {"spread_keys": True, "key_majority": majority}
    expected = spread_keys("job", 2 * majority - 1)
    async with Locker(cluster.url, **options) as locker, Locker(cluster.url, **options) as other:
        async with locker.with_context("job"):
            await until(lambda: len(all_keys(cluster)) == 2 * majority - 1)
            assert all_keys(cluster) == {found.encode() for found in expected}
            owners = list(map(owner_of(cluster), expected))
            assert max(map(owners.count, owners)) < majority
            with pytest.raises(NotLockedError):
                await other.try_acquire("job")
    await no_keys(cluster)


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["DEL", "FLUSHALL", "SET"])
async def test_why_it_was_lost(cluster: Cluster, locker: Locker, how: str) -> None:
    reasons = {"DEL": "deleted", "FLUSHALL": "flushed", "SET": "overwritten"}
    for name in ("one", "two", "three"):
        holding = await body(await locker.acquire(name))
        await asyncio.sleep(0.03)
        for found in spread_keys(name)[1:]:
            assert holding.scope.held
            since = time.monotonic()
            if how == "FLUSHALL":
                cluster.primary_of(found).execute("FLUSHALL")
            else:
                execute(cluster, how, found, *(["somebody's", "PX", "500"] if how == "SET" else []))
            await asyncio.sleep(0.01)
        assert (await holding.lost_within(AT_ONCE, since)).reason == reasons[how]
    await no_keys(cluster)


@pytest.mark.asyncio
async def test_waiters_here_and_elsewhere(cluster: Cluster) -> None:
    """Hand-overs inside a process, and wake-ups by the push that a key is free: nobody waits for an expiry."""
    inside = 0

    async def work(locker: Locker, name: str) -> None:
        nonlocal inside
        for _ in range(20):
            async with locker.with_context(name) as scope:
                inside += 1
                assert scope.held and inside == 1
                await asyncio.sleep(0)
                inside -= 1

    for wait_release in (True, False):
        options: dict[str, Any] = {"spread_keys": True, "wait_release": wait_release, "key_validity": 60.0}
        async with Locker(cluster.url, **options) as one, Locker(cluster.urls[1], **options) as two:
            async with asyncio.timeout(30):
                await asyncio.gather(*(work(locker, "job") for locker in (one, two) for _ in range(4)))
            handed = one.statistics().handed_off + two.statistics().handed_off
            assert handed > 0
        await no_keys(cluster)


@pytest.mark.asyncio
async def test_who_holds_it(cluster: Cluster, locker: Locker, other: Locker) -> None:
    told: list[str | None] = []

    async def watch() -> None:
        async for holder in other.watch("{job}"):
            told.append(holder and holder.owner)

    watching = asyncio.create_task(watch())
    await until(lambda: told == [None])
    async with locker.with_context("{job}"):
        await until(lambda: told == [None, "a"], AT_ONCE)
        holder: Holder | None = None
        while holder is None or holder.votes < 3:
            holder = await other.holder("{job}")
        assert [state.key for state in holder.keys] == spread_keys("{job}")
        assert len({state.server for state in holder.keys}) == 3
    await until(lambda: told == [None, "a", None], AT_ONCE)
    assert await other.holder("{job}") is None and await other.names() == []
    watching.cancel()
    await asyncio.wait([watching])


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ODD[:6])
async def test_fencing_tokens(cluster: Cluster, locker: Locker, other: Locker, name: str) -> None:
    tokens = []
    for each in (locker, other) * 3:
        async with each.with_context(name) as scope:
            tokens.append(await scope.fencing_token())
    assert tokens == sorted(set(tokens))
    for index, found in enumerate(spread_keys(name)):
        counter = counter_of(found.encode(), b"asynclock", index, name.encode())
        assert slot_of(counter) == slot_of(found.encode())
        assert execute(cluster, "EXISTS", counter.decode()) == 1
    assert await locker.names() == []  # a counter is no lock


@pytest.mark.asyncio
async def test_with_replicas(cluster: Cluster) -> None:
    async with Locker(cluster.url, spread_keys=True, min_replicas=1, try_next_after=1.0) as locker:
        for name in ODD[:3]:
            async with locker.with_context(name, timeout=5):
                assert all(execute(cluster, "EXISTS", found) for found in spread_keys(name)[:2])
    await no_keys(cluster)


@pytest.mark.asyncio
async def test_a_slot_that_moves(cluster: Cluster, locker: Locker, other: Locker) -> None:
    found = spread_keys("job")
    slot, source = cluster.slot_of(found[0]), cluster.primary_of(found[0])
    target = next(server for server in primaries(cluster) if server is not source)
    holding = await body(await locker.acquire("job"))
    await until(lambda: len(all_keys(cluster)) == 3)
    await asyncio.to_thread(cluster.begin_migration, slot, target)
    await asyncio.to_thread(cluster.move_keys, slot, target)
    with pytest.raises(NotLockedError):
        await other.try_acquire("job")
    assert asking(target, "EXISTS", found[0]) == 1
    await asyncio.to_thread(cluster.finish_migration, slot, target)
    async with asyncio.timeout(5):
        while (holder := await other.holder("job")) is None or holder.votes < 3:
            await asyncio.sleep(0.01)
    since = time.monotonic()
    for each in found[:2]:
        execute(cluster, "DEL", each)
    assert (await holding.lost_within(AT_ONCE, since)).reason in ("deleted", "flushed")
    await asyncio.to_thread(cluster.migrate, slot, source)
    await no_keys(cluster)


def test_in_threads(cluster: Cluster) -> None:
    with (
        asynclock.sync.Locker(cluster.url, spread_keys=True) as locker,
        asynclock.sync.Locker(cluster.url, spread_keys=True) as other,
    ):
        with pytest.raises(LockLostError) as lost, locker.with_context("job") as scope:
            with pytest.raises(NotLockedError):
                other.try_acquire("job")
            assert scope.fencing_token() > 0
            expected = {found.encode() for found in spread_keys()}
            assert {found for found in all_keys(cluster) if b":f" not in found} <= expected
            with other.force_with_context("job"):
                while True:
                    scope.check()
                    time.sleep(0.01)
        assert lost.value.reason is LossReason.TAKEN_OVER


@pytest.mark.asyncio
async def test_it_sends_as_much_as_without(cluster: Cluster) -> None:
    """A cycle costs the same commands in both layouts; the looks at the other one are not part of it."""
    sent = {}
    for spread in (False, True):
        async with Locker(cluster.url, spread_keys=spread) as locker:
            async with locker.with_context("first"):
                pass
            before = [counted(cluster, "commandstats", f"cmdstat_{command}") for command in ("set", "get", "pttl")]
            for _ in range(100):
                async with locker.with_context("job"):
                    pass
            after = [counted(cluster, "commandstats", f"cmdstat_{command}") for command in ("set", "get", "pttl")]
            sent[spread] = sum(after) - sum(before)
    # Replicas count the SETs that they get. 300 or 600, and a few reads of a lock that was held for more than 1 ms.
    assert abs(sent[True] - sent[False]) < 100, sent


# Where it cannot be had


@pytest.mark.asyncio
async def test_it_needs_a_cluster(server: Server, own_server: Server, kind: str) -> None:
    with Server(kind) as third:
        for servers in (server.url, [server.url, own_server.url, third.url]):
            for locker in (Locker(servers, spread_keys=True), Locker(servers, spread_keys=True, key_majority=2)):
                with pytest.raises(ConfigurationError, match=r"spread_keys=True: .*is not part of a cluster.*leave it"):
                    await locker.acquire("job")
                await locker.aclose()
        in_threads = asynclock.sync.Locker(server.url, spread_keys=True)
        with pytest.raises(ConfigurationError, match="spread_keys=True"):
            await asyncio.to_thread(in_threads.acquire, "job")
        await asyncio.to_thread(in_threads.close)


@pytest.mark.asyncio
async def test_not_behind_sentinels(kind: str) -> None:
    if kind == "redis-6.2":
        pytest.skip("asynclock.testing has no Sentinels of Redis 6.2")
    with Sentinels(kind, replicas=0) as sentinels:
        with pytest.raises(ConfigurationError, match=r"spread_keys=True: .*is not part of a cluster"):
            async with Locker(sentinels.url, spread_keys=True):
                pass


@pytest.mark.asyncio
async def test_a_server_that_is_away_is_no_answer() -> None:
    with pytest.raises(ServerError):
        await Locker("redis://127.0.0.1:1", spread_keys=True).acquire("job")


@pytest.mark.serverless
@pytest.mark.fast
@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"key_prefix": "a{b}"}, r"key_prefix='a\{b\}': must not contain '\{' with spread_keys"),
        ({"key_prefix": "{"}, r"key_prefix='\{': must not contain '\{' with spread_keys"),
        ({"key_majority": 1}, "key_majority=1: must be from 2 to 8192 with spread_keys"),
        ({"key_majority": 8193}, "key_majority=8193: must be from 2 to 8192 with spread_keys"),
    ],
)
def test_options_that_do_not_go_with_it(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule):
        Locker("redis://127.0.0.1:1", spread_keys=True, **options)
    Locker("redis://127.0.0.1:1", **options)


# A mixed fleet


@pytest.mark.asyncio
async def test_who_has_it_finds_those_who_have_it_not(cluster: Cluster, warnings: Any) -> None:
    """By itself, within about a second of its first lock."""
    async with (
        Locker(cluster.url, owner="web-3:812") as plain,
        Locker(cluster.url, spread_keys=True) as new,
        plain.with_context("job"),
        new.with_context("job"),  # that is what is wrong
    ):
        await until(lambda: warnings("mixed_layouts"), 10)
        (record,) = warnings("mixed_layouts")
        assert record.asynclock_lock == "job" and record.asynclock_spread_keys is True
        text = record.getMessage()
        assert "lock 'job' is used with another layout of keys" in text and "held by web-3:812, since" in text
        assert "spread_keys=True" in text and "give all the same spread_keys" in text


@pytest.mark.asyncio
@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("how", ["names", "holder", "watch"])
async def test_whoever_looks_is_warned(cluster: Cluster, warnings: Any, spread: bool, how: str) -> None:
    async with (
        Locker(cluster.url, spread_keys=not spread, owner="web-3:812") as theirs,
        Locker(cluster.url, spread_keys=spread) as locker,
        theirs.with_context("job"),
    ):
        for _ in range(2):
            if how == "names":
                assert await locker.names() == []
            elif how == "holder":
                assert await locker.holder("job") is None
            else:
                async with contextlib.aclosing(locker.watch("job")) as holders:
                    assert await anext(holders) is None
                await until(lambda: warnings("mixed_layouts"))
        (record,) = warnings("mixed_layouts")
        assert record.asynclock_lock == "job" and record.asynclock_spread_keys is spread
        met = "key 'asynclock:" if how == "names" else "held by web-3:812"
        assert met in record.getMessage() and f"spread_keys={spread}" in record.getMessage()


@pytest.mark.asyncio
async def test_to_change_over_take_it_both_ways_first(cluster: Cluster) -> None:
    """Old processes, those that take both, and new ones: two steps, in each of which two kinds exclude each other."""
    async with Locker(cluster.url) as old, Locker(cluster.url, spread_keys=True) as new:
        async with old.with_context("job"), new.with_context("job") as scope:
            for locker in (old, new):
                with pytest.raises(NotLockedError):
                    await locker.try_acquire("job")
            assert scope.held
        for first in (old, new):
            async with first.with_context("job"):
                with pytest.raises(NotLockedError):
                    async with old.try_with_context("job"), new.try_with_context("job"):
                        pass
    await no_keys(cluster)


@pytest.mark.asyncio
async def test_nobody_is_warned_of_a_fleet_that_agrees(
    cluster: Cluster, warnings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asynclock._engine.other_layout.FIRST_LOOK", 0.02)
    monkeypatch.setattr("asynclock._engine.other_layout.LOOK_AGAIN", 0.02)
    for spread in (False, True):
        async with (
            Locker(cluster.url, spread_keys=spread) as locker,
            Locker(cluster.url, spread_keys=spread) as other,
            Locker(cluster.url, key_prefix="others", spread_keys=not spread) as stranger,
            stranger.with_context("job"),
        ):
            for name in ODD:
                async with locker.with_context(name) as scope:
                    await scope.fencing_token()
                    assert await other.names() == [name]
                    assert await other.holder(name) is not None
                    await asyncio.sleep(0.03)
                assert await other.holder(name) is None
            assert warnings("mixed_layouts") == []


@pytest.mark.asyncio
@pytest.mark.parametrize("spread", [False, True])
async def test_looks_are_few(cluster: Cluster, spread: bool) -> None:
    """Whoever asks all the time who holds a lock sends hardly more than without them."""
    async with Locker(cluster.url, spread_keys=spread) as locker:
        await locker.holder("job")
        before = counted(cluster, "commandstats", "cmdstat_get")
        since = time.monotonic()
        for _ in range(100):
            assert await locker.holder("job") is None
        seconds = time.monotonic() - since
        sent = counted(cluster, "commandstats", "cmdstat_get") - before
        # Three for each question, and for a look; a locker with spread keys has one of its own.
        assert 300 <= sent <= 300 + 3 * (1 + seconds) + 3 * spread


@pytest.mark.asyncio
async def test_closed_at_any_moment_of_a_look(cluster: Cluster, warnings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asynclock._engine.other_layout.FIRST_LOOK", 0.0005)
    monkeypatch.setattr("asynclock._engine.other_layout.LOOK_AGAIN", 0.0005)
    async with Locker(cluster.url) as plain, plain.with_context("job"):
        for number in range(20):
            async with Locker(cluster.url, spread_keys=True) as locker, locker.with_context("job"):
                await asyncio.sleep(number / 5000)
                look = asyncio.create_task(locker.holder("free"))
                await asyncio.sleep(0)
            if number % 2:
                look.cancel()
            await asyncio.wait([look])
            assert look.cancelled() or look.exception() is None or isinstance(look.exception(), ServerError)
    assert len(warnings("mixed_layouts")) <= 20 and not warnings("background_failed")


@pytest.mark.asyncio
async def test_without_a_cluster_there_is_no_other_layout(server: Server, warnings: Any) -> None:
    """What looks like one is left alone, and nothing more is read."""
    server.execute("SET", spread_keys()[0], "x")
    async with Locker(server.url, key_majority=2) as locker:
        assert await locker.names() == [] and await locker.holder("job") is None
    assert warnings("mixed_layouts") == []


# Shards that are not even


@pytest.mark.asyncio
async def test_two_shards_are_too_few(kind: str, warnings: Any) -> None:
    cluster = Cluster(kind, primaries=2, replicas=0)
    try:
        await asyncio.to_thread(cluster.start)
        async with Locker(cluster.url) as plain, plain.with_context("job"):
            assert warnings("keys_not_spread") == []
        async with Locker(cluster.url, spread_keys=True) as locker, locker.with_context("job") as scope:
            (record,) = warnings("keys_not_spread")
            assert scope.held and record.asynclock_server.startswith("127.0.0.1:")
            assert "serves a majority of the keys of 5" in record.getMessage()  # half of the names; it may be 49.9…
    finally:
        await asyncio.to_thread(cluster.close)


@pytest.mark.serverless
@pytest.mark.fast
def test_each_change_for_the_worse_is_told_once(warnings: Any) -> None:
    class Named:
        def __init__(self, label: str) -> None:
            self.label = label

    nodes: list[Any] = [Named(str(number)) for number in range(4)]

    def owners(*firsts: int) -> list[Any]:
        table: list[Any] = []
        for node, (first, end) in zip(nodes, itertools.pairwise([*firsts, SLOTS]), strict=False):
            table += [node] * (end - first)
        return table

    evenness = Evenness(Spread(b"asynclock", 3), 2)
    for even in (owners(0, 5461, 10923), owners(0, 4096, 8192, 12288), [None] * SLOTS, owners(0, 5501, 11001)):
        evenness.look(even)
    assert warnings("keys_not_spread") == []
    for _ in range(3):
        evenness.look(owners(0, 8192, 12288))
    (record,) = warnings("keys_not_spread")
    assert record.asynclock_server == "0" and " of 5" in record.getMessage()
    evenness.look(owners(0, 5461, 10923))
    evenness.look(owners(0, 6000, 11000))
    assert len(warnings("keys_not_spread")) == 2
    since = time.process_time()
    evenness.look(owners(0, 5461, 10923))
    assert time.process_time() - since < 0.05  # it takes about 1 ms, ten times a second at most

    five = Evenness(Spread(b"asynclock", 5), 3)  # with two keys on one shard, three are left
    five.look(owners(0, 5461, 10923))
    assert len(warnings("keys_not_spread")) == 2


# The shell


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "asynclock.toml"
    path.write_text("spread_keys = true\n")
    return str(path)


@pytest.mark.one_loop
@pytest.mark.asyncio
async def test_the_shell_commands_by_their_config_file(cluster: Cluster, locker: Locker, config: str) -> None:
    where = ["--url", cluster.url, "--config", config]
    held = await body(await locker.acquire("{job}"))
    await until(lambda: len(all_keys(cluster)) == 3)
    named, listed = await asyncio.gather(shell("status", *where, "{job}"), shell("status", *where, "--json"))
    assert (named.status, named.err, listed.status, listed.err) == (0, "", 0, "")
    assert all(found in named.out for found in spread_keys("{job}")) and listed.lock["owner"] == "a"
    refused = await shell("run", "-n", *where, "{job}", "--", "true")
    assert refused.status == 1 and "held by a" in refused.err
    async with running("watch", *where, "--json") as watch:
        assert (await watch.object())["name"] == "{job}"
        done = await shell("break", "--yes", *where, "{job}")
        assert done.status == 0 and "was taken from a" in done.out, done.err
        assert (await held.lost_within(AT_ONCE, time.monotonic())).reason is LossReason.TAKEN_OVER
        seen = [(await watch.object())["event"] for _ in range(1)]
        assert seen[0] in ("held", "free")
    ran = await shell("run", *where, "{job}", "--", "true")
    assert (ran.status, ran.err) == (0, "")
    await no_keys(cluster, only="asynclock:s*")  # ``run`` has counted fencing tokens


@pytest.mark.one_loop
@pytest.mark.asyncio
async def test_the_shell_commands_tell_of_another_layout(cluster: Cluster, locker: Locker, config: str) -> None:
    """Without the option, they would say that nobody holds it, and no more."""
    where = ["--url", cluster.url]
    warning = "asynclock: lock 'job' is used with another layout of keys, too"
    async with locker.with_context("job"):
        for arguments in (["status", *where, "job"], ["status", *where], ["break", "--yes", *where, "job"]):
            done = await shell(*arguments)
            assert done.status == 1 and warning in done.err and "spread_keys=False" in done.err, arguments
        done = await shell("status", *where, "--json", "job")
        assert json.loads(done.out)["locks"][0]["held"] is False and warning in done.err
        async with running("watch", *where, "--json", "job") as watch:
            assert (await watch.object())["event"] == "free"
            assert warning in await watch.complaint()
    async with Locker(cluster.url) as plain, plain.with_context("job"):
        done = await shell("run", *where, "--config", config, "job", "--", "sleep", "2")
        assert done.status == 0 and warning in done.err and "spread_keys=True" in done.err
