"""Encodes the operations of a lease as commands, and turns error replies into errors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import hiredis

from ..core.operations import EXTEND, FORCE, KEEP, READ, RELEASE, TAKE, TAKE_TTL, Operation
from ..errors import ServerError

if TYPE_CHECKING:
    from .noloop import EvictionReport

OK: Final = b"OK"
MAX_TIME: Final = 1 << 42  # Unix seconds: a later time is a malformed reply

# Delete the key, or change its expiry, only if it still has our value: the scripts of the Redis documentation on
# distributed locks, for servers that have no command for it.
_DELETE = b"if redis.call('GET',KEYS[1])==ARGV[1] then return redis.call('DEL',KEYS[1]) end return 0"
_EXPIRE = b"if redis.call('GET',KEYS[1])==ARGV[1] then return redis.call(ARGV[2],KEYS[1],ARGV[3]) end return 0"

# If KEYS[1] still has our value, ARGV[1]: take a new number from the counter KEYS[2] (ARGV[2] is 0), or raise it to
# ARGV[2]. It expires in ARGV[3] ms. What is in the counter and is not a number is replaced. ('%.0f': Lua's own
# conversion keeps 14 digits, and a number has up to 16. 9007199254740991 is ``fencing.MAX_NUMBER``.)
COUNTED_UP = "ERR the counter is at its end"
_COUNT = b"""if redis.call('GET',KEYS[1])~=ARGV[1] then return 0 end
local last,n=tonumber(redis.pcall('GET',KEYS[2])) or 0,tonumber(ARGV[2])
if n==0 then local t=redis.call('TIME') n=math.max(t[1]*1000000+t[2],last+1) elseif last>=n then return last end
if n>9007199254740991 then return redis.error_reply('%b') end
redis.call('SET',KEYS[2],string.format('%%.0f',n),'PX',ARGV[3])
return n""" % COUNTED_UP.encode()
# ms that a counter is kept after its last change. After a day, the server's clock alone exceeds the last number, unless
# it was set back by that much.
COUNTER_LIFE = 86_400_000
MARKER_LIFE = 86_400_000  # ms that it stays known how many permits a semaphore has

# The errors by which Redis and Valkey refuse any command temporarily (processCommand in server.c, getNodeByQuery in
# cluster.c), so a retry may help. Others (NOPERM, an unknown command, ...) are raised to the caller.
TEMPORARY = (
    "ASK",
    "BUSY",  # a script or a module's command is running for too long
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",  # a replica that has lost its primary
    "MISCONF",  # it cannot write to its disk
    "MOVED",
    "NOREPLICAS",  # fewer than min-replicas-to-write
    "OOM",  # counts as temporary for 5 s (``MemoryShortage``)
    "READONLY",
    "REDIRECT",  # during a failover, to clients with that capability
    "TRYAGAIN",
)


def packed(*words: bytes) -> bytes:
    """A command in the Redis protocol."""
    return b"*%d\r\n" % len(words) + b"".join(map(bulk, words))


def split(commands: bytes) -> list[bytes]:
    """Split concatenated packed commands into single ones."""
    parts, start = [], 0
    while start < len(commands):
        end = commands.index(b"\r\n", start)
        at = end + 2
        for _ in range(int(commands[start + 1 : end])):
            end = commands.index(b"\r\n", at)
            at = end + 2 + int(commands[at + 1 : end]) + 2
        parts.append(commands[start:at])
        start = at
    return parts


def unbulk(key: bytes) -> bytes:
    """The name in a packed key."""
    return key[key.index(b"\r\n") + 2 : -2]


def key_text(key: bytes) -> str:
    """The name in a packed key, for people."""
    return unbulk(key).decode(errors="replace")


def bulk(word: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(word), word)


class Capabilities(NamedTuple):
    """What one server can do: the result of ``probe``."""

    noloop: bool = False  #: no pushes for this client's own writes, nor for what the server does while it runs them
    report: EvictionReport | None = None  #: whether it evicts keys; None: it was not asked
    pxat: bool = False  #: SET ... PXAT
    set_ifeq: bool = False  #: SET ... IFEQ
    delete: bytes = b"EVAL"  #: how to compare and delete: DELIFEQ, DELEX or EVAL
    evalsha: bool = False  #: the scripts are loaded, and can be run by digest
    mode: str = "standalone"  #: or "cluster", "sentinel"
    started: float | None = None  #: latest possible start, on the client's clock; None: unknown
    run_id: str = ""  #: identifies the server process; empty: unknown


class Commands:
    """Packs the operations for a server with these capabilities. Keys are packed ones: ``bulk(name)``."""

    __slots__ = ("_delete", "_expire", "facts", "names", "packers")

    def __init__(self, capabilities: Capabilities) -> None:
        self._expire, self._delete = (
            (_SHA_EXPIRE, _SHA_DELETE) if capabilities.evalsha else (_EVAL_EXPIRE, _EVAL_DELETE)
        )
        extend: Packer
        keep: Packer
        if capabilities.set_ifeq:
            extend, keep, move_name = _extend, _keep, "SET"
        else:
            extend, keep, move_name = self._extend_by_script, self._keep_by_script, "EVAL"
        release = _RELEASES.get(capabilities.delete, self._delete_by_script)
        table: dict[Operation, tuple[Packer, tuple[str, ...]]] = {
            TAKE: (_take, ("SET",)),
            TAKE_TTL: (_take_ttl, ("SET", "PTTL")),
            FORCE: (_force, ("SET", "GET")),
            EXTEND: (extend, (move_name, "GET")),
            READ: (_read, ("PTTL", "GET")),
            RELEASE: (release, (capabilities.delete.decode(),)),
            KEEP: (keep, (move_name,)),
        }
        #: For each operation, a function that packs it: (packed key, token, result of ``px`` or ``pxat``) -> bytes.
        self.packers = tuple(table[operation][0] for operation in Operation)
        #: The same, with what else is needed to send it: does it acquire, does it write, how many replies. One look-up
        #: in a tuple costs less than one attribute of an ``Operation``.
        self.facts = tuple(
            (table[operation][0], operation.acquires, operation.writes, operation.replies) for operation in Operation
        )
        #: For each operation, the names of its commands, one for each reply.
        self.names = tuple(table[operation][1] for operation in Operation)

    def _extend_by_script(self, key: bytes, token: bytes, expiry: bytes) -> bytes:
        return _join((self._keep_by_script(key, token, expiry), _GET, key))

    def _keep_by_script(self, key: bytes, token: bytes, expiry: bytes) -> bytes:
        how, _, when = expiry.partition(b"\r\n")[2].partition(b"\r\n")
        command = bulk(b"PEXPIREAT" if how == b"PXAT" else b"PEXPIRE")
        return _join((b"*7\r\n", self._expire, _ONE, key, bulk(token), command, when))

    def _delete_by_script(self, key: bytes, token: bytes, expiry: bytes) -> bytes:
        return _join((b"*5\r\n", self._delete, _ONE, key, bulk(token)))


Packer = Callable[[bytes, bytes, bytes], bytes]


def _by_digest(script: bytes) -> bytes:
    return b"$7\r\nEVALSHA\r\n" + bulk(hashlib.sha1(script, usedforsecurity=False).hexdigest().encode())


LOAD = tuple(packed(b"SCRIPT", b"LOAD", script) for script in (_DELETE, _EXPIRE))
_EVAL_DELETE, _EVAL_EXPIRE = (b"$4\r\nEVAL\r\n" + bulk(script) for script in (_DELETE, _EXPIRE))
_SHA_DELETE, _SHA_EXPIRE = map(_by_digest, (_DELETE, _EXPIRE))
_ONE: Final = b"$1\r\n1\r\n"
_join: Final = b"".join
_GET: Final = b"*2\r\n$3\r\nGET\r\n"


def _take(key: bytes, token: bytes, expiry: bytes) -> bytes:
    return b"*6\r\n$3\r\nSET\r\n%b$%d\r\n%b\r\n$2\r\nNX\r\n%b" % (key, len(token), token, expiry)


def _take_ttl(key: bytes, token: bytes, expiry: bytes) -> bytes:
    return b"%b*2\r\n$4\r\nPTTL\r\n%b" % (_take(key, token, expiry), key)


def _force(key: bytes, token: bytes, expiry: bytes) -> bytes:
    return _join((b"*5\r\n$3\r\nSET\r\n", key, bulk(token), expiry, _GET, key))


def _extend(key: bytes, token: bytes, expiry: bytes) -> bytes:
    value = bulk(token)
    return b"*7\r\n$3\r\nSET\r\n%b%b$4\r\nIFEQ\r\n%b%b%b%b" % (key, value, value, expiry, _GET, key)


def _keep(key: bytes, token: bytes, expiry: bytes) -> bytes:
    value = bulk(token)
    return b"*7\r\n$3\r\nSET\r\n%b%b$4\r\nIFEQ\r\n%b%b" % (key, value, value, expiry)


def _read(key: bytes, token: bytes, expiry: bytes) -> bytes:
    return b"*2\r\n$4\r\nPTTL\r\n%b*2\r\n$3\r\nGET\r\n%b" % (key, key)


def _delifeq(key: bytes, token: bytes, expiry: bytes) -> bytes:
    return b"*3\r\n$7\r\nDELIFEQ\r\n%b$%d\r\n%b\r\n" % (key, len(token), token)


def _delex(key: bytes, token: bytes, expiry: bytes) -> bytes:
    return b"*4\r\n$5\r\nDELEX\r\n%b$4\r\nIFEQ\r\n$%d\r\n%b\r\n" % (key, len(token), token)


_RELEASES: Final = {b"DELIFEQ": _delifeq, b"DELEX": _delex}


def count(key: bytes, token: bytes, counter: bytes, floor: int) -> bytes:
    """Ask the counter of a key for a number (``core.fencing``): always by the script itself, which is short. Its digest
    would need one more permission, and one more round trip on every server that has forgotten it."""
    life = b"%d" % COUNTER_LIFE
    return packed(b"EVAL", _COUNT, b"2", unbulk(key), counter, token, b"%d" % floor, life)


def times(keys: list[bytes], marker: bytes, marks: bytes) -> tuple[bytes, int]:
    """Read the time to live of many keys, and before that a ``marker`` (empty: none), which ``marks`` is written into
    (empty: nothing). Single commands, not a script: servers before 7.2 track all keys that a script is given each time
    it reads one. Returns how many replies there are, too."""
    commands = [b"*2\r\n$4\r\nPTTL\r\n$%d\r\n%b\r\n" % (len(key), key) for key in keys]
    if marker:
        before = [packed(b"GET", marker)]
        if marks:
            before.append(packed(b"SET", marker, marks, b"PX", b"%d" % MARKER_LIFE))
        commands[:0] = before
    return b"".join(commands), len(commands)


def px(milliseconds: int) -> bytes:
    """The expiry argument for a time to live."""
    return b"$2\r\nPX\r\n" + bulk(b"%d" % milliseconds)


def pxat(milliseconds: int) -> bytes:
    """The expiry argument for an absolute time on the server's clock, in Unix time."""
    return b"$4\r\nPXAT\r\n" + bulk(b"%d" % milliseconds)


def error_of(
    server: str, command: str, key: str, reply: Any, shown: str, *, temporary: bool = True
) -> ServerError | None:
    """The error to raise for an error reply; None: WRONGTYPE, which only means that the key has somebody else's value.

    :param shown: the reply, redacted
    :param temporary: False: a retry cannot help, although it may after other errors of this kind
    """
    if "WRONGTYPE" in str(reply):
        return None
    word = str(reply).split(" ", 1)[0]
    problem = f"refused {command} on key {key!r}: {shown}"
    if word in _REMEDIES:
        problem += f"; {_REMEDIES[word]}"
    return ServerError(server, problem, lasting=word not in TEMPORARY or not temporary)


_REMEDIES = {
    "NOPERM": "grant the user this command and this key (ACL SETUSER)",
    "OOM": "free memory, or raise maxmemory",
    "NOREPLICAS": "are its replicas up (min-replicas-to-write)?",
    "MISCONF": "can the server write to its disk?",
    "BUSY": "end the script that runs for too long (SCRIPT KILL)",
}


def seconds_of(time: Any) -> float:
    """The reply to TIME, in Unix seconds.

    :raises ValueError: it is not a time
    """
    if type(time) is list and len(time) == 2 and all(type(part) is bytes and part.isdigit() for part in time):
        seconds, microseconds = map(int, time)  # int raises ValueError above 4300 digits
        if seconds < MAX_TIME and microseconds < 1_000_000:
            return float(seconds + microseconds / 1e6)
    raise ValueError("not a time")


def cause_in_script(reply: Any) -> Any:
    """The error of the command that a script has called, where Redis before 7 wraps it in one of its own."""
    found = _IN_SCRIPT.search(str(reply))
    return reply if found is None else hiredis.ReplyError(found[1])


_IN_SCRIPT = re.compile(r"^ERR Error running script.*?: -([A-Z]+ .*)$", re.DOTALL)


def is_error(reply: Any) -> bool:
    return isinstance(reply, hiredis.ReplyError)
