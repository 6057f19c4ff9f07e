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
import weakref
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import redis.credentials

if TYPE_CHECKING:
    from redis.auth.token import TokenInterface

Words = tuple[bytes, ...]  # what AUTH takes: a user name and a password, or a password

_streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()  # by the provider's id


class Stream:
    """The one callback of one provider. The provider keeps it alive, and so does who listens."""

    def __init__(self) -> None:
        self._pools: weakref.WeakSet[Any] = weakref.WeakSet()
        self._listeners: dict[object, tuple[asyncio.AbstractEventLoop, Callable[[Words], None]]] = {}

    def listen(self, pool: Any, hear: Callable[[Words], None]) -> Callable[[], None]:
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
        words = (password.encode(),) if user is None else (user.encode(), password.encode())
        for loop, hear in list(self._listeners.values()):
            with contextlib.suppress(RuntimeError):  # the loop was closed, and with it all its connections
                loop.call_soon_threadsafe(hear, words)
        return self._tell_pools(token)

    async def _tell_pools(self, token: TokenInterface) -> None:
        for pool in list(self._pools):
            await pool.re_auth_callback(token)


def listen(provider: object, pool: Any, hear: Callable[[Words], None]) -> Callable[[], None]:
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
    provider.on_next(stream.on_next)
    return stop
