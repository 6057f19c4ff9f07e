"""Probes what a server can do, once for each connection.

Every command that a lock will need later is tried here, on a key that no lock can have (names are not empty), in a way
that changes nothing. So a missing permission shows on connecting, not when a lock must be released.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from ..core.clock import ServerClock
from ..core.operations import RELEASE
from ..errors import ServerError
from ..messages import about
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
NOLOOP_SINCE = (7, 0, 5)  # of Redis; before, own writes were sometimes pushed all the same (redis/redis#11052)
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,2}")  # of a version
_NO_ANSWER = object()  # in place of a reply

# Errors by which a server refuses a command that it may well know: not now, or not before AUTH.
_NOT_NOW = ("LOADING", "BUSY", "MASTERDOWN", "READONLY", "NOAUTH")


class Redirect(NamedTuple):
    """The connection that receives the invalidations without RESP3."""

    id: int
    run_id: bytes | None  # of the server that it has reached; None: the server does not say


async def probe(
    connector: Connector,
    call: Call,
    options: Options,
    clock: Callable[[], float],
    server_clock: ServerClock,
    *,
    uptime: bool = False,
    redirect: Redirect | None = None,
) -> Capabilities:
    """Ask a connected server what it is, switch tracking on, and try every command.

    :param server_clock: receives the server's time
    :param uptime: also ask when the server was started
    :param redirect: the connection that receives the invalidations without RESP3
    :raises ServerError: a permission is missing; the server is read-only, loading, or of an unknown kind
    """
    server = connector.label
    first = await _first_answers(connector, call, options, clock)
    if redirect is not None and None not in (redirect.run_id, first.run_id) and redirect.run_id != first.run_id:
        # On that server, the id belongs to another client. (A retry may reach one server with both connections.)
        raise ServerError(
            server,
            "two connections reached two servers; RESP2 needs an address that leads to one server, "
            "or client_side_caching=False",
        )
    if first.mode == "sentinel":
        raise ServerError(
            server,
            "is a Sentinel, which keeps no keys; use redis+sentinel://HOST:PORT,.../NAME, with the primary's name",
            lasting=True,
        )
    time_is_known = _observe_time(connector, first, options, server_clock)
    use_noloop = options.no_loop_tracking
    if use_noloop is None:
        use_noloop = first.report.noloop_is_safe and (first.kind != "redis" or first.version >= NOLOOP_SINCE)
    uptime = uptime and first.mode != "cluster"  # there, another node has taken over the keys of a node that restarts

    key = f"{options.key_prefix}:0:".encode()
    probes = _probes(connector, options, key, pxat=time_is_known and options.fallback_setpx is not True)
    if options.client_side_caching:
        probes = {"CLIENT TRACKING": tracking_on(redirect, noloop=use_noloop), **probes}
    if uptime:
        probes["INFO"] = INFO
    replies = await _all(call, probes)
    started, run_id = _started(connector, replies["INFO"], clock(), options) if uptime else (None, "")
    can = _what_works(connector, options, first, replies)

    delete = next((name.encode() for name in ("DELIFEQ", "DELEX") if can.get(name)), b"EVAL")
    evalsha = False
    if delete == b"EVAL" or not can.get("SET IFEQ"):
        evalsha = await _scripts(connector, call, key, first.mode)
    connector.set_up_done()
    return Capabilities(
        noloop=use_noloop and options.client_side_caching,
        report=first.report,
        pxat=can.get("SET PXAT", False),
        set_ifeq=can.get("SET IFEQ", False),
        delete=delete,
        evalsha=evalsha,
        mode=first.mode,
        started=started,
        run_id=run_id,
    )


class _FirstAnswers(NamedTuple):
    """What a server says of itself."""

    kind: str  # "redis", "valkey", ...
    mode: str  # "standalone", "cluster", "sentinel"
    version: tuple[int, ...]
    run_id: bytes | None
    time: Any  # the reply to TIME, or _NO_ANSWER
    sent: float  # when TIME was sent
    received: float  # ... and when its reply was there
    report: noloop.EvictionReport


async def _first_answers(
    connector: Connector, call: Call, options: Options, clock: Callable[[], float]
) -> _FirstAnswers:
    """Ask who it is, what time it is, and whether it evicts keys.

    :raises ServerError: not now (it is loading, say), or it is no Redis or Valkey server
    """
    # Without RESP3 the server may not know HELLO, and some proxies close the connection at it.
    identify = "HELLO" if connector.protocol == 3 else "INFO"
    identity: Any = _NO_ANSWER
    time: Any = _NO_ANSWER
    sent = received = clock()
    report = noloop.EvictionReport()
    if not connector.plain:
        basics = [call(packed(b"HELLO") if identify == "HELLO" else INFO), call(_TIME)]
        eviction_replies = [call(question) for question in noloop.QUESTIONS] if options.client_side_caching else []
        identity, time = [await reply for reply in basics]
        received = clock()
        if eviction_replies:
            report = noloop.parse_report([await reply for reply in eviction_replies])
        if identify == "INFO" and is_error(identity) and not is_error(hello := await call(packed(b"HELLO"))):
            identify, identity = "HELLO", hello  # INFO may need a permission that is missing, HELLO needs none
        for command, reply in ((identify, identity), ("TIME", time)):
            if _is_not_now(reply):
                raise refused(connector, command, reply)
    if is_error(identity):
        identity = _NO_ANSWER  # the probes show what it can do
    try:
        fields = {} if identity is _NO_ANSWER else _fields(identity, connector.protocol)
        if identity is not _NO_ANSWER and not fields:
            raise ValueError("no fields")
        kind, mode, version = _identity(fields, sure=identify == "HELLO" and identity is not _NO_ANSWER)
    except (AttributeError, KeyError, ValueError, TypeError, IndexError):
        raise ServerError(
            connector.label,
            f"not a Redis or Valkey server: {identify} answered {connector.redact(identity)}",
            lasting=True,
        ) from None
    return _FirstAnswers(kind, mode, version, fields.get(b"run_id"), time, sent, received, report)


def _observe_time(connector: Connector, first: _FirstAnswers, options: Options, server_clock: ServerClock) -> bool:
    """Set ``server_clock``. False: the server does not tell its time, which only PXAT needs.

    :raises ServerError: the options ask for PXAT, and the time is unknown; or it is malformed
    """
    server, time = connector.label, first.time
    if time is _NO_ANSWER or is_error(time):
        if options.fallback_setpx is False:
            if time is not _NO_ANSWER:
                raise refused(connector, "TIME", time)
            raise ServerError(server, "may close the connection at TIME; leave fallback_setpx=False out", lasting=True)
        return False
    try:
        server_clock.observe(first.sent, seconds_of(time), first.received)
    except ValueError:
        raise ServerError(server, f"answered TIME with {connector.redact(time)}", lasting=True) from None
    return True


def _probes(connector: Connector, options: Options, key: bytes, *, pxat: bool) -> dict[str, bytes]:
    """Every command that a lock may need, by name: on a key that does not exist, so that nothing changes."""
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
    if not connector.plain:
        probes |= connector.introduction
    if options.min_replicas:
        probes["WAIT"] = packed(b"WAIT", b"0", b"1")  # for 0 replicas: returns at once
    return probes


def _what_works(
    connector: Connector, options: Options, first: _FirstAnswers, replies: dict[str, Any]
) -> dict[str, bool]:
    """For each probe that was sent, whether the command works.

    :raises ServerError: a lock needs one that does not, or a permission is missing
    """
    cluster = first.mode == "cluster"
    if cluster:
        # Another node may own the key: then the command exists and is allowed, but was not run.
        replies = {name: None if _elsewhere(reply) else reply for name, reply in replies.items()}
    for must in ("CLIENT TRACKING", "GET", "PTTL", "SET", "WAIT"):
        if is_error(replies.get(must)):
            raise refused(connector, must, replies[must])
    can = {name: not is_error(reply) for name, reply in replies.items()}
    if cluster:  # a node may redirect a SET before it parses the options: go by the version
        if "SET PXAT" in can:
            can["SET PXAT"] = can["SET PXAT"] and first.version >= PXAT_SINCE
        can["SET IFEQ"] = can.get("SET IFEQ", False) and first.kind == "valkey" and first.version >= IFEQ_SINCE
    for may in ("SET PXAT", "SET IFEQ", "DELIFEQ", "DELEX"):
        # "Unknown command" and "syntax error" mean that the server cannot do it. NOPERM leaves that open.
        if not can.get(may, True) and str(replies[may]).startswith("NOPERM") and may != "DELEX":
            raise refused(connector, may, replies[may])
    if options.fallback_setpx is False and "SET PXAT" in can and not can["SET PXAT"]:
        raise ServerError(
            connector.label,
            f"does not know SET ... PXAT ({connector.redact(replies['SET PXAT'])}); leave fallback_setpx=False out",
            lasting=True,
        )
    return can


def tracking_on(redirect: Redirect | None, *, noloop: bool) -> bytes:
    """``CLIENT TRACKING ON``. On a connection where it is on already, tracked keys stay tracked."""
    words = [b"CLIENT", b"TRACKING", b"ON"]
    if redirect is not None:
        words += [b"REDIRECT", b"%d" % redirect.id]
    return packed(*words, *([b"NOLOOP"] if noloop else []))


async def _scripts(connector: Connector, call: Call, key: bytes, mode: str) -> bool:
    """Load the scripts. True: they can be run by digest, without sending them each time."""
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
    """The latest time at which that server process was started, on the client's clock; and its run_id."""
    if is_error(info):
        if options.restart_quarantine is None:
            log.warning(
                "asynclock: %s does not say when it was started (%s), so a restart that loses its keys goes "
                "unnoticed: grant INFO, or set restart_quarantine",
                connector.label,
                connector.redact(info),
                extra=about("start_unknown", server=connector.label),
            )
            return None, ""
        raise refused(connector, "INFO", info)
    fields = _fields(info, 2)
    try:
        # The server subtracts two times that are truncated to whole seconds: up to 1 s too much.
        return now - max(0, int(fields[b"uptime_in_seconds"]) - 1), fields[b"run_id"].decode()
    except (KeyError, ValueError):
        raise ServerError(connector.label, "INFO has no uptime_in_seconds; set restart_quarantine=False") from None


def _elsewhere(reply: Any) -> bool:
    # "with replica instances" is the error of WAIT on a replica.
    text = str(reply)
    return is_error(reply) and (
        text.startswith(("MOVED ", "ASK ", "CLUSTERDOWN", "TRYAGAIN")) or "with replica instances" in text
    )


def run_id(info: Any) -> bytes | None:
    """The run_id of the server process, from the reply to INFO; None: there is none."""
    try:
        return _fields(info, 2).get(b"run_id")
    except (TypeError, ValueError):
        return None


def _fields(reply: Any, protocol: int) -> dict[bytes, bytes]:
    """The fields in the reply to HELLO or INFO: a map, a flat list of names and values, or lines."""
    if isinstance(reply, bytes):
        return dict(line.split(b":", 1) for line in reply.splitlines() if b":" in line)
    if protocol == 3:
        return {bytes(key): value for key, value in reply.items()}
    return dict(zip(reply[::2], reply[1::2], strict=True))


def _identity(fields: dict[bytes, bytes], *, sure: bool) -> tuple[str, str, tuple[int, ...]]:
    """The kind of server, its mode, and its version, from the reply to HELLO or INFO. A proxy that answers INFO itself
    may omit fields, or use other names.

    :param sure: the fields are mandatory
    :raises KeyError, ValueError, AttributeError: one is missing
    """
    kind = fields.get(b"server", fields.get(b"server_name", b"redis")).decode()
    mode = _first_of(fields, b"mode", b"server_mode", b"redis_mode", default=None if sure else b"standalone").decode()
    number = _first_of(fields, b"version", b"valkey_version", b"redis_version", default=None if sure else b"0")
    found = _NUMBER.match(number.decode())
    if found is None and sure:
        raise ValueError("no version")
    return kind, mode, tuple(int(part) for part in found[0].split(".")) if found is not None else (0,)


def _first_of(fields: dict[bytes, bytes], *names: bytes, default: bytes | None) -> bytes:
    for name in names:
        if name in fields:
            return fields[name]
    if default is None:
        raise KeyError(names[0])
    return default


def _is_not_now(reply: Any) -> bool:
    """Is it an error that leaves open whether the server knows the command, and whether this user may run it?"""
    return is_error(reply) and str(reply).split(" ", 1)[0] in _NOT_NOW


async def _all(call: Call, commands: dict[str, bytes]) -> dict[str, Any]:
    calls = {name: call(command) for name, command in commands.items()}
    return {name: await reply for name, reply in calls.items()}


def refused(connector: Connector, command: str, reply: Any) -> ServerError:
    """The error for a server that answered ``command`` with the error ``reply`` during setup."""
    server, text = connector.label, connector.redact(reply)
    word = str(reply).split(" ", 1)[0]
    tracking = command in ("CLIENT TRACKING", "CLIENT ID", "SUBSCRIBE")  # the last two: RESP2 only
    if word == "NOPERM":
        hint = f"permission for {command} is missing; grant it with ACL SETUSER"
        if command == "SUBSCRIBE":
            hint += " (+subscribe &__redis__:invalidate)"
        if tracking:
            hint += ", or set client_side_caching=False"
        return ServerError(server, f"{hint} ({text})", lasting=True)
    if word == "NOAUTH":
        return ServerError(server, f"authentication required: give a username and password ({text})", lasting=True)
    if word in ("READONLY", "MASTERDOWN"):
        # Temporary (not ``lasting``): soon after a failover, the address or the Sentinels lead to the new primary. And
        # no GoneError: that primary may have the keys.
        return ServerError(server, f"is a read-only replica; give the primary's address ({text})")
    if command == "CLIENT TRACKING" and "redirect" in str(reply):
        # The second connection was just lost, or has reached another server.
        return ServerError(server, f"cannot track keys: it does not know the connection for invalidations ({text})")
    if tracking:
        return ServerError(
            server,
            f"cannot track keys: refused {command} ({text}); "
            "asynclock needs Redis 6.0 or Valkey, or client_side_caching=False",
            lasting=True,
        )
    return ServerError(server, f"refused {command}: {text}", lasting=word not in TEMPORARY)
