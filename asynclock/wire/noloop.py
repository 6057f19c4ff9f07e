"""Whether ``NOLOOP`` is safe on a server: it hides more than this client's own writes.

A server that evicts a key, or drops an entry from its full tracking table, does so while it runs somebody's command,
and counts it as done by that client. With NOLOOP that client gets no push, and the key is not tracked for it any more:
whoever takes the key next does so unseen as well. So NOLOOP is used only with servers that evict nothing, and only
while there is room in their tracking table. With other servers this client's own writes are pushed too, which costs one
push for each extension.

Both can change while a connection lasts, so the server is asked about them now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .background import Ticker
from .commands import packed
from .connection import Connection

CHECK_EVERY = 0.9  # seconds from one check to the next: what was hidden is found within 1.5 s
FULL_SHARE = 0.9  # share of the tracking table from which on it counts as full: it may fill up before the next check
MAX_KEYS = 1_000_000  # of the tracking table, by default; for servers that do not tell

QUESTIONS = (
    packed(b"INFO", b"memory"),
    packed(b"INFO", b"stats"),
    packed(b"CONFIG", b"GET", b"tracking-table-max-keys"),
)


class EvictionReport(NamedTuple):
    """What a server says about changes that it makes to keys, or to their tracking, by itself."""

    evicts: bool = True  #: may it evict keys?
    evicted: int = 0  #: number of keys that it has evicted so far
    table_full: bool = False  #: is its tracking table full, or nearly so?
    tells_size: bool = True  #: does it tell how large the table may get?

    @property
    def noloop_is_safe(self) -> bool:
        """Does NOLOOP hide nothing but this client's own writes?"""
        return not self.evicts and not self.table_full


def parse_report(replies: Sequence[Any]) -> EvictionReport:
    """:param replies: to ``QUESTIONS``, or to all but the last. A server that refuses to answer may evict keys."""
    memory, stats, *rest = replies
    config: Any = rest[0] if rest else None
    if isinstance(config, dict):
        config = [part for pair in config.items() for part in pair]
    tells_size = isinstance(config, list) and len(config) == 2
    max_keys = _number(config[1], MAX_KEYS) if tells_size else MAX_KEYS
    tracked = _number(_field(stats, b"tracking_total_keys"), 0)
    return EvictionReport(
        evicts=_field(memory, b"maxmemory_policy") != b"noeviction",
        evicted=_number(_field(stats, b"evicted_keys"), 0),
        table_full=0 < max_keys * FULL_SHARE <= tracked,
        tells_size=tells_size,
    )


def _field(info: Any, name: bytes) -> bytes | None:
    """The value of one line of INFO."""
    if not isinstance(info, bytes) or (start := info.find(b"\n%b:" % name)) < 0:
        return None
    return info[start + len(name) + 2 :].split(b"\r\n", 1)[0]


def _number(text: Any, default: int) -> int:
    return int(text) if isinstance(text, bytes) and text.isdigit() and len(text) < 20 else default


class EvictionWatch:
    """Checks one connection with NOLOOP, while locks are held or waited for: may the server have hidden anything
    since the last check? If so, it calls ``on_hidden``, each time, until ``stop``.

    Invariant: at most one check is under way (``_asked``). ``_report`` is what the last one found.
    """

    def __init__(
        self,
        connection: Connection,
        label: str,
        report: EvictionReport,
        in_use: Callable[[], bool],
        on_hidden: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._report = report
        self._in_use = in_use
        self._on_hidden = on_hidden
        self._asked = False
        self._ticker = Ticker(f"asking {label} whether it evicts keys", self._check, CHECK_EVERY)

    def stop(self) -> None:
        self._ticker.stop()

    def _check(self) -> None:
        if not self._asked and not self._connection.full and self._in_use():
            self._asked = True
            # Without the question that it has refused: the server keeps a log of refusals (``ACL LOG``).
            questions = QUESTIONS if self._report.tells_size else QUESTIONS[:-1]
            self._connection.send(b"".join(questions), self, len(questions), self._connection.clock())

    def reply(self, reply: Any, earlier: Sequence[Any], now: float) -> None:
        self._asked = False
        if not self._ticker.running:
            return
        before, self._report = self._report, parse_report((*earlier, reply))
        if not self._report.noloop_is_safe or self._report.evicted != before.evicted:
            self._on_hidden()

    def dropped(self) -> None: ...
