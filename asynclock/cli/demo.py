"""The demo: four processes share one lock while its holder is killed, its key deleted, and its server stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time

import anyio

from asynclock.testing import Server

from .demo_crew import Crew
from .demo_figures import SERVER, WORKERS, Event, Log, What, judge, measure, ms, surprises, verdict
from .demo_view import View
from .demo_worker import HOLD, KEY, KEY_VALIDITY

LIMIT = 18.5  # seconds after which the story is aborted
LAST_LIMIT = 20.0  # seconds after which the process exits, whatever it is doing
FRAME = 0.08  # seconds between two frames of the picture
LOOK = 0.01  # seconds between two checks for new events
LONG = 30.0  # seconds: a hold that only a fault can end
STEP_LIMIT = 6.0  # seconds to wait for one event


class Broken(Exception):
    """The story cannot go on; says why."""


def play(view: View) -> int:
    """Run the demo, and leave nothing running. Returns the exit status: 0 passed, 1 failed, 130 Ctrl-C."""
    guard = threading.Timer(LAST_LIMIT, _give_up, [view])
    guard.daemon = True
    guard.start()
    try:
        return asyncio.run(_play(view))
    except BaseExceptionGroup as group:
        raise _only(group) from None  # a closed pipe, for example: its own exit status is better than a traceback
    except KeyboardInterrupt:
        print("Stopped. Workers and server are gone.", file=sys.stderr)
        return 130
    finally:
        guard.cancel()


def _only(error: BaseException) -> BaseException:
    """What is in the groups that task groups make of an exception, if it is one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _give_up(view: View) -> None:
    # The workers end when their input does, and the server when its guard sees this process gone.
    view.break_off(f"asynclock demo: not finished after {LAST_LIMIT:g} s, so it was aborted.")
    os._exit(1)


async def _play(view: View) -> int:
    status = 128 + signal.SIGTERM
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_stop_at_sigterm, tasks.cancel_scope)
        status = await _show(view)
        tasks.cancel_scope.cancel()
    return status


async def _stop_at_sigterm(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


async def _show(view: View) -> int:
    log = Log(time.monotonic())
    with view, contextlib.closing(Server()) as server:
        async with Crew(log) as crew:
            telling = asyncio.create_task(Story(log, crew, server).tell())
            try:
                while not telling.done():
                    now = time.monotonic()
                    view.draw(log, now)
                    if now > log.start + LIMIT:
                        log.problems.append(f"It was not finished after {LIMIT:g} s, so it was aborted.")
                        break
                    await asyncio.wait({telling}, timeout=FRAME)
            finally:
                telling.cancel()
                with anyio.CancelScope(shield=True):
                    await asyncio.wait({telling})
        error = None if telling.cancelled() else telling.exception()
        if isinstance(error, Broken):
            log.problems.append(str(error))
        elif isinstance(error, OSError | RuntimeError):
            log.problems.append(f"{type(error).__name__}: {error}")
        elif error is not None:
            raise error
        events = log.in_order()
        log.problems += surprises(events)
        rows = judge(measure(events))
        status, sentences = verdict(rows, log.problems)
        view.conclude(log, rows, sentences, time.monotonic())
        return status


class Story:
    """Injects faults into the workers and the server, and waits for the effects."""

    def __init__(self, log: Log, crew: Crew, server: Server) -> None:
        self._log = log
        self._crew = crew
        self._server = server

    async def tell(self) -> None:
        self._server.start()
        self._log.add(time.monotonic(), What.STARTED, SERVER)
        await self._take_turns()
        await self._kill_holder()
        await self._delete_key()
        await self._crash_server()
        await self._crew.stop()

    async def _take_turns(self) -> None:
        self._say(
            f"{len(WORKERS)} processes share one lock. Whoever holds it works for {HOLD:g} s and gives it back; "
            "the others wait. The server tells a waiter at once when it is free."
        )
        for name in WORKERS:
            await self._crew.start(name, self._server.url)
        for name in WORKERS:
            await self._until(What.WAITING, f"{name} to be ready", who=name)
        await asyncio.sleep(2.2)

    async def _kill_holder(self) -> None:
        holder = await self._hold_on()
        self._say(
            f"{holder} keeps the lock for longer. Its key lives for {KEY_VALIDITY:g} s only, "
            "so it is extended twice a second, in the background."
        )
        await asyncio.sleep(1.3)
        self._say(
            f"{holder} is killed (SIGKILL). It cannot give the lock back, so the others must wait until its key "
            "expires, and not much longer."
        )
        at = self._crew.kill(holder)
        asked = time.monotonic()
        left = self._server.execute("PTTL", KEY)
        if not isinstance(left, int) or left < 0:
            raise Broken(f"{holder} held the lock when it was killed, but its key was not there (PTTL {left!r}).")
        self._log.add(at, What.KILLED, holder, seconds=asked + left / 1000 - at)
        heir = await self._next_holder(at)
        self._say(
            f"The key of {holder} lives for {KEY_VALIDITY:g} s; {heir.who} had the lock {ms(heir.at - at)} after the "
            f"kill, {ms(heir.at - asked - left / 1000)} after the key expired."
        )
        await asyncio.sleep(1.4)

    async def _delete_key(self) -> None:
        holder = await self._hold_on()
        self._say(f"{holder} holds the lock. Somebody is about to delete its key.")
        await asyncio.sleep(1.0)
        self._say(
            f"DEL {KEY}, from outside: {holder} no longer has the lock. "
            "The server tells it so, and its work is cancelled at once."
        )
        at = time.monotonic()
        if self._server.execute("DEL", KEY) != 1:
            raise Broken(f"{holder} held the lock, but there was no key to delete.")
        self._log.add(at, What.DELETED, holder)
        await self._cancelled(at, holder)
        await self._next_holder(at)
        await asyncio.sleep(1.2)

    async def _crash_server(self) -> None:
        holder = await self._hold_on()
        self._say(f"{holder} holds the lock. The server is about to crash.")
        await asyncio.sleep(0.9)
        self._say(
            f"The server is killed (SIGKILL). Nobody can vouch for the lock of {holder} now, "
            "so its work is cancelled at once. The others wait."
        )
        at = time.monotonic()
        self._server.kill()
        self._log.add(at, What.KILLED, SERVER)
        await self._cancelled(at, holder)
        await asyncio.sleep(1.2)
        self._server.start()
        at = time.monotonic()
        self._log.add(at, What.STARTED, SERVER)
        self._say("The server is back, with an empty memory. The workers find it by themselves and go on.")
        await self._next_holder(at)
        await asyncio.sleep(1.4)

    async def _hold_on(self) -> str:
        """Make the next holder keep the lock until a fault ends its hold. Returns its name."""
        at = time.monotonic()
        await self._crew.order(f"hold {LONG}")
        acquired = await self._until(What.ACQUIRED, "somebody to hold the lock", after=at, seconds=LONG)
        await self._crew.order(f"hold {HOLD}")
        return acquired.who

    async def _cancelled(self, at: float, holder: str) -> None:
        await self._until(What.CANCELLED, f"the work of {holder} to be cancelled", after=at, who=holder)

    async def _next_holder(self, at: float) -> Event:
        return await self._until(What.ACQUIRED, "the next holder", after=at)

    async def _until(self, what: What, wanted: str, *, after: float = 0, who: str = "", seconds: float = 0) -> Event:
        """Wait for the next event of that kind; of ``who`` and with ``seconds``, if they are given."""
        limit = time.monotonic() + STEP_LIMIT
        while time.monotonic() < limit:
            if self._log.problems:
                raise Broken("The demo was aborted there.")
            for event in self._log.events:
                if event.what is what and event.at > after and who in ("", event.who) and seconds in (0, event.seconds):
                    return event
            await asyncio.sleep(LOOK)
        raise Broken(f"Waited {STEP_LIMIT:g} s in vain for {wanted}.")

    def _say(self, text: str) -> None:
        self._log.add(time.monotonic(), What.TOLD, text=text[0].upper() + text[1:])
