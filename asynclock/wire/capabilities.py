"""Finds out what a server can do, once for each connection.

Every command that a lock will need later is tried here, on a key that no lock can have (names are not empty), in a way
that changes nothing. So a missing permission shows when connecting, not when a lock is to be released.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from ..core.clock import ServerClock
from ..core.operations import RELEASE
from ..errors import ServerError
from ..options import Options
from . import noloop
from .commands import LOAD, TEMPORARY, Capabilities, Commands, bulk, is_error, packed, seconds_of
from .connector import Connector

log = logging.getLogger("asynclock")

Call = Callable[[bytes], Awaitable[Any]]  # ``Connection.call``

PXAT_SINCE = (6, 2)
IFEQ_SINCE = (8, 1)  # of Valkey
INFO = packed(b"INFO", b"server")
_TIME = packed(b"TIME")
NOLOOP_SINCE = (7, 0, 5)  # of Redis; before, own writes were pushed all the same now and then (redis/redis#11052)
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,2}")  # of a version
_NO_ANSWER = object()  # in place of a reply

# Errors of servers that know the command, but do not run it now, or not before a login.
_NOT_NOW = ("LOADING", "BUSY", "MASTERDOWN", "READONLY", "NOAUTH")


class Redirect(NamedTuple):
    """The connection that gets the invalidations, without RESP3."""

    id: int
    run_id: bytes | None  # of the server that it leads to; None: it does not tell


async def probe(
    connector: Connector,
    call: Call,
    options: Options,
    clock: ServerClock,
    now: Callable[[], float],
    *,
    uptime: bool = False,
    redirect: Redirect | None = None,
) -> Capabilities:
    """Ask a connected server what it is, switch tracking on, and try every command.

    :param clock: learns the server's time
    :param uptime: ask when it was started
    :param redirect: where invalidations go, without RESP3
    :raises ServerError: a permission is missing; the server is read-only, loading, or of an unknown kind
    """
    server, protocol = connector.label, connector.protocol
    sent = now()
    # Without RESP3 there may be no HELLO, or a proxy that closes the connection at it.
    who = "HELLO" if protocol == 3 else "INFO"
    told: Any = _NO_ANSWER
    time: Any = _NO_ANSWER
    received = sent
    report = noloop.EvictionReport()
    if not connector.plain:
        asked = [call(packed(b"HELLO") if who == "HELLO" else INFO), call(_TIME)]
        about_keys = [call(question) for question in noloop.QUESTIONS] if options.client_side_caching else []
        told, time = [await reply for reply in asked]
        received = now()
        if about_keys:
            report = noloop.parse_report([await reply for reply in about_keys])
        if who == "INFO" and is_error(told) and not is_error(hello := await call(packed(b"HELLO"))):
            who, told = "HELLO", hello  # INFO may need a permission that is missing, HELLO needs none
        for command, reply in ((who, told), ("TIME", time)):
            if _is_not_now(reply):
                raise refused(connector, command, reply)
    if is_error(told):
        told = _NO_ANSWER  # it does not tell what it is; what it can do is found out all the same
    try:
        about = {} if told is _NO_ANSWER else _about(told, protocol)
        if told is not _NO_ANSWER and not about:
            raise ValueError("nothing that is known")
        kind, mode, version = _identity(about, sure=who == "HELLO" and told is not _NO_ANSWER)
    except (AttributeError, KeyError, ValueError, TypeError, IndexError):
        raise ServerError(
            server, f"not a Redis or Valkey server: {who} answered {connector.redact(told)}", lasting=True
        ) from None
    if redirect is not None and None is not redirect.run_id != about.get(b"run_id", redirect.run_id):
        # There, the id would be some other client's. The next two connections may reach the same server again.
        raise ServerError(
            server,
            "two connections reached two servers; RESP2 needs an address that leads to one server, "
            "or client_side_caching=False",
        )
    if mode == "sentinel":
        raise ServerError(
            server,
            "is a Sentinel, which keeps no keys; say redis+sentinel://HOST:PORT,.../NAME, with the primary's name",
            lasting=True,
        )
    pxat = options.fallback_setpx is not True
    if time is _NO_ANSWER or is_error(time):
        if options.fallback_setpx is False:
            if time is not _NO_ANSWER:
                raise refused(connector, "TIME", time)
            raise ServerError(server, "hangs up at TIME, perhaps; leave fallback_setpx=False out", lasting=True)
        pxat = False  # nothing else needs the server's time
    else:
        try:
            clock.observe(sent, seconds_of(time), received)
        except ValueError:
            raise ServerError(server, f"answered TIME with {connector.redact(time)}", lasting=True) from None

    uptime = uptime and mode != "cluster"  # when a node comes back there, others have taken its keys over
    silent = options.no_loop_tracking
    if silent is None:
        silent = report.noloop_is_safe and (kind != "redis" or version >= NOLOOP_SINCE)
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
    if not pxat:
        del probes["SET PXAT"]
    if connector.plain:
        probes = {name: probes[name] for name in ("GET", "PTTL", "SET")}
    if options.client_side_caching:
        probes = {"CLIENT TRACKING": tracking_on(redirect, noloop=silent), **probes}
    if connector.client_name is not None and not connector.plain:  # may be refused
        probes["CLIENT SETNAME"] = packed(b"CLIENT", b"SETNAME", connector.client_name.encode())
    if options.min_replicas:
        probes["WAIT"] = packed(b"WAIT", b"0", b"1")  # for no replicas
    if uptime:
        probes["INFO"] = INFO
    replies = await _all(call, probes)
    started, run_id = _started(connector, replies["INFO"], now(), options) if uptime else (None, "")
    if mode == "cluster":
        # The key may be another node's: the command exists, and is allowed, but was not run.
        replies = {name: None if _elsewhere(reply) else reply for name, reply in replies.items()}

    for must in ("CLIENT TRACKING", "GET", "PTTL", "SET", "WAIT"):
        if is_error(replies.get(must)):
            raise refused(connector, must, replies[must])
    can = {name: not is_error(reply) for name, reply in replies.items()}
    if mode == "cluster":  # where the node may not have read the options of SET
        if "SET PXAT" in can:
            can["SET PXAT"] = can["SET PXAT"] and version >= PXAT_SINCE
        can["SET IFEQ"] = can.get("SET IFEQ", False) and kind == "valkey" and version >= IFEQ_SINCE
    for may in ("SET PXAT", "SET IFEQ", "DELIFEQ", "DELEX"):
        # "Unknown command" and "syntax error" answer the question. A missing permission does not.
        if not can.get(may, True) and str(replies[may]).startswith("NOPERM") and may != "DELEX":
            raise refused(connector, may, replies[may])
    if options.fallback_setpx is False and "SET PXAT" in can and not can["SET PXAT"]:
        raise ServerError(
            server,
            f"does not know SET ... PXAT ({connector.redact(replies['SET PXAT'])}); leave fallback_setpx=False out",
            lasting=True,
        )
    delete = next((name.encode() for name in ("DELIFEQ", "DELEX") if can.get(name)), b"EVAL")
    evalsha = False
    if delete == b"EVAL" or not can.get("SET IFEQ"):
        evalsha = await _scripts(connector, call, key, mode)
    connector.set_up_done()
    return Capabilities(
        server=kind,
        version=version,
        noloop=silent and options.client_side_caching,
        report=report,
        pxat=can.get("SET PXAT", False),
        set_ifeq=can.get("SET IFEQ", False),
        delete=delete,
        evalsha=evalsha,
        mode=mode,
        started=started,
        run_id=run_id,
    )


def tracking_on(redirect: Redirect | None, *, noloop: bool) -> bytes:
    """``CLIENT TRACKING ON``. On a connection that has it already, keys that are tracked stay so."""
    words = [b"CLIENT", b"TRACKING", b"ON"]
    if redirect is not None:
        words += [b"REDIRECT", b"%d" % redirect.id]
    return packed(*words, *([b"NOLOOP"] if noloop else []))


async def _scripts(connector: Connector, call: Call, key: bytes, mode: str) -> bool:
    """Load the scripts. True: they can be run by their digests, and need not be sent each time."""
    commands = Commands(Capabilities(evalsha=True))
    probes = {"EVAL": packed(b"EVAL", b"return redis.call('GET',KEYS[1])", b"1", key)}
    if not connector.plain:
        probes |= {f"SCRIPT LOAD {number}": load for number, load in enumerate(LOAD)}
        probes["EVALSHA"] = commands.packers[RELEASE](bulk(key), b"asynclock:probe", b"")
    replies = await _all(call, probes)
    if mode == "cluster":
        replies = {name: None if _elsewhere(reply) else reply for name, reply in replies.items()}
    if is_error(replies["EVAL"]):
        raise refused(connector, "EVAL", replies["EVAL"])
    return not connector.plain and not any(map(is_error, replies.values()))


def _started(connector: Connector, info: Any, now: float, options: Options) -> tuple[float | None, str]:
    """When that process was started, at the latest, on the client's clock; and what identifies it."""
    if is_error(info):
        if options.restart_quarantine is None:
            log.warning(
                "asynclock: %s does not tell how long it has been up (%s): grant INFO, or a restart that loses "
                "its keys is not guarded against (restart_quarantine)",
                connector.label,
                connector.redact(info),
            )
            return None, ""
        raise refused(connector, "INFO", info)
    about = _about(info, 2)
    try:
        # The server subtracts one time from another, both cut down to whole seconds.
        return now - max(0, int(about[b"uptime_in_seconds"]) - 1), about[b"run_id"].decode()
    except (KeyError, ValueError):
        raise ServerError(
            connector.label, "INFO does not tell uptime_in_seconds; say restart_quarantine=False"
        ) from None


def _elsewhere(reply: Any) -> bool:
    # The last of them: WAIT, on a replica.
    text = str(reply)
    return is_error(reply) and (
        text.startswith(("MOVED ", "ASK ", "CLUSTERDOWN", "TRYAGAIN")) or "with replica instances" in text
    )


def run_id(info: Any) -> bytes | None:
    """Identifies the process that has answered INFO; None: it does not tell."""
    try:
        return _about(info, 2).get(b"run_id")
    except (TypeError, ValueError):
        return None


def _about(told: Any, protocol: int) -> dict[bytes, bytes]:
    """The reply to HELLO or INFO: a map, a list of names and values in turn, or lines."""
    if isinstance(told, bytes):
        return dict(line.split(b":", 1) for line in told.splitlines() if b":" in line)
    if protocol == 3:
        return {bytes(key): value for key, value in told.items()}
    return dict(zip(told[::2], told[1::2], strict=True))


def _identity(about: dict[bytes, bytes], *, sure: bool) -> tuple[str, str, tuple[int, ...]]:
    """The kind of server, its mode, and its version, from the reply to HELLO or INFO. A proxy that answers INFO itself
    may leave some out, or use other names.

    :param sure: they must be there
    :raises KeyError, ValueError, AttributeError: they are not
    """
    kind = about.get(b"server", about.get(b"server_name", b"redis")).decode()
    mode = _first_of(about, b"mode", b"server_mode", b"redis_mode", default=None if sure else b"standalone").decode()
    number = _first_of(about, b"version", b"valkey_version", b"redis_version", default=None if sure else b"0")
    found = _NUMBER.match(number.decode())
    if found is None and sure:
        raise ValueError("no version")
    return kind, mode, tuple(int(part) for part in found[0].split(".")) if found is not None else (0,)


def _first_of(about: dict[bytes, bytes], *names: bytes, default: bytes | None) -> bytes:
    for name in names:
        if name in about:
            return about[name]
    if default is None:
        raise KeyError(names[0])
    return default


def _is_not_now(reply: Any) -> bool:
    """Is that an error which leaves open whether there is such a command, and whether it is allowed?"""
    return is_error(reply) and str(reply).split(" ", 1)[0] in _NOT_NOW


async def _all(call: Call, commands: dict[str, bytes]) -> dict[str, Any]:
    under_way = {name: call(command) for name, command in commands.items()}
    return {name: await reply for name, reply in under_way.items()}


def refused(connector: Connector, command: str, reply: Any) -> ServerError:
    """The error for a server that has answered ``command`` with ``reply`` while it was set up."""
    server, text = connector.label, connector.redact(reply)
    word = str(reply).split(" ", 1)[0]
    tracking = command in ("CLIENT TRACKING", "CLIENT ID", "SUBSCRIBE")  # the last two: RESP2 only
    if word == "NOPERM":
        hint = f"permission for {command} is missing; grant it with ACL SETUSER"
        if command == "SUBSCRIBE":
            hint += " (+subscribe &__redis__:invalidate)"
        if tracking:
            hint += ", or do without it: client_side_caching=False"
        return ServerError(server, f"{hint} ({text})", lasting=True)
    if word == "NOAUTH":
        return ServerError(server, f"authentication required: give a username and password ({text})", lasting=True)
    if word in ("READONLY", "MASTERDOWN"):
        # It passes: after a failover the address, or the Sentinels, lead to a primary in a moment. Nor are the keys
        # gone: that primary may have them.
        return ServerError(server, f"is a read-only replica; give the primary's address ({text})")
    if command == "CLIENT TRACKING" and "redirect" in str(reply):
        # The second connection was lost just now, or has reached another server.
        return ServerError(server, f"cannot track keys, the connection for invalidations is not there ({text})")
    if tracking:
        return ServerError(
            server,
            f"cannot track keys: refused {command} ({text}); "
            "asynclock needs Redis 6.0 or Valkey, or client_side_caching=False",
            lasting=True,
        )
    return ServerError(server, f"refused {command}: {text}", lasting=word not in TEMPORARY)
