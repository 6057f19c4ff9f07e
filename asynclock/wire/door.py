"""redis-py opens the door: URLs, TLS, unix sockets, authentication, ``HELLO 3``, ``SELECT``.

The one place that touches a private name of redis-py: ``Connection._writer`` and ``_reader``.
``tests/test_door.py`` runs at both ends of the pinned range.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .. import _version
from ..errors import ConfigurationError, ServerError, UncertainError

CONNECT_TIMEOUT = 5.0  # seconds, unless the URL or client says socket_connect_timeout

# What redis-py's own requests need and a connection that is handed over must not have: retries of
# its own, health checks, and the maintenance pushes that its pool would act on.
_NOT_OURS = (
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


class Door:
    """Makes connected, authenticated transports to one server."""

    def __init__(self, connection_class: type[redis.Connection], kwargs: Mapping[str, Any]) -> None:
        kwargs = {k: v for k, v in kwargs.items() if k not in _NOT_OURS}
        protocol = kwargs.get("protocol")
        if protocol is not None and str(protocol) != "3":
            raise ConfigurationError(f"protocol={protocol}: this version needs RESP3; leave protocol out, or say 3")
        kwargs["protocol"] = 3
        kwargs["retry"] = Retry(NoBackoff(), 0)  # reconnecting has its own pace here
        # Given by the user, it must be accepted; the default is set where that is allowed (learn).
        self.client_name = None if kwargs.get("client_name") else f"asynclock-{_version.__version__}"
        self._class = connection_class
        self._kwargs = kwargs
        self._timeout: float = kwargs.get("socket_connect_timeout") or CONNECT_TIMEOUT
        where = kwargs.get("path")
        self.label = (
            f"unix:{where}" if where else f"{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}"
        ) + f"/{kwargs.get('db') or 0}"

    def at(self, host: str, port: int) -> Door:
        """The door to another server that is entered in the same way: a node of the same cluster."""
        kwargs: dict[str, Any] = {**self._kwargs, "host": host, "port": port}
        kwargs.pop("path", None)
        kind = redis.Connection if issubclass(self._class, redis.UnixDomainSocketConnection) else self._class
        return Door(kind, kwargs)

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

        :raises ServerError: unreachable, refused, or too old
        """
        try:
            connection = self._class(**self._kwargs)
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
            raise UncertainError(self.label, f"no answer within {self._timeout:g} s of connecting") from None
        except AuthenticationError as error:
            raise ServerError(
                self.label, f"authentication refused ({error}): check username and password", lasting=True
            ) from None
        except ServerError:
            raise
        except Exception as error:  # anything at all: credential providers are the user's own code
            raise self._explained(error) from error
        finally:
            if writer is None and connection._writer is not None:
                connection._writer.transport.abort()
            # The connection must forget its streams, or it closes them when it is collected.
            connection._writer = connection._reader = None
        return writer

    def _explained(self, error: Exception) -> ServerError:
        text = str(error)
        if isinstance(error, ResponseError) and not isinstance(error, RedisConnectionError):
            if "unknown command" in text.lower():
                return ServerError(
                    self.label,
                    f"too old, or HELLO is disabled: asynclock needs Redis 6.0 or Valkey ({text})",
                    lasting=True,
                )
            return ServerError(self.label, f"refused: {text}", lasting=True)
        if "protocol error" in text.lower() or "invalid resp" in text.lower():
            return ServerError(self.label, f"does not speak the Redis protocol: {text}", lasting=True)
        return ServerError(self.label, f"cannot be reached, is it running? {text or type(error).__name__}")
