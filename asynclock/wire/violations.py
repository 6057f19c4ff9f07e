"""What no server of locks says."""

from __future__ import annotations

from typing import Any

import hiredis


class ViolationError(Exception):
    """What came can be no answer to what was asked, and its connection cannot be trusted any more."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"not what a server of locks says: {problem}")


def unexpected(what: str, reply: Any) -> ViolationError:
    """``what`` is of the wrong kind. (Its kind alone is told: what is in it may be anybody's secret.)"""
    return ViolationError(f"{what} was {_KINDS.get(type(reply), 'something else')}")


_KINDS = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a double",
    bytes: "a string",
    list: "an array",
    dict: "a map",
    hiredis.ReplyError: "an error",
    hiredis.PushNotification: "a push",
}
