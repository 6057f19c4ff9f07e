"""Servers behind Sentinels: parses their URLs, and checks every second that each server is still the primary."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from urllib.parse import unquote

import redis.asyncio as redis
from redis.asyncio.connection import SSLConnection
from redis.asyncio.sentinel import Sentinel

from ..errors import ConfigurationError
from ..wire import tls
from ..wire.background import Loop
from ..wire.node import Node
from ..wire.sentinel import ANSWER_TIMEOUT, SentinelConnector
from . import urls
from .base import Address
from .fixed import Fixed

log = logging.getLogger("asynclock")

SCHEMES = ("redis+sentinel", "rediss+sentinel", "valkey+sentinel", "valkeys+sentinel")
DEFAULT_PORT = 26379
CHECK_EVERY = 1.0  # seconds between two checks, while connected

_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[^\]]+)?)\]|(?P<host>[^:\[\]@\s]+))(?::(?P<port>[0-9]+))?")
_FORM = "redis+sentinel://[user:password@]host:port,host:port/name of the primary[/database][?options]"


class Monitored(Fixed):
    """Fixed servers, some of them behind Sentinels. An old primary that is cut off from its Sentinels may stay up long
    after the new one has taken over, so its connection is dropped as soon as the Sentinels name another primary."""

    def __init__(self, nodes: Sequence[Node], majority: int | None) -> None:
        super().__init__(nodes, majority)
        self.refreshing = Loop("asynclock asking the Sentinels", self._check_primaries)
        self.refreshing.start(CHECK_EVERY)

    async def _check_primaries(self) -> float:
        for node in self.nodes:
            if isinstance(node.connector, SentinelConnector) and node.connection is not None:
                primary = await node.connector.replaced()
                if primary is not None:
                    node.demoted(f"the Sentinels name {primary} the primary now")
        return CHECK_EVERY

    def drop(self) -> bool:
        return any([self.refreshing.drop(), super().drop()])

    async def aclose(self) -> None:
        await self.refreshing.aclose()
        await super().aclose()


def is_sentinel_url(server: str) -> bool:
    return server.partition("://")[0].lower() in SCHEMES


def client_of(url: str) -> tuple[redis.Redis, Sentinel]:
    """A redis-py client for the primary that the URL names, and its Sentinels.

    :raises ConfigurationError: the URL is wrong. The message quotes nothing of it: in a malformed URL, any part may
        belong to a password.
    """
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.strip().partition("?")
    authority, *path = rest.split("/")
    userinfo, at, hosts = authority.rpartition("@")
    sentinels = [_address(text, position) for position, text in enumerate(hosts.split(","), 1)]
    name = unquote(path[0]) if path else ""
    if not name:
        raise _wrong("the name of the primary is missing")
    if re.search(r"[@:\s]", path[0]):
        raise _wrong("the name of the primary, or a password before it, contains what must be percent-encoded")
    database = "/".join(path[1:])
    if not urls.DATABASE.fullmatch(database):
        raise _wrong("the database after the primary's name is not a number")
    urls.check_characters(f"{rest}?{query}")
    if "@" in query:
        raise _wrong("a special character in user name or password is not percent-encoded")
    for text in (userinfo, *path):
        urls.decoded(text)
    urls.check_options(query, given=["host", "port", *(["db"] if database else [])])
    plain = f"{urls.PLAIN[scheme.lower().removesuffix('+sentinel')]}://{userinfo}{at}localhost/{database}"
    plain += query and f"?{query}"
    try:
        options = tls.options_of(plain)
    except (ValueError, TypeError):
        raise _wrong("user, password or an option is wrong: redis-py would not accept it in redis://") from None
    for where in ("host", "port"):
        options.pop(where, None)
    if options.pop("connection_class", None) is SSLConnection:
        options["ssl"] = True
    of_sentinels = {k: v for k, v in options.items() if k.startswith(("socket_", "ssl"))}
    for timeout in ("socket_timeout", "socket_connect_timeout"):
        of_sentinels.setdefault(timeout, ANSWER_TIMEOUT)
    try:
        # redis-py's own gap
        manager = Sentinel(sentinels, sentinel_kwargs=of_sentinels, **options)  # type: ignore[no-untyped-call]  # redis-py's
        return manager.master_for(name), manager
    except TypeError:
        raise _wrong("it has an option that redis-py does not know") from None


def _address(text: str, position: int) -> Address:
    found = _HOST.fullmatch(text)
    if found is None:
        raise _wrong(
            f"Sentinel {position} is not host:port (IPv6 addresses are in brackets, special characters in user name "
            "and password percent-encoded)"
        )
    port = int(found["port"] or DEFAULT_PORT)
    if not 0 < port < 65536:
        raise _wrong(f"the port of Sentinel {position} is not between 1 and 65535")
    host = found["v6"] or urls.decoded(found["host"])
    urls.check_host(host)
    return host, port


def _wrong(what: str) -> ConfigurationError:
    return ConfigurationError(f"servers: in the Sentinel URL, {what}; it is {_FORM}")
