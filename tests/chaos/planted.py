"""Faults to plant in the library itself. A run must find each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from asynclock.core.operations import RELEASE
from asynclock.wire.commands import is_error
from asynclock.wire.quarantine import Quarantine
from asynclock.wire.requests import Request

if TYPE_CHECKING:
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


PLANTED: dict[str, Callable[[Spec], None]] = {
    "a refused release is forgotten": _forget_refused_releases,
    "NOLOOP though keys are evicted": _keep_noloop,
    "the uptime is believed": _believe_the_uptime,
}
