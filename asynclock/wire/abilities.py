"""What a server can do: asked once for each connection, kept in one table.

Everything that a lock will need later is tried here, on a key that no lock can have (names are not
empty), in ways that change nothing. So a missing permission shows at connect, not at the release.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ..core.clock import ServerClock
from ..errors import ServerError, UncertainError
from ..options import Options
from .commands import Abilities, is_error, packed

log = logging.getLogger("asynclock")

Ask = Callable[[bytes], Awaitable[Any]]

PXAT_SINCE = (6, 2)
IFEQ_SINCE = (8, 1)  # of Valkey
NOLOOP_SINCE = (7, 0, 5)  # before it, redis/redis#11052: NOLOOP did not keep own writes silent reliably


async def learn(
    server: str,
    ask: Ask,
    options: Options,
    clock: ServerClock,
    now: Callable[[], float],
    client_name: str | None,
    *,
    uptime: bool = False,
) -> Abilities:
    """Ask a connected server what it is, switch tracking on, and try every command.

    :raises ServerError: a permission is missing, the server is read-only, loading, or of a kind
        that this version does not know
    """
    sent = now()
    asked = [ask(packed(b"HELLO")), ask(packed(b"TIME"))]
    hello, time = [await reply for reply in asked]
    for command, reply in (("HELLO", hello), ("TIME", time)):
        if is_error(reply):
            raise _refused(server, command, reply)
    try:
        about = {bytes(key): value for key, value in hello.items()}
        kind, mode = about[b"server"].decode(), about[b"mode"].decode()
        version = tuple(int(part) for part in about[b"version"].decode().split(".")[:3])
        clock.observe(sent, int(time[0]) + int(time[1]) / 1e6)
    except (AttributeError, KeyError, ValueError, TypeError, IndexError):
        raise ServerError(
            server, f"not a Redis or Valkey server: HELLO answered {hello!r:.200}", lasting=True
        ) from None
    if mode == "sentinel":
        raise ServerError(
            server,
            "is a Sentinel, which keeps no keys; say redis+sentinel://HOST:PORT,.../NAME, with the primary's name",
            lasting=True,
        )

    noloop = options.no_loop_tracking
    if noloop is None:
        noloop = kind != "redis" or version >= NOLOOP_SINCE
    key = f"{options.key_prefix}:0:".encode()
    value = b"asynclock:probe"
    probes: dict[str, bytes] = {
        "GET": packed(b"GET", key),
        "PTTL": packed(b"PTTL", key),
        "SET": packed(b"SET", key, value, b"XX", b"PX", b"1"),
        "SET PXAT": packed(b"SET", key, value, b"XX", b"PXAT", b"1"),
        "SET IFEQ": packed(b"SET", key, value, b"IFEQ", value, b"PX", b"1"),
        "DELIFEQ": packed(b"DELIFEQ", key, value),
        "DELEX": packed(b"DELEX", key, b"IFEQ", value),
    }
    if options.fallback_setpx is True:
        del probes["SET PXAT"]  # not even to try it
    if options.client_side_caching:
        tracking = [b"CLIENT", b"TRACKING", b"ON", *([b"NOLOOP"] if noloop else [])]
        probes = {"CLIENT TRACKING": packed(*tracking), **probes}
    if client_name is not None:
        probes["CLIENT SETNAME"] = packed(b"CLIENT", b"SETNAME", client_name.encode())  # a courtesy, may be refused
    if uptime:
        probes["INFO"] = packed(b"INFO", b"server")
    replies = await _all(ask, probes)
    started, run_id = _started(server, replies["INFO"], now(), options) if uptime else (None, "")
    if mode == "cluster":
        # The key is another node's, perhaps: the command exists, and is allowed, but was not tried.
        replies = {name: None if _elsewhere(reply) else reply for name, reply in replies.items()}

    for must in ("CLIENT TRACKING", "GET", "PTTL", "SET"):
        if is_error(replies.get(must)):
            raise _refused(server, must, replies[must])
    can = {name: not is_error(reply) for name, reply in replies.items()}
    if mode == "cluster":  # options of SET that were perhaps not looked at
        can["SET PXAT"] = can["SET PXAT"] and version >= PXAT_SINCE
        can["SET IFEQ"] = can["SET IFEQ"] and kind == "valkey" and version >= IFEQ_SINCE
    for may in ("SET PXAT", "SET IFEQ", "DELIFEQ", "DELEX"):
        # "unknown command" and "syntax error" are answers; a missing permission is not.
        if not can.get(may, True) and str(replies[may]).startswith("NOPERM") and may != "DELEX":
            raise _refused(server, may, replies[may])
    delete = b"DELIFEQ" if can["DELIFEQ"] else b"DELEX" if can["DELEX"] else b"EVAL"
    if delete == b"EVAL" or not can["SET IFEQ"]:
        script = packed(b"EVAL", b"return redis.call('GET',KEYS[1])", b"1", key)
        for command, reply in (await _all(ask, {"EVAL": script})).items():
            if is_error(reply) and not (mode == "cluster" and _elsewhere(reply)):
                raise _refused(server, command, reply)
    return Abilities(
        server=kind,
        version=version,
        noloop=noloop,
        pxat=can.get("SET PXAT", False),
        set_ifeq=can["SET IFEQ"],
        delete=delete,
        mode=mode,
        started=started,
        run_id=run_id,
    )


def _started(server: str, info: Any, now: float, options: Options) -> tuple[float | None, str]:
    """When that process was started, on the client's clock and at the latest; and what identifies it."""
    if is_error(info):
        if options.restart_quarantine is None:
            log.warning(
                "asynclock: %s does not tell how long it has been up (%s): grant INFO, or a restart that loses "
                "its keys is not guarded against (restart_quarantine)",
                server,
                info,
            )
            return None, ""
        raise _refused(server, "INFO", info)
    about = dict(line.split(b":", 1) for line in bytes(info).splitlines() if b":" in line)
    try:
        # Whole seconds, the rest cut off at both ends of what is subtracted.
        return now - max(0, int(about[b"uptime_in_seconds"]) - 1), about[b"run_id"].decode()
    except (KeyError, ValueError):
        raise ServerError(server, "INFO does not tell uptime_in_seconds; say restart_quarantine=False") from None


def _elsewhere(reply: Any) -> bool:
    return is_error(reply) and str(reply).startswith(("MOVED ", "ASK ", "CLUSTERDOWN", "TRYAGAIN"))


async def _all(ask: Ask, commands: dict[str, bytes]) -> dict[str, Any]:
    under_way = {name: ask(command) for name, command in commands.items()}
    return {name: await reply for name, reply in under_way.items()}


def _refused(server: str, command: str, reply: Any) -> ServerError:
    text = str(reply)
    word = text.split(" ", 1)[0]
    if word == "NOPERM":
        hint = f"permission for {command} is missing; grant it with ACL SETUSER"
        if command == "CLIENT TRACKING":
            hint += ", or do without it: client_side_caching=False"
        return ServerError(server, f"{hint} ({text})", lasting=True)
    if word == "NOAUTH":
        return ServerError(server, f"authentication required: give a username and password ({text})", lasting=True)
    if word == "READONLY":
        # Not for good: behind one address, a failover goes on to a primary.
        return UncertainError(server, f"is a read-only replica; give the primary's address ({text})")
    if command == "CLIENT TRACKING":
        return ServerError(
            server, f"cannot track keys ({text}); asynclock needs Redis 6.0, or client_side_caching=False", lasting=True
        )
    return ServerError(server, f"refused {command}: {text}", lasting=word not in ("LOADING", "BUSY", "MASTERDOWN"))
