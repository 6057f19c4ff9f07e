"""Hands the new credentials that a redis-py ``StreamingCredentialProvider`` announces to open connections.

A provider has one callback, and redis-py's client has set it for its connection pool. The callback that is set here
instead passes everything on to the pools, as redis-py's own would have done. It goes on with that when no locker
listens any more, since a provider does not tell which callback it had before.

It also happens the other way round: a client or a ``pubsub()`` with that provider, made after the locker, replaces the
callback. Then the server ends asynclock's connections once it no longer accepts the old credentials, and the
reconnect asks the provider for new ones. Locks survive that too.
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

log = logging.getLogger("asynclock")

Credentials = tuple[bytes, ...]  # the arguments of AUTH: user name and password, or a password alone

_streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()  # by the provider's id


class Stream:
    """The callback of one provider, for all who listen to it. Both they and the provider keep it alive."""

    def __init__(self) -> None:
        self._pools: weakref.WeakSet[Any] = weakref.WeakSet()
        self._listeners: dict[object, tuple[asyncio.AbstractEventLoop, Callable[[Credentials], None]]] = {}

    def listen(self, pool: Any, hear: Callable[[Credentials], None]) -> Callable[[], None]:
        ticket = object()
        if pool is not None:
            self._pools.add(pool)
        self._listeners[ticket] = (asyncio.get_running_loop(), hear)

        def stop() -> None:
            self._listeners.pop(ticket, None)

        return stop

    def on_next(self, token: TokenInterface) -> Coroutine[Any, Any, None]:
        """The provider calls this, in any thread, and awaits what it returns, as with redis-py's own callback."""
        user, password = token.try_get("oid"), token.get_value()  # as redis-py reads it
        credentials = (password.encode(),) if user is None else (user.encode(), password.encode())
        for loop, hear in list(self._listeners.values()):
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it all its connections
                loop.call_soon_threadsafe(hear, credentials)
        return self._tell_pools(token)

    async def _tell_pools(self, token: TokenInterface) -> None:
        for pool in list(self._pools):
            await pool.re_auth_callback(token)


def listen(provider: object, pool: Any, hear: Callable[[Credentials], None]) -> Callable[[], None]:
    """Call ``hear`` in the running loop with the new credentials, whenever ``provider`` announces some.

    :param pool: the connection pool of the client that the provider came with, or None; it gets them too
    :return: call it to stop listening
    """
    streaming = getattr(redis.credentials, "StreamingCredentialProvider", None)  # redis-py before 5.3 has none
    if streaming is None or not isinstance(provider, streaming):
        return lambda: None
    stream = _streams.get(id(provider))
    if stream is None:
        stream = _streams[id(provider)] = Stream()
    stop = stream.listen(pool, hear)
    try:
        provider.on_next(stream.on_next)
    except Exception as error:  # the user's own code
        log.warning(
            "asynclock: the credential provider takes no callback (%s), and is asked when connecting only",
            type(error).__name__,
        )
    return stop


class Rotation:
    """New credentials for the connections of one node.

    Those that come while a connection is in use go to it at once (``on_new`` of ``start``). Those that come while one
    is being set up are kept for it, in ``_pending``: it may have asked the provider before they were announced.
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
        :param on_new: uses the credentials; returns False if no connection is in use
        """

        def hear(credentials: Credentials) -> None:
            if self._stop is not None:
                self._pending = None if on_new(credentials) else credentials

        self._stop = subscribe(hear)

    def connecting(self) -> None:
        """A connection is about to ask the provider itself: what was announced before is of no interest."""
        self._pending = None

    def take(self) -> Credentials | None:
        """What was announced since ``connecting``, and not used."""
        pending, self._pending = self._pending, None
        return pending

    def stop(self) -> None:
        if self._stop is not None:
            self._stop()
            self._stop = None


class WatchedProvider(CredentialProvider):
    """Asks the user's provider for the credentials of one connection, and keeps how that went: redis-py makes an error
    of the connection out of whatever the provider raises, which would be put down to the server."""

    def __init__(self, provider: CredentialProvider) -> None:
        self._provider = provider
        self.error: BaseException | None = None  #: what the provider has raised
        self.password = ""  #: what it has returned

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
