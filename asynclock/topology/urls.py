"""Checks the URLs of servers strictly, where redis-py guesses: to it, a database that is not a number is 0, port 0 is
6379, and everything after ``#`` is dropped. Then a process would lock on another server or database than the others.

Messages quote nothing of a URL but the names of options: in a malformed URL, any part may belong to a password.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from urllib.parse import unquote_to_bytes

from ..errors import ConfigurationError

# redis-py's name for each scheme.
PLAIN = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss", "unix": "unix"}

DATABASE = re.compile(r"([0-9]+/?)?", re.ASCII)
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+(?:%[^\]]+)?\]|(?P<host>[^:\[\]@]*))(?::(?P<port>[0-9]*))?", re.ASCII)
_NAME = re.compile(r"[a-z_]{1,40}")

_YES, _NO = ("1", "t", "true", "y", "yes"), ("0", "f", "false", "n", "no")
_FLAGS = ("socket_keepalive", "retry_on_timeout", "ssl_check_hostname", "legacy_responses")
_TRUE = ("decode_responses",)  # redis-py takes any text for true, "false" too
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
    """The URL, with the scheme that redis-py knows.

    :raises ConfigurationError: it is malformed, or redis-py would not read it as it is meant
    """
    url = url.strip()
    scheme, _, rest = url.partition("://")
    plain = PLAIN.get(scheme.lower())
    if plain is None or "://" not in url:
        raise wrong("its scheme is unknown")
    check_characters(rest)
    place, _, query = rest.partition("?")
    authority, _, path = place.partition("/")
    userinfo, _, host = authority.rpartition("@")
    if "@" in query or (plain != "unix" and "@" in path):
        raise wrong("a special character in user name or password is not percent-encoded")
    decoded(userinfo)
    if plain == "unix":
        if host:
            raise wrong("there is a host before the path of a socket; write unix:///path")
        decoded(path)
        check_options(query, given=("path",))
        return f"unix://{place}" + (query and f"?{query}")
    found = _HOST.fullmatch(host)
    if found is None:
        raise wrong("host:port is malformed (put IPv6 addresses in brackets)")
    check_host(decoded(found["host"] or ""))
    if found["port"] and not 0 < int(found["port"]) < 65536:
        raise wrong("the port is not between 1 and 65535")
    if not DATABASE.fullmatch(path):
        raise wrong("the database is not a number")
    given = [*(["host"] if host else []), *(["port"] if found["port"] else []), *(["db"] if path.strip("/") else [])]
    check_options(query, given=given)
    return f"{plain}://{place}" + (query and f"?{query}")


def check_characters(rest: str) -> None:
    """:raises ConfigurationError: redis-py would drop a part of it"""
    if "#" in rest:
        raise wrong("there is a '#'; write it as %23 in user name and password, and leave it out elsewhere")
    if any(character.isspace() or not character.isprintable() for character in rest):
        raise wrong("there is white space, or an unprintable character")


def check_host(host: str) -> None:
    """:raises ConfigurationError: it is not a valid host"""
    try:
        host.encode("idna")
    except UnicodeError:
        raise wrong("the host name is not valid") from None
    if re.search(r"[\s,;/\\]", host):
        raise wrong("the host name has a character that is not allowed (for several servers, give a list of URLs)")


def check_options(query: str, given: Collection[str]) -> None:
    """:param given: options that the URL has given before the ``?``
    :raises ConfigurationError: redis-py would ignore an option, or misread it
    """
    known = set(given)
    for option in filter(None, query.split("&")):
        name, _, value = option.partition("=")
        shown = f"the option {name}" if _NAME.fullmatch(name) else "an option"
        if not value:
            raise wrong(f"{shown} has no value")
        if name in known:
            raise wrong(f"{shown} is given twice, or was already given before the '?'")
        known.add(name)
        value = decoded(value.replace("+", " "))
        if name in _OBJECTS:
            raise wrong(f"{shown} cannot be given as text; give a redis.asyncio client instead of a URL")
        if name == "db" and not re.fullmatch(r"[0-9]+", value, re.ASCII):
            raise wrong("the database is not a number")
        if name in _FLAGS and value.lower() not in (*_YES, *_NO):
            raise wrong(f"{shown} is neither true nor false")
        if name in _TRUE and value.lower() not in _YES:
            raise wrong(f"{shown} would be read as true, whatever it is; leave it out")
        if name in _SECONDS and not _is_time(value):
            raise wrong(f"{shown} is not a number of seconds, more than 0")


def _is_time(value: str) -> bool:
    try:
        return 0 < float(value) < math.inf
    except ValueError:
        return False


def decoded(text: str) -> str:
    """The text without its percent-encoding. :raises ConfigurationError: it is not UTF-8"""
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeError:
        raise wrong("what is percent-encoded there is not UTF-8") from None


def wrong(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"servers: not a valid URL: {what}. Valid are redis://, rediss:// (or valkey://, valkeys://) with "
        "[user:password@]host:port/database, unix:///path, and "
        "redis+sentinel://[user:password@]host:port,host:port/name; percent-encode special characters"
    )
