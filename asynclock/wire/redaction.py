"""What a server says, as it may be shown: short, and without what it was told itself.

Servers repeat commands that they do not know, with the beginning of their arguments: a password, or a
lock's value, which is all that its holder has to show for being it.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection
from typing import Any

LONGEST = 200  # characters that are shown
_READ = 100_000  # characters that are looked at

_REPEATED = re.compile(r"[\s,:;(]*(?:with args|beginning with)\b.*", re.IGNORECASE | re.DOTALL)
_VALUE = re.compile(r"asynclock:[nfw]:[0-9a-f:]+")  # core.lease.Tokens, and markers.py
_repr = reprlib.Repr()
_repr.maxother = _repr.maxstring = LONGEST


def redacted(said: Any, secrets: Collection[str] = ()) -> str:
    """The text of an error, or of a reply that should have been another.

    :param secrets: what the server was told of these, it shall not tell on
    """
    text = _text(said) if isinstance(said, BaseException) else _repr.repr(said)
    text = _REPEATED.sub(" ...", text[:_READ])
    if any(secret in text for secret in secrets):
        return "(what it said had a password in it)"
    text = _VALUE.sub("asynclock:...", text)
    return text if len(text) <= LONGEST else text[: LONGEST - 4] + " ..."


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # the user's own class, perhaps: what it says is not to be had
        return type(error).__name__
