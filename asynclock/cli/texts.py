"""Text for people: what a server says made harmless, times, and columns.

Names and values come from servers, and anybody who can write there has chosen them. Nothing of them may reach a
terminal but what can be printed: an escape sequence could clear the screen, or show another owner than there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.cells import cell_len

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
    """ASCII as it is, and escapes (``\\xf3``) for the rest."""
    return "".join(chr(byte) if 0x20 <= byte < 0x7F and byte != 0x5C else f"\\x{byte:02x}" for byte in value)


def stamp(at: datetime) -> str:
    """ISO 8601 in UTC, with milliseconds."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def second(at: datetime) -> str:
    """The same for people: in UTC, to the second."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def span(seconds: float) -> str:
    """A length of time, in at most two units: ``4.2 s``, ``2 min 5 s``, ``3 h 12 min``, ``5 d 3 h``."""
    if seconds < 59.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line for each row, with the columns below each other."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
