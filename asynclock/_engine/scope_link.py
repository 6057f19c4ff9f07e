"""ScopeLink: what the engine may ask of the scope that a lease belongs to, and tell it."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from ..core.reasons import LossReason


class ScopeLink(Protocol):
    """A weak reference to a scope: ``Lease.scope_ref``. Once that has been forgotten, nothing here does anything."""

    def lost(self, reason: LossReason, detail: str) -> None:
        """The lock is no longer the scope's."""

    def extension_late(self, remaining: float) -> None:
        """Extensions fail, and in ``remaining`` seconds the lock will be lost."""

    def exited(self, caller: asyncio.Task[Any] | None) -> asyncio.Future[None] | None:
        """Done when the block of the scope has been left. ``None``: there is none to wait for, or only that of
        ``caller``, which is the task that would wait."""

    def excuse(self, task: asyncio.Task[Any]) -> None:
        """If the block is that task's, do not wait for it: the task waits itself for the locker to close."""

    def only_ended_by(self, task: asyncio.Task[Any]) -> bool:
        """Is ``task``, which runs, inside the block, and can nobody else leave it or release the lock?"""
