"""The part of the Redis protocol that tests need: send a command, read a reply, find the ends of frames."""

from typing import BinaryIO, NamedTuple, TypeAlias

Reply: TypeAlias = "int | str | bytes | list[Reply] | None"

PUSH = ord(">")
_ATTRIBUTE = ord("|")


def encode_command(*arguments: str | bytes | int | float) -> bytes:
    """The command as a RESP array of bulk strings."""
    out = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        data = argument if isinstance(argument, bytes) else str(argument).encode()
        out.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(out)


def read_reply(stream: BinaryIO) -> Reply:
    """One RESP2 reply from a blocking stream: a simple string comes as ``str``, a bulk string as ``bytes``.

    :raises RuntimeError: the reply is an error; its text is the server's
    :raises ConnectionError: the stream ended
    """
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise ConnectionError("the server closed the connection instead of replying")
    kind, rest = line[:1], line[1:-2]
    match kind:
        case b"+":
            return rest.decode()
        case b"-":
            raise RuntimeError(rest.decode(errors="replace"))
        case b":":
            return int(rest)
        case b"$":
            size = int(rest)
            if size < 0:
                return None
            data = stream.read(size + 2)
            if len(data) < size + 2:
                raise ConnectionError("the server closed the connection in the middle of a reply")
            return data[:-2]
        case b"*":
            size = int(rest)
            return None if size < 0 else [read_reply(stream) for _ in range(size)]
    raise RuntimeError(f"not a RESP2 reply: {line!r}")


class Part(NamedTuple):
    """A piece of one frame: the type byte of its value, and whether the frame ends with it."""

    kind: int
    data: bytes
    last: bool


class FrameSplitter:
    """Cuts a stream of RESP2 or RESP3, in either direction, at the boundaries of its top-level frames.

    Bytes are passed on as they arrive, not kept until their frame is complete. Only attributes (``|``) before a frame's
    value are kept until its type is known. Bytes that are not RESP come out unchanged, cut anywhere or nowhere. So do
    streamed strings and aggregates (``$?``, ``*?``), which no server sends.
    """

    def __init__(self) -> None:
        self._values = 0  # values of this frame that have not begun; nested ones are counted too, so no stack is needed
        self._line = b""  # the header line of the current value, as far as it has arrived
        self._body = 0  # bytes of the current string that have not arrived
        self._kind = 0  # type byte of the frame's value; 0: unknown
        self._held = b""  # the frame's bytes from before the type was known
        self._not_resp = False

    def feed(self, data: bytes) -> list[Part]:
        """Cut ``data`` into frames and pieces of frames."""
        parts = []
        start = pos = 0
        while pos < len(data) and not self._not_resp:
            if self._body:
                step = min(self._body, len(data) - pos)
                self._body -= step
                pos += step
            else:
                if not self._line:
                    self._begin(data[pos])
                end = data.find(b"\n", pos) + 1
                self._line = (self._line + data[pos : end or len(data)])[:32]  # lengths are shorter, texts unused
                pos = end or len(data)
                if end:
                    self._end_line()
            if not self._values and not self._body:
                parts.append(Part(self._kind, self._held + data[start:pos], True))
                self._held = b""
                start = pos
        if start < len(data):
            self._held += data[start:]
            if self._kind:
                parts.append(Part(self._kind, self._held, False))
                self._held = b""
        return parts

    def _begin(self, kind: int) -> None:
        if not self._values:
            self._values = 1
            self._kind = 0
        if self._values == 1 and not self._kind and kind != _ATTRIBUTE:
            self._kind = kind

    def _end_line(self) -> None:
        kind, rest = self._line[:1], self._line[1:]
        self._line = b""
        self._values -= 1
        if kind not in (b"$", b"!", b"=", b"*", b"~", b">", b"%", b"|"):
            return  # the line is the whole value: a simple type, or an inline command
        try:
            size = int(rest)
        except ValueError:
            self._not_resp = True
            self._kind = self._kind or kind[0]
            self._values = 1
            return
        if kind == b"|":
            self._values += 2 * size + 1  # an attribute is no value: the value that it belongs to follows
        elif size < 0:
            return  # RESP2's null
        elif kind in (b"$", b"!", b"="):
            self._body = size + 2
        else:
            self._values += 2 * size if kind == b"%" else size
