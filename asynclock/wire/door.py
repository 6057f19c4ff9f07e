"""redis-py opens the door: URLs, TLS, unix sockets, authentication, ``HELLO 3`` or RESP2, ``SELECT``.

The one place that touches private names of redis-py: ``Connection._writer``, ``_reader`` and ``_parser`` (and,
in ``parser.py``, that one's ``_reader`` and ``_stream``).
``tests/test_door.py`` runs at both ends of the pinned range.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .. import _version
from ..errors import ConfigurationError, ServerError, UncertainError
from . import credentials, tls
from .parser import WaryParser
from .quoting import quoted
from .violations import ViolationError

CONNECT_TIMEOUT = 5.0  # seconds, unless the URL or client says socket_connect_timeout
RESP3_AGAIN = 60.0  # seconds after which a server that refused RESP3 is asked again, if it is reconnected

# What redis-py's own requests need and a connection that is handed over must not have: retries of
# its own, health checks, and the maintenance pushes that its pool would act on.
NOT_OURS = (
    "event_dispatcher",
    "health_check_interval",
    "himport_registry",
    "maint_notifications_config",
    "maint_notifications_pool_handler",
    "oss_cluster_maint_notifications_handler",
    "orig_host_address",
    "orig_socket_connect_timeout",
    "orig_socket_timeout",
    "retry",
    "retry_on_error",
    "retry_on_timeout",
)


class _Resp3RefusedError(Exception):
    """The server, or a proxy before it, does not know ``HELLO 3``."""


class Door:
    """Makes connected, authenticated transports to one server.

    ``protocol`` is what the connection from the last ``open`` speaks: RESP3, or RESP2 if the user
    says so or the server knows nothing else. A refusal is remembered, so that a reconnect does not
    begin with it again, but not for ever: a proxy or a server gets upgraded.
    """

    max_pause = 1.0  #: seconds between attempts to reconnect, at most

    def __init__(
        self,
        connection_class: type[redis.Connection],
        kwargs: Mapping[str, Any],
        pool: Any = None,
    ) -> None:
        kwargs = {k: v for k, v in kwargs.items() if k not in NOT_OURS}
        protocol = kwargs.pop("protocol", None)
        if protocol is not None and str(protocol) not in ("2", "3"):
            raise ConfigurationError(f"servers: protocol={protocol}: must be 2 or 3; without it, 3 is tried first")
        kwargs["retry"] = Retry(NoBackoff(), 0)  # reconnecting has its own pace here
        kwargs.setdefault("parser_class", WaryParser)
        # Given by the user, it must be accepted; the default is set where that is allowed (learn).
        self.client_name = None if kwargs.get("client_name") else f"asynclock-{_version.__version__}"
        self.protocol = 2 if str(protocol) == "2" else 3
        self._pool = pool
        self._class = connection_class
        self._kwargs = kwargs
        self._timeout: float = kwargs.get("socket_connect_timeout") or CONNECT_TIMEOUT
        self._resp3_at = float("inf") if self.protocol == 2 else 0.0  # when RESP3 is worth a try (time.monotonic)
        self._secrets = passwords(kwargs)
        self._renewed = ""  # the last password that a provider announced
        where = kwargs.get("path")
        self.label = (
            f"unix:{where}" if where else f"{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}"
        ) + f"/{kwargs.get('db') or 0}"

    def at(self, host: str, port: int) -> Door:
        """The door to another server that is entered in the same way: a node of the same cluster."""
        kwargs: dict[str, Any] = {**self._kwargs, "host": host, "port": port}
        kwargs.pop("path", None)
        if self._resp3_at == float("inf"):
            kwargs["protocol"] = 2
        kind = redis.Connection if issubclass(self._class, redis.UnixDomainSocketConnection) else self._class
        return Door(kind, kwargs, self._pool)

    @property
    def host(self) -> str:
        return str(self._kwargs.get("host", "localhost"))

    @property
    def port(self) -> int:
        return int(self._kwargs.get("port", 6379))

    @property
    def timeout(self) -> float:
        return self._timeout

    async def open(self) -> asyncio.StreamWriter:
        """Connect. The writer's transport is the caller's to give another protocol and to close;
        the writer itself must be kept as long, since a forgotten one closes its transport.

        :raises ServerError: unreachable, or refused
        """
        if time.monotonic() >= self._resp3_at:
            try:
                writer = await self._open(3)
            except _Resp3RefusedError:
                pass  # what RESP2 gets for an answer says more
            else:
                self.protocol = 3
                return writer
        writer = await self._open(2)
        self.protocol = 2
        if self._resp3_at <= time.monotonic():
            self._resp3_at = time.monotonic() + RESP3_AGAIN
        return writer

    def on_credentials(self, hear: Callable[[credentials.Words], None]) -> Callable[[], None]:
        """Call ``hear`` in this loop with new credentials for the connections that are open, if there
        is a provider that announces them. Returns how to stop that. (Every new connection asks the
        provider anyway.)"""
        return credentials.listen(self._kwargs.get("credential_provider"), self._pool, hear)

    def quote(self, said: Any) -> str:
        """What its server said, as it may be shown."""
        return quoted(said, [*self._secrets, self._renewed] if self._renewed else self._secrets)

    def renewed(self, words: credentials.Words) -> None:
        """Its server was told these."""
        self._renewed = words[-1].decode()

    async def open_another(self) -> asyncio.StreamWriter:
        """Connect once more, with the protocol of the last ``open``. Raises as ``open``."""
        return await self._open(self.protocol)

    async def aclose(self) -> None:
        """Close what it keeps open between two connects. It can be opened again."""

    async def _open(self, protocol: int) -> asyncio.StreamWriter:
        try:
            connection = self._class(**self._kwargs, protocol=protocol)
        except TypeError as error:
            raise ConfigurationError(f"servers: redis-py refuses an option of {self.label}: {error}") from None
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(self._timeout):
                await connection.connect()  # type: ignore[no-untyped-call]  # redis-py's own gap
            writer = connection._writer
            if writer is None:
                raise ServerError(self.label, "the connection was closed at once")
        except (TimeoutError, RedisTimeoutError):
            hint = ", does it speak TLS?" if issubclass(self._class, redis.SSLConnection) else ""
            raise UncertainError(self.label, f"no answer within {self._timeout:g} s of connecting{hint}") from None
        except AuthenticationError as error:
            if protocol == 3 and _is_no_hello(error):
                raise _Resp3RefusedError from None
            raise ServerError(
                self.label,
                f"authentication refused ({self.quote(error)}): check username and password",
                lasting=True,
            ) from None
        except ServerError:
            raise
        except Exception as error:  # anything at all: credential providers are the user's own code
            if protocol == 3 and _is_no_hello(error):
                raise _Resp3RefusedError from None
            # Not from one of redis-py: the whole of what a server said is in there.
            raise self._explained(error) from None if isinstance(error, RedisError) else error
        finally:
            if writer is None and connection._writer is not None:
                connection._writer.transport.abort()
            # The connection must forget its streams, or it closes them when it is collected.
            connection._writer = connection._reader = None
            if isinstance(parser := connection._parser, WaryParser):
                parser.let_go()
        return writer

    def _explained(self, error: Exception) -> ServerError:
        text = self.quote(error)
        if _is_refusal(error):
            return ServerError(self.label, f"refused: {text}", lasting=True)
        if issubclass(self._class, redis.SSLConnection) and (found := tls.explained(error, self._kwargs)) is not None:
            return ServerError(self.label, found[0], lasting=found[1])
        if not isinstance(error, RedisError | OSError) and self._kwargs.get("credential_provider") is not None:
            return ServerError(self.label, f"the credential provider failed: {type(error).__name__}: {text}")
        if isinstance(error, ViolationError) or "protocol error" in text.lower() or "invalid resp" in text.lower():
            return ServerError(self.label, f"does not speak the Redis protocol: {text}", lasting=True)
        return ServerError(self.label, f"cannot be reached, is it running? {text or type(error).__name__}")


def passwords(*kwargs: Mapping[str, Any]) -> list[str]:
    """Those that a redis-py client was given, as text."""
    found = [each["password"] for each in kwargs if each.get("password")]
    return [word.decode(errors="replace") if isinstance(word, bytes) else str(word) for word in found]


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, ResponseError) and not isinstance(error, RedisConnectionError)


def _is_no_hello(error: Exception) -> bool:
    """Is that what a server says that has no ``HELLO``, or one that has it and knows no RESP3?"""
    text = str(error).lower()
    if isinstance(error, AuthenticationError):
        # A wrong password is refused in other words. "Authentication required" is said to whoever
        # did not give one, and by servers without HELLO to whoever gave it with HELLO.
        return text.startswith("authentication required")
    return _is_refusal(error) and ("unknown command" in text or "noproto" in text or "protocol version" in text)
