"""The faults that a proxy applies, what it has counted, and the filters that apply them to the bytes."""

import re
from collections import Counter
from dataclasses import dataclass, field

from .resp import PUSH, FrameSplitter

_COMMAND = re.compile(rb"(?:\*\d+\r\n\$\d+\r\n)?([\w.|-]+)")
_ENOUGH_FOR_A_NAME = 64  # bytes


@dataclass(eq=False)
class Faults:
    """Attributes that can be changed at any time, and hold for all connections."""

    delay: float = 0.0
    """Seconds by which bytes are delayed, in each direction. Their order stays the same through any change."""

    rate: float = 0.0
    """Bytes per second that each direction of a connection can carry; 0: no limit."""

    split: int = 0
    """Pass bytes from the server on in pieces of at most this size, one for each turn of the event loop; 0: whole."""

    swallow_pushes: bool = False
    """Drop RESP3 push frames from the server."""

    swallow_replies: bool = False
    """Pass requests on, and drop everything that the server sends, pushes too. Only whole frames are dropped."""

    frozen: bool = field(default=False, init=False)
    """Nothing passes in either direction. Set by ``Proxy.freeze()``."""

    sent_to_server: int = field(default=0, init=False)
    """Number of bytes sent to the server so far."""

    commands: Counter[str] = field(default_factory=Counter, init=False)
    """How often each command has passed to the server, by its name in capitals."""


class CommandCounter:
    """Passes requests on, and counts them."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._splitter = FrameSplitter()
        self._head = b""

    def __call__(self, data: bytes) -> bytes:
        for part in self._splitter.feed(data):
            self._head += part.data[: _ENOUGH_FOR_A_NAME - len(self._head)]
            if part.last:
                if found := _COMMAND.match(self._head):
                    self._faults.commands[found[1].decode().upper()] += 1
                self._head = b""
        return data


class ReplyFilter:
    """Drops replies and pushes as the faults say. A frame whose beginning was passed on is passed on whole."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._splitter = FrameSplitter()
        self._between_frames = True
        self._swallow = False

    def __call__(self, data: bytes) -> bytes:
        passed_on = []
        for part in self._splitter.feed(data):
            if self._between_frames:
                is_push = part.kind == PUSH
                self._swallow = self._faults.swallow_replies or (is_push and self._faults.swallow_pushes)
            if not self._swallow:
                passed_on.append(part.data)
            self._between_frames = part.last
        return b"".join(passed_on)
