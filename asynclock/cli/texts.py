"""Text for people: what a server says made harmless, times, and columns.

Names and values come from servers, and anybody who can write there has chosen them. Nothing of them may reach a
terminal but what can be printed: an escape sequence could clear the screen, or show a wrong owner.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.cells import cell_len, set_cell_size

LONGEST = 200  # characters of a name that are shown to people


def safe(text: str, longest: int | None = None) -> str:
    """The text with escapes (``\\x1b``) for everything that cannot be printed, such as control characters and those
    that change the direction of writing; without its middle, if it has more than ``longest`` characters."""
    shown = "".join(letter if letter.isprintable() else _escape(letter) for letter in text)
    if longest is None or len(shown) <= longest:
        return shown
    half = (longest - 1) // 2
    return f"{shown[:half]}…{shown[-half:]}"


def _escape(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def safe_bytes(value: bytes) -> str:
    """Printable ASCII as it is, and escapes (``\\xf3``) for the rest, spaces too: they would get lost in a column."""
    return "".join(chr(byte) if 0x20 < byte < 0x7F and byte != 0x5C else f"\\x{byte:02x}" for byte in value)


def timestamp(at: datetime) -> str:
    """ISO 8601 in UTC, with milliseconds."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def short_timestamp(at: datetime, today: datetime | None = None) -> str:
    """The same for people: in UTC, to the second; without the date, if that is the one of ``today``."""
    at = at.astimezone(UTC)
    form = "%H:%M:%SZ" if today is not None and at.date() == today.astimezone(UTC).date() else "%Y-%m-%d %H:%M:%SZ"
    return at.strftime(form)


def duration(seconds: float) -> str:
    """A length of time, in at most two units: ``4.2 s``, ``2 min 5 s``, ``3 h 12 min``, ``5 d 3 h``."""
    if seconds < 59.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def columns(rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """One line for each row, with the columns below each other.

    :param width: of a line at most, in cells of a terminal: the first two columns lose their middles for it
    """
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    if width is not None:
        room = max(2 * _NARROWEST, width - sum(widths[2:]) - _GAP * (len(widths) - 1))
        first = min(widths[0], max(room // 2, room - widths[1]))
        widths[:2] = [first, min(widths[1], room - first)]
    lines = [
        (" " * _GAP).join(_filled(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return lines if width is None else [set_cell_size(line, width).rstrip() for line in lines]


_GAP = 2  # spaces between columns
_NARROWEST = 8


def _filled(text: str, width: int) -> str:
    """Padded, or without its middle: exactly this number of cells."""
    if cell_len(text) <= width:
        return text + " " * (width - cell_len(text))
    end = (width - 1) // 2
    return set_cell_size(text, width - 1 - end) + "…" + set_cell_size(text[::-1], end)[::-1]
