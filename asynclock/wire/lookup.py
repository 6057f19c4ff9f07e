"""Sockets to named servers, without the event loop's default executor.

``loop.getaddrinfo`` runs there, behind all that the application has handed to ``asyncio.to_thread``: a connection
that drops could not be made anew before that is done, and its locks would be lost. So names are looked up in daemon
threads of asynclock's own: one for each name at most, however often it is asked for, ``MAX_THREADS`` in all, and none while
there is nothing to look up. Nothing can stop a look-up that hangs; who asked may stop waiting, and the next who asks
for that name waits for the same one.
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

MAX_THREADS = 16  # names that are looked up at the same time; others wait

# Nothing of a server is known by these: from here, that address cannot even be tried.
_NO_WAY = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ENETUNREACH)

_Found = list[tuple[Any, ...]]  # what socket.getaddrinfo returns
_Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[_Found]"]


class _Lookups:
    """State, all of it behind ``_lock``: ``_waiters`` of each name that is queued or being looked up, ``_queue`` of
    names that no thread has taken yet, and ``_threads``, how many there are. Threads of several event loops may ask."""

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
                # It waits for the lock before it looks into the queue.
                threading.Thread(target=self._work, name="asynclock looking names up", daemon=True).start()
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
            except Exception as error:  # told to who asked
                problem = error
            with self._lock:
                waiters = self._waiters.pop(host)
            for loop, future in waiters:
                with contextlib.suppress(RuntimeError):  # that loop is closed, and nobody waits there
                    loop.call_soon_threadsafe(_tell, future, found, problem)


def _tell(future: asyncio.Future[_Found], found: _Found, problem: Exception | None) -> None:
    if future.done():  # cancelled
        return
    if problem is None:
        future.set_result(found)
    else:
        future.set_exception(problem)


_lookups = _Lookups()


async def addresses(host: str) -> _Found:
    """As ``socket.getaddrinfo(host, 0, type=SOCK_STREAM)``.

    :raises OSError: there is no such name, or nobody who knows
    :raises UnicodeError: it is no name
    """
    global _lookups
    try:
        return socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass  # it is a name, and that was known without asking anybody
    if _lookups.pid != os.getpid():  # the threads, and the lock, were those of the process that has forked
        _lookups = _Lookups()
    return await _lookups.ask(host)


async def connected(host: str, port: int, seconds: float) -> socket.socket:
    """A socket that is connected to the first address of ``host`` that accepts it. Each gets its share of the time.

    :raises OSError: none does. A ``ConnectionError`` only if no address leaves open whether anybody is there.
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
            # An IPv6 address may end with its scope, which is a number of its own in there as well.
            where = (address[0].partition("%")[0], port, *address[2:])
            async with asyncio.timeout(share):
                await loop.sock_connect(sock, where)
            if sock.getsockname() == sock.getpeername():
                # Nobody listens, and of all ports this socket has got that one for its own.
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            return sock
        except OSError as error:  # a TimeoutError too
            problems.append(error)
            sock.close()
        except BaseException:
            sock.close()
            raise
    tried = [problem for problem in problems if problem.errno not in _NO_WAY] or problems
    raise next((problem for problem in tried if not isinstance(problem, ConnectionError)), tried[0])


class Connects:
    """Over a connection class of redis-py: it connects by itself to the host that it was given."""

    host: str
    port: int
    socket_connect_timeout: float | None
    _connected: socket.socket
    _reader: asyncio.StreamReader | None
    received: asyncio.StreamReader | None = None  #: what has come in; redis-py forgets it when something goes wrong

    async def _connect(self) -> None:
        self._connected = await connected(self.host, int(self.port), self.socket_connect_timeout or 60.0)
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


def connecting(kind: type[Any]) -> type[Any]:
    """That connection class, with these look-ups; the class itself if it does not connect as redis-py's own do."""
    if getattr(kind, "_connect", None) is not redis.Connection._connect:
        return kind
    if kind not in _classes:
        _classes[kind] = type(kind.__name__, (Connects, kind), {"__module__": kind.__module__})
    return _classes[kind]
