"""Faults to plant in the library itself. A run must find each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from asynclock import LockScope
from asynclock._engine.permits import Permits
from asynclock.core.lease import Lease
from asynclock.core.operations import RELEASE
from asynclock.core.permits import Board
from asynclock.wire.commands import is_error
from asynclock.wire.quarantine import Quarantine
from asynclock.wire.requests import Request

if TYPE_CHECKING:
    from asynclock._engine.manager import LockManager

    from .worker import Spec

PASSING = ("NOREPLICAS", "BUSY", "MISCONF")  # these mean nothing for the connection or a cluster


def _forget_refused_releases(spec: Spec) -> None:
    reply = Request.reply

    def forgetful(self: Request, answer: Any, earlier: Sequence[Any], now: float) -> None:
        if self.operation is RELEASE and is_error(answer) and str(answer).startswith(PASSING):
            self.lease.room.released(self.lease, self.index, True, now)
        else:
            reply(self, answer, earlier, now)

    Request.reply = forgetful  # type: ignore[method-assign]  # that is the fault


def _keep_noloop(spec: Spec) -> None:
    """An explicit ``no_loop_tracking=True`` is obeyed, whatever the server may evict."""
    spec.options["no_loop_tracking"] = True


def _believe_the_uptime(spec: Spec) -> None:
    """A changed run_id is ignored, as long as the server claims a long uptime."""
    connected = Quarantine.connected

    def trusting(self: Quarantine, label: str, run_id: str, started: float | None, on_end: Callable[[], None]) -> None:
        connected(self, label, "", started, on_end)

    Quarantine.connected = trusting  # type: ignore[method-assign]  # that is the fault


def _forget_least_times(spec: Spec) -> None:
    Lease.keep = lambda lease, until: None  # type: ignore[method-assign]  # that is the fault


def _remember_tokens(spec: Spec) -> None:
    """A later scope of this process gets the fencing token of an earlier one."""
    ask, known = LockScope.fencing_token, dict[str, int]()

    async def remember(self: LockScope, name: str | None = None) -> int:
        key = name or self.name
        if key not in known:
            known[key] = await ask(self, name)
        return known[key]

    LockScope.fencing_token = remember  # type: ignore[method-assign]  # that is the fault


def _use_one_slot_more(spec: Spec) -> None:
    start = Permits.start

    def generous(self: Permits, manager: LockManager) -> None:
        start(self, manager)
        self.board = Board(self.permits + 1, manager.rules, self)

    Permits.start = generous  # type: ignore[method-assign]  # that is the fault


PLANTED: dict[str, Callable[[Spec], None]] = {
    "a refused release is forgotten": _forget_refused_releases,
    "NOLOOP though keys are evicted": _keep_noloop,
    "the uptime is believed": _believe_the_uptime,
    "least times are forgotten": _forget_least_times,
    "fencing tokens are remembered": _remember_tokens,
    "a semaphore has one slot more": _use_one_slot_more,
}
