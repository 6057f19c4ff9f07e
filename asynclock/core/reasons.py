"""The reasons for which a lock is lost."""

from __future__ import annotations

from enum import StrEnum


class LossReason(StrEnum):
    """Why a scope no longer holds its lock. A string: ``reason == "deleted"`` works."""

    DELETED = "deleted"  #: another client deleted the key, or the server evicted it
    OVERWRITTEN = "overwritten"  #: another client wrote something else to the key
    EXPIRED = "expired"  #: the validity was over before the lock could be extended
    FLUSHED = "flushed"  #: ``FLUSHALL`` or ``FLUSHDB``
    TAKEN_OVER = "taken over"  #: by ``force_acquire`` or ``force_with_context``, here or in another process
    FORGOTTEN = "forgotten"  #: the server came back without the key
    DISCONNECTED = "disconnected"  #: the server is gone: it refuses connections, or closes them at once
    CLOSED = "closed"  #: the locker was closed
    RELEASED = "released"  #: no loss: what is called needs the lock, and the scope has released it itself before
