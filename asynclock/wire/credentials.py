"""New credentials that a redis-py ``StreamingCredentialProvider`` announces reach open connections.

A provider keeps one callback, and redis-py's client has taken that place for its pool. So what
stands in that place here passes everything on to the pools, as redis-py's callback would have done,
and keeps doing so when no locker listens any more: a provider cannot be asked who was there before.

The same goes the other way: a client or a ``pubsub()`` with that provider, made after the locker,
takes the place for itself. Then the server ends our connections when it no longer wants the old
credentials, and the reconnect asks the provider for the new ones; locks survive that as well.
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

Credentials = tuple[bytes, ...]  # what AUTH takes: a user name and a password, or a password

_streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()  # by the provider's id


class Stream:
    """The one callback of one provider. The provider keeps it alive, and so does who listens."""

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
        """Called from any thread. What it returns is for the provider to await, as redis-py's is."""
        user, password = token.try_get("oid"), token.get_value()  # as redis-py reads it
        credentials = (password.encode(),) if user is None else (user.encode(), password.encode())
        for loop, hear in list(self._listeners.values()):
            with contextlib.suppress(RuntimeError):  # the loop was closed, and with it all its connections
                loop.call_soon_threadsafe(hear, credentials)
        return self._tell_pools(token)

    async def _tell_pools(self, token: TokenInterface) -> None:
        for pool in list(self._pools):
            await pool.re_auth_callback(token)


def listen(provider: object, pool: Any, hear: Callable[[Credentials], None]) -> Callable[[], None]:
    """Call ``hear`` in the running loop with what AUTH takes, whenever ``provider`` announces it.

    :param pool: of the client that the provider came with, if it has one to be told
    :return: call it to hear no more
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


class Asked(CredentialProvider):
    """Asks the user's provider for one connection, and remembers how that went: what it raises looks like anything
    else that goes wrong there, and says nothing of the server."""

    def __init__(self, provider: CredentialProvider) -> None:
        self._provider = provider
        self.error: BaseException | None = None
        self.password = ""  #: what it answered

    async def get_credentials_async(self) -> Any:
        try:
            return self._answered(await self._provider.get_credentials_async())
        except BaseException as error:
            self.error = error
            raise

    def get_credentials(self) -> Any:
        """What redis-py 5.2.0 asks."""
        try:
            return self._answered(self._provider.get_credentials())
        except BaseException as error:
            self.error = error
            raise

    def _answered(self, credentials: Any) -> Any:
        if isinstance(credentials, tuple | list) and credentials:
            self.password = (
                credentials[-1].decode(errors="replace") if isinstance(credentials[-1], bytes) else str(credentials[-1])
            )
        return credentials
