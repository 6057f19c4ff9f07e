"""Resolves host names and connects sockets, without the event loop's default executor.

``loop.getaddrinfo`` runs in that executor, and queues behind everything that the application passes to
``asyncio.to_thread``. A reconnect could wait there until its locks have expired. So asynclock resolves names in daemon
threads of its own: at most one for each name and ``MAX_THREADS`` in all, and none while there is nothing to resolve. A
look-up that hangs cannot be stopped. Callers may stop waiting for it, and later callers for that name join it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

import redis.asyncio as redis

MAX_THREADS = 16  # look-ups at the same time; others wait

# These say nothing about the server: this machine cannot even try the address.
_CANNOT_TRY = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ENETUNREACH)

_Found = list[tuple[Any, ...]]  # what socket.getaddrinfo returns
_Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[_Found]"]


class _Lookups:
    """State, guarded by ``_lock`` since several event loops may use it: ``_waiters`` for each name that is queued or
    being resolved, ``_queue`` of names that no thread has taken yet, ``_threads``: the number of threads."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._waiters: dict[str, list[_Waiter]] = {}
        self._queue: deque[str] = deque()
        self._threads = 0

    def ask(self, host: str) -> asyncio.Future[_Found]:
        """:raises RuntimeError: no thread can be started"""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Found] = loop.create_future()
        with self._lock:
            if (waiters := self._waiters.get(host)) is not None:
                waiters.append((loop, future))
                return future
            if self._threads < MAX_THREADS:
                # Started first, since it may raise. The thread cannot see the queue before this one releases the lock.
                threading.Thread(target=self._work, name="asynclock name look-up", daemon=True).start()
                self._threads += 1
            self._waiters[host] = [(loop, future)]
            self._queue.append(host)
        return future

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._threads -= 1
                    return
                host = self._queue.popleft()
            found: _Found = []
            problem: Exception | None = None
            try:
                found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
            except Exception as error:  # raised in the callers
                problem = error
            with self._lock:
                waiters = self._waiters.pop(host)
            for loop, future in waiters:
                with contextlib.suppress(RuntimeError):  # that loop is closed, with all its tasks
                    loop.call_soon_threadsafe(_resolve, future, found, problem)


def _resolve(future: asyncio.Future[_Found], found: _Found, problem: Exception | None) -> None:
    if future.done():  # cancelled
        return
    if problem is None:
        future.set_result(found)
    else:
        future.set_exception(problem)


_lookups = _Lookups()


async def addresses(host: str) -> _Found:
    """As ``socket.getaddrinfo(host, 0, type=SOCK_STREAM)``.

    :raises OSError: there is no such name, or no name server answers
    :raises UnicodeError: it is not a valid name
    """
    global _lookups
    try:
        return socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass  # a name, not an address; AI_NUMERICHOST never blocks
    if _lookups.pid != os.getpid():  # forked: the threads exist in the parent only, and the lock may be held
        _lookups = _Lookups()
    return await _lookups.ask(host)


async def connect(host: str, port: int, seconds: float) -> socket.socket:
    """Connect to the first address of ``host`` that accepts. Each address gets its share of ``seconds``.

    :raises OSError: none accepts. A ``ConnectionError`` only if every address that could be tried refused or reset
        the connection: that proves that the server is not running
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    found = await addresses(host)
    problems: list[OSError] = []
    for number, (family, kind, protocol, _, address) in enumerate(found):
        share = (end - loop.time()) / (len(found) - number)
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:
            problems.append(error)
            continue
        try:
            sock.setblocking(False)
            # Without the %scope of an IPv6 address: the tuple has the scope as a number, too.
            where = (address[0].partition("%")[0], port, *address[2:])
            async with asyncio.timeout(share):
                await loop.sock_connect(sock, where)
            if sock.getsockname() == sock.getpeername():
                # TCP self-connect: nothing listens there, and the kernel chose that very port for this socket.
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            return sock
        except OSError as error:  # a TimeoutError too
            problems.append(error)
            sock.close()
        except BaseException:
            sock.close()
            raise
    tried = [problem for problem in problems if problem.errno not in _CANNOT_TRY] or problems
    raise next((problem for problem in tried if not isinstance(problem, ConnectionError)), tried[0])


class Connects:
    """Mixin for redis-py connection classes: connects the socket here, and passes it to redis-py."""

    host: str
    port: int
    socket_connect_timeout: float | None
    _connected: socket.socket
    _reader: asyncio.StreamReader | None
    received: asyncio.StreamReader | None = None  #: kept because redis-py drops it, unread, on errors

    async def _connect(self) -> None:
        self._connected = await connect(self.host, int(self.port), self.socket_connect_timeout or 60.0)
        try:
            await super()._connect()  # type: ignore[misc]  # redis-py's
            self.received = self._reader
        except BaseException:
            self._connected.close()
            raise
        finally:
            del self._connected

    def _connection_arguments(self) -> Mapping[str, Any]:
        arguments = dict(super()._connection_arguments())  # type: ignore[misc]  # redis-py's
        for known in ("host", "port"):
            arguments.pop(known, None)
        if arguments.get("ssl"):
            arguments.setdefault("server_hostname", self.host)
        return {**arguments, "sock": self._connected}


_classes: dict[type, type] = {}


def with_own_lookup(kind: type[Any]) -> type[Any]:
    """``kind`` with ``Connects``; ``kind`` itself if its ``_connect`` is not redis-py's (as for unix sockets)."""
    if getattr(kind, "_connect", None) is not redis.Connection._connect:
        return kind
    if kind not in _classes:
        _classes[kind] = type(kind.__name__, (Connects, kind), {"__module__": kind.__module__})
    return _classes[kind]
