"""Malformed replies."""

from __future__ import annotations

from typing import Any

import hiredis


class ViolationError(Exception):
    """A reply cannot be the answer to its command, so the connection is out of step and must be dropped."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"malformed reply: {problem}")


def unexpected(what: str, reply: Any) -> ViolationError:
    """``what`` has the wrong type. The message has the type only: the content may be somebody's secret."""
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
