"""URLs of servers, read strictly. redis-py guesses: a database that is no number is 0, port 0 is 6379, what comes after
``#`` is dropped. Locks would be kept where nobody looks for them, so here all of that is refused.

No message shows anything of a URL but the names of options: where it is wrong, parts of a password may be anywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from urllib.parse import unquote_to_bytes

from ..errors import ConfigurationError

# What redis-py calls each.
PLAIN = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss", "unix": "unix"}

DATABASE = re.compile(r"([0-9]+/?)?", re.ASCII)
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+(?:%[^\]]+)?\]|(?P<host>[^:\[\]@]*))(?::(?P<port>[0-9]*))?", re.ASCII)
_NAME = re.compile(r"[a-z_]{1,40}")

_YES, _NO = ("1", "t", "true", "y", "yes"), ("0", "f", "false", "n", "no")
_FLAGS = ("socket_keepalive", "retry_on_timeout", "ssl_check_hostname", "legacy_responses")
_TRUE = ("decode_responses",)  # for redis-py, every text is true
_SECONDS = ("socket_timeout", "socket_connect_timeout")
_OBJECTS = (
    "connection_pool",
    "credential_provider",
    "driver_info",
    "encoder_class",
    "event_dispatcher",
    "maint_notifications_config",
    "parser_class",
    "redis_connect_func",
    "retry",
    "retry_on_error",
    "socket_keepalive_options",
    "socket_type",
)


def checked(url: str) -> str:
    """The URL, as redis-py reads it.

    :raises ConfigurationError: it is none, or redis-py would read it in another way than it is meant
    """
    url = url.strip()
    scheme, _, rest = url.partition("://")
    plain = PLAIN.get(scheme.lower())
    if plain is None or "://" not in url:
        raise wrong("it starts with none of these")
    check_characters(rest)
    place, _, query = rest.partition("?")
    authority, _, path = place.partition("/")
    userinfo, _, host = authority.rpartition("@")
    if "@" in query or (plain != "unix" and "@" in path):
        raise wrong("a special character in user name or password is not percent-encoded")
    decoded(userinfo)
    if plain == "unix":
        if host:
            raise wrong("before the path of a socket there is something else; it is unix:///path")
        decoded(path)
        check_options(query, said=("path",))
        return f"unix://{place}" + (query and f"?{query}")
    found = _HOST.fullmatch(host)
    if found is None:
        raise wrong("where host:port should be, there is something else (IPv6 addresses are in brackets)")
    check_host(decoded(found["host"] or ""))
    if found["port"] and not 0 < int(found["port"]) < 65536:
        raise wrong("the port is not between 1 and 65535")
    if not DATABASE.fullmatch(path):
        raise wrong("the database is not a number")
    said = [*(["host"] if host else []), *(["port"] if found["port"] else []), *(["db"] if path.strip("/") else [])]
    check_options(query, said=said)
    return f"{plain}://{place}" + (query and f"?{query}")


def check_characters(rest: str) -> None:
    """:raises ConfigurationError: something in there would be dropped"""
    if "#" in rest:
        raise wrong("there is a '#', which is %23 in user name and password, and means nothing elsewhere")
    if any(character.isspace() or not character.isprintable() for character in rest):
        raise wrong("there is white space, or what cannot be printed")


def check_host(host: str) -> None:
    """:raises ConfigurationError: there can be no such host"""
    try:
        host.encode("idna")
    except UnicodeError:
        raise wrong("the host's name is none") from None
    if re.search(r"[\s,;/\\]", host):
        raise wrong("the host's name has a character that names do not have (several servers are a list of URLs)")


def check_options(query: str, said: Collection[str]) -> None:
    """:param said: what the URL says before them
    :raises ConfigurationError: an option would be ignored, or misread
    """
    known = set(said)
    for option in filter(None, query.split("&")):
        name, _, value = option.partition("=")
        shown = f"the option {name}" if _NAME.fullmatch(name) else "an option"
        if not value:
            raise wrong(f"{shown} has no value")
        if name in known:
            raise wrong(f"{shown} is there twice, or is said before the options as well")
        known.add(name)
        value = decoded(value.replace("+", " "))
        if name in _OBJECTS:
            raise wrong(f"{shown} can be no text; give a client of redis.asyncio")
        if name == "db" and not re.fullmatch(r"[0-9]+", value, re.ASCII):
            raise wrong("the database is not a number")
        if name in _FLAGS and value.lower() not in (*_YES, *_NO):
            raise wrong(f"{shown} is neither true nor false")
        if name in _TRUE and value.lower() not in _YES:
            raise wrong(f"{shown} would be read as true, whatever it is; leave it out")
        if name in _SECONDS and not _is_time(value):
            raise wrong(f"{shown} is no number of seconds, more than 0")


def _is_time(value: str) -> bool:
    try:
        return 0 < float(value) < math.inf
    except ValueError:
        return False


def decoded(text: str) -> str:
    """What is percent-encoded in there. :raises ConfigurationError: it is not text"""
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeError:
        raise wrong("what is percent-encoded there is not UTF-8") from None


def wrong(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"servers: not a server's URL: {what}. It is redis://, rediss:// (valkey://, valkeys://) and "
        "[user:password@]host:port/database, unix:///path, or "
        "redis+sentinel://[user:password@]host:port,host:port/name; special characters are percent-encoded"
    )
