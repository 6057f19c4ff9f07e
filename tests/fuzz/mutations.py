"""Mutates the bytes of replies."""

from __future__ import annotations

import random
import re

_LENGTH = re.compile(rb"(?<=[*>%~|])\d+(?=\r\n)")
MAX_ELEMENTS = 100_000

# Fragments of the protocol, with extreme values.
_PIECES = (
    b"\r\n", b"\n", b"\r", b"\x00", b"\xff\xfe", b"*0\r\n", b"*-1\r\n", b"*1\r\n", b"*2\r\n", b"$0\r\n\r\n", b"$-1\r\n",
    b"$1\r\nx\r\n", b"$5\r\n", b"$536870912\r\n", b"_\r\n", b":0\r\n", b":1\r\n", b":-1\r\n", b":-2\r\n",
    b":9223372036854775807\r\n", b":-9223372036854775808\r\n", b":99999999999999999999\r\n", b"+OK\r\n", b"+\r\n",
    b"-ERR x\r\n", b"-\r\n", b"-MOVED 1 127.0.0.1:1\r\n", b"-MOVED x\r\n", b"-ASK 1 :0\r\n", b"-LOADING\r\n",
    b"-READONLY x\r\n", b"-NOPERM\r\n", b"-WRONGTYPE\r\n", b"-BUSY\r\n", b"-CLUSTERDOWN\r\n", b"#t\r\n", b"#f\r\n",
    b",1.5\r\n", b",inf\r\n", b",nan\r\n", b"(1\r\n", b"%0\r\n", b"%1\r\n", b"%1\r\n*0\r\n:1\r\n", b"~1\r\n*0\r\n",
    b">0\r\n", b">2\r\n$10\r\ninvalidate\r\n",
    b">2\r\n$10\r\ninvalidate\r\n_\r\n", b">2\r\n$10\r\ninvalidate\r\n:1\r\n",
    b">2\r\n$10\r\ninvalidate\r\n*1\r\n_\r\n", b">2\r\n$10\r\ninvalidate\r\n*1\r\n$15\r\nasynclock:0:job\r\n",
    b">1\r\n$10\r\ninvalidate\r\n", b"|1\r\n+a\r\n+b\r\n", b"=5\r\ntxt:x\r\n", b"*1\r\n" * 12, b"!5\r\nERR x\r\n",
)  # fmt: skip


def mutated(data: bytes, r: random.Random, others: list[bytes]) -> bytes:
    """``data``, changed a few times. Aggregates of more than ``MAX_ELEMENTS`` are left out: see ``test_hostile.py``."""
    changed = bytearray(data)
    for _ in range(r.choice((1, 1, 1, 2, 3))):
        at = r.randrange(len(changed) + 1)
        to = min(len(changed), at + r.choice((1, 1, 2, 4, 16)))
        match r.randrange(9):
            case 0 if at < len(changed):
                changed[at] ^= 1 << r.randrange(8)
            case 1 if at < len(changed):
                changed[at] = r.choice(b"*$+-:_#,(%~>|=!0123456789\r\n \x00\xff")
            case 2:
                del changed[at:to]
            case 3:
                changed[at:at] = r.choice(_PIECES)
            case 4:
                changed = bytearray(r.choice(_PIECES))
            case 5:
                changed[at:at] = changed[at:to]
            case 6:
                changed[at:to] = r.choice(others)
            case 7:
                changed = bytearray(r.choice(others))
            case _:
                del changed[at:]
    return _LENGTH.sub(
        lambda found: found[0] if int(found[0]) <= MAX_ELEMENTS else b"%d" % MAX_ELEMENTS, bytes(changed)
    )
