"""What a room needs of the world around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from .lease import Lease
from .native import mypyc_attr
from .operations import Operation
from .reasons import LossReason
from .tally import Tally
from .tokens import Tokens

if TYPE_CHECKING:
    from .room import Room

W = TypeVar("W")


@mypyc_attr(allow_interpreted_subclasses=True)
class Requests:
    """Takes what leases request to the servers."""

    # Not a Protocol, nor part of one: compiled code would look the method up by its name, for every request.
    __slots__ = ()

    def request(self, lease: Lease, index: int, operation: Operation, now: float) -> bool:
        """Send it. However it ends, ``answered``, ``released`` or ``failed`` of the room is called once.

        False: the server is not connected, and none of them will be called. A RELEASE or KEEP that the server refuses,
        or that is lost with the connection, is owed, and sent before anything else once the server is back. (Instead of
        a KEEP, a RELEASE, if its time is over by then.)

        It never calls back into the room.
        """
        raise NotImplementedError


class Port(Protocol[W]):
    """None of these methods calls back into the room."""

    @property
    def tally(self) -> Tally:
        """What is counted."""

    @property
    def tokens(self) -> Tokens:
        """Makes the values of keys. Set for good, as ``requests``: rooms keep both."""

    @property
    def requests(self) -> Requests:
        """Where leases send their requests."""

    def lasting_error(self, room: Room[W], index: int) -> Exception | None:
        """Why retrying on that server cannot help (``ServerError.lasting``), if that is known."""

    def silent(self, room: Room[W], index: int, now: float) -> bool:
        """Have that server's answers been missing for ``try_next_after``?"""

    def wake(self, room: Room[W], when: float, /) -> None:
        """Look at ``room.wake`` again by then, and call ``woken`` once that time has come. ``room.due`` says when
        that will be; until then, this is not called for a later time."""

    def first_check_soon(self, lease: Lease, /) -> None:
        """Call ``first_check`` of the lease's room in about a millisecond, unless it is ``done`` by then. Nothing else
        comes back to the lease before that."""

    def pause(self, room: Room[W], index: int, now: float) -> float:
        """Seconds between two checks of that key (``Pace``)."""

    def needless(self, room: Room[W], index: int, now: float) -> None:
        """That key was checked after an invalidation, and had not changed."""

    def in_order(self, room: Room[W], index: int) -> bool:
        """Do that server's invalidations and answers come over one connection, in the order of what happened?"""

    def chance(self) -> float:
        """A random number in [0, 1)."""

    def doubt_clock(self, room: Room[W], index: int) -> None:
        """A key is missing before its time, or ends at an unexpected time: perhaps the server's clock was set. Find
        out; if so, call ``room.clock_was_set`` for all of its keys."""

    def granted(self, waiter: W, lease: Lease) -> None:
        """The waiter has the lock."""

    def refused(self, waiter: W) -> None:
        """Somebody else has the lock, and the waiter does not wait."""

    def failed(self, waiter: W, error: Exception | None) -> None:
        """Servers failed. ``None``: too few are connected."""

    def lost(self, lease: Lease, reason: LossReason, index: int | None) -> None:
        """The holder has lost the lock, because of key ``index`` if one is to blame."""

    def release_answered(self, lease: Lease) -> None:
        """Every RELEASE or KEEP of the lease was answered, or never will be."""
