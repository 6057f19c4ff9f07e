"""redis-py opens the door: URLs, TLS, unix sockets, authentication, ``HELLO 3`` or RESP2, ``SELECT``.

The one place that touches private names of redis-py: ``Connection._writer``, ``_reader`` and ``_parser`` (and,
in ``parser.py``, that one's ``_reader`` and ``_stream``; in ``lookup.py``, ``_connect`` and ``_connection_arguments``).
``tests/test_connector.py`` runs at both ends of the pinned range.
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

from .. import _version
from ..errors import ConfigurationError, GoneError, ServerError
from . import credentials, tls
from .limited_parser import LimitedParser
from .lookup import Connects, connecting
from .redaction import redacted
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


# How redis-py is told not to say CLIENT SETINFO.
_SILENT: dict[str, Any] = (
    {"driver_info": None}
    if "driver_info" in inspect.signature(AbstractConnection.__init__).parameters
    else {"lib_name": None, "lib_version": None}
)
_ABOUT_ITSELF = ("driver_info", "lib_name", "lib_version")


class _Resp3RefusedError(Exception):
    """The server, or a proxy before it, does not know ``HELLO 3``: it has said so, or has hung up."""


class Connector:
    """Makes connected, authenticated transports to one server.

    ``protocol`` is what the connection from the last ``open`` speaks: RESP3, or RESP2 if the user
    says so or the server knows nothing else. A refusal is remembered, so that a reconnect does not
    begin with it again, but not for ever: a proxy or a server gets upgraded.

    ``plain``: nothing may be said on this connection but what a lock needs. There are proxies that hang
    up at a command that they do not know.
    """

    max_pause = 1.0  #: seconds between attempts to reconnect, at most

    def __init__(
        self,
        connection_class: type[redis.Connection],
        kwargs: Mapping[str, Any],
        pool: Any = None,
        label: str | None = None,
    ) -> None:
        """:raises ConfigurationError: redis-py would not make such a connection, or it leads to no server"""
        _check_class(connection_class)
        kwargs = {k: v for k, v in kwargs.items() if k not in NOT_OURS}
        protocol = kwargs.pop("protocol", None)
        if protocol is not None and str(protocol) not in ("2", "3"):
            raise ConfigurationError(f"servers: protocol={protocol}: must be 2 or 3; without it, 3 is tried first")
        _check_timeouts(kwargs)
        kwargs["retry"] = Retry(NoBackoff(), 0)  # reconnecting has its own pace here
        kwargs.setdefault("parser_class", LimitedParser)
        # Given by the user, it must be accepted; the default is set where that is allowed (learn).
        self.client_name = None if kwargs.get("client_name") else f"asynclock-{_version.__version__}"
        self.protocol = 2 if str(protocol) == "2" else 3
        self.plain = False
        self._pool = pool
        self._class: type[redis.Connection] = connecting(connection_class)
        self._kwargs = kwargs
        self._timeout: float = kwargs.get("socket_connect_timeout") or CONNECT_TIMEOUT
        self._resp3_at = float("inf") if self.protocol == 2 else 0.0  # when RESP3 is worth a try (time.monotonic)
        self._worked = self._spoke_resp3 = False  # has a connection been made before?
        self._plain_next = False
        self._learnt: bool | None = None  # was ``plain`` set, when something was learnt of the server last?
        self._secrets = passwords(kwargs)
        self._renewed = ""  # the last password that a provider announced, or answered
        where = kwargs.get("path")
        self.label = (
            label
            or (f"unix:{where}" if where else f"{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}")
            + f"/{kwargs.get('db') or 0}"
        )
        with contextlib.suppress(ServerError):  # no file descriptor, perhaps: that is told when connecting
            self._made(self.protocol)

    def at(self, host: str, port: int) -> Connector:
        """The door to another server that is entered in the same way: a node of the same cluster."""
        kwargs: dict[str, Any] = {**self._kwargs, "host": host, "port": port}
        kwargs.pop("path", None)
        if self._resp3_at == float("inf"):
            kwargs["protocol"] = 2
        kind = redis.Connection if issubclass(self._class, redis.UnixDomainSocketConnection) else self._class
        connector = Connector(kind, kwargs, self._pool)
        connector._learnt = self._learnt
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
        """Connect. The writer's transport is the caller's to give another protocol and to close;
        the writer itself must be kept as long, since a forgotten one closes its transport.

        :raises ServerError: unreachable, or refused; or what nobody has thought of has gone wrong
        :raises GoneError: nobody is there
        :raises ConfigurationError: it cannot work with such a client. Not once it has worked
        """
        self.plain, self._plain_next = self._plain_next or bool(self._learnt), False
        try:
            writer = await self._enter()
        except BaseException as error:
            self._raise(error)
        self._worked = True
        return writer

    async def open_another(self) -> asyncio.StreamWriter:
        """Connect once more, with the protocol of the last ``open``. Raises as ``open``."""
        try:
            return await self._open(self.protocol)
        except BaseException as error:
            self._raise(error)

    async def _enter(self) -> asyncio.StreamWriter:
        if time.monotonic() >= self._resp3_at:
            try:
                writer = await self._open(3)
            except _Resp3RefusedError:
                pass  # what RESP2 gets for an answer says more
            else:
                self.protocol = 3
                self._spoke_resp3 = True
                return writer
        writer = await self._open(2)
        self.protocol = 2
        if self._resp3_at <= time.monotonic():
            self._resp3_at = time.monotonic() + RESP3_AGAIN
        return writer

    def _raise(self, error: BaseException) -> NoReturn:
        """What ``open`` raises for it: trying to connect must not end with what nobody has thought of."""
        if isinstance(error, ConfigurationError) and self._worked:
            raise ServerError(self.label, str(error), lasting=True) from error
        if isinstance(error, ServerError | ConfigurationError) or not passing(error):
            raise error
        # Not from one of redis-py: the whole of what a server said is in there.
        raise self._explained(error) from None if isinstance(error, RedisError) else error

    def hung_up(self) -> bool:
        """The connection was closed while the server was asked what it can do. Is another try worth it, at once?
        That one is ``plain``."""
        self._plain_next = self.protocol == 2 and not self.plain and self._learnt is None
        return self._plain_next

    def learnt(self) -> None:
        """It is known what the server can do: what is lost after that has another reason."""
        self._learnt = self.plain

    def on_credentials(self, hear: Callable[[credentials.Credentials], None]) -> Callable[[], None]:
        """Call ``hear`` in this loop with new credentials for the connections that are open, if there
        is a provider that announces them. Returns how to stop that. (Every new connection asks the
        provider anyway.)"""
        return credentials.listen(self._kwargs.get("credential_provider"), self._pool, hear)

    def redact(self, said: Any) -> str:
        """What its server said, as it may be shown."""
        return redacted(said, [*self._secrets, self._renewed] if self._renewed else self._secrets)

    def renewed(self, words: credentials.Credentials) -> None:
        """Its server was told these."""
        self._renewed = words[-1].decode()

    async def aclose(self) -> None:
        """Close what it keeps open between two connects. It can be opened again."""

    def _made(self, protocol: int, **more: Any) -> redis.Connection:
        """A connection of redis-py, not connected yet.

        :raises ConfigurationError: redis-py refuses that
        :raises ServerError: it cannot be made just now
        """
        kwargs = {**self._kwargs, **more, "protocol": protocol}
        if protocol == 2 and not any(word in kwargs for word in _ABOUT_ITSELF):
            kwargs |= _SILENT  # there may be a proxy that knows no CLIENT, and hangs up
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
        connection = self._made(protocol, **more)
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(self._timeout):
                await connection.connect()  # type: ignore[no-untyped-call]  # redis-py's own gap
                if protocol == 2:
                    await self._hear(connection)
            there, reader = connection._writer, connection._reader
            if there is not None and not hasattr(getattr(there, "transport", None), "set_protocol"):
                raise ConfigurationError(
                    f"servers: {self.label}: connections of {_name_of(self._class)} have no transport that could be "
                    "taken over; give a URL, or a client with one of redis-py's own"
                )
            if there is None or there.transport.is_closing() or (reader is not None and reader.at_eof()):
                raise GoneError(self.label, "the connection was closed at once")  # nobody else would be told
            writer = there
        except BaseException as error:
            if not passing(error):
                raise
            error = self._judged(error, provider, protocol, getattr(connection, "heard", None))
            raise error from error.__cause__
        finally:
            if provider is not None and provider.password:
                self._renewed = provider.password
            if writer is None and connection._writer is not None:
                transport = getattr(connection._writer, "transport", None)
                if transport is not None:
                    transport.abort()
            # The connection must forget its streams, or it closes them when it is collected.
            connection._writer = connection._reader = None
            if isinstance(connection, Connects):
                connection.heard = None
            if isinstance(parser := getattr(connection, "_parser", None), LimitedParser):
                parser.let_go()
        return writer

    async def _hear(self, connection: redis.Connection) -> None:
        """In RESP2 it may be that nothing was asked so far. Whoever says something to all who come (that there are
        too many of them) and hangs up, has said it to redis-py."""
        await connection.send_command("GET", "asynclock:0:", check_health=False)
        with contextlib.suppress(ResponseError):  # an answer, and what it means is found out later (learn)
            await connection.read_response()

    def _judged(
        self,
        error: BaseException,
        provider: credentials.WatchedProvider | None,
        protocol: int,
        heard: asyncio.StreamReader | None,
    ) -> BaseException:
        """What has gone wrong in truth. redis-py has words of its own for it, and forgets what was said last."""
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
        # A reset may overtake what was said before it, and that is more than an end. redis-py itself looks in there.
        words = bytes(getattr(heard, "_buffer", b"")) if end else b""
        if protocol == 3 and (_is_no_hello(error) or (end and self._may_not_know_hello())):
            return _Resp3RefusedError()
        if words:
            said = words.decode(errors="replace").partition("\r\n")[0].lstrip("-")
            return ServerError(self.label, f"refused: {self.redact(Exception(said))}")
        return error

    def _may_not_know_hello(self) -> bool:
        """It has hung up: may that be what it does at unknown commands? (With TLS, that is what is done to those
        whose certificate is missing.)"""
        return not self._spoke_resp3 and not issubclass(self._class, redis.SSLConnection)

    def _explained(self, error: BaseException) -> ServerError:
        text = self.redact(error)
        secure = issubclass(self._class, redis.SSLConnection)
        if isinstance(error, TimeoutError | RedisTimeoutError):
            hint = ", does it speak TLS?" if secure else ""
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


def passing(error: BaseException) -> bool:
    """Has something gone wrong, and nobody wants this task to end? Somebody else's cancellation, which a credential
    provider meets, looks like one of this task."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return not isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)


def _check_class(kind: object) -> None:
    """:raises ConfigurationError: connections of that class lead to no server that locks could be kept on"""
    if isinstance(kind, type) and issubclass(kind, AbstractConnection) and not _is_fake(kind):
        return
    name = "fakeredis" if isinstance(kind, type) and _is_fake(kind) else _name_of(kind)
    raise ConfigurationError(
        f"servers: the client is one of {name}, whose connections lead to no server; give a URL, or a client with "
        "connections of redis-py. For tests, asynclock.testing starts real servers"
    )


def _is_fake(kind: type) -> bool:
    return any(base.__module__.partition(".")[0] == "fakeredis" for base in kind.__mro__)


def _name_of(kind: object) -> str:
    kind = kind if isinstance(kind, type) else type(kind)
    return f"{kind.__module__}.{kind.__qualname__}"


def _check_timeouts(kwargs: Mapping[str, Any]) -> None:
    for option in ("socket_connect_timeout", "socket_timeout"):
        seconds = kwargs.get(option)
        if seconds is None or seconds == 0:  # 0: as None, and always was
            continue
        if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
            raise ConfigurationError(f"servers: {option}={seconds!r}: must be a number of seconds, more than 0")


def passwords(*kwargs: Mapping[str, Any]) -> list[str]:
    """Those that a redis-py client was given, as text."""
    found = [each["password"] for each in kwargs if each.get("password")]
    return [word.decode(errors="replace") if isinstance(word, bytes) else str(word) for word in found]


def _cause(error: BaseException) -> BaseException | None:
    """What the operating system said, if it did."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause


def _is_end(error: BaseException) -> bool:
    """Has the other side ended the connection, without a word?"""
    if type(error) is RedisConnectionError and "closed by server" in str(error):
        return True
    if isinstance(error, RedisError) and type(error) is not RedisConnectionError:
        return False  # it has answered
    cause = _cause(error)
    return isinstance(cause, ConnectionError) and not isinstance(cause, ConnectionRefusedError)


def _is_refusal(error: BaseException) -> bool:
    return isinstance(error, ResponseError) and not isinstance(error, RedisConnectionError)


def _is_no_hello(error: BaseException) -> bool:
    """Is that what is said by who has no ``HELLO``, or has it and knows no RESP3? There are as many words for
    that as there are proxies, so any error may be."""
    if isinstance(error, AuthenticationError):
        # A wrong password is refused in other words. "Authentication required" is said to whoever
        # did not give one, and by servers without HELLO to whoever gave it with HELLO.
        return str(error).lower().startswith("authentication required")
    return _is_refusal(error)
