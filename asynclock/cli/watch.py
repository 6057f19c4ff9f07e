"""``asynclock watch``: who holds which lock, live."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

from asynclock import Locker, ServerError
from asynclock.events import Disconnected, Event, Reconnected
from asynclock.options import check_name

from .changes import Change, Watched
from .ending import Ending
from .facts import utc_now
from .lockers import away
from .servers import Servers
from .watch_view import View, choose_view

SEARCH = 5.0  # seconds between two searches for new locks
SEARCH_SHARE = 10  # ... but at least ten times as long as a search takes: SCAN goes through all keys
KEEP = 60.0  # seconds for which a lock that was found is still watched when nobody holds it any more
FRAME = 0.25  # seconds between two frames of the table
READ_AGAIN = 1.0  # seconds between two readings of the time left: that a lock was extended is no change


def watch(names: Sequence[str], servers: Servers, *, as_json: bool) -> int:
    """Watch them, until something ends it. Returns the exit status."""
    ending = Ending("watch", for_readers=True)

    async def work() -> int:
        for name in names:
            check_name(name)
        async with servers.locker() as locker:
            found = list(names) or await locker.names()
            async with asyncio.TaskGroup() as tasks:
                with choose_view(ending, as_json) as view:
                    await Watching(locker, tasks, view, ending).run(found, given=bool(names))
        raise AssertionError  # only an exception ends it

    return ending.run(work)


class Watching:
    """Watches locks, and shows what happens to them.

    Tasks watch, and put what they find into a queue. One task alone, that of ``run``, writes: it may have to wait for a
    reader. Invariant: each lock in ``_locks`` has a task that watches it, which ends when the lock is taken out.
    """

    def __init__(self, locker: Locker, tasks: asyncio.TaskGroup, view: View, ending: Ending) -> None:
        self._locks: dict[str, Watched] = {}
        self._locker = locker
        self._tasks = tasks
        self._view = view
        self._ending = ending
        self._events: asyncio.Queue[Change | Disconnected | Reconnected] = asyncio.Queue()
        self._lost_at: dict[str, float] = {}  # when the connection to a server was lost, in Unix seconds

    async def run(self, names: Sequence[str], *, given: bool) -> None:
        """:param given: these and no others"""
        unsubscribe = self._locker.subscribe(self._happened)
        try:
            for name in dict.fromkeys(names):
                self._add(name, given)
            if not given:
                self._tasks.create_task(self._search())
            if self._view.live:
                self._tasks.create_task(self._read_again())
            while True:
                await self._show()
        finally:
            unsubscribe()

    # Showing

    async def _show(self) -> None:
        """What happens; on a terminal for the length of a frame."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FRAME if self._view.live else None):
                while True:
                    self._tell(await self._events.get())
        # Not by the events alone: a server may have another address when it is back, or not be needed any more.
        servers = {server: self._lost_at.get(server) for server in away(self._locker)}
        self._view.draw(list(self._locks.values()), servers)

    def _tell(self, event: Change | Disconnected | Reconnected) -> None:
        match event:
            case Change():
                self._view.change(event)
                return
            case Disconnected():
                self._lost_at[event.server] = event.at
                self._ending.say(f"{event.server}: disconnected, reconnecting: {event.why}")
            case Reconnected():
                self._lost_at.pop(event.server, None)
                self._ending.say(f"{event.server}: connected again after {event.after:.1f} s")
        self._view.server(event)

    def _happened(self, event: Event) -> None:
        if isinstance(event, Disconnected | Reconnected):
            self._events.put_nowait(event)

    # Watching

    def _add(self, name: str, given: bool) -> None:
        lock = self._locks[name] = Watched(name, given, time.monotonic())
        lock.task = self._tasks.create_task(self._watch(lock))

    async def _watch(self, lock: Watched) -> None:
        async with contextlib.aclosing(self._locker.watch(lock.name)) as holders:
            async for holder in holders:
                initial, lock.known, lock.holder = not lock.known, True, holder
                lock.read_at = lock.changed_at = time.monotonic()
                if holder is not None or not initial or lock.given:  # else it was given back after it was found
                    self._events.put_nowait(Change(utc_now(), lock.name, holder, initial))

    async def _search(self) -> None:
        """Find new locks, and forget those that have been free for long."""
        took = 0.0
        while True:
            await asyncio.sleep(max(SEARCH, SEARCH_SHARE * took))
            now = time.monotonic()
            for lock in list(self._locks.values()):
                if lock.known and lock.holder is None and now - lock.changed_at > KEEP:
                    assert lock.task is not None
                    lock.task.cancel()
                    del self._locks[lock.name]
            with contextlib.suppress(ServerError):  # a server is away, which was reported
                for name in await self._locker.names():
                    if name not in self._locks:
                        self._add(name, given=False)
            took = time.monotonic() - now

    async def _read_again(self) -> None:
        """For the table: how much time the locks have left that can be seen."""
        while True:
            await asyncio.sleep(READ_AGAIN)
            held = [lock for lock in self._view.visible(list(self._locks.values())) if lock.holder is not None]
            await asyncio.gather(*map(self._read, held))

    async def _read(self, lock: Watched) -> None:
        now = time.monotonic()
        with contextlib.suppress(ServerError):
            holder = await self._locker.holder(lock.name)
            if holder is not None and lock.holder is not None and holder.value == lock.holder.value:
                lock.holder, lock.read_at = holder, now
