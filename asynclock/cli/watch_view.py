"""Shows what ``asynclock watch`` finds: lines, JSON, or a table that stays on the terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, Self

from asynclock.events import Disconnected, Reconnected

from .changes import Change, Watched
from .ending import Ending
from .facts import dumped, facts, sentence, utc_now, votes, who
from .texts import LONGEST, columns, duration, safe, timestamp

FRESH = 1.0  # seconds for which a change stands out
LINGER = 10.0  # seconds for which a lock is shown that was not named, and that nobody holds any more
HEAD = ("LOCK", "OWNER", "HELD FOR", "LEFT", "KEYS")
AROUND = 5  # lines of the terminal that are not rows of the table


class View(Protocol):
    """Shows it. ``with view:`` around its use."""

    live: bool  #: is it drawn again as time passes?

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def change(self, change: Change) -> None: ...
    def server(self, event: Disconnected | Reconnected) -> None: ...
    def visible(self, locks: Sequence[Watched]) -> list[Watched]:
        """Those that can be seen, in their order."""

    def draw(self, locks: Sequence[Watched], away: Mapping[str, float | None]) -> None:
        """:param away: the servers that are not connected, and since when, in Unix seconds"""


def choose_view(ending: Ending, as_json: bool) -> View:
    """A table, unless it is to be JSON, or stdout cannot show it."""
    if as_json:
        return JSONLines(ending)
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console(highlight=False)
        if not console.is_dumb_terminal:
            return Table(ending, console)
    return Lines(ending)


class Lines:
    """One change a line."""

    live = False

    def __init__(self, ending: Ending) -> None:
        self._ending = ending

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def change(self, change: Change) -> None:
        holder = change.holder
        state = "free" if holder is None else "forced" if holder.forced else "held"
        by = "" if holder is None else f"  {sentence(holder, change.at)}"
        self._ending.tell(f"{timestamp(change.at)}  {state:6}  {safe(change.name)}{by}")

    def server(self, event: Disconnected | Reconnected) -> None: ...

    def visible(self, locks: Sequence[Watched]) -> list[Watched]:
        return []

    def draw(self, locks: Sequence[Watched], away: Mapping[str, float | None]) -> None: ...


class JSONLines(Lines):
    """One JSON object a line."""

    def change(self, change: Change) -> None:
        state = "free" if change.holder is None else "held"
        self._tell(change.at, state, facts(change.name, change.holder, change.at) | {"initial": change.initial})

    def server(self, event: Disconnected | Reconnected) -> None:
        more = {"why": event.why} if isinstance(event, Disconnected) else {"after": event.after}
        word = "disconnected" if isinstance(event, Disconnected) else "reconnected"
        self._tell(datetime.fromtimestamp(event.at, UTC), word, {"server": event.server, **more})

    def _tell(self, at: datetime, event: str, more: dict[str, Any]) -> None:
        self._ending.tell(dumped({"at": timestamp(at), "event": event, **more}))


class Table(Lines):
    """A row for each lock, which stays."""

    live = True

    def __init__(self, ending: Ending, console: Any) -> None:
        from rich.live import Live

        super().__init__(ending)
        self._console = console
        self._live = Live(
            console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=sys.stderr.isatty()
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError), self._ending.blocked():
            self._live.stop()

    def change(self, change: Change) -> None: ...

    def visible(self, locks: Sequence[Watched]) -> list[Watched]:
        return self._worth_showing(locks)[: max(1, self._console.height - AROUND)]

    def _worth_showing(self, locks: Sequence[Watched]) -> list[Watched]:
        """The held ones first."""
        known = [
            lock for lock in locks if lock.known and (lock.given or lock.holder is not None or _fresh(lock, LINGER))
        ]
        return sorted(known, key=lambda lock: (lock.holder is None, lock.name))

    def draw(self, locks: Sequence[Watched], away: Mapping[str, float | None]) -> None:
        with self._ending.output():
            self._live.update(self.picture(locks, away), refresh=True)

    def picture(self, locks: Sequence[Watched], away: Mapping[str, float | None]) -> Any:
        """What is on the screen."""
        from rich.console import Group
        from rich.text import Text

        shown = self.visible(locks)
        now = utc_now()
        head, *rows = columns([HEAD, *(_row(lock, now) for lock in shown)], self._console.width)
        table = [Text(head, style="bold", no_wrap=True)]
        for lock, row in zip(shown, rows, strict=True):
            table.append(Text(row, style="bold" if _fresh(lock, FRESH) else "", no_wrap=True))
        held = sum(lock.holder is not None for lock in locks)
        foot = [f"{now:%H:%M:%S}Z  {held} held, {sum(lock.known for lock in locks) - held} free"]
        if hidden := len(self._worth_showing(locks)) - len(shown):
            foot.append(f"{hidden} more than fit here")
        lines = [Text("; ".join(foot) + ". Ctrl-C ends this.", style="dim", no_wrap=True, overflow="ellipsis")]
        for server, since in away.items():
            gone = "" if since is None else f" for {duration(now.timestamp() - since)}"
            text = f"{safe(server)}: disconnected{gone}, reconnecting"
            lines.append(Text(text, style="red", no_wrap=True, overflow="ellipsis"))
        return Group(*table, Text(""), *lines)


def _row(lock: Watched, now: datetime) -> tuple[str, ...]:
    holder, passed = lock.holder, time.monotonic() - lock.read_at
    if holder is None:
        return safe(lock.name, LONGEST), "free", "", "", ""
    held_for = "" if holder.since is None else duration((now - holder.since).total_seconds())
    left = "no end" if holder.remaining is None else duration(holder.remaining - passed)
    return safe(lock.name, LONGEST), who(holder), held_for, left, votes(holder)


def _fresh(lock: Watched, seconds: float) -> bool:
    return time.monotonic() - lock.changed_at < seconds
