"""What a room needs of the world around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from .lease import Lease
from .operations import Operation
from .rules import LossReason

if TYPE_CHECKING:
    from .room import Room

W = TypeVar("W")


class Port(Protocol[W]):
    """None of these calls back into the room."""

    def token(self, forced: bool, /) -> bytes:
        """A value that no lease has had."""

    def request(self, room: Room[W], lease: Lease, index: int, operation: Operation, now: float, /) -> bool:
        """Send it; the answer comes as ``answered``, ``released`` or ``failed``, on every way it can end.
        False: the server is not connected, and no answer will come. A RELEASE that is refused or
        lost so is kept, and sent before anything else once the server is back."""

    def barred(self, room: Room[W], index: int) -> Exception | None:
        """Why that server will not have this client, however often it is asked, if that is so."""

    def silent(self, room: Room[W], index: int, now: float) -> bool:
        """Have that server's answers been missing for ``try_next_after``?"""

    def wake(self, room: Room[W], when: float, /) -> None:
        """Look at ``room.wake`` again then or earlier, and call ``woken`` once it has come; ``room.due``
        says when that will be, and until then is not called for what comes later."""

    def first_check_soon(self, room: Room[W], lease: Lease, /) -> None:
        """Call ``look`` with it in about a millisecond, unless it is ``done`` by then: nothing else
        will come back to it before."""

    def pause(self, room: Room[W], index: int, now: float) -> float:
        """Seconds from one look at that key to the next, after pushes that mean nothing (``Pace``)."""

    def needless(self, room: Room[W], index: int, now: float) -> None:
        """That key was said to have changed, and had not."""

    def in_order(self, room: Room[W], index: int) -> bool:
        """Do that server's pushes and answers come over one connection, in the order of what happened?"""

    def chance(self) -> float:
        """A random number in [0, 1)."""

    def doubt_clock(self, room: Room[W], index: int) -> None:
        """A key is gone before its time: perhaps its absolute expiry was over to the server."""

    def granted(self, waiter: W, lease: Lease) -> None: ...
    def refused(self, waiter: W) -> None: ...
    def failed(self, waiter: W, error: Exception | None) -> None:
        """``None``: too few servers are connected."""

    def lost(self, lease: Lease, reason: LossReason, index: int | None) -> None: ...
    def release_answered(self, lease: Lease) -> None:
        """Every RELEASE of the lease was answered, or never will be."""
