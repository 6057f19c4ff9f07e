"""One session with a server: a connection that was set up, and all that lives and dies with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ..core.clock import ServerClock
from ..core.pace import Pace
from ..errors import ConfigurationError, GoneError, ServerError
from ..messages import about
from ..options import Options
from .capabilities import probe, tracking_on
from .commands import Capabilities, Commands, packed
from .connection import Connection, OnPush
from .connector import Connector
from .credentials import Credentials
from .expiry import ExpiryClock
from .flushes import Flushes
from .invalidations import Invalidations
from .memory_shortage import MemoryShortage
from .noloop import EvictionReport, EvictionWatch
from .replicas import Replicas
from .requests import Ignored, Reauthentication
from .sending import Sending
from .watchdog import Watchdog, max_silence

log = logging.getLogger("asynclock")


class Session(Sending):
    """Everything that belongs to one connection to a server.

    State: ``connection`` carries the operations. ``invalidations`` (RESP2) and ``replicas`` (``min_replicas``) have
    connections of their own; when one of the three is lost, the others are dropped. ``capabilities`` is what the server
    can do; ``commands`` follows from it, and only ``change`` changes the two. ``_watchdog`` and ``_eviction_watch`` run
    from ``watch`` on. After ``stop``, nothing but the connections is left.
    """

    def __init__(
        self,
        connector: Connector,
        options: Options,
        connection: Connection,
        capabilities: Capabilities,
        expiry: ExpiryClock,
        pace: Pace,
        invalidations: Invalidations | None,
        replicas: Replicas | None,
    ) -> None:
        super().__init__(connection, Commands(capabilities), expiry)
        self.invalidations = invalidations
        self.replicas = replicas
        self.capabilities = capabilities
        self.memory = MemoryShortage()
        self.flushes = Flushes(pace)
        self.since = connection.clock()
        self._connector = connector
        self._options = options
        self._watchdog: Watchdog | None = None
        self._eviction_watch: EvictionWatch | None = None

    # Setting it up

    @classmethod
    async def open(
        cls,
        connector: Connector,
        options: Options,
        clock: Callable[[], float],
        pace: Pace,
        *,
        uptime: bool,
        on_push: OnPush,
        on_lost: Callable[[Connection, Exception | None], None],
        on_drained: Callable[[], None],
    ) -> Session:
        """Connect, probe what the server can do, and switch tracking on.

        :param pace: how useful the server's pushes were; kept across sessions
        :param uptime: also ask when the server was started
        :param on_push: as for ``Connection``, like the next two. They are also called during setup
        :raises GoneError: the server is not running
        :raises ServerError: unreachable, or refused
        :raises ConfigurationError: the options cannot work
        """
        while True:
            writer = await connector.open()
            connection = Connection(
                writer, asyncio.get_running_loop(), clock, on_push=on_push, on_lost=on_lost, on_drained=on_drained
            )
            try:
                async with asyncio.timeout(connector.timeout):
                    session = await cls._set_up(connector, options, connection, pace, uptime, on_push)
            except BaseException as error:
                connection.abort()  # this drops the other connections, too
                if isinstance(error, ConnectionResetError):
                    if connector.closed_in_setup():
                        continue
                    raise _closed(connector, connection, "while it was set up") from None
                if isinstance(error, TimeoutError):
                    raise ServerError(connector.label, f"no answer within {connector.timeout:g} s") from None
                if not isinstance(error, Exception) or isinstance(error, ServerError | ConfigurationError):
                    raise
                raise unforeseen(connector, error) from error
            if connection.closed.done():
                raise _closed(connector, connection, "as soon as it was set up")
            return session

    @classmethod
    async def _set_up(
        cls,
        connector: Connector,
        options: Options,
        connection: Connection,
        pace: Pace,
        uptime: bool,
        on_push: OnPush,
    ) -> Session:
        """:raises ConnectionResetError: the connection was lost meanwhile"""
        silence, server_clock = max_silence(options), ServerClock(options.key_validity)
        invalidations: Invalidations | None = None
        if connector.protocol == 2 and options.client_side_caching:
            invalidations = await Invalidations.open(connector, connection, on_push, silence)
        capabilities = await probe(
            connector,
            connection.call,
            options,
            connection.clock,
            server_clock,
            redirect=None if invalidations is None else invalidations.redirect,
            uptime=uptime,
        )
        expiry = ExpiryClock(connection, server_clock, options.key_validity, pxat=capabilities.pxat)
        replicas: Replicas | None = None
        if options.min_replicas:
            replicas = await Replicas.open(connector, connection, capabilities, options, expiry.ask, silence)
        return cls(connector, options, connection, capabilities, expiry, pace, invalidations, replicas)

    # While it lasts

    @property
    def trouble(self) -> ServerError | None:
        """Why the server gives no votes now; None: it does."""
        label = self._connector.label
        if self.connection.slow:
            late = max_silence(self._options)
            return ServerError(
                label, f"answers are more than {late:g} s late; no new locks are requested until it catches up"
            )
        if self.connection.full:
            return ServerError(label, "does not read what is sent to it; does the server hang?")
        return None if self.replicas is None else self.replicas.trouble

    @property
    def in_order(self) -> bool:
        """Do pushes and replies share one connection, so that their order is the order of events?"""
        return self._connector.protocol == 3 and self.replicas is None and self.capabilities.mode != "cluster"

    def change(self, **capabilities: Any) -> None:
        """Replace some of the capabilities."""
        self.capabilities = self.capabilities._replace(**capabilities)
        self.commands = Commands(self.capabilities)

    def avoid_set(self) -> bool:
        """The server is out of memory: extend by script for a while. False: extensions use the script already."""
        if not self.capabilities.set_ifeq:
            return False
        self.change(set_ifeq=False)
        self.memory.avoid_set(lambda: self.change(set_ifeq=True))
        return True

    def reauthenticate(self, credentials: Credentials, on_missed: Callable[[], None]) -> None:
        """Log in with new credentials. ``on_missed`` is called if invalidations may have been missed meanwhile."""
        connection, redact = self.connection, self._connector.redact
        self._connector.renewed(credentials)
        connection.send(
            packed(b"AUTH", *credentials), Reauthentication(connection.abort, redact), 1, connection.clock()
        )
        if self.invalidations is not None:
            self.invalidations.reauthenticate(credentials, on_missed)
        if self.replicas is not None:
            self.replicas.reauthenticate(credentials)

    def watch(
        self, in_use: Callable[[], bool], on_hidden: Callable[[], None], on_clock_set: Callable[[], None]
    ) -> None:
        """Start the watchdog and, with NOLOOP, the eviction watch.

        :param in_use: is any lock held or waited for?
        :param on_hidden: called when the server may have changed keys without a push
        :param on_clock_set: called when the server's clock was set
        """
        label = self._connector.label
        self._watchdog = Watchdog(self.connection, label, max_silence(self._options))
        self.expiry.on_set = on_clock_set
        if self.capabilities.noloop:

            def hidden() -> None:
                if self._options.no_loop_tracking is None:
                    self._end_noloop()
                on_hidden()

            report = self.capabilities.report or EvictionReport()
            self._eviction_watch = EvictionWatch(self.connection, label, report, in_use, hidden)

    def stop(self) -> None:
        """The connection is lost, or about to be closed."""
        self.expiry.on_set = None  # no reference cycle
        self.memory.stop()
        self.flushes.stop()
        if self._watchdog is not None:
            self._watchdog.stop()
        self._stop_eviction_watch()

    def _stop_eviction_watch(self) -> None:
        if self._eviction_watch is not None:
            self._eviction_watch.stop()
            self._eviction_watch = None  # no reference cycle

    def _end_noloop(self) -> None:
        label = self._connector.label
        log.info(
            "asynclock: %s evicts keys, or tracks too many: NOLOOP is off from now on",
            label,
            extra=about("noloop_off", server=label),
        )
        self.change(noloop=False)
        self._stop_eviction_watch()
        redirect = None if self.invalidations is None else self.invalidations.redirect
        self.connection.send(tracking_on(redirect, noloop=False), Ignored(), 1, self.connection.clock())

    # Its end

    async def wait_answered(self, patience: float) -> None:
        """Wait until everything that was sent is answered, for at most ``patience`` seconds.

        Why not just close: an answer that comes after that is refused with RST. A proxy then drops what it has not
        passed on yet, which are the last releases.
        """
        if self.connection.waiting:
            await asyncio.wait([self.connection.answered()], timeout=patience)

    async def aclose(self, patience: float) -> None:
        """Flush, and close every connection. If the server hangs, they are aborted after ``patience`` seconds."""
        connection = self.connection
        if not connection.closed.done():
            connection.close()
            await asyncio.wait([connection.closed], timeout=patience)
            if not connection.closed.done():
                connection.abort()
                await connection.closed
        if self.replicas is not None:
            await self.replicas.aclose()
        if self.invalidations is not None:
            self.invalidations.abort()
            await self.invalidations.closed


def _closed(connector: Connector, connection: Connection, when: str) -> ServerError:
    problem = connection.problem
    if problem is None:
        return GoneError(connector.label, f"the connection was closed {when}")
    # Not a GoneError: a server is running, but it has sent malformed input.
    return ServerError(connector.label, f"the connection was closed {when}: {problem}")


def unforeseen(connector: Connector, error: Exception) -> ServerError:
    """The error for an unexpected exception. Whatever a server or proxy sends, or a credential provider raises,
    connecting must go on."""
    return ServerError(connector.label, f"cannot be set up: {type(error).__name__}: {connector.redact(error)}")
