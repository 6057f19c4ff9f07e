"""Decides whether ``NOLOOP`` is safe on a server: it can hide more than this client's own writes.

When a server evicts a key, or drops an entry from its full tracking table, it does so during some client's command, and
treats it as that client's write. With NOLOOP that client gets no push. Nor is the key tracked for it any more, so it
also misses that another client takes the key. So NOLOOP is used only with servers that evict nothing, and while their
tracking table has room. Other servers also push this client's own writes, which costs one push for each extension.

Both can change during a connection, so the check is repeated every ``CHECK_EVERY`` seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .background import Ticker
from .commands import packed
from .connection import Connection, Expects

CHECK_EVERY = 0.9  # seconds between checks: a hidden change is found within 1.5 s
FULL_SHARE = 0.9  # the tracking table counts as full at this share: it may fill up before the next check
MAX_KEYS = 1_000_000  # the default size of the tracking table, for servers that do not say

QUESTIONS = (
    packed(b"INFO", b"memory"),
    packed(b"INFO", b"stats"),
    packed(b"CONFIG", b"GET", b"tracking-table-max-keys"),
)


class EvictionReport(NamedTuple):
    """What a server says about evicting keys, and about its tracking table."""

    evicts: bool = True  #: does its configuration allow evictions?
    evicted: int = 0  #: number of keys evicted so far
    table_full: bool = False  #: is its tracking table (nearly) full?
    tells_size: bool = True  #: does it say how large the table may get?

    @property
    def noloop_is_safe(self) -> bool:
        """Does NOLOOP hide nothing but this client's own writes?"""
        return not self.evicts and not self.table_full


def parse_report(replies: Sequence[Any]) -> EvictionReport:
    """:param replies: to ``QUESTIONS``, or to all but the last. After an error reply, evictions are assumed."""
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


class EvictionWatch(Expects):
    """Checks a connection with NOLOOP, while locks are held or waited for. Calls ``on_hidden`` whenever the server may
    have hidden a change since the last check, until ``stop``.

    Invariant: at most one check is pending (``_asked``). ``_report`` is the result of the last one.
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
            # Do not repeat a question that was refused: each refusal goes to the server's ``ACL LOG``.
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
