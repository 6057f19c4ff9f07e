"""Sending: what every request needs of a session."""

from __future__ import annotations

from ..core.native import mypyc_attr
from .commands import Commands
from .connection import Connection
from .expiry import ExpiryClock


@mypyc_attr(allow_interpreted_subclasses=True)
class Sending:
    """The part of a ``Session`` that can be compiled, since each request looks at it.

    ``commands`` follows from what the server can do, and only ``Session.change`` changes it.
    """

    def __init__(self, connection: Connection, commands: Commands, expiry: ExpiryClock) -> None:
        self.connection = connection
        self.commands = commands
        self.expiry = expiry
