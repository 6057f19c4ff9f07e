"""Connects to the server that the Sentinels name as the primary, and asks them at each connect.

It asks all at once, so that a Sentinel that hangs costs little. The configuration with the highest epoch wins, since
the epoch counts the failovers. A Sentinel that is cut off from the others, perhaps together with an old primary, goes
on naming that primary.
"""

from __future__ import annotations

import asyncio
import re
import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ResponseError

from ..errors import ConfigurationError, GoneError, ServerError
from .background import end
from .connector import UNUSED_OPTIONS, Connector, is_failure, passwords
from .limited_parser import LimitedParser
from .lookup import with_own_lookup

ANSWER_TIMEOUT = 1.0  # seconds for a Sentinel to answer
AFTER_MAJORITY = 0.05  # seconds to wait for the others once a majority has answered: every failover needs a majority
AFTER_FIRST = 0.3  # seconds to wait for the others after the first answer, until a majority has answered
CONNECT_TIMEOUT = 1.0  # seconds, unless the URL or client sets it. Short: the next attempt may find another primary


MAX_EPOCH = (1 << 64) - 1
_MASTERS = "SENTINEL MASTERS"
_HOST = re.compile(r"[\w.:%-]{1,255}", re.ASCII)
_ADDRESS = "SENTINEL GET-MASTER-ADDR-BY-NAME"


class _MalformedError(Exception):
    """A Sentinel's answer is malformed: it counts as a Sentinel that has not answered."""

    def __init__(self, command: str, answer: object) -> None:
        super().__init__(f"{command} was answered with {reprlib.repr(answer)}")


class _View(NamedTuple):
    """What one Sentinel says."""

    host: str
    port: int
    epoch: int  # of that configuration
    up: bool  # usable, as the user's Sentinel object sees it (check_master_state)
    down: bool  # flagged as down

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class _Named:
    """Stands in for redis-py's Sentinel connection pool: gives its connections the address that was found here."""

    is_master = True
    check_connection = False

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port

    async def get_master_address(self) -> tuple[str, int]:
        return self._address


class SentinelConnector(Connector):
    """Makes connections to the primary of a client from redis-py's ``Sentinel.master_for``."""

    max_pause = 0.15  # short: nothing can be locked during a failover, and asking a Sentinel is cheap

    def __init__(self, client: redis.Redis) -> None:
        """:raises ConfigurationError: it is a client for replicas"""
        pool = client.connection_pool
        assert isinstance(pool, SentinelConnectionPool)
        if not pool.is_master:
            raise ConfigurationError(
                f"servers: the client is one for replicas of {pool.service_name!r}, which accept no writes; "
                "give Sentinel.master_for(...)"
            )
        kwargs = {**pool.connection_kwargs, "connection_pool": _Named("", 0)}  # ``open`` sets the address
        kind: Any = pool.connection_class
        self._name: str = pool.service_name
        self._manager = pool.sentinel_manager
        self._sentinels = [_own(sentinel) for sentinel in self._manager.sentinels]
        addresses = [_address_of(sentinel) for sentinel in self._sentinels]
        self._db = kwargs.get("db") or 0
        self._of_sentinels = f"redis+sentinel://{','.join(addresses)}/{self._name}/{self._db}"
        super().__init__(kind, kwargs, pool, self._of_sentinels)
        self._timeout = self._kwargs.get("socket_connect_timeout") or CONNECT_TIMEOUT
        self._secrets += passwords(*(sentinel.connection_pool.connection_kwargs for sentinel in self._sentinels))
        # redis-py's parser of that answer: check_master_state, which the user may override, needs its result.
        self._parsed: Any = self._sentinels[0].response_callbacks[_MASTERS] if self._sentinels else None
        for sentinel in self._sentinels:  # ``_view`` parses the answers, and checks them
            for command in (_MASTERS, _ADDRESS):
                sentinel.set_response_callback(command, _raw)
        self._current: _View | None = None  # what the last ``_find`` returned: the connection leads there

    async def _open_with_fallback(self) -> asyncio.StreamWriter:
        named = await self._find()
        # redis-py's option for clients that reach the servers by another address than the Sentinels.
        host = getattr(self._manager, "_force_master_ip", None) or named.host
        self._kwargs["connection_pool"] = _Named(host, named.port)
        self.label = f"{self._name} at {host}:{named.port}/{self._db}"
        return await super()._open_with_fallback()

    def at(self, host: str, port: int) -> Connector:
        raise ConfigurationError(
            f"servers: {self._name!r} is a node of a cluster; give the cluster's nodes, not its Sentinels"
        )

    async def replaced(self) -> str | None:
        """The address of the primary that the Sentinels name now, if the connection leads to another server."""
        before = self._current
        views, _ = await self._ask_all(ANSWER_TIMEOUT)
        newest = self._newest(views)
        # If it has reconnected meanwhile, it has asked the Sentinels then.
        if newest is None or before is not self._current or before is None:
            return None
        if (newest.host, newest.port) != (before.host, before.port):
            return str(newest)
        self._current = newest  # the same server, perhaps with a higher epoch after several failovers
        return None

    async def aclose(self) -> None:
        for sentinel in self._sentinels:
            await sentinel.aclose()

    async def _find(self) -> _View:
        """Ask the Sentinels for the primary.

        :raises GoneError: they report it down, and name no other yet
        :raises ServerError: they cannot be reached, or do not know the primary
        """
        self.label = label = self._of_sentinels
        views, problems = await self._ask_all(AFTER_MAJORITY)
        newest = self._newest(views)
        if newest is not None:
            if newest.down:
                # Its keys no longer count: another server will become the primary.
                raise GoneError(label, f"the Sentinels report the primary {newest} down, and name no other yet")
            if not newest.up:
                raise ServerError(label, f"the Sentinels that name {newest} see too few others (min_other_sentinels)")
            self._current = newest
            return newest
        what = "; ".join(sorted({self.redact(problem) or type(problem).__name__ for problem in problems}))
        if views:
            raise ServerError(label, "only Sentinels that have missed the last failover answer; start the others")
        if len(problems) < len(self._sentinels):
            raise ServerError(
                label, f"the Sentinels know no primary of the name {self._name!r}" + (what and f" ({what})")
            )
        # Not a GoneError below: without an answer, the primary may well be up.
        if all(isinstance(problem, AuthenticationError | ResponseError) for problem in problems):
            raise ServerError(
                label,
                f"the Sentinels refuse ({what}); if they need a password of their own, give a client: "
                "Sentinel(..., sentinel_kwargs={'password': ...}).master_for(...)",
                lasting=True,
            )
        if any(isinstance(problem, _MalformedError) for problem in problems):
            raise ServerError(label, f"no Sentinel says where the primary is ({what})")
        raise ServerError(label, f"no Sentinel can be reached ({what})")

    def _newest(self, views: Sequence[_View]) -> _View | None:
        """The view with the highest epoch. None: all views are outdated."""
        if not views:
            return None
        epoch = max(view.epoch for view in views)
        if self._current is not None and epoch < self._current.epoch and 2 * len(views) <= len(self._sentinels):
            return None  # only a majority can make an older epoch credible: the Sentinels were set up anew
        newest = [view for view in views if view.epoch == epoch]
        return next((view for view in newest if view.up), newest[0])

    async def _ask_all(self, patience: float) -> tuple[list[_View], list[BaseException]]:
        """The views and the errors of the Sentinels. Once a majority has answered, the others get ``patience`` seconds
        more."""
        loop = asyncio.get_running_loop()
        until = loop.time() + ANSWER_TIMEOUT
        pending = {loop.create_task(self._ask(sentinel)) for sentinel in self._sentinels}
        views: list[_View] = []
        problems: list[BaseException] = []
        try:
            while pending:
                done, pending = await asyncio.wait(
                    pending, timeout=max(0.0, until - loop.time()), return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    problems += [TimeoutError(f"no answer within {ANSWER_TIMEOUT:g} s")] * len(pending)
                    break
                for answer in [task.result() for task in done]:
                    if isinstance(answer, _View):
                        views.append(answer)
                    elif answer is not None:
                        problems.append(answer)
                if views:
                    majority = 2 * len(pending) < len(self._sentinels)
                    until = min(until, loop.time() + (patience if majority else max(patience, AFTER_FIRST)))
        finally:
            await end(pending)
        return views, problems

    async def _ask(self, sentinel: redis.Redis) -> _View | BaseException | None:
        """None: the Sentinel does not know the name."""
        try:
            masters: Any = await sentinel.execute_command(_MASTERS)  # type: ignore[no-untyped-call]  # redis-py's
            address: Any = await sentinel.execute_command(_ADDRESS, self._name)  # type: ignore[no-untyped-call]  # redis-py's
            try:
                return self._view(masters, address)
            except _MalformedError:
                # The connection may be out of step: the next reply may belong to this command.
                await sentinel.connection_pool.disconnect()
                raise
        except BaseException as error:
            if not is_failure(error):
                raise
            return error  # of any type: credential providers are user code

    def _view(self, masters: Any, address: Any) -> _View | None:
        """:raises _MalformedError: the answers are malformed"""
        state = _state(masters, self._name)
        if address is None or state is None:
            return None
        if not (isinstance(address, list) and len(address) == 2):
            raise _MalformedError(_ADDRESS, address)
        host, port = _address(*address)
        # The address changes as soon as a replica is promoted, while the state is still that of the old primary.
        promoted = (host, port) != _address(state.get("ip"), state.get("port"))
        epoch, flags = state.get("config-epoch"), state.get("flags")
        if epoch is None or not _is_number(epoch, MAX_EPOCH):
            raise _MalformedError(_MASTERS, f"config-epoch {epoch}")
        if not isinstance(flags, str):
            raise _MalformedError(_MASTERS, f"flags {flags}")
        up, down = True, False
        if not promoted:
            try:
                parsed = self._parsed([[word for pair in state.items() for word in pair]])
                up = bool(self._manager.check_master_state(parsed[self._name], self._name))
            except Exception as error:  # perhaps a field is missing that the (user's) check needs
                raise _MalformedError(_MASTERS, f"{type(error).__name__}: {error}") from error
            words = flags.split(",")
            down = "master" not in words or "s_down" in words or "o_down" in words
        return _View(host, port, int(epoch), up and not down, down)


def _state(masters: Any, name: str) -> dict[str, str] | None:
    """The fields of primary ``name`` in the answer to ``SENTINEL MASTERS``; None: it is not listed.

    :raises _MalformedError: the answer is malformed
    """
    if not isinstance(masters, list):
        raise _MalformedError(_MASTERS, masters)
    found = None
    for master in masters:
        if not isinstance(master, list) or len(master) % 2 or not all(isinstance(word, str) for word in master):
            raise _MalformedError(_MASTERS, master)
        state = dict(zip(master[::2], master[1::2], strict=True))
        if "name" not in state:
            raise _MalformedError(_MASTERS, master)
        if state["name"] == name:
            found = state
    return found


def _address(host: Any, port: Any) -> tuple[str, int]:
    """:raises _MalformedError: it is not an address"""
    if isinstance(host, str) and _HOST.fullmatch(host) and _is_number(port, 65535) and int(port):
        return host, int(port)
    raise _MalformedError(_ADDRESS, (host, port))


def _is_number(word: Any, most: int) -> bool:
    return isinstance(word, str) and len(word) <= 20 and word.isascii() and word.isdigit() and int(word) <= most


def _raw(response: Any, **options: Any) -> Any:
    return response


def _own(sentinel: redis.Redis) -> redis.Redis:
    """A client of our own for the same Sentinel, without retries."""
    pool = sentinel.connection_pool
    kwargs = {k: v for k, v in pool.connection_kwargs.items() if k not in UNUSED_OPTIONS}
    for timeout in ("socket_timeout", "socket_connect_timeout"):
        kwargs[timeout] = kwargs.get(timeout) or ANSWER_TIMEOUT
    # In RESP2 the answers have lists and strings only.
    kwargs |= {"retry": Retry(NoBackoff(), 0), "decode_responses": True, "protocol": 2}
    kwargs.setdefault("parser_class", LimitedParser)
    return redis.Redis.from_pool(redis.ConnectionPool(with_own_lookup(pool.connection_class), **kwargs))


def _address_of(sentinel: redis.Redis) -> str:
    kwargs = sentinel.connection_pool.connection_kwargs
    host, port = kwargs.get("host", "localhost"), kwargs.get("port", 26379)
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
