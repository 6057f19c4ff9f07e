"""Whether ``NOLOOP`` may be used: it hides more than one's own writes.

A server that evicts a key, or drops an entry of its tracking table that is full, does so while it runs somebody's
command, and counts it as done by that client. With NOLOOP that client is not told, and is tracked no more: whoever
takes the key next does so in silence as well. So NOLOOP is for servers that evict nothing, as long as their tracking
table has room; elsewhere one's own writes are pushed too, which costs a push for each extension.

Both can change while a connection lasts, so the server is asked now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .background import Ticker
from .commands import packed
from .connection import Connection

LOOK_EVERY = 0.9  # seconds between two questions: a loss is told within 1.5 s where it was hidden
ROOM = 0.9  # share of the tracking table from which on it counts as full: it may fill up before the next look
MAX_KEYS = 1_000_000  # of the tracking table, by default; of servers that do not tell

QUESTIONS = (
    packed(b"INFO", b"memory"),
    packed(b"INFO", b"stats"),
    packed(b"CONFIG", b"GET", b"tracking-table-max-keys"),
)


class Report(NamedTuple):
    """What a server says of what it does to keys by itself."""

    evicts: bool = True  #: may it evict keys?
    evicted: int = 0  #: how many it has evicted
    full: bool = False  #: is there no room in the tracking table?
    tells: bool = True  #: does it tell how large that is?

    @property
    def safe(self) -> bool:
        """Does NOLOOP hide nothing but one's own writes?"""
        return not self.evicts and not self.full


def understood(replies: Sequence[Any]) -> Report:
    """What the answers to ``QUESTIONS`` mean, or to all but the last. Who does not answer may evict keys."""
    memory, stats, *rest = replies
    config: Any = rest[0] if rest else None
    if isinstance(config, dict):
        config = [part for pair in config.items() for part in pair]
    tells = isinstance(config, list) and len(config) == 2
    most = _number(config[1], MAX_KEYS) if tells else MAX_KEYS
    tracked = _number(_told(stats, b"tracking_total_keys"), 0)
    return Report(
        evicts=_told(memory, b"maxmemory_policy") != b"noeviction",
        evicted=_number(_told(stats, b"evicted_keys"), 0),
        full=0 < most * ROOM <= tracked,
        tells=tells,
    )


def _told(info: Any, name: bytes) -> bytes | None:
    """One of the many lines of INFO."""
    if not isinstance(info, bytes) or (start := info.find(b"\n%b:" % name)) < 0:
        return None
    return info[start + len(name) + 2 :].split(b"\r\n", 1)[0]


def _number(said: Any, otherwise: int) -> int:
    return int(said) if isinstance(said, bytes) and said.isdigit() and len(said) < 20 else otherwise


class Vigil:
    """Asks a connected server with NOLOOP, as long as locks are held or waited for, whether it may have hidden
    something since the last look. That is told to ``on_danger``, until ``stop``."""

    def __init__(
        self,
        connection: Connection,
        label: str,
        report: Report,
        in_use: Callable[[], bool],
        on_danger: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._report = report
        self._in_use = in_use
        self._on_danger = on_danger
        self._asked = False
        self._ticker = Ticker(f"asking {label} whether it evicts keys", self._check, LOOK_EVERY)

    def stop(self) -> None:
        self._ticker.stop()

    def _check(self) -> None:
        if not self._asked and not self._connection.full and self._in_use():
            self._asked = True
            # Not what was refused: the server notes each refusal (``ACL LOG``).
            questions = QUESTIONS if self._report.tells else QUESTIONS[:-1]
            self._connection.send(b"".join(questions), self, len(questions), self._connection.clock())

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        self._asked = False
        if not self._ticker.running:
            return
        before, self._report = self._report, understood((*earlier, reply))
        if not self._report.safe or self._report.evicted != before.evicted:
            self._on_danger()

    def dropped(self) -> None: ...
