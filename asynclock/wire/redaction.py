"""Redacts what a server says, for errors and logs: cuts it short, and removes passwords and the values of locks.

Servers quote unknown commands with the beginning of their arguments. Those may be a password, or a lock's value, which
is all it takes to release or extend the lock.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection
from typing import Any

MAX_SHOWN = 200  # characters
_MAX_SCANNED = 100_000  # characters that are searched for secrets; the rest is dropped

_REPEATED = re.compile(r"[\s,:;(]*(?:with args|beginning with)\b.*", re.IGNORECASE | re.DOTALL)
_VALUE = re.compile(r"asynclock:[nfw]:[0-9a-f:]+")  # core.tokens.Tokens up to the owner, and markers.py
_repr = reprlib.Repr()
_repr.maxother = _repr.maxstring = MAX_SHOWN


def redacted(said: Any, secrets: Collection[str] = ()) -> str:
    """The text of an error, or of an unexpected reply, without secrets.

    :param secrets: if one of these occurs in the text, nothing of it is shown
    """
    text = _text(said) if isinstance(said, BaseException) else _repr.repr(said)
    text = _REPEATED.sub(" ...", text[:_MAX_SCANNED])
    if any(secret in text for secret in secrets):
        return "(not shown: it contains a password)"
    text = _VALUE.sub("asynclock:...", text)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 4] + " ..."


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an exception class of the user, whose __str__ fails
        return type(error).__name__
