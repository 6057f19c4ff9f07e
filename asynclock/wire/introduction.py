"""How a connection introduces itself, for people who look at ``CLIENT LIST``."""

from __future__ import annotations

import redis

from .. import _version
from .commands import packed

_ABOUT_US = (  # in the form that Redis wants from libraries that are built on a client library
    packed(b"CLIENT", b"SETINFO", b"lib-name", f"redis-py(asynclock_v{_version.__version__})".encode()),
    packed(b"CLIENT", b"SETINFO", b"lib-ver", str(getattr(redis, "__version__", "unknown")).encode()),
)


def introduction(owner: str | None) -> dict[str, bytes]:
    """Commands to send on a new connection, by name. Errors do not matter: old servers do not know SETINFO, and a user
    may lack the permission.

    :param owner: part of the connection's name; None: the user of asynclock has set ``client_name``
    """
    commands = {f"CLIENT SETINFO {number}": command for number, command in enumerate(_ABOUT_US)}
    if owner is not None:
        commands["CLIENT SETNAME"] = packed(b"CLIENT", b"SETNAME", client_name(owner).encode())
    return commands


def client_name(owner: str) -> str:
    """What a connection is called. Servers accept no spaces in it, and nothing beyond ASCII."""
    name = f"asynclock-{_version.__version__}"
    if not owner:
        return name
    return f"{name}:" + "".join(letter if "!" <= letter <= "~" else "_" for letter in owner)
