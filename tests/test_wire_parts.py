"""The small owners of a node's state, without a server."""

from __future__ import annotations

import asyncio
from typing import Any

import hiredis
import pytest

from asynclock.core.clock import ServerClock
from asynclock.core.pace import FLUSHES, Pace
from asynclock.wire.backoff import Backoff
from asynclock.wire.commands import OK, Capabilities, bulk, px
from asynclock.wire.credentials import Credentials, Rotation
from asynclock.wire.expiry import ExpiryClock
from asynclock.wire.flushes import Flushes
from asynclock.wire.grace import Grace
from asynclock.wire.markers import GUESSES, Markers
from asynclock.wire.memory_shortage import GIVE_UP_AFTER, NEW_AFTER, MemoryShortage
from asynclock.wire.owed import BATCH, Owed, OwedReleases
from asynclock.wire.quarantine import Quarantine
from tests.support.builds import only_pure

pytestmark = [pytest.mark.fast, pytest.mark.every_python, pytest.mark.serverless]


def test_pauses_grow_to_the_longest_and_begin_anew() -> None:
    backoff = Backoff(0.01, 0.1)
    for _ in range(2):
        for whole in (0.01, 0.02, 0.04, 0.08, 0.1, 0.1):
            assert whole / 2 <= backoff.next() <= whole
        backoff.reset()


@pytest.mark.asyncio
async def test_a_server_counts_as_gone_once_for_each_loss_and_only_when_it_refuses() -> None:
    now, gone = 0.0, []
    grace = Grace(0.02, lambda: now)
    grace.refused(lambda: gone.append("never lost"))
    grace.lost()
    await asyncio.sleep(0.05)
    assert not gone  # it is silent
    grace.refused(lambda: gone.append("in time"))
    grace.refused(lambda: gone.append("twice"))
    assert not gone
    await asyncio.sleep(0.05)
    assert gone == ["in time"]
    grace.refused(lambda: gone.append("again"))
    grace.lost()
    now = 1.0  # the grace period is over
    grace.refused(lambda: gone.append("at once"))
    assert gone == ["in time", "at once"]
    grace.lost()
    grace.refused(lambda: gone.append("connected again"))
    grace.stop()
    await asyncio.sleep(0.05)
    assert gone == ["in time", "at once"]


@pytest.mark.asyncio
async def test_flushes_are_reported_at_once_until_there_are_many() -> None:
    reports: list[int] = []
    flushes = Flushes(Pace())
    for number in range(int(FLUSHES) + 10):
        flushes.flushed(1.0, lambda number=number: reports.append(number))  # type: ignore[misc]
    assert reports == list(range(int(FLUSHES) + 1))
    await asyncio.sleep(0.15)
    assert reports == list(range(int(FLUSHES) + 2))  # one stands for all the others
    flushes.flushed(1.0, lambda: reports.append(-1))
    flushes.stop()
    await asyncio.sleep(0.15)
    assert -1 not in reports


def test_a_shortage_of_memory_passes_for_a_while() -> None:
    memory = MemoryShortage()
    now = 100.0
    while now < 100.0 + GIVE_UP_AFTER:
        assert memory.is_temporary(now)
        now += NEW_AFTER / 2
    assert not memory.is_temporary(now)
    assert memory.is_temporary(now + NEW_AFTER + 1)  # another one


@pytest.mark.asyncio
async def test_a_restarted_server_gives_no_votes_until_the_old_ones_are_over() -> None:
    now, validity = 100.0, 1 / 16
    ends: list[str] = []
    quarantine = Quarantine(lambda: now, validity, enabled=True)

    def connected(run_id: str, started: float | None) -> bool:
        quarantine.connected("here", run_id, started, lambda: ends.append(run_id))
        return bool(quarantine.until)

    assert not connected("a", now - 1)
    assert not connected("a", None) and not connected("", None)  # reconnected; the server does not say
    assert quarantine.trouble("here") is None
    assert connected("b", now - 1000)  # another process, whatever it says about its uptime: its clock may have been set
    assert quarantine.until == now + validity
    assert "just started" in str(quarantine.trouble("here"))
    now += validity / 2
    assert connected("b", None)  # reconnected meanwhile
    assert quarantine.until == 100.0 + validity
    await asyncio.sleep(4 * validity)
    assert ends == ["b"] and not quarantine.until
    now += validity
    assert not connected("b", None)
    assert connected("c", None)
    quarantine.stop()
    await asyncio.sleep(2 * validity)
    assert ends == ["b"]
    first = Quarantine(lambda: now, validity, enabled=True)
    first.connected("here", "a", now - validity / 2, lambda: None)  # at the first connection, only the uptime can tell
    assert first.until == now + validity / 2
    first.stop()


@pytest.mark.asyncio
async def test_a_release_is_owed_until_the_server_has_run_it_or_the_key_has_expired() -> None:
    now, up = 100.0, False
    sent: list[tuple[Owed, float]] = []

    def send(owed: Owed, until: float) -> bool:
        if up:
            sent.append((owed, until))
        return up

    a, b, c, d, e = (Owed(letter, b"1", 0.0) for letter in (b"a", b"b", b"c", b"d", b"e"))
    owed = OwedReleases(lambda: now, 5.0, send)
    owed.owe(a)
    owed.send_all()
    assert not sent
    up = True
    owed.send_all()
    owed.send_all()  # it is in flight
    assert sent == [(a, 105.0)]
    owed.owe(*sent.pop())  # the connection was lost before the reply
    owed.send_all()
    owed.refused(*sent.pop())
    await asyncio.sleep(0.1)  # 0.02 s after the refusal
    assert sent == [(a, 105.0)]
    waiting = asyncio.ensure_future(owed.wait_empty())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    owed.accepted()
    await asyncio.wait_for(waiting, 0.5)  # less than MAX_WAIT
    sent.clear()
    owed.owe(b)
    owed.send_all()
    now += 6
    owed.refused(*sent.pop())  # the key has expired meanwhile
    for number in range(BATCH + 1):
        owed.refused(Owed(b"%d" % number, b"3", 0.0))
    await asyncio.sleep(0.1)
    assert len(sent) == BATCH  # the server may refuse them all
    owed.accepted()  # but it does not
    await asyncio.sleep(0.05)
    assert len(sent) == BATCH + 1
    owed.owe(c)
    assert owed.take() == [c] and not owed.take()
    owed.refused(d)
    owed.close()
    owed.owe(e)  # as a connection that is lost after that does
    await asyncio.sleep(0.1)
    assert len(sent) == BATCH + 1 and not owed.take()


class Wire:
    """Takes what is sent; its clock stands still."""

    def __init__(self) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting: list[Any] = []

    def clock(self) -> float:
        return 100.0

    def send(self, data: bytes, expects: Any, replies: int, now: float) -> None:
        self.waiting.append(expects)


@only_pure
@pytest.mark.asyncio
async def test_an_expiry_is_in_the_servers_time_once_that_is_known() -> None:
    wire: Any = Wire()
    expiry = ExpiryClock(wire, ServerClock(5.0), 5.0, pxat=True)
    assert expiry.argument(100.0) == expiry.argument(100.0015) == px(5000)
    (time,) = wire.waiting  # asked once
    time.reply([b"5000", b"0"], (), 100.002)
    # Asked at 100, when it was 5000 there at most; from 100.0015 on, rounded up to the next millisecond.
    assert expiry.argument(100.0015) == b"$4\r\nPXAT\r\n$7\r\n5005002\r\n"
    expiry.doubt()
    assert expiry.argument(100.0015) == px(5000)
    assert len(wire.waiting) == 2
    was_set = []
    expiry.on_set = lambda: was_set.append(True)
    wire.waiting[-1].reply([b"5000", b"1000"], (), 100.002)
    assert not was_set
    expiry.doubt()
    wire.waiting[-1].reply([b"5003", b"0"], (), 100.002)
    assert was_set
    wire.closed.set_result(None)
    expiry.ask()
    assert len(wire.waiting) == 3


@pytest.mark.asyncio
async def test_a_marker_is_used_until_its_slot_moves() -> None:
    wire: Any = Wire()
    markers = Markers("asynclock", Capabilities())
    moved = hiredis.ReplyError("MOVED 1 127.0.0.1:1")

    def write(*replies: Any) -> int:
        """How many markers were written, of which the first get these replies."""
        wire.waiting.clear()
        markers.write(wire, [bulk(b"asynclock:0:job")], 100.0)
        writes = wire.waiting[::2]  # each is deleted at once
        for expects, reply in zip(writes, replies, strict=False):
            expects.reply(reply, (), 100.0)
        return len(writes)

    assert write(moved, OK, moved) > GUESSES
    assert markers.written and not markers.elsewhere
    assert write(OK) == write(moved) == 1
    assert not markers.written and markers.elsewhere
    markers.forget()
    assert write(moved, hiredis.ReplyError("NOPERM no"), moved) > GUESSES
    assert not markers.written and not markers.elsewhere
    assert str(markers.refusal) == "NOPERM no"


def test_new_credentials_go_to_the_connection_in_use_or_to_the_next_one() -> None:
    rotation, used, connected = Rotation(), [], False
    listeners: list[Any] = []

    def use(credentials: Credentials) -> bool:
        if connected:
            used.append(credentials)
        return connected

    def subscribe(hear: Any) -> Any:
        listeners.append(hear)
        return lambda: None

    rotation.start(subscribe, use)
    (hear,) = listeners
    hear((b"old",))
    rotation.connecting()
    assert rotation.take() is None
    hear((b"new",))
    assert rotation.take() == (b"new",)
    assert rotation.take() is None
    connected = True
    hear((b"newer",))
    assert used == [(b"newer",)] and rotation.take() is None
    rotation.stop()
    hear((b"too late",))
    assert len(used) == 1
