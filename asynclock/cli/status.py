"""``asynclock status``: who holds which lock now."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from asynclock import Holder, Locker, ServerError

from .ending import Ending
from .exit_status import FAILED, FREE
from .facts import age_text, dumped, facts, left, since, utc_now, votes, who
from .lockers import Connected, connected_lockers
from .servers import Servers
from .texts import LONGEST, columns, duration, safe, safe_bytes, timestamp

AT_ONCE = 100  # locks that are read at the same time
LOST_LETTER = "\ufffd"  # in the names that are no UTF-8


@dataclass(frozen=True, slots=True)
class Found:
    """One lock."""

    name: str
    holder: Holder | None = None
    error: ServerError | None = None  #: why it is not known who holds it


def status(names: Sequence[str], servers: Servers, *, as_json: bool, values: bool) -> int:
    """Show it. Returns the exit status."""
    ending = Ending("status")

    async def work() -> int:
        async with servers.locker() as locker:
            listed = list(dict.fromkeys(names)) or await locker.names()
            found = await _look(locker, listed)
            connected = await connected_lockers(locker)
        if not names:  # what has been given back meanwhile is no lock any more
            unreadable = [each for each in found if LOST_LETTER in each.name and each.holder is None]
            if unreadable:
                ending.say(f"left out {len(unreadable)} names that are not valid UTF-8")
            found = [each for each in found if each.holder is not None or each.error is not None]
        now = utc_now()
        if as_json:
            ending.tell(dumped(_document(found, connected, now, values)))
        else:
            with ending.output():
                _Text(found, connected, now, values=values, details=bool(names)).show()
        return _exit_status(found, ending, all_of_them=bool(names))

    return ending.run(work)


async def _look(locker: Locker, names: Sequence[str]) -> list[Found]:
    """Read them, a number of them at the same time: all at once may be more than a connection takes."""

    async def look(name: str) -> Found:
        try:
            return Found(name, await locker.holder(name))
        except ServerError as error:
            return Found(name, error=error)

    found: list[Found] = []
    for start in range(0, len(names), AT_ONCE):
        found += await asyncio.gather(*map(look, names[start : start + AT_ONCE]))
    return found


def _exit_status(found: Sequence[Found], ending: Ending, *, all_of_them: bool) -> int:
    errors = [each.error for each in found if each.error is not None]
    for error in dict.fromkeys(map(str, errors)):
        ending.say(error)
    if errors:
        return FAILED
    held = [each.holder is not None for each in found]
    return 0 if (all(held) if all_of_them else any(held)) else FREE


def _document(found: Sequence[Found], connected: Sequence[Connected], now: datetime, values: bool) -> dict[str, Any]:
    return {
        "at": timestamp(now),
        "locks": [
            facts(each.name, each.holder, now, values=values)
            | ({} if each.error is None else {"held": None, "problem": str(each.error)})
            for each in found
        ],
        "servers": [
            {
                "server": each.server,
                "lockers": None if each.problem else len(each.owners),
                "owners": list(each.owners),
                "problem": each.problem or None,
            }
            for each in connected
        ],
    }


class _Text:
    """For people: tables on a terminal, lines with aligned columns elsewhere."""

    def __init__(
        self, found: Sequence[Found], connected: Sequence[Connected], now: datetime, *, values: bool, details: bool
    ) -> None:
        self._found = found
        self._connected = connected
        self._now = now
        self._values = values
        self._details = details

    def show(self) -> None:
        if self._found:
            self._table(("LOCK", "OWNER", "SINCE", "AGE", "LEFT", "KEYS"), [self._row(each) for each in self._found])
        else:
            print("No lock is held.")
        if self._details or self._values:
            rows = [row for each in self._found for row in self._keys(each)]
            if rows:
                print()
                self._table(("KEY", "SERVER", "LEFT", "HAS"), rows)
        print()
        for each in self._connected:
            print(f"{safe(each.server)}: {_lockers(each)}")
        sys.stdout.flush()

    def _row(self, each: Found) -> tuple[str, ...]:
        holder = each.holder
        if each.error is not None:
            return safe(each.name, LONGEST), "not known", "", "", "", ""
        if holder is None:
            return safe(each.name, LONGEST), "free", "", "", "", ""
        return (
            safe(each.name, LONGEST),
            who(holder),
            since(holder, self._now if sys.stdout.isatty() else None),
            age_text(holder, self._now),
            left(holder),
            votes(holder),
        )

    def _keys(self, each: Found) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        if each.holder is None:
            return rows
        for key in each.holder.keys:
            if key.problem:
                has = safe(key.problem, LONGEST)
            elif key.value is None:
                has = "nothing"
            elif self._values:
                has = safe_bytes(key.value)
            else:
                has = "the holder" if key.value == each.holder.value else "another value"
            ends = "" if key.value is None else "no end" if key.remaining is None else duration(key.remaining)
            rows.append((safe(key.key, LONGEST), safe(key.server), ends, has))
        return rows

    def _table(self, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
        if not sys.stdout.isatty():
            for line in columns([head, *rows]):
                print(line)
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold", pad_edge=False)
        for title in head:
            foldable = title in ("LOCK", "OWNER", "KEY", "SERVER", "HAS")
            table.add_column(title, overflow="fold", no_wrap=not foldable)
        for row in rows:
            table.add_row(*map(Text, row))
        Console(highlight=False).print(table)


def _lockers(each: Connected) -> str:
    if each.problem:
        return f"connected lockers not known: {safe(each.problem)}"
    count = len(each.owners)
    return f"{count or 'no'} other locker{'' if count == 1 else 's'} connected"
