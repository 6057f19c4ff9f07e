"""What is wrong with the wire at the moment, what has been seen on it, and what that does to the bytes."""

import re
from collections import Counter
from dataclasses import dataclass, field

from .resp import PUSH, FrameSplitter

_COMMAND = re.compile(rb"(?:\*\d+\r\n\$\d+\r\n)?([\w.|-]+)")
_ENOUGH_FOR_A_NAME = 64


@dataclass(eq=False)
class Faults:
    """May be changed at any time, and holds for all connections."""

    delay: float = 0.0
    """Seconds that bytes take, in each direction. Their order is kept through any change."""

    rate: float = 0.0
    """Bytes a second that each direction of a connection can carry; 0: as many as there are."""

    split: int = 0
    """Bytes from the server come in pieces of at most so many, each in its own turn of the loop; 0: whole."""

    swallow_pushes: bool = False
    """RESP3 push frames from the server are dropped."""

    swallow_replies: bool = False
    """Requests go on, and all that comes back is dropped, pushes too. Only whole frames are dropped."""

    frozen: bool = field(default=False, init=False)
    """Nothing goes on in either direction: ``Proxy.freeze()``."""

    sent_to_server: int = field(default=0, init=False)
    """Bytes so far."""

    commands: Counter[str] = field(default_factory=Counter, init=False)
    """How often each command was seen on its way to the server, by its name in capitals."""


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
    """Passes on the replies that are not to be swallowed. A frame that has begun to pass passes whole."""

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
