"""How asynclock reacts when a server is out of memory and refuses commands with ``OOM``."""

from __future__ import annotations

from collections.abc import Callable

from .background import Timer

GIVE_UP_AFTER = 5.0  # seconds of shortage after which waiters get a ServerError
NEW_AFTER = 3.0  # seconds without an OOM after which the next one starts a new shortage
SET_AGAIN = 1.0  # seconds until extensions use SET again


class MemoryShortage:
    """Keeps track of a server's shortage of memory, for one connection.

    - New locks wait at first: a server that is only slow to evict keys has memory again in a moment. After
      ``GIVE_UP_AFTER`` seconds, waiters get an error that says that the server is out of memory.
    - Held locks are kept: ``SET ... IFEQ`` needs memory for the value, ``PEXPIRE`` does not. So extensions use a script
      with ``PEXPIRE`` for ``SET_AGAIN`` seconds. Not for ever: it costs more, and some users may not run scripts.

    Invariant: while ``_timer`` is running, extensions avoid SET; when it fires, they use SET again.
    """

    __slots__ = ("_last", "_since", "_timer")

    def __init__(self) -> None:
        self._since = self._last = float("-inf")  # the first and the last OOM of the latest shortage
        self._timer = Timer()

    def is_temporary(self, now: float) -> bool:
        """The server has answered OOM. Is a retry worthwhile, since it may have memory again soon?"""
        if now > self._last + NEW_AFTER:
            self._since = now
        self._last = now
        return now < self._since + GIVE_UP_AFTER

    def avoid_set(self, until: Callable[[], None]) -> None:
        """Extensions avoid SET from now on. ``until`` is called when they may use it again."""
        if not self._timer.running:
            self._timer.start(SET_AGAIN, until)

    def stop(self) -> None:
        """The connection is lost or closed."""
        self._timer.stop()
