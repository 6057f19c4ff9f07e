"""What can go wrong, and what to do about it."""

from __future__ import annotations

from .core.rules import LossReason

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
    LossReason.EXPIRED: "its validity was over before it could be extended",
    LossReason.FLUSHED: "the server's keys were flushed",
    LossReason.TAKEN_OVER: "another holder took it over by force",
    LossReason.FORGOTTEN: "the server came back without its key",
    LossReason.DISCONNECTED: "the server is gone",
    LossReason.CLOSED: "the locker was closed",
    LossReason.RELEASED: "it was already released",
}


class AsyncLockError(Exception):
    """Above every error that asynclock raises of its own."""


class NotLockedError(AsyncLockError):
    """The lock was not to be had without waiting (``try_acquire``, ``try_with_context``)."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(name, why)
        self.name = name
        self.why = why

    def __str__(self) -> str:
        return f"lock {self.name!r} was not acquired: {self.why}; try again later, or wait with acquire()"


class AcquireTimeoutError(AsyncLockError, TimeoutError):
    """The lock was not to be had within ``timeout`` seconds."""

    def __init__(self, name: str, timeout: float, why: str) -> None:
        super().__init__(name, timeout, why)
        self.name = name
        self.timeout = timeout
        self.why = why

    def __str__(self) -> str:
        return f"lock {self.name!r} was not acquired within {self.timeout:g} s: {self.why}"


class AlreadyHeldError(AsyncLockError, RuntimeError):
    """The lock is that of a block which the same task is inside of: it would wait for itself for ever."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return (
            f"lock {self.name!r} is held by a block that this task is inside of, and would never be released: "
            "use the scope of that block, leave it first, or take a lock of another name"
        )


class LockLostError(AsyncLockError):
    """The lock is no longer this scope's: whatever it guards may be in other hands by now.

    :ivar name: the lock
    :ivar reason: a :class:`LossReason`
    :ivar detail: which key on which server, where one is to blame
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
            "undo or check what was under way, then acquire it again"
        )


class LockerClosedError(AsyncLockError):
    """The locker was closed, or is being closed; make a new ``Locker``."""


class ConfigurationError(AsyncLockError, ValueError):
    """An option, a name or the way a locker is used breaks a rule; the message says which."""


class ServerError(AsyncLockError):
    """A server is unreachable, refused, is too old, or a permission is missing; says which.

    :ivar server: the server, without credentials
    :ivar lasting: True when asking again would get the same answer (a wrong password, a
        missing permission), False when the server may do better later (unreachable, loading)
    """

    def __init__(self, server: str, problem: str, *, lasting: bool = False) -> None:
        super().__init__(server, problem)
        self.server = server
        self.problem = problem
        self.lasting = lasting

    def copy(self) -> ServerError:
        """The same error, to be raised somewhere else."""
        return ServerError(self.server, self.problem, lasting=self.lasting)

    def __str__(self) -> str:
        return f"{self.server}: {self.problem}"


class GoneError(ServerError):
    """Proof that nobody is there who keeps keys: the server refused the connection, or broke it off while it was being
    set up, or its Sentinels see it down. Whatever else goes wrong leaves that open: it may be back with its keys at any
    time, and a lock that is held there counts on until its time is over."""
