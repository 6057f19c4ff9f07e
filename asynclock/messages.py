"""Fields of log records, besides their text."""

from __future__ import annotations


def about(message: str, **values: object) -> dict[str, object]:
    """For ``extra=``: ``asynclock_message``, the id of the message, which never changes, and what it is about
    (``asynclock_lock``, …). docs/logging.md has all ids and fields."""
    return {"asynclock_message": message, **{f"asynclock_{name}": value for name, value in values.items()}}
