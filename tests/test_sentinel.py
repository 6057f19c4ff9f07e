"""A primary, its replicas, and real Sentinels that make another one the primary.

A primary counts as down after 0.7 s here, and another one is at work about a second later. Bounds leave
room for a busy machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import redis.asyncio as redis
from redis.asyncio.sentinel import Sentinel
from redis.credentials import CredentialProvider

from asynclock import (
    AcquireTimeoutError,
    ConfigurationError,
    Locker,
    LockerClosedError,
    LockLostError,
    LockScope,
    ServerError,
)
from asynclock.testing import Proxy, Sentinels, Server
from asynclock.topology import sentinel as topology
from asynclock.wire.sentinel import ANSWER_TIMEOUT, SentinelConnector
from tests.support import internals
from tests.support.helpers import AT_ONCE, body, key, until
from tests.support.interceptor import Interceptor
from tests.support.internals import trouble, up

pytestmark = pytest.mark.redis_py

FAILOVER = 12.0  # seconds; it takes two or three


@pytest.mark.asyncio
async def test_no_question_outlives_the_one_who_asks() -> None:
    """Closing cancels the task that asks the Sentinels, again and again. On Python 3.11, a question may drop its first
    cancellation. If it went on, it would open a connection that nobody closes."""
    locker = Locker("redis+sentinel://127.0.0.1:1,127.0.0.1:2,127.0.0.1:3/mymaster")
    connector = internals.connector(locker)
    assert isinstance(connector, SentinelConnector)
    running = 0

    async def ask(sentinel: redis.Redis) -> None:
        nonlocal running
        running += 1
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(30)
            await asyncio.sleep(30)
        finally:
            running -= 1

    connector._ask = ask  # type: ignore[assignment,method-assign]  # which answers nothing
    asking = asyncio.create_task(connector.replaced())
    await until(lambda: running == 3)
    while not asking.done():
        asking.cancel()
        await asyncio.sleep(0)
    assert asking.cancelled()
    assert running == 0
    await locker.aclose()


@pytest.fixture(scope="module")
def group(kind: str) -> Iterator[Sentinels]:
    if kind == "redis-6.2":
        pytest.skip("asynclock.testing has no Sentinels of Redis 6.2")
    with Sentinels(kind) as group:
        yield group


@pytest.fixture
def sentinels(group: Sentinels) -> Sentinels:
    """All of them in good health, and no key."""
    for sentinel in group.sentinels:
        come_back(group, sentinel)
    for server in group.servers:
        come_back(group, server)
    group.wait_until_ok(30)
    group.primary.execute("FLUSHALL")
    group.primary.execute("WAIT", len(group.replicas), 2000)
    return group


def come_back(group: Sentinels, server: Server) -> None:
    """It goes on, and follows the primary. The Sentinels would tell it to as well, but two seconds later."""
    if server.running:
        server.resume()
    else:
        server.start()
    if server in group.servers and server is not group.primary:
        server.execute("REPLICAOF", "127.0.0.1", group.primary.port)


def copied(sentinels: Sentinels) -> None:
    """Every replica has what was written before."""
    assert sentinels.primary.execute("WAIT", len(sentinels.replicas), 5000) == len(sentinels.replicas)


def at(locker: Locker, server: Server) -> bool:
    return f"at 127.0.0.1:{server.port}/" in repr(locker) and "open" in repr(locker)


# The primary fails


@pytest.mark.asyncio
async def test_the_primary_is_killed(sentinels: Sentinels) -> None:
    old = sentinels.primary
    async with Locker(sentinels.url) as locker, Locker(sentinels.url) as other:
        assert at(locker, old) and at(other, old)
        holding = await body(await locker.acquire("job"))
        waiters = [asyncio.create_task(one.acquire("job")) for one in (locker, other)]
        copied(sentinels)
        since = time.monotonic()
        old.kill()
        error = await holding.lost_within(AT_ONCE, since)
        assert error.reason == "disconnected"
        assert f"127.0.0.1:{old.port}" in str(error)
        for _ in waiters:
            done, _ = await asyncio.wait(waiters, timeout=FAILOVER, return_when=asyncio.FIRST_COMPLETED)
            assert done, "no waiter got the lock"
            scope = done.pop().result()
            waiters = [waiter for waiter in waiters if not waiter.done()]
            assert scope.held
            await scope.release()
        new = await asyncio.to_thread(sentinels.wait_for_failover, old)
        assert new is not old and at(locker, new) and at(other, new)
        holding = await body(await locker.acquire("job"))  # and it is told of what happens there
        since = time.monotonic()
        new.execute("DEL", key("job"))
        assert (await holding.lost_within(AT_ONCE, since)).reason == "deleted"


@pytest.mark.asyncio
@pytest.mark.slow
async def test_a_grace_longer_than_the_failover(sentinels: Sentinels) -> None:
    old = sentinels.primary
    async with (
        Locker(sentinels.url, key_validity=30, disconnect_grace=25) as locker,
        Locker(sentinels.url) as other,
    ):
        reached, missed = await locker.acquire("reached"), await body(await locker.acquire("missed"))
        copied(sentinels)
        for replica in sentinels.replicas:  # they have not got that one, as if the primary had died before
            replica.execute("CONFIG", "SET", "replica-read-only", "no")
            assert replica.execute("DEL", key("missed")) == 1
            replica.execute("CONFIG", "SET", "replica-read-only", "yes")
        waiting = asyncio.create_task(other.acquire("missed"))
        contending = asyncio.create_task(other.acquire("reached"))
        await until(lambda: (room := internals.room(other, "missed")) is not None and room.contended)
        since = time.monotonic()
        old.kill()
        error = await missed.lost_within(FAILOVER, since)
        assert error.reason == "forgotten"
        new = await asyncio.to_thread(sentinels.wait_for_failover, old)
        assert f"127.0.0.1:{new.port}" in str(error)
        async with await asyncio.wait_for(waiting, FAILOVER) as taken:
            assert taken.held and reached.held and not contending.done()
        await reached.release()
        await (await asyncio.wait_for(contending, FAILOVER)).release()


@pytest.mark.asyncio
@pytest.mark.slow
async def test_all_replicas_have_the_key_and_the_primary_is_killed(sentinels: Sentinels) -> None:
    old = sentinels.primary
    options = {"key_validity": 30, "disconnect_grace": 25, "try_next_after": 1.0}
    async with Locker(sentinels.url, min_replicas=len(sentinels.replicas), **options) as locker:
        scope = await locker.acquire("job")  # so it is there, whichever replica it will be
        old.kill()
        new = await asyncio.to_thread(sentinels.wait_for_failover, old)
        await until(lambda: at(locker, new) and up(locker), FAILOVER)
        assert scope.held
        with pytest.raises(AcquireTimeoutError):  # one of them is the primary now, the old one is away
            await locker.acquire("another", timeout=1.5)
        await asyncio.to_thread(come_back, sentinels, old)
        await asyncio.to_thread(sentinels.wait_until_ok, 30)
        await (await locker.acquire("another", timeout=FAILOVER)).release()
        assert scope.held
        await scope.release()


@pytest.mark.asyncio
@pytest.mark.slow
@pytest.mark.parametrize("grace", [0.0, 20.0])
async def test_planned_failover_never_has_two_holders(sentinels: Sentinels, grace: float) -> None:
    async with (
        Locker(sentinels.url, key_validity=30, disconnect_grace=grace) as locker,
        Locker(sentinels.url) as other,
    ):
        scope = await locker.acquire("job")
        copied(sentinels)
        waiting = asyncio.create_task(other.acquire("job"))
        failover = asyncio.create_task(asyncio.to_thread(sentinels.failover))
        while not failover.done():
            with contextlib.suppress(AcquireTimeoutError, ServerError):
                async with Locker(sentinels.url) as late:  # goes where the Sentinels say at this moment
                    taken = await late.acquire("job", timeout=0.1)
                    assert not scope.held
                    await taken.release()
        new = await failover
        await until(lambda: at(locker, new) and at(other, new), FAILOVER)
        await until(lambda: up(locker) and up(other))
        assert scope.held or scope.lost_reason == "disconnected"
        if grace:
            assert scope.held  # and the key has reached every replica
        assert not (scope.held and waiting.done())
        with contextlib.suppress(LockLostError):
            await scope.release()
        await (await asyncio.wait_for(waiting, FAILOVER)).release()


@pytest.mark.asyncio
@pytest.mark.slow
async def test_the_primary_hangs(sentinels: Sentinels) -> None:
    old = sentinels.primary
    async with (
        Locker(sentinels.url, key_validity=30, disconnect_grace=25) as locker,
        Locker(sentinels.url, key_validity=3) as other,
    ):
        scope = await locker.acquire("job")
        lost = await body(await other.acquire("another"))
        copied(sentinels)
        since = time.monotonic()
        old.pause()
        other_again = asyncio.create_task(other.acquire("a third"))
        await until(lambda: at(locker, old) is False and up(locker) and up(other), FAILOVER)
        await (await asyncio.wait_for(other_again, FAILOVER)).release()
        assert scope.held
        if lost.error is None and lost.scope.held:
            await lost.scope.release()
            lost.task.cancel()
        else:
            assert lost.stopped is not None and lost.stopped - since < 3 + AT_ONCE  # its validity
        await scope.release()
        await until(lambda: sentinels.primary is not old, FAILOVER)  # whichever of them is asked
        assert sentinels.primary.execute("EXISTS", key("job")) == 0


@pytest.mark.asyncio
@pytest.mark.slow
async def test_the_primary_is_down_and_no_other_can_be_made(sentinels: Sentinels) -> None:
    """The Sentinels' word for it: the server is gone, long before the deadline."""
    async with Locker(sentinels.url, key_validity=20, extend_interval=0.5) as locker:
        holding = await body(await locker.acquire("job"))
        since = time.monotonic()
        for server in (*sentinels.replicas, sentinels.primary):
            server.pause()
        error = await holding.lost_within(10, since)
        assert error.reason == "disconnected"
        with pytest.raises(AcquireTimeoutError, match=r"the Sentinels report the primary 127.0.0.1:[0-9]+ down"):
            await locker.acquire("job", timeout=0.5)


@pytest.mark.asyncio
@pytest.mark.slow
async def test_the_primary_becomes_a_replica(sentinels: Sentinels) -> None:
    """Its word for it, READONLY: whether the keys are gone is open until there is a primary."""
    old = sentinels.primary
    async with Locker(sentinels.url, key_validity=30, extend_interval=0.5, disconnect_grace=25) as locker:
        scope = await locker.acquire("job")
        copied(sentinels)
        old.execute("REPLICAOF", "127.0.0.1", "1")  # there is nobody
        await until(lambda: not up(locker))
        new = await asyncio.to_thread(sentinels.wait_for_failover, old)
        await until(lambda: at(locker, new) and up(locker), FAILOVER)
        assert scope.held
        await scope.release()


@pytest.mark.asyncio
async def test_a_read_only_primary_does_not_mean_that_the_keys_are_gone(sentinels: Sentinels) -> None:
    """The Sentinels are late: for a moment they name a server that is a replica."""
    primary = sentinels.primary
    async with Locker(sentinels.url, extend_interval=0.05, key_validity=10) as locker:
        scope = await locker.acquire("job")
        primary.execute("REPLICAOF", "127.0.0.1", "1")
        await until(lambda: not up(locker))
        await until(lambda: "read-only replica" in trouble(locker))
        assert scope.held
        primary.execute("REPLICAOF", "NO", "ONE")
        await until(lambda: up(locker), FAILOVER)
        assert scope.held
        await scope.release()


@pytest.mark.asyncio
async def test_closed_in_the_middle_of_a_failover(sentinels: Sentinels) -> None:
    locker = Locker(sentinels.url, disconnect_grace=20)
    scope = await locker.acquire("job")
    waiting = asyncio.create_task(locker.acquire("job"))
    sentinels.primary.kill()
    for sentinel in sentinels.sentinels[:2]:
        sentinel.pause()  # and the locker is in the middle of asking
    await until(lambda: not up(locker))
    await asyncio.sleep(0.2)
    since = time.monotonic()
    await locker.aclose()
    assert time.monotonic() - since < 0.5
    assert scope.lost_reason == "closed"
    assert not [task for task in asyncio.all_tasks() if "asynclock" in task.get_name()]
    with pytest.raises(LockerClosedError):
        await waiting


# The Sentinels fail, or differ


@contextlib.asynccontextmanager
async def behind_proxies(sentinels: Sentinels) -> AsyncIterator[tuple[list[Proxy], str]]:
    async with contextlib.AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(Proxy(port)) for _, port in sentinels.addresses]
        yield proxies, f"redis+sentinel://{','.join(f'127.0.0.1:{proxy.port}' for proxy in proxies)}/mymaster"


@pytest.mark.asyncio
async def test_no_sentinel_can_be_reached(sentinels: Sentinels) -> None:
    """That says nothing of the primary: what is held counts on."""
    async with behind_proxies(sentinels) as (proxies, url), Locker(url) as locker:
        scope = await locker.acquire("job")
        for proxy in proxies:
            proxy.refuse()
            proxy.reset()
        sentinels.primary.execute("CLIENT", "KILL", "TYPE", "normal")
        await until(lambda: not up(locker))
        for _ in range(2):
            with pytest.raises(ServerError, match="no Sentinel can be reached") as caught:
                await Locker(url).acquire("job")
            assert not caught.value.lasting
        await until(lambda: "no Sentinel" in trouble(locker))
        assert scope.held
        for proxy in proxies:
            proxy.accept()
        await until(lambda: up(locker))
        assert scope.held
        await scope.release()


@pytest.mark.asyncio
async def test_sentinels_that_hang_cost_little(sentinels: Sentinels) -> None:
    async with behind_proxies(sentinels) as (proxies, url):
        for proxy in proxies[:2]:
            proxy.freeze()
        since = time.monotonic()
        async with Locker(url) as locker:
            await (await locker.acquire("job")).release()
        assert time.monotonic() - since < ANSWER_TIMEOUT * 0.8
        proxies[2].freeze()
        since = time.monotonic()
        with pytest.raises(ServerError, match="no Sentinel can be reached"):
            await Locker(url).acquire("job")
        assert 0.9 < time.monotonic() - since < 3
        locker = Locker(url)
        proxies[2].thaw()
        await (await locker.acquire("job")).release()
        proxies[2].freeze()
        await asyncio.sleep(topology.CHECK_EVERY + 0.2)
        since = time.monotonic()
        await locker.aclose()  # while it looks whether the primary still is the one
        assert time.monotonic() - since < 0.5
        locker = Locker(url)
        task = asyncio.create_task(locker.acquire("job"))
        await asyncio.sleep(0.1)
        await locker.aclose()  # in the middle of asking; conftest looks whether anything is left
        with pytest.raises(LockerClosedError):
            await task


@pytest.mark.asyncio
@pytest.mark.slow
async def test_a_sentinel_that_missed_the_last_failover(sentinels: Sentinels, kind: str) -> None:
    """It still names the old primary, which lives on: cut off from the others, the two of them."""
    await asyncio.to_thread(sentinels.failover)
    await asyncio.to_thread(sentinels.wait_until_ok, 30)
    with Sentinels(kind, replicas=0, sentinels=1) as cut_off:
        (alone,) = cut_off.sentinels
        async with behind_proxies(sentinels) as (proxies, url):
            url = url.replace("redis+sentinel://", f"redis+sentinel://127.0.0.1:{alone.port},")
            for proxy in proxies:
                proxy.freeze()
            async with Locker(url) as locker:  # there is nobody else to ask
                assert at(locker, cut_off.primary)
                stale = await locker.acquire("job")
                since = time.monotonic()
                for proxy in proxies:
                    proxy.thaw()
                await until(lambda: at(locker, sentinels.primary) and up(locker))
                assert time.monotonic() - since < topology.CHECK_EVERY + 1.5
                await until(lambda: not stale.held)
                assert stale.lost_reason == "forgotten"

                scope = await locker.acquire("job")
                for proxy in proxies:
                    proxy.refuse()
                    proxy.reset()
                await asyncio.sleep(topology.CHECK_EVERY * 1.5)
                assert at(locker, sentinels.primary) and up(locker)  # one of four, and it knows less
                sentinels.primary.execute("CLIENT", "KILL", "TYPE", "normal")
                await until(lambda: "missed the last failover" in trouble(locker))
                assert scope.held
                for proxy in proxies:
                    proxy.accept()
                await until(lambda: up(locker))
                assert scope.held
            async with Locker(url) as locker:  # all of them answer: the newest is believed
                assert at(locker, sentinels.primary)


@pytest.mark.asyncio
async def test_a_name_that_no_sentinel_knows(sentinels: Sentinels) -> None:
    with pytest.raises(ServerError, match="know no primary of the name 'theirmaster'"):
        await Locker(sentinels.url.replace("mymaster", "theirmaster")).acquire("job")


@pytest.mark.asyncio
async def test_a_sentinel_given_as_a_server(sentinels: Sentinels) -> None:
    with pytest.raises(ServerError, match=r"is a Sentinel.*use redis\+sentinel://"):
        await Locker(f"redis://127.0.0.1:{sentinels.sentinels[0].port}").acquire("job")


@pytest.mark.asyncio
async def test_a_server_given_as_a_sentinel(server: Server) -> None:
    with pytest.raises(ServerError, match=r"the Sentinels refuse"):
        await Locker(f"redis+sentinel://127.0.0.1:{server.port}/mymaster").acquire("job")


# Sentinels that answer rubbish


def masters(**changed: bytes | None) -> bytes:
    """What SENTINEL MASTERS answers, with some of it changed, or left out."""
    fields: dict[str, bytes | None] = {
        "name": b"mymaster", "ip": b"127.0.0.1", "port": b"1", "flags": b"master", "num-other-sentinels": b"2",
        "config-epoch": b"999", **changed,
    }  # fmt: skip
    words = [word for name, value in fields.items() if value is not None for word in (name.encode(), value)]
    return b"*1\r\n*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


RUBBISH = {
    "a word for an epoch": (masters(**{"config-epoch": b"abc"}), None),
    "a fraction for an epoch": (masters(**{"config-epoch": b"1.5"}), None),
    "a huge epoch": (masters(**{"config-epoch": b"9" * 5000}), None),
    "a negative epoch": (masters(**{"config-epoch": b"-1"}), None),
    "no epoch": (masters(**{"config-epoch": None}), None),
    "no flags": (masters(flags=None), None),
    "no address": (masters(ip=None, port=None), None),
    "a word for a port": (masters(port=b"x"), None),
    "no name": (masters(name=None), None),
    "not UTF-8": (masters(name=b"\xff\xfe"), None),
    "an odd list": (b"*1\r\n*3\r\n+name\r\n+mymaster\r\n+ip\r\n", None),
    "lists in lists": (b"*1\r\n*2\r\n*0\r\n*1\r\n+x\r\n", None),
    "a number": (b":1\r\n", None),
    "a string": (b"+OK\r\n", None),
    "nothing": (b"$-1\r\n", None),
    "null": (b"*-1\r\n", None),
    "a map": (b"%1\r\n+name\r\n+mymaster\r\n", None),
    "an error": (b"-ERR what\r\n", None),
    "no protocol": (b"HTTP/1.1 400 Bad Request\r\n\r\n", None),
    "a billion": (b"*1000000000\r\n", None),
    "an address that is a number": (None, b":1\r\n"),
    "an address that is a string": (None, b"+12\r\n"),
    "an address of one": (None, b"*1\r\n+h\r\n"),
    "an address of three": (None, b"*3\r\n+h\r\n+1\r\n+2\r\n"),
    "an address without a port": (None, b"*2\r\n+h\r\n$-1\r\n"),
    "an address with no host": (None, b"*2\r\n$0\r\n\r\n+1\r\n"),
    "an address with a line in it": (None, b"*2\r\n$3\r\na\nb\r\n+1\r\n"),
    "a port too large": (None, b"*2\r\n+h\r\n+65536\r\n"),
    "port 0": (None, b"*2\r\n+h\r\n+0\r\n"),
    "an empty list": (None, b"*0\r\n"),
    "one answer too many": (None, b"+OK\r\n+OK\r\n"),
}


@pytest.mark.asyncio
@pytest.mark.one_loop
@pytest.mark.parametrize("rubbish", RUBBISH)
async def test_a_sentinel_that_answers_rubbish(
    sentinels: Sentinels, rubbish: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts as one that has not answered: the others decide. Once it is well again, it counts."""
    monkeypatch.setattr(topology, "CHECK_EVERY", 0.02)
    told, address = RUBBISH[rubbish]

    def answer(command: bytes) -> bytes | None:
        return told if b"MASTERS" in command else address if b"GET-MASTER" in command else None

    async with contextlib.AsyncExitStack() as stack:
        turncoats = [await stack.enter_async_context(Interceptor(port)) for _, port in sentinels.addresses]
        url = f"redis+sentinel://{','.join(f'127.0.0.1:{turncoat.port}' for turncoat in turncoats)}/mymaster"
        locker = await stack.enter_async_context(Locker(url, key_validity=30))
        scope = await locker.acquire("job")

        async def drop() -> None:
            sentinels.primary.execute("CLIENT", "KILL", "TYPE", "normal")
            await until(lambda: not up(locker))

        turncoats[0].answer = answer
        await drop()
        await until(lambda: up(locker))
        await asyncio.sleep(0.1)  # and at some looks
        assert up(locker) and scope.held and at(locker, sentinels.primary)
        async with Locker(url) as another:
            await (await another.acquire("another")).release()

        for turncoat in turncoats:
            turncoat.answer = answer
        await asyncio.sleep(0.1)
        assert up(locker) and scope.held
        await drop()
        await until(lambda: "entinel" in trouble(locker))
        with pytest.raises(ServerError):
            await Locker(url).acquire("another")
        await asyncio.sleep(0.1)
        assert scope.held  # nobody has said anything of the primary
        for turncoat in turncoats:
            turncoat.answer = None
        await until(lambda: up(locker))
        assert scope.held
        await drop()  # and again: it is looked for as ever
        await until(lambda: up(locker))
        await (await locker.acquire("another")).release()
        assert internals.refreshing(locker).running
        await scope.release()


@pytest.mark.asyncio
async def test_sentinels_that_see_too_few_others_do_not_prove_anything(sentinels: Sentinels) -> None:
    manager = Sentinel(sentinels.addresses)
    async with Locker(manager.master_for("mymaster"), key_validity=30) as locker:
        scope = await locker.acquire("job")
        manager.min_other_sentinels = 5
        sentinels.primary.execute("CLIENT", "KILL", "TYPE", "normal")
        await until(lambda: "min_other_sentinels" in trouble(locker))
        await asyncio.sleep(0.1)
        assert scope.held
        manager.min_other_sentinels = 2
        await until(lambda: up(locker))
        assert scope.held
        await scope.release()


@pytest.mark.asyncio
async def test_a_sentinels_credential_provider_whose_work_is_cancelled(sentinels: Sentinels) -> None:
    """Once, and not because of this locker: connecting goes on."""

    class Provider(CredentialProvider):
        fails = 3

        async def get_credentials_async(self) -> tuple[str, str]:
            if self.fails:
                self.fails -= 1
                raise asyncio.CancelledError
            return ("default", "")

    manager = Sentinel(sentinels.addresses, sentinel_kwargs={"credential_provider": Provider()})
    locker = Locker(manager.master_for("mymaster"))
    with pytest.raises(ServerError, match="no Sentinel can be reached"):
        await locker.acquire("job")
    await locker.aclose()


# Clients, options, secrets


@pytest.mark.asyncio
async def test_a_primary_that_the_sentinels_have_replaced_is_left_though_it_is_up(sentinels: Sentinels) -> None:
    async with Locker(sentinels.url, key_validity=30) as locker:
        scope = await locker.acquire("job")
        connector, before = internals.connector(locker), internals.node(locker).connection
        assert isinstance(connector, SentinelConnector) and connector._current is not None
        assert await connector.replaced() is None
        connector._current = connector._current._replace(port=1)  # as if it had connected to that one
        assert await connector.replaced() == f"127.0.0.1:{sentinels.primary.port}"
        await until(lambda: internals.node(locker).connection not in (None, before), topology.CHECK_EVERY + 1 + AT_ONCE)
        assert scope.held and at(locker, sentinels.primary)
        await scope.release()


@pytest.mark.asyncio
async def test_a_client_that_the_application_has(sentinels: Sentinels) -> None:
    manager = Sentinel(sentinels.addresses)
    client = manager.master_for("mymaster", db=3, client_name="mine", socket_connect_timeout=2)
    locker = Locker(client)
    assert "redis+sentinel://127.0.0.1" in repr(locker) and "/mymaster/3" in repr(locker)
    async with locker:
        assert locker.client is client
        assert at(locker, sentinels.primary)
        scope = await locker.acquire("job")
        assert await client.exists(key("job")) == 1
        assert {"mine"} == {one["name"] for one in await client.client_list() if one["db"] == "3"}
        # None of its connections is ours, neither to the primary nor to a Sentinel.
        assert not any(sentinel.connection_pool._in_use_connections for sentinel in manager.sentinels)
        await scope.release()
    assert await client.ping()
    await client.aclose()
    for sentinel in manager.sentinels:
        assert await sentinel.ping()
        await sentinel.aclose()


@pytest.mark.asyncio
@pytest.mark.slow
async def test_such_a_client_and_a_failover(sentinels: Sentinels) -> None:
    manager = Sentinel(sentinels.addresses)
    client = manager.master_for("mymaster")
    old = sentinels.primary
    async with Locker(client, key_validity=30, disconnect_grace=25) as locker:
        scope = await locker.acquire("job")
        copied(sentinels)
        old.kill()
        new = await asyncio.to_thread(sentinels.wait_for_failover, old)
        await until(lambda: at(locker, new) and up(locker), FAILOVER)
        assert scope.held
        await scope.release()
    await client.aclose()
    for sentinel in manager.sentinels:
        await sentinel.aclose()


@pytest.mark.skipif(
    "force_master_ip" not in inspect.signature(Sentinel).parameters, reason="redis-py has it from version 6 on"
)
@pytest.mark.asyncio
async def test_an_address_that_the_sentinels_do_not_know(sentinels: Sentinels) -> None:
    manager = Sentinel(sentinels.addresses, force_master_ip="localhost")
    async with Locker(manager.master_for("mymaster")) as locker:
        assert f"at localhost:{sentinels.primary.port}/0" in repr(locker)
        await (await locker.acquire("job")).release()


def test_sentinels_of_a_cluster() -> None:
    connector = SentinelConnector(Sentinel([("127.0.0.1", 1)]).master_for("mymaster"))
    with pytest.raises(ConfigurationError, match="'mymaster' is a node of a cluster"):
        connector.at("127.0.0.1", 2)


def test_a_client_for_replicas() -> None:
    manager = Sentinel([("127.0.0.1", 1)])
    with pytest.raises(ConfigurationError, match=r"replicas of 'mymaster'.*master_for"):
        Locker(manager.slave_for("mymaster"))


@pytest.mark.asyncio
async def test_the_client_of_a_url(sentinels: Sentinels) -> None:
    async with Locker(sentinels.url.replace("/0", "/2?client_name=mine")) as locker:
        assert isinstance(locker.client, redis.Redis)
        await locker.client.set("of the application", 1)
        scope = await locker.acquire("job")
        primary = redis.Redis(port=sentinels.primary.port, db=2, decode_responses=True)
        assert set(await primary.keys()) == {"of the application", key("job")}
        await primary.aclose()
        await scope.release()


@pytest.mark.asyncio
async def test_resp2(sentinels: Sentinels) -> None:
    async with Locker(sentinels.url + "?protocol=2") as locker:
        holding = await body(await locker.acquire("job"))
        since = time.monotonic()
        sentinels.primary.execute("DEL", key("job"))
        assert (await holding.lost_within(AT_ONCE, since)).reason == "deleted"


@pytest.mark.asyncio
async def test_passwords(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """The servers' is in the URL or with the client; the Sentinels' own comes with the client."""
    if kind == "redis-6.2":
        pytest.skip("asynclock.testing has no Sentinels of Redis 6.2")
    caplog.set_level(logging.DEBUG, "asynclock")
    config = {"requirepass": "servers-secret"}
    with Sentinels(
        kind, replicas=0, sentinels=1, config=config, sentinel_config={"requirepass": "own-secret"}
    ) as group:
        url = group.url.replace("://", "://:servers-secret@")
        said = []
        with pytest.raises(ServerError, match="sentinel_kwargs") as caught:
            await Locker(url).acquire("job")
        assert caught.value.lasting
        said.append(str(caught.value))
        manager = Sentinel(group.addresses, sentinel_kwargs={"password": "own-secret"}, password="servers-secret")
        async with Locker(manager.master_for("mymaster")) as locker:
            said.append(repr(locker))
            scope: LockScope = await locker.acquire("job")
            said.append(repr(scope))
            group.servers[0].kill()
            await scope.wait_lost()
            said.append(str(scope.lost_reason))
        wrong = Sentinel(group.addresses, sentinel_kwargs={"password": "own-secret"}, password="servers-secret-not")
        group.servers[0].start()
        await asyncio.to_thread(group.wait_until_ok)
        with pytest.raises(ServerError, match="check username and password") as caught:
            await Locker(wrong.master_for("mymaster")).acquire("job")
        said += [str(caught.value), *(record.getMessage() for record in caplog.records)]
    assert not [text for text in said if "secret" in text]
    assert len(caplog.records) >= 3  # connected, lost, cannot be reached


def client_of(url: str) -> tuple[dict[str, object], list[tuple[str, int]], Sentinel]:
    client, manager = topology.client_of(url)
    addresses = [(s.connection_pool.connection_kwargs["host"], s.connection_pool.connection_kwargs["port"])
                 for s in manager.sentinels]  # fmt: skip
    kwargs = {k: v for k, v in client.connection_pool.connection_kwargs.items() if isinstance(v, str | int | float)}
    return kwargs, addresses, manager


def test_what_a_url_means() -> None:
    kwargs, addresses, manager = client_of(
        "redis+sentinel://us%40er:p%2F%3a%25@s1:1000,s2,[::1]:3,[2001:db8::2]/my%20master/7?client_name=me&socket_timeout=2.5"
    )
    assert addresses == [("s1", 1000), ("s2", 26379), ("::1", 3), ("2001:db8::2", 26379)]
    wanted = {"username": "us@er", "password": "p/:%", "db": 7, "client_name": "me", "socket_timeout": 2.5}
    assert {k: kwargs.get(k) for k in wanted} == wanted and "host" not in kwargs
    assert manager.sentinel_kwargs == {
        "socket_timeout": 2.5,
        "socket_connect_timeout": 1.0,
    }  # not the servers' password
    assert client_of("redis+sentinel://:p@h/m")[0]["password"] == "p"
    assert client_of("redis+sentinel://h/m?db=4")[0]["db"] == 4
    assert "db" not in client_of("REDIS+SENTINEL://h/m/")[0]
    assert repr(Locker("redis+sentinel://u:secret@h,[::1]/m/4")) == (
        "<Locker redis+sentinel://h:26379,[::1]:26379/m/4 new>"
    )


def test_tls_is_for_the_servers_and_the_sentinels() -> None:
    client, manager = topology.client_of("rediss+sentinel://u:p@h/m?ssl_cert_reqs=none&ssl_ca_certs=ca.pem")
    for pool in (client.connection_pool, *(sentinel.connection_pool for sentinel in manager.sentinels)):
        assert issubclass(pool.connection_class, redis.SSLConnection)
        assert pool.connection_kwargs["ssl_ca_certs"] == "ca.pem"
        assert pool.connection_kwargs["ssl_cert_reqs"] == "none"
    plain, _ = topology.client_of("redis+sentinel://h/m")
    assert not issubclass(plain.connection_pool.connection_class, redis.SSLConnection)


@pytest.mark.parametrize(
    ("rest", "what"),
    [
        ("h:1", "name of the primary is missing"),
        ("h:1/", "name of the primary is missing"),
        ("/m", "Sentinel 1 is not host:port"),
        ("h:1,,g:2/m", "Sentinel 2 is not host:port"),
        ("h:1,g:two/m", "Sentinel 2 is not host:port"),
        ("h:1,g:0/m", "port of Sentinel 2"),
        ("h:99999/m", "port of Sentinel 1"),
        ("::1:26379/m", "Sentinel 1 is not host:port.*brackets"),
        ("h:1/m/x", "database"),
        ("h:1/m/0/1", "database"),
        ("h:1/m/-1", "database"),
        ("h:1/m?db=x", "database"),
        ("h:1/m/1?db=2", "the option db is given twice"),
        ("h:1/m?socket_timeout=soon", "the option socket_timeout"),
        ("h:1/m#1", "'#'"),
        ("h:1/m?client_name=a b", "white space"),
        ("u:%ff@h:1/m", "not UTF-8"),
        # Passwords that are not percent-encoded, and what they make of the rest.
        ("user:secret/secret@h:1/m", "Sentinel 1 is not host:port"),
        ("user:123/secret@h:1/m", "percent-encoded"),
        ("user:secret#secret@h:1/m", "there is a '#'"),
        ("user:123?secret@h:1/m", "name of the primary is missing"),
        ("user:sec[ret@h:1/m", "would not accept it"),
    ],
)
def test_a_wrong_url(rest: str, what: str) -> None:
    for scheme in ("redis+sentinel", "rediss+sentinel", "valkey+sentinel", "valkeys+sentinel"):
        with pytest.raises(ConfigurationError, match=what) as caught:
            Locker(f"{scheme}://{rest}")
        error: BaseException | None = caught.value
        assert "redis+sentinel://[user:password@]host:port" in str(error)
        assert "secret" not in str(error) and "123" not in str(error)
        assert error.__suppress_context__ or error.__context__ is None  # redis-py's error may show some of it


def test_an_option_that_redis_py_does_not_know() -> None:
    for option in ("no_such_option=1", "ssl_ca_certs=ca.pem"):
        with pytest.raises(ConfigurationError, match=rf"redis\+sentinel://h:1/m/0.*{option.split('=')[0]}"):
            Locker(f"redis+sentinel://h:1/m?{option}")
    with pytest.raises(ConfigurationError, match="CERT_NONE"):
        Locker("rediss+sentinel://h:1/m?ssl_cert_reqs=CERT_NONE")
