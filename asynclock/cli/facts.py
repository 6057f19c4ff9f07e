"""What the commands show of a lock: as JSON, whose keys do not change, and as words for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from asynclock import Holder

from .texts import LONGEST, duration, safe, safe_bytes, short_timestamp, timestamp

UNKNOWN = "unknown"  # the owner, if another library holds the lock
FIELDS = ("library", "owner", "host", "pid", "since", "age", "remaining", "forced", "votes", "problem")


def facts(name: str, holder: Holder | None, now: datetime, *, values: bool = False) -> dict[str, Any]:
    """What JSON says of a lock, with the same keys for each. Times are ISO 8601 in UTC, and seconds.

    :param values: with the values of keys. Whoever knows one can release the key
    """
    known: dict[str, Any] = {"name": name, "held": holder is not None, **dict.fromkeys(FIELDS), "keys": []}
    if holder is None:
        return known
    return known | {
        "library": UNKNOWN if holder.owner is None else "asynclock",
        "owner": holder.owner,
        "host": holder.host,
        "pid": holder.pid,
        "since": None if holder.since is None else timestamp(holder.since),
        "age": age(holder, now),
        "remaining": holder.remaining,
        "forced": holder.forced,
        "votes": holder.votes,
        "keys": [
            {
                "key": key.key,
                "server": key.server,
                "state": _state(holder, key.value, key.problem),
                "remaining": key.remaining,
                "problem": key.problem or None,
            }
            | ({"value": None if key.value is None else safe_bytes(key.value)} if values else {})
            for key in holder.keys
        ],
    }


def _state(holder: Holder, value: bytes | None, problem: str) -> str:
    if problem:
        return "unreadable"
    if value is None:
        return "free"
    return "held" if value == holder.value else "other"


def dumped(known: Mapping[str, Any]) -> str:
    """JSON in one line of printable ASCII."""
    return json.dumps(known).replace("\x7f", "\\u007f")


def age(holder: Holder, now: datetime) -> float | None:
    """Seconds since the holder's attempt began: its clock and this one may differ."""
    return None if holder.since is None else round(max(0.0, (now - holder.since).total_seconds()), 3)


# For people


def who(holder: Holder) -> str:
    if holder.owner is None:
        return UNKNOWN
    return safe(holder.owner, LONGEST) or "(no name)"


def since(holder: Holder, today: datetime | None = None) -> str:
    return UNKNOWN if holder.since is None else short_timestamp(holder.since, today)


def age_text(holder: Holder, now: datetime) -> str:
    seconds = age(holder, now)
    return UNKNOWN if seconds is None else duration(seconds)


def left(holder: Holder) -> str:
    return "no end" if holder.remaining is None else duration(holder.remaining)


def votes(holder: Holder) -> str:
    """``2/3``, or ``2/3 by force``."""
    return f"{holder.votes}/{len(holder.keys)}{' by force' if holder.forced else ''}"


def sentence(holder: Holder, now: datetime) -> str:
    """For messages: ``web-3:812, since 2026-01-31 09:30:00Z (2 min 5 s), 4.2 s left, 1/1 keys``."""
    begun = "" if holder.since is None else f", since {short_timestamp(holder.since)} ({age_text(holder, now)})"
    ends = "without an end" if holder.remaining is None else f"{duration(holder.remaining)} left"
    by = "another library" if holder.owner is None else who(holder)
    return f"{by}{begun}, {ends}, {holder.votes} of {len(holder.keys)} keys"


def utc_now() -> datetime:
    return datetime.now(UTC)
