"""Connects to a server with redis-py, which does TLS, unix sockets, authentication, ``HELLO 3`` or RESP2, ``SELECT``.

Private names of redis-py are used in these files only. ``tests/test_connector.py`` checks the list, and runs with the
oldest and the newest redis-py that is supported.

- ``connector.py``: ``_writer``, ``_reader`` and ``_parser`` of a connection
- ``limited_parser.py``: ``_reader`` and ``_stream`` of a parser
- ``lookup.py``: ``_reader``, ``_connect`` and ``_connection_arguments`` of a connection
- ``sentinel.py``, and ``sync/clients.py`` for threads: ``_force_master_ip`` of a ``Sentinel``
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import redis.asyncio as redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..errors import ConfigurationError, GoneError, ServerError
from . import credentials, tls
from .introduction import introduction
from .limited_parser import LimitedParser
from .lookup import Connects, with_own_lookup
from .redaction import redacted
from .violations import ViolationError

CONNECT_TIMEOUT = 5.0  # seconds, unless the URL or client sets socket_connect_timeout
RESP3_RETRY = 60.0  # seconds after a server has refused RESP3 until a reconnect tries it again

# Options that only redis-py's own commands need: retries, health checks, and maintenance pushes for its pool. They must
# be off on a connection whose socket asynclock takes over.
UNUSED_OPTIONS = (
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


# These keep redis-py from sending CLIENT SETINFO.
_NO_CLIENT_INFO: dict[str, Any] = (
    {"driver_info": None}
    if "driver_info" in inspect.signature(AbstractConnection.__init__).parameters
    else {"lib_name": None, "lib_version": None}
)
_CLIENT_INFO = ("driver_info", "lib_name", "lib_version")


class _Resp3RefusedError(Exception):
    """The server, or a proxy before it, refused ``HELLO 3`` or closed the connection at it."""


class Connector:
    """Makes connected, authenticated transports to one server.

    ``protocol`` is that of the connection from the last ``open``: RESP3, or RESP2 if the user asks for it or the server
    knows nothing else. After a refusal of RESP3, reconnects use RESP2 for ``RESP3_RETRY`` seconds. Not for ever, since
    proxies and servers get upgraded.

    ``plain``: send only commands that locks need on the connection from the last ``open``. Some proxies close the
    connection at a command that they do not know.
    """

    max_pause = 1.0  #: longest pause between attempts to reconnect, in seconds

    def __init__(
        self,
        connection_class: type[redis.Connection],
        kwargs: Mapping[str, Any],
        pool: Any = None,
        label: str | None = None,
    ) -> None:
        """:raises ConfigurationError: redis-py refuses an option, or the connections of that class reach no server"""
        _check_class(connection_class)
        kwargs = {k: v for k, v in kwargs.items() if k not in UNUSED_OPTIONS}
        protocol = kwargs.pop("protocol", None)
        if protocol is not None and str(protocol) not in ("2", "3"):
            raise ConfigurationError(f"servers: protocol={protocol}: must be 2 or 3; without it, 3 is tried first")
        _check_timeouts(kwargs)
        kwargs["retry"] = Retry(NoBackoff(), 0)  # the node does the retries
        kwargs.setdefault("parser_class", LimitedParser)
        self._named_by_user = bool(kwargs.get("client_name"))  # that is set by redis-py, and must be accepted
        self.introduction: dict[str, bytes] = {}  #: what a new connection sends about itself; refusals do not matter
        self.protocol = 2 if str(protocol) == "2" else 3
        self.plain = False
        self._pool = pool
        self._class: type[redis.Connection] = with_own_lookup(connection_class)
        self._kwargs = kwargs
        self._timeout: float = kwargs.get("socket_connect_timeout") or CONNECT_TIMEOUT
        self._resp3_at = float("inf") if self.protocol == 2 else 0.0  # when to try RESP3 (time.monotonic)
        self._worked = self._spoke_resp3 = False  # has any connection, or one with RESP3, been made so far?
        self._plain_next = False
        self._plain_worked: bool | None = None  # ``plain`` of the last complete setup; None: there was none
        self._secrets = passwords(kwargs)
        self._renewed_password = ""  # the last password that came from a provider
        where = kwargs.get("path")
        self.label = (
            label
            or (f"unix:{where}" if where else f"{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}")
            + f"/{kwargs.get('db') or 0}"
        )
        with contextlib.suppress(ServerError):  # perhaps out of file descriptors: ``open`` will raise it
            self._make(self.protocol)

    def introduce_as(self, owner: str) -> None:
        """From now on, connections say whose they are."""
        self.introduction = introduction(None if self._named_by_user else owner)

    def at(self, host: str, port: int) -> Connector:
        """A connector with the same options to another node of the same cluster."""
        kwargs: dict[str, Any] = {**self._kwargs, "host": host, "port": port}
        kwargs.pop("path", None)
        if self._resp3_at == float("inf"):
            kwargs["protocol"] = 2
        kind = redis.Connection if issubclass(self._class, redis.UnixDomainSocketConnection) else self._class
        connector = Connector(kind, kwargs, self._pool)
        connector._plain_worked = self._plain_worked
        return connector

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
        """Connect. The caller may give the writer's transport another protocol, and must close it. Until then it must
        keep the writer: one that is garbage-collected closes its transport.

        :raises ServerError: unreachable, refused, or an unexpected error
        :raises GoneError: the server is not running
        :raises ConfigurationError: the client cannot be used. Not raised once a connection has been made
        """
        self.plain, self._plain_next = self._plain_next or bool(self._plain_worked), False
        try:
            writer = await self._open_with_fallback()
        except BaseException as error:
            self._raise(error)
        self._worked = True
        return writer

    async def open_another(self) -> asyncio.StreamWriter:
        """Open a second connection, with the protocol of the last ``open``. Raises the same errors."""
        try:
            return await self._open(self.protocol)
        except BaseException as error:
            self._raise(error)

    async def _open_with_fallback(self) -> asyncio.StreamWriter:
        if time.monotonic() >= self._resp3_at:
            try:
                writer = await self._open(3)
            except _Resp3RefusedError:
                pass  # try RESP2: if that fails too, its error says more
            else:
                self.protocol = 3
                self._spoke_resp3 = True
                return writer
        writer = await self._open(2)
        self.protocol = 2
        if self._resp3_at <= time.monotonic():
            self._resp3_at = time.monotonic() + RESP3_RETRY
        return writer

    def _raise(self, error: BaseException) -> NoReturn:
        """Raise what ``open`` promises. Any unexpected error becomes a ServerError, so that reconnecting goes on."""
        if isinstance(error, ConfigurationError) and self._worked:
            raise ServerError(self.label, str(error), lasting=True) from error
        if isinstance(error, ServerError | ConfigurationError) or not is_failure(error):
            raise error
        # ``from None``: redis-py's errors quote the server's reply without redaction.
        raise self._to_server_error(error) from None if isinstance(error, RedisError) else error

    def closed_in_setup(self) -> bool:
        """The server closed the connection during setup. True: retry at once; that connection will be ``plain``."""
        self._plain_next = self.protocol == 2 and not self.plain and self._plain_worked is None
        return self._plain_next

    def set_up_done(self) -> None:
        """Setup is complete. A close after this has nothing to do with the commands of the setup."""
        self._plain_worked = self.plain

    def on_credentials(self, callback: Callable[[credentials.Credentials], None]) -> Callable[[], None]:
        """Call ``callback`` in this event loop whenever the credential provider announces new credentials, which open
        connections need. (A new connection asks the provider itself.)

        :return: call it to unsubscribe
        """
        return credentials.listen(self._kwargs.get("credential_provider"), self._pool, callback)

    def redact(self, said: Any) -> str:
        """A reply or error of the server, without secrets and shortened, for messages and logs."""
        return redacted(said, [*self._secrets, self._renewed_password] if self._renewed_password else self._secrets)

    def renewed(self, new: credentials.Credentials) -> None:
        """These credentials are sent to the server: ``redact`` has to hide them from now on."""
        self._renewed_password = new[-1].decode()

    async def aclose(self) -> None:
        """Close what stays open between two calls of ``open``. ``open`` may be called again."""

    def _make(self, protocol: int, **more: Any) -> redis.Connection:
        """A redis-py connection that is not connected yet.

        :raises ConfigurationError: redis-py refuses an option
        :raises ServerError: no file can be opened now
        """
        kwargs = {**self._kwargs, **more, "protocol": protocol}
        if protocol == 2 and not any(word in kwargs for word in _CLIENT_INFO):
            kwargs |= _NO_CLIENT_INFO  # some proxies close the connection at CLIENT, which they do not know
        try:
            return self._class(**kwargs)
        except OSError as error:  # redis-py may open a file
            raise ServerError(self.label, f"cannot be connected to: {self.redact(error)}") from error
        except Exception as error:
            raise ConfigurationError(
                f"servers: redis-py refuses an option of {self.label}: {self.redact(error)}"
            ) from None

    async def _open(self, protocol: int) -> asyncio.StreamWriter:
        provider: credentials.WatchedProvider | None = None
        more: dict[str, Any] = {}
        if self._kwargs.get("credential_provider") is not None:
            provider = more["credential_provider"] = credentials.WatchedProvider(self._kwargs["credential_provider"])
        connection = self._make(protocol, **more)
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(self._timeout):
                await connection.connect()  # type: ignore[no-untyped-call]  # redis-py's own gap
                if protocol == 2:
                    await self._read_greeting(connection)
            opened, reader = connection._writer, connection._reader
            if opened is not None and not hasattr(getattr(opened, "transport", None), "set_protocol"):
                raise ConfigurationError(
                    f"servers: {self.label}: connections of {_name_of(self._class)} have no transport that can be "
                    "taken over; give a URL, or a client with one of redis-py's connection classes"
                )
            if opened is None or opened.transport.is_closing() or (reader is not None and reader.at_eof()):
                raise GoneError(self.label, "the connection was closed at once")  # a new protocol would not notice it
            writer = opened
        except BaseException as error:
            if not is_failure(error):
                raise
            error = self._diagnose(error, provider, protocol, getattr(connection, "received", None))
            raise error from error.__cause__
        finally:
            if provider is not None and provider.password:
                self._renewed_password = provider.password
            if writer is None and connection._writer is not None:
                transport = getattr(connection._writer, "transport", None)
                if transport is not None:
                    transport.abort()
            # Detach the streams: a redis-py connection closes them when it is garbage-collected.
            connection._writer = connection._reader = None
            if isinstance(connection, Connects):
                connection.received = None
            if isinstance(parser := getattr(connection, "_parser", None), LimitedParser):
                parser.detach()
        return writer

    async def _read_greeting(self, connection: redis.Connection) -> None:
        """Send one command and read its reply. In RESP2, redis-py may have sent none so far, so it has not read the
        error with which a server greets and closes a connection ("max number of clients reached")."""
        await connection.send_command("GET", "asynclock:0:", check_health=False)
        with contextlib.suppress(ResponseError):  # ``probe`` reports it
            await connection.read_response()

    def _diagnose(
        self,
        error: BaseException,
        provider: credentials.WatchedProvider | None,
        protocol: int,
        received: asyncio.StreamReader | None,
    ) -> BaseException:
        """The root cause of ``error``. redis-py wraps it in errors of its own, and drops what it has read last."""
        if provider is not None and provider.error is not None:
            timed_out = isinstance(error, TimeoutError | RedisTimeoutError)
            if timed_out and isinstance(provider.error, asyncio.CancelledError):
                why = f"no answer within {self._timeout:g} s"
            else:
                why = f"{type(provider.error).__name__}: {self.redact(provider.error)}"
            failed = ServerError(self.label, f"the credential provider failed: {why}")
            failed.__cause__ = provider.error
            return failed
        while type(error) is RedisConnectionError and error.__cause__ is not None:
            error = error.__cause__
        if isinstance(error, RuntimeError) and "the handler is closed" in str(error):  # uvloop's
            error = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        end = _is_end(error)
        # Before a reset, the server may have sent an error, which says more. (redis-py reads this private buffer, too.)
        unread = bytes(getattr(received, "_buffer", b"")) if end else b""
        if protocol == 3 and (_is_no_hello(error) or (end and self._may_not_know_hello())):
            return _Resp3RefusedError()
        if unread:
            said = unread.decode(errors="replace").partition("\r\n")[0].lstrip("-")
            return ServerError(self.label, f"refused: {self.redact(Exception(said))}")
        return error

    def _may_not_know_hello(self) -> bool:
        """Can an unknown command be the reason why the connection was closed? (With TLS, a missing client certificate
        is more likely.)"""
        return not self._spoke_resp3 and not issubclass(self._class, redis.SSLConnection)

    def _to_server_error(self, error: BaseException) -> ServerError:
        text = self.redact(error)
        secure = issubclass(self._class, redis.SSLConnection)
        if isinstance(error, TimeoutError | RedisTimeoutError):
            hint = "; does it speak TLS?" if secure else ""
            return ServerError(self.label, f"no answer within {self._timeout:g} s of connecting{hint}")
        if isinstance(error, AuthenticationError):
            return ServerError(
                self.label, f"authentication refused ({text}): check username and password", lasting=True
            )
        if _is_refusal(error):
            return ServerError(self.label, f"refused: {text}", lasting=True)
        gone = GoneError if _is_end(error) or self._is_nobody_there(error) else ServerError
        if secure and (found := tls.explained(error, self._kwargs)) is not None:
            return gone(self.label, found[0], lasting=found[1])
        if isinstance(error, ViolationError) or "protocol error" in text.lower() or "invalid resp" in text.lower():
            return ServerError(self.label, f"does not speak the Redis protocol: {text}", lasting=True)
        if not isinstance(error, RedisError | OSError):
            return ServerError(self.label, f"cannot be connected to: {type(error).__name__}: {text}")
        return gone(self.label, f"cannot be reached, is it running? {text or type(error).__name__}")

    def _is_nobody_there(self, error: BaseException) -> bool:
        cause = _cause(error)
        if isinstance(cause, FileNotFoundError):
            return issubclass(self._class, redis.UnixDomainSocketConnection)
        return isinstance(cause, ConnectionRefusedError)


def is_failure(error: BaseException) -> bool:
    """Is it a failure, and not the cancellation of this task or the end of the process? (A credential provider may
    raise ``CancelledError`` because of a task of its own: that is a failure.)"""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return not isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)


def _check_class(kind: object) -> None:
    """:raises ConfigurationError: connections of that class do not reach a server"""
    if isinstance(kind, type) and issubclass(kind, AbstractConnection) and not _is_fake(kind):
        return
    name = "fakeredis" if isinstance(kind, type) and _is_fake(kind) else _name_of(kind)
    raise ConfigurationError(
        f"servers: the client is one of {name}, whose connections lead to no server; give a URL, or a client with "
        "redis-py's connections. For tests, asynclock.testing starts real servers"
    )


def _is_fake(kind: type) -> bool:
    return any(base.__module__.partition(".")[0] == "fakeredis" for base in kind.__mro__)


def _name_of(kind: object) -> str:
    kind = kind if isinstance(kind, type) else type(kind)
    return f"{kind.__module__}.{kind.__qualname__}"


def _check_timeouts(kwargs: Mapping[str, Any]) -> None:
    for option in ("socket_connect_timeout", "socket_timeout"):
        seconds = kwargs.get(option)
        if seconds is None or seconds == 0:  # 0 means the same as None
            continue
        if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
            raise ConfigurationError(f"servers: {option}={seconds!r}: must be a number of seconds, more than 0")


def passwords(*kwargs: Mapping[str, Any]) -> list[str]:
    """The passwords in the options of redis-py clients, as text."""
    found = [each["password"] for each in kwargs if each.get("password")]
    return [word.decode(errors="replace") if isinstance(word, bytes) else str(word) for word in found]


def _cause(error: BaseException) -> BaseException | None:
    """The OSError that caused ``error``, if there is one."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause


def _is_end(error: BaseException) -> bool:
    """Did the other side close the connection without sending an error?"""
    if type(error) is RedisConnectionError and "closed by server" in str(error):
        return True
    if isinstance(error, RedisError) and type(error) is not RedisConnectionError:
        return False  # the server has sent an error
    cause = _cause(error)
    return isinstance(cause, ConnectionError) and not isinstance(cause, ConnectionRefusedError)


def _is_refusal(error: BaseException) -> bool:
    return isinstance(error, ResponseError) and not isinstance(error, RedisConnectionError)


def _is_no_hello(error: BaseException) -> bool:
    """May it be the reply of a server without ``HELLO`` or RESP3? Proxies word it differently, so any error may."""
    if isinstance(error, AuthenticationError):
        # A wrong password gets another error. "Authentication required" means that no password was sent, or that it was
        # sent with HELLO, which the server does not know.
        return str(error).lower().startswith("authentication required")
    return _is_refusal(error)
