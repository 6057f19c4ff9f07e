"""The operations by their names. To look one up in its class takes as long as a call, in either build."""

from __future__ import annotations

from typing import Final

from .operation import Operation as Operation

TAKE: Final = Operation.TAKE
TAKE_TTL: Final = Operation.TAKE_TTL
FORCE: Final = Operation.FORCE
EXTEND: Final = Operation.EXTEND
READ: Final = Operation.READ
RELEASE: Final = Operation.RELEASE
KEEP: Final = Operation.KEEP
