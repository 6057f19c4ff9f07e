"""What a locker tells about itself: events, statistics, warnings, and who holds a lock."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import os
import pickle
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from asynclock import (
    AcquireTimeoutError,
    Locker,
    LockerClosedError,
    LockLostError,
    LossReason,
    NotLockedError,
    ServerError,
    __version__,
)
from asynclock.core.tokens import claim_of
from asynclock.events import (
    Acquired,
    Disconnected,
    Event,
    ExtensionLate,
    GaveUp,
    Lost,
    Reconnected,
    Released,
    TimedOut,
)
from asynclock.integrations import _acquire as service
from asynclock.testing import Proxy, Server
from tests.support.helpers import body, key, until

pytestmark = [pytest.mark.asyncio, pytest.mark.every_python]


@pytest.fixture
def told(locker: Locker) -> Iterator[list[Event]]:
    events: list[Event] = []
    unsubscribe = locker.subscribe(events.append)
    yield events
    unsubscribe()


def kinds(events: list[Event]) -> list[type]:
    return [type(event) for event in events]


def commands(server: Server) -> int:
    """How many the server has executed."""
    found = re.search(rb"total_commands_processed:(\d+)", bytes(server.execute("INFO", "stats")))  # type: ignore[arg-type]
    assert found is not None
    return int(found[1])


async def delivered() -> None:
    """The event loop has delivered what has happened until now."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


# Events


@pytest.mark.fast
async def test_a_cycle(locker: Locker, told: list[Event]) -> None:
    before = time.time()
    async with locker.with_context("job"):
        await asyncio.sleep(0.05)
    await delivered()
    acquired, released = told
    assert isinstance(acquired, Acquired) and isinstance(released, Released)
    assert acquired.name == released.name == "job"
    assert acquired.hold == released.hold
    assert 0 < acquired.waited < 5
    assert 0.04 < released.held < 5
    assert before <= acquired.at <= released.at <= time.time()


async def test_each_hold_has_a_number_of_its_own(locker: Locker, told: list[Event]) -> None:
    for name in ("a", "a", "b"):
        async with locker.with_context(name):
            pass
    await delivered()
    assert len({event.hold for event in told if isinstance(event, Acquired)}) == 3
    assert [event.hold for event in told if isinstance(event, Acquired)] == [
        event.hold for event in told if isinstance(event, Released)
    ]


@pytest.mark.fast
async def test_a_loss(locker: Locker, server: Server, told: list[Event]) -> None:
    holding = await body(await locker.acquire("job"))
    await asyncio.sleep(0.05)
    server.execute("DEL", key("job"))
    await until(lambda: holding.error)
    await delivered()
    acquired, lost = told
    assert isinstance(acquired, Acquired) and isinstance(lost, Lost)
    assert lost.hold == acquired.hold
    assert lost.reason is LossReason.DELETED
    assert key("job") in lost.detail
    assert 0.04 < lost.held < 5


async def test_a_loss_that_only_the_answer_to_the_release_shows(server: Server, locker: Locker) -> None:
    """Whether it is raised or nothing waits for it."""
    for wait in (True, False):
        told: list[Event] = []
        unsubscribe = locker.subscribe(told.append)
        try:
            async with locker.with_context("job", wait_release=wait):
                server.execute("SET", key("job"), "somebody else's")
        except LockLostError:
            assert wait
        await until(lambda told=told: kinds(told) == [Acquired, Released, Lost])  # type: ignore[misc]
        (number,) = {event.hold for event in told if isinstance(event, Acquired | Released | Lost)}
        assert number
        unsubscribe()
        server.execute("DEL", key("job"))
    assert locker.statistics().lost == {LossReason.OVERWRITTEN: 2}


@pytest.mark.fast
async def test_ends_of_a_wait(server: Server, other: Locker) -> None:
    told: list[Event] = []
    # On a busy machine, it takes longer than 26 ms to read who has the lock.
    async with Locker(server.url, try_next_after=1.0) as locker:
        locker.subscribe(told.append)
        async with other.with_context("job"):
            with pytest.raises(AcquireTimeoutError):
                await locker.acquire("job", timeout=0.05)
            with pytest.raises(AcquireTimeoutError):
                await locker.acquire("job", timeout=0)
            with pytest.raises(NotLockedError):
                await locker.try_acquire("job")
            waits = asyncio.create_task(locker.acquire("job"))
            await asyncio.sleep(0.05)
            waits.cancel()
            await asyncio.wait([waits])
            await delivered()
    assert kinds(told) == [TimedOut, TimedOut, GaveUp, GaveUp]
    assert [event.error for event in told if isinstance(event, GaveUp)] == ["NotLockedError", "CancelledError"]
    first = told[0]
    assert isinstance(first, TimedOut)
    assert first.holder is not None and first.holder.owner == f"{socket.gethostname()}:{os.getpid()}"
    assert 0.04 < first.waited < 5
    figures = locker.statistics()
    assert (figures.timed_out, figures.refused, figures.acquired) == (2, 1, 0)


async def test_closing_is_a_loss_and_ends_waits(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    told: list[Event] = []
    async with Locker(server.url) as locker:
        locker.subscribe(told.append)
        holding = await body(await locker.acquire("a"))
        waits = asyncio.create_task(locker.acquire("a"))
        await asyncio.sleep(0.05)
    await asyncio.wait([holding.task])
    with pytest.raises(LockerClosedError):
        await waits
    assert kinds(told) == [Acquired, Lost, GaveUp] or kinds(told) == [Acquired, GaveUp, Lost]
    assert [event.error for event in told if isinstance(event, GaveUp)] == ["LockerClosedError"]
    assert [event.reason for event in told if isinstance(event, Lost)] == [LossReason.CLOSED]
    assert caplog.messages == []  # it is what the program wants
    await asyncio.sleep(0.05)
    assert len(told) == 3


async def test_a_forgotten_scope(locker: Locker, told: list[Event]) -> None:
    scope = await locker.acquire("job")
    with pytest.warns(ResourceWarning):
        del scope
        gc.collect()
    await until(lambda: kinds(told) == [Acquired, Released])
    assert locker.statistics().released == 1


async def test_a_server_that_goes_and_comes_back(own_server: Server) -> None:
    told: list[Event] = []
    async with Proxy(own_server.port) as proxy:
        async with Locker(proxy.url) as locker:
            locker.subscribe(told.append)
            proxy.reset()
            await until(lambda: kinds(told) == [Disconnected, Reconnected])
            gone, back = told
            assert isinstance(gone, Disconnected) and isinstance(back, Reconnected)
            assert gone.server == back.server == f"127.0.0.1:{proxy.port}/0"
            assert gone.why
            assert 0 <= back.after < 5
            assert locker.statistics().reconnects == 1


async def test_extensions_that_are_not_answered_are_told_before_the_loss(server: Server) -> None:
    told: list[Event] = []
    async with Proxy(server.port) as proxy:
        async with Locker(proxy.url, key_validity=2.0) as locker:
            locker.subscribe(told.append)
            scope = await locker.acquire("job")
            await until(lambda: locker.statistics().extensions > 0)
            proxy.freeze()
            reason = await scope.wait_lost()
            proxy.thaw()
            assert reason in (LossReason.EXPIRED, LossReason.DISCONNECTED)
            late = [event for event in told if isinstance(event, ExtensionLate)]
            lost = next(event for event in told if isinstance(event, Lost))
            assert late and all(0 < event.remaining < 2 and event.hold == lost.hold for event in late)
            assert late[0].at < lost.at


async def test_none_is_told_while_extensions_work(server: Server) -> None:
    told: list[Event] = []
    async with Locker(server.url, key_validity=0.8) as locker:
        locker.subscribe(told.append)
        async with locker.with_context("job"):
            await until(lambda: locker.statistics().extensions > 3)
    assert [event for event in told if isinstance(event, ExtensionLate)] == []


async def test_a_callback_runs_in_the_context_of_the_task(locker: Locker) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    seen: list[tuple[type, str]] = []
    locker.subscribe(lambda event: seen.append((type(event), variable.get())))

    async def use(name: str) -> None:
        variable.set(name)
        async with locker.with_context(name):
            await asyncio.sleep(0.01)

    await asyncio.gather(use("a"), use("b"))
    await delivered()
    assert sorted(seen, key=str) == sorted(
        [(Acquired, "a"), (Acquired, "b"), (Released, "a"), (Released, "b")], key=str
    )


async def test_what_a_callback_raises_is_logged_and_spreads_nowhere(
    locker: Locker, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Event] = []

    def fails(event: Event) -> None:
        raise ZeroDivisionError("in the callback")

    locker.subscribe(fails)
    locker.subscribe(told.append)
    async with locker.with_context("job"):
        pass
    await delivered()
    assert kinds(told) == [Acquired, Released]
    assert caplog.messages == [f"asynclock: a subscriber raised at {kind.__name__}" for kind in (Acquired, Released)]
    assert [record.asynclock_message for record in caplog.records] == ["subscriber_failed"] * 2  # type: ignore[attr-defined]


async def test_subscribing_twice_and_unsubscribing(locker: Locker) -> None:
    told: list[Event] = []
    one, two = locker.subscribe(told.append), locker.subscribe(told.append)
    async with locker.with_context("job"):
        pass
    await delivered()
    assert len(told) == 4
    one()
    one()  # does nothing
    async with locker.with_context("job"):
        pass
    await delivered()
    assert len(told) == 6
    two()
    async with locker.with_context("job"):
        pass
    await delivered()
    assert len(told) == 6


async def test_one_that_another_one_ends_is_not_called_again(locker: Locker) -> None:
    told: list[Event] = []
    locker.subscribe(lambda event: end())
    end = locker.subscribe(told.append)
    async with locker.with_context("job"):
        pass
    await delivered()
    assert told == []


# Statistics


async def test_statistics(locker: Locker, other: Locker) -> None:
    assert locker.statistics() == Locker("redis://127.0.0.1:1").statistics()  # all 0
    scope = await locker.acquire("a")
    waits = [asyncio.create_task(locker.acquire("a")) for _ in range(2)]
    await until(lambda: locker.statistics().waiting == 2)
    assert locker.statistics().held == 1
    await asyncio.sleep(0.1)
    await scope.release()
    await (await waits[0]).release()
    await (await waits[1]).release()
    async with other.with_context("a"):
        pass
    figures = locker.statistics()
    assert (figures.held, figures.waiting, figures.acquired, figures.released) == (0, 0, 3, 3)
    assert 0.09 < figures.longest_wait < 5
    assert pickle.loads(pickle.dumps(figures.longest_wait)) == figures.longest_wait


async def test_hand_offs_are_counted(server: Server) -> None:
    async with Locker(server.url, local_handoffs=64) as locker:

        async def use() -> None:
            async with locker.with_context("job"):
                await asyncio.sleep(0)

        await asyncio.gather(*(use() for _ in range(10)))
        figures = locker.statistics()
        assert figures.acquired == figures.released == 10
        assert 0 < figures.handed_off < 10


async def test_extensions_and_how_late_they_were(server: Server) -> None:
    async with Locker(server.url, key_validity=2.0, extend_interval=0.2) as locker:
        async with locker.with_context("job"):
            await until(lambda: locker.statistics().extensions >= 2)
            time.sleep(0.6)  # noqa: ASYNC251  # the event loop is busy
            await asyncio.sleep(0.1)
        assert locker.statistics().latest_extension > 0.3


async def test_servers_that_are_away_are_counted() -> None:
    async def fails() -> None:
        with pytest.raises(ServerError):
            await locker.acquire("job")

    locker = Locker("redis://127.0.0.1:1")
    await fails()
    await fails()
    assert locker.statistics().failed == 2


async def test_a_request_of_a_service_is_one_wait(server: Server, locker: Locker, other: Locker) -> None:
    """The integrations try up to three times for it."""
    told: list[Event] = []
    locker.subscribe(told.append)

    async def request() -> None:
        async with await service.acquire(locker, "job", 5):
            await asyncio.sleep(0.01)

    await asyncio.gather(*(request() for _ in range(10)))
    async with other.with_context("job"):
        with pytest.raises(AcquireTimeoutError) as caught:
            await service.acquire(locker, "job", 0.2)
        with pytest.raises(AcquireTimeoutError):
            await service.acquire(locker, "job", 0)
    assert caught.value.holder is not None
    await delivered()
    figures = locker.statistics()
    assert (figures.acquired, figures.timed_out, figures.refused, figures.failed) == (10, 2, 0, 0)
    waits = [event for event in told if isinstance(event, TimedOut | GaveUp)]
    assert [type(wait) for wait in waits] == [TimedOut, TimedOut]
    assert waits[0].waited >= 0.2
    acquired = [event.waited for event in told if isinstance(event, Acquired)]
    assert max(acquired) > 0.05  # from the first attempt on


# Long waits


async def test_a_long_wait_is_warned_of_with_the_holder(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    async with Locker(server.url, owner="web-3:812") as holder, Locker(server.url, warn_after=0.2) as locker:
        scope = await holder.acquire("job")
        waits = [asyncio.create_task(locker.acquire("job")) for _ in range(3)]
        await until(lambda: len(caplog.messages) == 2)  # again after the same time, and once for all of them
        record = caplog.records[0]
        said = record.getMessage()
        assert said.startswith(f"asynclock: lock 'job' on 127.0.0.1:{server.port}/0: a task has waited for it for 0.")
        assert "(3 wait here); held by web-3:812, since 20" in said
        assert record.asynclock_message == "long_wait"  # type: ignore[attr-defined]
        assert record.asynclock_holder.owner == "web-3:812"  # type: ignore[attr-defined]
        await scope.release()
        for task in asyncio.as_completed(waits):
            await (await task).release()
        caplog.clear()
        await asyncio.sleep(0.5)
        assert caplog.messages == []


async def test_short_waits_are_not_warned_of(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    async with Locker(server.url, warn_after=0.3, local_handoffs=0) as locker:

        async def use() -> None:
            for _ in range(10):
                async with locker.with_context("job"):
                    await asyncio.sleep(0.01)

        await asyncio.gather(*(use() for _ in range(8)))
    assert caplog.messages == []


async def test_no_warning_with_none(server: Server, other: Locker, caplog: pytest.LogCaptureFixture) -> None:
    async with Locker(server.url, warn_after=None) as locker:
        async with other.with_context("job"):
            with pytest.raises(AcquireTimeoutError):
                await locker.acquire("job", timeout=0.3)
    assert caplog.messages == []


# A loss in the log


async def test_a_loss_is_a_warning_with_fields(
    locker: Locker, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    holding = await body(await locker.acquire("job"))
    server.execute("DEL", key("job"))
    await until(lambda: holding.error)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("asynclock: lock 'job' was lost after 0.")
    assert record.getMessage().endswith(f"s: deleted (key {key('job')} on 127.0.0.1:{server.port}/0)")
    fields: dict[str, Any] = {name: value for name, value in vars(record).items() if name.startswith("asynclock_")}
    assert fields.pop("asynclock_held") > 0
    assert fields == {
        "asynclock_message": "lock_lost",
        "asynclock_lock": "job",
        "asynclock_reason": "deleted",
        "asynclock_detail": f"key {key('job')} on 127.0.0.1:{server.port}/0",
    }


# Owners


@pytest.mark.fast
async def test_the_owner_is_in_the_value_and_in_the_name_of_the_connection(server: Server) -> None:
    for owner, name in (("web-3:812", "web-3:812"), ("größe 1", "gr__e_1"), ("", None)):
        async with Locker(server.url, owner=owner) as locker, locker.with_context("job"):
            value = server.execute("GET", key("job"))
            assert isinstance(value, bytes)
            claim = claim_of(value)
            assert claim is not None
            assert claim.owner == owner
            assert abs(claim.since - time.time()) < 5
            clients = str(server.execute("CLIENT", "LIST"))
            assert f" name=asynclock-{__version__}{'' if name is None else ':' + name} " in clients
            holder = await locker.holder("job")
            assert holder is not None and holder.owner == owner


async def test_the_library_introduces_itself(server: Server, locker: Locker, kind: str) -> None:
    clients = str(server.execute("CLIENT", "LIST"))
    if "lib-name" not in clients:
        pytest.skip(f"{kind} knows no CLIENT SETINFO")
    assert f" lib-name=redis-py(asynclock_v{__version__}) " in clients


async def test_a_connection_that_the_user_has_named_keeps_its_name(server: Server) -> None:
    async with Locker(f"{server.url}?client_name=mine", owner="web"):
        clients = str(server.execute("CLIENT", "LIST"))
        assert " name=mine " in clients and ":web" not in clients


# Who holds it, in errors


@pytest.mark.fast
async def test_errors_name_the_holder(server: Server, locker: Locker) -> None:
    async with Locker(server.url, owner="web-3:812") as holder, holder.with_context("job"):
        for attempt in (
            locker.try_acquire("job"),
            locker.acquire("job", timeout=0),
            locker.acquire("job", timeout=0.1),
        ):
            with pytest.raises((NotLockedError, AcquireTimeoutError)) as caught:
                await attempt
            found = caught.value.holder
            assert found is not None
            assert (found.name, found.owner, found.host, found.pid) == ("job", "web-3:812", "web-3", 812)
            assert found.remaining is not None and 0 < found.remaining < 5.5
            assert f"(held by web-3:812, since {found.since:%Y-%m-%d %H:%M:%S} UTC)" in str(caught.value)
            copy = pickle.loads(pickle.dumps(caught.value))
            assert str(copy) == str(caught.value) and copy.holder == found


async def test_values_of_others_are_of_unknown_owners(server: Server, locker: Locker) -> None:
    server.execute("SET", key("job"), "somebody's")
    with pytest.raises(NotLockedError) as caught:
        await locker.try_acquire("job")
    assert caught.value.holder is not None
    assert caught.value.holder.owner is caught.value.holder.since is caught.value.holder.remaining is None
    assert "(held by another library)" in str(caught.value)
    assert "somebody's" not in repr(caught.value.holder)


async def test_a_value_of_an_odd_kind(server: Server, locker: Locker) -> None:
    server.execute("LPUSH", key("job"), "a list")
    with pytest.raises(NotLockedError) as caught:
        await locker.try_acquire("job")
    assert caught.value.holder is not None and caught.value.holder.owner is None


async def test_a_silent_server_delays_no_error(server: Server, locker: Locker) -> None:
    """The holder is not known then."""
    async with (
        Proxy(server.port) as proxy,
        Locker(proxy.url, try_next_after=0.1) as silent,
        locker.with_context("job"),
    ):
        waits = asyncio.create_task(silent.acquire("job", timeout=0.3))
        await asyncio.sleep(0.1)
        proxy.freeze()
        since = time.monotonic()
        with pytest.raises(AcquireTimeoutError) as caught:
            await waits
        assert time.monotonic() - since < 1.5
        assert caught.value.holder is None
        proxy.thaw()


async def test_a_crowd_that_gives_up_asks_once(server: Server, other: Locker) -> None:
    # So long it may take to read who has the lock: on a busy machine, 20 ms are not always enough.
    async with Locker(server.url, try_next_after=2) as locker, other.with_context("job"):
        await locker.holder("job")
        before = commands(server)
        results = await asyncio.gather(
            *(locker.acquire("job", timeout=0.2) for _ in range(200)), return_exceptions=True
        )
        assert all(isinstance(result, AcquireTimeoutError) and result.holder for result in results)
        assert commands(server) - before < 100
