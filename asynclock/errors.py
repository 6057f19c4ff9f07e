"""The errors that callers see. Each message names the lock or the server, and says what to do next."""

from __future__ import annotations

from .core.holders import Holder
from .core.reasons import LossReason

__all__ = [
    "AcquireTimeoutError",
    "AlreadyHeldError",
    "AsyncLockError",
    "ConfigurationError",
    "LockLostError",
    "LockerClosedError",
    "LossReason",
    "NotLockedError",
    "ServerError",
]


_EXPLAINED = {
    LossReason.DELETED: "another client deleted its key, or the server evicted it",
    LossReason.OVERWRITTEN: "another client overwrote its key",
    LossReason.EXPIRED: "its validity ended before it could be extended",
    LossReason.FLUSHED: "the server's keys were flushed",
    LossReason.TAKEN_OVER: "another holder took it over by force",
    LossReason.FORGOTTEN: "the server came back without its key",
    LossReason.DISCONNECTED: "the server is gone",
    LossReason.CLOSED: "the locker was closed",
    LossReason.RELEASED: "it was already released",
}


class AsyncLockError(Exception):
    """Base class of all errors that asynclock raises."""


class NotLockedError(AsyncLockError):
    """The lock is not free, and the caller did not want to wait (``try_acquire``, ``try_with_context``).

    :ivar name: the name of the lock
    :ivar why: what prevented it, as in the message
    :ivar holder: who had the lock then, a :class:`Holder`; None: that is not known, or nobody had it any more
    """

    holder: Holder | None = None

    def __init__(self, name: str, why: str) -> None:
        super().__init__(name, why)
        self.name = name
        self.why = why

    def __str__(self) -> str:
        return (
            f"lock {self.name!r} was not acquired: {self.why}{_held_by(self.holder)}; "
            "try again later, or wait with acquire()"
        )


class AcquireTimeoutError(AsyncLockError, TimeoutError):
    """The lock could not be acquired within ``timeout`` seconds. Its ``__cause__`` is a :class:`ServerError` if a
    server was unavailable.

    :ivar name: the name of the lock
    :ivar timeout: the ``timeout``, in seconds
    :ivar why: what prevented it, as in the message
    :ivar holder: who had the lock then, a :class:`Holder`; None: that is not known, or nobody had it any more
    """

    holder: Holder | None = None

    def __init__(self, name: str, timeout: float, why: str) -> None:
        super().__init__(name, timeout, why)
        self.name = name
        self.timeout = timeout
        self.why = why

    def __str__(self) -> str:
        return (
            f"lock {self.name!r} was not acquired within {self.timeout:g} s: {self.why}{_held_by(self.holder)}; "
            "try again later, or with a longer timeout"
        )


def _held_by(holder: Holder | None) -> str:
    return "" if holder is None else f" (held by {holder})"


class AlreadyHeldError(AsyncLockError, RuntimeError):
    """The task is inside the ``async with`` block that holds this lock, so it would wait for itself for ever.

    :ivar name: the name of the lock
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return (
            f"lock {self.name!r} is held by a block around this call, so waiting for it would never end: "
            "use the scope of that block, leave the block first, or acquire another name"
        )


class LockLostError(AsyncLockError):
    """The scope no longer holds the lock: another process may already be working on what the lock protects.

    :ivar name: the name of the lock
    :ivar reason: why, a :class:`LossReason`
    :ivar detail: the key and server that caused the loss, what is wrong with the server, or that the loss was noticed
        late; empty if none of these applies
    """

    def __init__(self, name: str, reason: LossReason, detail: str = "") -> None:
        super().__init__(name, reason, detail)
        self.name = name
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        if self.reason is LossReason.RELEASED:
            return f"lock {self.name!r} is not held: its scope has released it; acquire it again"
        detail = f" ({self.detail})" if self.detail else ""
        return (
            f"lock {self.name!r} was lost: {_EXPLAINED[self.reason]}{detail}; "
            "undo or check what you were doing under the lock, then acquire it again"
        )


class LockerClosedError(AsyncLockError):
    """The locker is closed, or closing. Make a new ``Locker``."""


class ConfigurationError(AsyncLockError, ValueError):
    """An option, a name, or the way a locker is used is wrong. The message says which one, and what to change."""


class ServerError(AsyncLockError):
    """A server is unreachable, refused a command, or is too old, or a permission is missing. The message says which.

    :ivar server: the address of the server, without credentials
    :ivar problem: what is wrong, as in the message
    :ivar lasting: True if retrying cannot help (a wrong password, a missing permission); False if it may (the server is
        unreachable, or still loading)
    """

    def __init__(self, server: str, problem: str, *, lasting: bool = False) -> None:
        super().__init__(server, problem)
        self.server = server
        self.problem = problem
        self.lasting = lasting

    def copy(self) -> ServerError:
        """An equal error, for a second caller: an exception that is raised twice mixes up its tracebacks."""
        return ServerError(self.server, self.problem, lasting=self.lasting)

    def __str__(self) -> str:
        return f"{self.server}: {self.problem}"


class GoneError(ServerError):
    """The server is certainly not running: it refused the connection, closed it during setup, or its Sentinels report
    it down. After any other failure it may still have its keys, so locks held there count until their deadline."""


def only_tells_of_loss(error: BaseException, name: str) -> bool:
    """Does this error tell of the loss of the lock, and of nothing else? ``scope.check()`` may have raised it, in the
    body or in tasks."""
    if isinstance(error, BaseExceptionGroup):
        return all(only_tells_of_loss(each, name) for each in error.exceptions)
    if not isinstance(error, LockLostError) or error.name != name:
        return False
    return error.__cause__ is None or only_tells_of_loss(error.__cause__, name)
