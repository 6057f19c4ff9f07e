"""The options of a ``Locker``. They are checked once, in its constructor, before anything is sent."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

from .core.permits import MAX_PERMITS
from .core.rules import Rules
from .core.slots import SLOTS
from .errors import ConfigurationError

Seconds: TypeAlias = float | timedelta

MIN_WARN_AFTER = 0.1  # seconds: it is how often a name may be warned of
MAX_AT_LEAST = 366 * 86400.0  # seconds
MAX_OWNER = 64  # bytes: part of every key's value
MAX_SEMAPHORE = 1024  # bytes of a semaphore's name: a look at it has the name once for every permit
MAX_NAME = 64 * 1024  # bytes: longer than any sensible name, short enough for every server's limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The checked options of a ``Locker``; durations are in seconds. ``None``: decided when the server is known."""

    key_prefix: str
    key_validity: float
    extend_interval: float
    try_next_after: float
    key_majority: int | None
    no_loop_tracking: bool | None
    fallback_setpx: bool | None
    client_side_caching: bool
    disconnect_grace: float
    local_handoffs: int
    min_replicas: int
    restart_quarantine: bool | None
    spread_keys: bool
    wait_release: bool
    owner: str | None
    warn_after: float | None

    def owner_or_default(self) -> str:
        """``owner``, or the default, which names the process in which this is called."""
        return default_owner() if self.owner is None else self.owner

    def rules(self, majority: int) -> Rules:
        return Rules(
            majority=majority,
            validity=self.key_validity,
            extend_interval=self.extend_interval,
            try_next_after=self.try_next_after,
            tracking=self.client_side_caching,
            handoffs=self.local_handoffs,
        )


def check_options(
    *,
    key_prefix: str,
    key_validity: Seconds,
    extend_interval: Seconds | None,
    try_next_after: Seconds,
    key_majority: int | None,
    no_loop_tracking: bool | None,
    fallback_setpx: bool | None,
    client_side_caching: bool,
    disconnect_grace: Seconds,
    local_handoffs: int,
    min_replicas: int,
    restart_quarantine: bool | None,
    spread_keys: bool,
    wait_release: bool,
    owner: str | None,
    warn_after: Seconds | None,
    unknown: Mapping[str, object],
) -> Options:
    """Return the checked options. :raises ConfigurationError: one is wrong; the message has its value and the rule"""
    for word in unknown:
        import difflib  # here, because it takes 1 ms to import

        close = difflib.get_close_matches(word, Options.__slots__, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; the options are {', '.join(Options.__slots__)}"
        raise ConfigurationError(f"unknown option {word}={unknown[word]!r}{hint}")

    if not isinstance(key_prefix, str) or not key_prefix:
        raise _wrong("key_prefix", key_prefix, "must be a non-empty string")
    encoded(key_prefix, "key_prefix")
    validity = _positive("key_validity", key_validity)
    if validity < 0.01:
        raise _wrong("key_validity", key_validity, "must be at least 0.01 s, or the lock expires before it can be used")
    extend = validity / 2 if extend_interval is None else _positive("extend_interval", extend_interval)
    if extend >= validity:
        raise _wrong("extend_interval", extend_interval, f"must be less than key_validity={validity:g}")
    term = Rules.term_of(validity)
    if extend >= term:
        raise _wrong(
            "extend_interval",
            extend_interval,
            f"must be less than key_validity={validity:g} minus the drift allowance, {term:g}",
        )
    next_after = _positive("try_next_after", try_next_after)
    grace = check_seconds("disconnect_grace", disconnect_grace)
    if grace < 0:
        raise _wrong("disconnect_grace", disconnect_grace, "must be 0 or more seconds")
    if key_majority is not None:
        _count("key_majority", key_majority, least=1)
    _count("local_handoffs", local_handoffs, least=0)
    _count("min_replicas", min_replicas, least=0)
    _flag("no_loop_tracking", no_loop_tracking, none=True)
    _flag("fallback_setpx", fallback_setpx, none=True)
    _flag("restart_quarantine", restart_quarantine, none=True)
    _flag("client_side_caching", client_side_caching, none=False)
    _flag("spread_keys", spread_keys, none=False)
    if spread_keys and "{" in key_prefix:
        raise _wrong("key_prefix", key_prefix, "must not contain '{' with spread_keys, which puts a hash tag behind it")
    if spread_keys and key_majority is not None and not 2 <= key_majority <= SLOTS // 2:
        rule = f"must be from 2 to {SLOTS // 2} with spread_keys: each key of a lock has a part of the slots of its own"
        raise _wrong("key_majority", key_majority, rule)
    _flag("wait_release", wait_release, none=False)
    if owner is not None:
        _check_owner(owner)
    return Options(
        key_prefix=key_prefix,
        key_validity=validity,
        extend_interval=extend,
        try_next_after=next_after,
        key_majority=key_majority,
        no_loop_tracking=no_loop_tracking,
        fallback_setpx=fallback_setpx,
        client_side_caching=client_side_caching,
        disconnect_grace=grace,
        local_handoffs=local_handoffs,
        min_replicas=min_replicas,
        restart_quarantine=restart_quarantine,
        spread_keys=spread_keys,
        wait_release=wait_release,
        owner=owner,
        warn_after=None if warn_after is None else _warn_after(warn_after),
    )


def _warn_after(value: Seconds) -> float:
    seconds = check_seconds("warn_after", value)
    if seconds < MIN_WARN_AFTER:
        raise _wrong("warn_after", value, f"must be at least {MIN_WARN_AFTER:g} s, or None for no warnings")
    return seconds


def check_name(name: object) -> bytes:
    """The name of a lock as bytes. :raises ConfigurationError: it is not a valid name"""
    if not isinstance(name, str):
        raise ConfigurationError(f"a lock's name must be a string, not {type(name).__name__}: {name!r:.80}")
    if not name:
        raise ConfigurationError("a lock's name must not be empty")
    raw = encoded(name, "name")
    if len(raw) > MAX_NAME:
        raise ConfigurationError(f"a lock's name must have at most {MAX_NAME} bytes, not {len(raw)}: {name!r:.80}")
    return raw


def check_semaphore(name: object, permits: object) -> None:
    """:raises ConfigurationError: a semaphore cannot have that name, or so many permits"""
    if len(check_name(name)) > MAX_SEMAPHORE:
        raise ConfigurationError(f"a semaphore's name must have at most {MAX_SEMAPHORE} bytes: {name!r:.80}")
    if isinstance(permits, bool) or not isinstance(permits, int) or not 1 <= permits <= MAX_PERMITS:
        raise _wrong("permits", permits, f"must be a whole number from 1 to {MAX_PERMITS}")


def check_timeout(timeout: Seconds | None) -> float | None:
    """The timeout in seconds; ``None``: there is no limit.

    :raises ConfigurationError: it is not zero or more seconds
    """
    if timeout is None:
        return None
    seconds = check_seconds("timeout", timeout)
    if seconds < 0:
        raise _wrong("timeout", timeout, "must be 0 or more seconds, or None to wait without a limit")
    return seconds


def check_at_least(at_least: Seconds) -> float:
    """For how long the lock stays at least, in seconds.

    :raises ConfigurationError: it is not more than zero seconds, or too many
    """
    seconds = _positive("at_least", at_least)
    if seconds > MAX_AT_LEAST:
        raise _wrong("at_least", at_least, f"must be at most {MAX_AT_LEAST:.0f} s, which is 366 days")
    return seconds


def check_wait_release(wait_release: bool) -> bool:
    """Whether leaving a block waits. :raises ConfigurationError: it is not True or False"""
    _flag("wait_release", wait_release, none=True)
    return wait_release


def default_owner() -> str:
    """``host:pid``, cut to ``MAX_OWNER`` bytes."""
    pid = f":{os.getpid()}"
    host = "".join(letter for letter in socket.gethostname() if letter.isprintable())
    return host.encode(errors="ignore")[: MAX_OWNER - len(pid)].decode(errors="ignore") + pid


def _check_owner(owner: object) -> None:
    if not isinstance(owner, str) or not owner.isprintable():
        raise _wrong("owner", owner, "must be printable text, or None for host:pid")
    if len(encoded(owner, "owner")) > MAX_OWNER:
        raise _wrong("owner", owner, f"must be at most {MAX_OWNER} bytes")


def encoded(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise _wrong(what, text[:80], "must be valid Unicode, without lone surrogates") from None


def _wrong(option: str, value: object, rule: str) -> ConfigurationError:
    return ConfigurationError(f"{option}={value!r}: {rule}")


def check_seconds(option: str, value: object) -> float:
    """In seconds. :raises ConfigurationError: it is no finite number and no ``timedelta``"""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong(option, value, "must be a number of seconds or a timedelta")
    return float(value)


def _positive(option: str, value: object) -> float:
    seconds = check_seconds(option, value)
    if seconds <= 0:
        raise _wrong(option, value, "must be more than 0 seconds")
    return seconds


def _count(option: str, value: object, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _wrong(option, value, f"must be a whole number of {least} or more")


def _flag(option: str, value: object, *, none: bool) -> None:
    if not isinstance(value, bool) and not (none and value is None):
        raise _wrong(option, value, "must be True, False or None" if none else "must be True or False")
