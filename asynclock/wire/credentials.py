"""Re-authenticates open connections when a redis-py ``StreamingCredentialProvider`` announces new credentials.

A provider has a single callback, and redis-py's client has set it for its connection pool. The callback that replaces
it here also does what redis-py's does: it notifies the pools. It stays in place when no locker listens any more, since
the provider does not say which callback it had before.

Conversely, a client or a ``pubsub()`` with the same provider, made after the locker, replaces this callback. Then the
server closes asynclock's connections once the old credentials expire, and the reconnect asks the provider for new
ones. Locks survive that too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import redis.credentials
from redis.credentials import CredentialProvider

if TYPE_CHECKING:
    from redis.auth.token import TokenInterface
from ..messages import about

log = logging.getLogger("asynclock")

Credentials = tuple[bytes, ...]  # the arguments of AUTH: user name and password, or a password alone

_streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()  # by the provider's id


class Stream:
    """The callback of one provider, shared by its listeners. The listeners and the provider keep it alive."""

    def __init__(self) -> None:
        self._pools: weakref.WeakSet[Any] = weakref.WeakSet()
        self._listeners: dict[object, tuple[asyncio.AbstractEventLoop, Callable[[Credentials], None]]] = {}

    def listen(self, pool: Any, callback: Callable[[Credentials], None]) -> Callable[[], None]:
        ticket = object()
        if pool is not None:
            self._pools.add(pool)
        self._listeners[ticket] = (asyncio.get_running_loop(), callback)

        def stop() -> None:
            self._listeners.pop(ticket, None)

        return stop

    def on_next(self, token: TokenInterface) -> Coroutine[Any, Any, None]:
        """Called by the provider, in any thread. The provider awaits the returned coroutine, as with redis-py's own
        callback."""
        user, password = token.try_get("oid"), token.get_value()  # as redis-py does
        credentials = (password.encode(),) if user is None else (user.encode(), password.encode())
        for loop, callback in list(self._listeners.values()):
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it all its connections
                loop.call_soon_threadsafe(callback, credentials)
        return self._notify_pools(token)

    async def _notify_pools(self, token: TokenInterface) -> None:
        for pool in list(self._pools):
            await pool.re_auth_callback(token)


def listen(provider: object, pool: Any, callback: Callable[[Credentials], None]) -> Callable[[], None]:
    """Call ``callback`` in the running event loop with the new credentials, whenever ``provider`` announces some.

    :param pool: the connection pool of the provider's client, or None; it is notified too
    :return: call it to unsubscribe
    """
    streaming = getattr(redis.credentials, "StreamingCredentialProvider", None)  # redis-py before 5.3 has none
    if streaming is None or not isinstance(provider, streaming):
        return lambda: None
    stream = _streams.get(id(provider))
    if stream is None:
        stream = _streams[id(provider)] = Stream()
    stop = stream.listen(pool, callback)
    try:
        provider.on_next(stream.on_next)
    except Exception as error:  # user code
        log.warning(
            "asynclock: the credential provider takes no callback (%s): rotated credentials are used from the next "
            "connection on",
            type(error).__name__,
            extra=about("credentials_not_streamed", error=type(error).__name__),
        )
    return stop


class Rotation:
    """New credentials for the connections of one node.

    While a connection is in use, they go to it at once (``on_new`` of ``start``). While one is being set up, they are
    kept for it in ``_pending``: it may have asked the provider before they were announced.
    """

    __slots__ = ("_pending", "_stop")

    def __init__(self) -> None:
        self._pending: Credentials | None = None
        self._stop: Callable[[], None] | None = None

    def start(
        self,
        subscribe: Callable[[Callable[[Credentials], None]], Callable[[], None]],
        on_new: Callable[[Credentials], bool],
    ) -> None:
        """:param subscribe: ``Connector.on_credentials``
        :param on_new: sends the credentials to the connection in use; returns False if there is none
        """

        def announced(credentials: Credentials) -> None:
            if self._stop is not None:
                self._pending = None if on_new(credentials) else credentials

        self._stop = subscribe(announced)

    def connecting(self) -> None:
        """A new connection will ask the provider itself, so earlier announcements are outdated."""
        self._pending = None

    def take(self) -> Credentials | None:
        """The credentials that were announced since ``connecting`` and are still unused."""
        pending, self._pending = self._pending, None
        return pending

    def stop(self) -> None:
        if self._stop is not None:
            self._stop()
            self._stop = None


class WatchedProvider(CredentialProvider):
    """Asks the user's provider for the credentials of one connection, and keeps the outcome. Without it, the server
    would be blamed when the provider fails: redis-py turns what it raises into a connection error."""

    def __init__(self, provider: CredentialProvider) -> None:
        self._provider = provider
        self.error: BaseException | None = None  #: what the provider has raised
        self.password = ""  #: the password that it has returned

    async def get_credentials_async(self) -> Any:
        try:
            return self._noted(await self._provider.get_credentials_async())
        except BaseException as error:
            self.error = error
            raise

    def get_credentials(self) -> Any:
        """For redis-py 5.2.0."""
        try:
            return self._noted(self._provider.get_credentials())
        except BaseException as error:
            self.error = error
            raise

    def _noted(self, credentials: Any) -> Any:
        if isinstance(credentials, tuple | list) and credentials:
            self.password = (
                credentials[-1].decode(errors="replace") if isinstance(credentials[-1], bytes) else str(credentials[-1])
            )
        return credentials
