"""What an HTTP service answers when a request does not get its lock, or loses it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..errors import (
    AcquireTimeoutError,
    AsyncLockError,
    ConfigurationError,
    LockerClosedError,
    LockLostError,
    NotLockedError,
    ServerError,
)
from ..options import Seconds, check_seconds

ANSWERED = (AcquireTimeoutError, LockLostError, LockerClosedError, NotLockedError, ServerError)


class Outcome(Enum):
    BUSY = "somebody else has the lock; try again later"
    LOST = "the lock was lost while the request was under way; try again later"
    UNAVAILABLE = "the lock is not available now; try again later"


def outcome(error: BaseException) -> Outcome | None:
    """``None``: an error of the program, which is none of the client's business."""
    match error:
        case LockLostError():
            return Outcome.LOST
        case ServerError() | LockerClosedError():
            return Outcome.UNAVAILABLE
        case AcquireTimeoutError() if isinstance(error.__cause__, ServerError):
            return Outcome.UNAVAILABLE  # nobody is known to have it: the servers went away meanwhile
        case AcquireTimeoutError() | NotLockedError():
            return Outcome.BUSY
    return None


def default_body(error: AsyncLockError, status: int) -> Any:
    """Names no lock and no server: those are for the log, and not for clients."""
    return {"detail": _known(error).value}


def _known(error: BaseException) -> Outcome:
    found = outcome(error)
    assert found is not None  # nothing else is answered
    return found


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The statuses, headers and bodies of one integration."""

    busy_status: int
    lost_status: int
    unavailable_status: int
    retry_after: Seconds | None
    close_code: int  # of a WebSocket
    body: Callable[[AsyncLockError, int], Any]

    def __post_init__(self) -> None:
        for name in ("busy_status", "lost_status", "unavailable_status"):
            status = getattr(self, name)
            if not isinstance(status, int) or not 400 <= status <= 599:
                raise ConfigurationError(f"{name}={status!r}: must be an HTTP status from 400 to 599")
        if not isinstance(self.close_code, int) or not (
            self.close_code in CLOSE_CODES or 3000 <= self.close_code <= 4999
        ):
            raise ConfigurationError(f"close_code={self.close_code!r}: must be a code that a server may close with")
        if self.retry_after is not None and check_seconds("retry_after", self.retry_after) < 0:
            raise ConfigurationError(f"retry_after={self.retry_after!r}: must be 0 or more seconds, or None")

    def status(self, error: BaseException) -> int:
        return self._status(_known(error))

    def _status(self, found: Outcome) -> int:
        return {
            Outcome.BUSY: self.busy_status,
            Outcome.LOST: self.lost_status,
            Outcome.UNAVAILABLE: self.unavailable_status,
        }[found]

    def headers(self) -> dict[str, str]:
        if self.retry_after is None:
            return {}
        return {"Retry-After": str(math.ceil(check_seconds("retry_after", self.retry_after)))}

    def reason(self, error: BaseException) -> str:
        """The reason with which a WebSocket is closed: at most 123 bytes."""
        return _known(error).value

    def responses(self) -> dict[int | str, dict[str, Any]]:
        """As OpenAPI describes them, and as ``responses=`` of FastAPI takes them."""
        found: dict[int | str, dict[str, Any]] = {}
        for each in Outcome:
            status = self._status(each)
            if status in found:
                found[status]["description"] += f"; or {each.value}"
                continue
            described: dict[str, Any] = {"description": each.value}
            if self.retry_after is not None:
                header = {"description": "seconds until the next try", "schema": {"type": "integer"}}
                described["headers"] = {"Retry-After": header}
            schema: dict[str, Any] = {}
            if self.body is default_body:
                detail = {"type": "string", "title": "Detail"}
                schema = {"type": "object", "properties": {"detail": detail}, "required": ["detail"]}
            described["content"] = {"application/json": {"schema": schema}}
            found[status] = described
        return found


# With which a server may close a WebSocket: RFC 6455, section 7.4, and the registry of IANA.
CLOSE_CODES = {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 1013, 1014}


_MARK = "_asynclock_answers"


def claim(error: AsyncLockError, answers: Answers) -> None:
    """Mark ``error`` as one that an integration answers with ``answers``. Errors of the application's own lockers are
    not marked."""
    if outcome(error) is not None:
        setattr(error, _MARK, answers)


def claimed(error: BaseException) -> Answers | None:
    found = getattr(error, _MARK, None)
    return found if isinstance(found, Answers) else None
