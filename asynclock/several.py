"""Acquiring several locks for one scope: all or none."""

from __future__ import annotations

import asyncio
from asyncio import current_task
from threading import get_ident
from typing import TYPE_CHECKING, Any, cast

from ._engine.attempts import Enter, connect, fail
from ._engine.manager import LockManager
from ._engine.scope_link import ScopeLink
from ._engine.waiter import Waiter
from .core.lease import Lease
from .core.room import Room
from .core.rules import NEVER
from .core.several import Several, Step, agreed_order
from .errors import AcquireTimeoutError, AlreadyHeldError, ConfigurationError, LockerClosedError
from .options import Seconds, check_name, check_timeout
from .scope import LockScope
from .several_scope import SeveralScope

if TYPE_CHECKING:
    from .acquisition import Acquisition

FORCE_PAUSE = 0.02  # seconds: longest pause after a lock went to another task that forces; doubles each time, up to
MAX_FORCE_PAUSE = 1.0
_FINAL = (LockerClosedError, AcquireTimeoutError)  # after any other error, the next step waits for that name


async def acquire_several(
    locker: object,
    manager: LockManager,
    names: tuple[str, ...],
    enter: Enter,
    timeout: Seconds | None = None,
    context: Acquisition | None = None,
) -> LockScope:
    """As ``acquisition.acquire``, for several names: all or none."""
    if context is not None:
        if context._locker is None:
            raise RuntimeError("this context manager was used before; call with_context() again")
        context._locker = None
    began = manager.clock()
    seconds, until = None, NEVER
    if timeout is not None:
        seconds = check_timeout(timeout)
        if seconds:
            until = began + seconds
        else:
            enter = Room.try_join
    order = _in_order(names)
    life = manager.life
    loop = life.serving
    task = None if loop is None or life.thread != get_ident() else current_task(loop)
    if task is None:
        try:
            await connect(manager, order[0], seconds, began)
        except ConfigurationError:
            if context is not None:
                context._locker = locker  # not used yet: it can be entered in another event loop
            raise
        loop, task = life.loop, current_task()
    assert loop is not None and task is not None
    waiters: list[Waiter | None] = [None] * len(order)  # who has a lock, or waits for it
    several = Several()
    pause = FORCE_PAUSE

    def busy(place: int) -> bool:
        room = manager.rooms[order[place]]
        return room.contended or not room.empty

    failed: Waiter | None = None
    wanted = order[0]  # the name that the report of a failure gives
    try:
        while failed is None:
            now = manager.clock()
            held = [waiter is not None and waiter.take_lease(now) is not None for waiter in waiters]
            if all(held):
                break
            manager.check_open()
            missing = [place for place, has in enumerate(held) if not has]
            # To try and to force is no waiting, so the order does not matter.
            step = several.step(held, busy) if enter is Room.join else Step([], missing, False)
            if step.wait:
                for place in missing:
                    wanted = order[place]
                    if _held_around(manager.rooms.get(wanted), task):
                        raise AlreadyHeldError(wanted)
            for place in step.give_back:
                if (given_back := waiters[place]) is not None:
                    manager.leave(given_back)
                    waiters[place] = None
            asked: list[Waiter] = []
            wanted = order[step.request[0]]
            for place in step.request:
                room = manager.rooms[order[place]]
                waiters[place] = waiter = Waiter(room, loop.create_future(), began)
                asked.append(waiter)
                (Room.try_join if enter is Room.join and not step.wait else enter)(room, waiter, now)
            timer = None
            if seconds:
                timer = loop.call_later(max(0.0, until - now), _time_out, manager, asked, seconds)
            try:
                for waiter in asked:
                    await waiter.future
            finally:
                if timer is not None:
                    timer.cancel()
            for place, waiter in zip(step.request, asked, strict=True):
                if waiter.error is None:
                    continue
                if step.wait or enter is not Room.join or isinstance(waiter.error, _FINAL):
                    failed = failed or waiter
                else:
                    waiters[place] = None  # the next step waits for it
            if enter is Room.force and failed is None and any(map(_is_lost, waiters)):
                # Another one forces, too. Without a pause of random length, the two could go on in step, and take the
                # locks from each other for ever.
                await asyncio.sleep(manager.chance() * pause)
                pause = min(2 * pause, MAX_FORCE_PAUSE)
    except BaseException as error:
        task = None  # which keeps the error: no cycle through its traceback
        leases = _leave(manager, waiters)
        manager.reports.not_acquired(wanted, manager.clock() - began, error)
        cancelled = None
        try:
            if not isinstance(error, GeneratorExit):  # that one cannot await anything
                cancelled = await manager.pending_releases.wait_for_all(leases)
            if cancelled is not None and not isinstance(error, asyncio.CancelledError):
                raise cancelled from None
        finally:
            del cancelled  # no cycle, as above
        raise
    if failed is not None:
        task = None  # as above
        await fail(manager, failed, seconds, _leave(manager, waiters), began)
    holding = cast(list[Waiter], waiters)
    if context is None:
        scope = SeveralScope(locker, manager, names, holding, manager.options.wait_release, None)
    else:
        scope = context._scope = SeveralScope(locker, manager, names, holding, context._wait_release, task)
    for part in scope._parts:
        part.hold = manager.reports.begun(part.lease.room.name, now, now - began)
    return scope


def _in_order(names: tuple[str, ...]) -> list[str]:
    """:raises ConfigurationError: one is not a valid name, or comes twice"""
    for number, name in enumerate(names):
        check_name(name)
        if name in names[:number]:
            raise ConfigurationError(f"lock {name!r} is given twice; give each name once")
    return agreed_order(names)


def _held_around(room: Room[Waiter] | None, task: asyncio.Task[Any]) -> bool:
    """Is the caller inside a block that holds this lock? Then it would wait for itself. The names before it may not
    become free either: their holder may wait for this one. So all missing names are checked before any wait."""
    link: ScopeLink | None = None if room is None or room.holder is None else room.holder.scope_ref
    return link is not None and link.only_ended_by(task)


def _is_lost(waiter: Waiter | None) -> bool:
    return waiter is None or waiter.lease is None or waiter.lease.done


def _time_out(manager: LockManager, waiters: list[Waiter], timeout: float) -> None:
    for waiter in waiters:
        manager.time_out(waiter, timeout)


def _leave(manager: LockManager, waiters: list[Waiter | None]) -> list[Lease]:
    """Give back what there is. Returns the leases whose releases were sent."""
    leases = [manager.leave(waiter) for waiter in waiters if waiter is not None]
    return [lease for lease in leases if lease is not None]
