"""The door to whatever server the Sentinels name the primary: they are asked at each connect.

All of them at once, so that one that hangs costs little, and the newest configuration is believed:
its epoch counts the failovers. One Sentinel that is cut off from the others, perhaps together with
an old primary, names that for as long as it lasts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ResponseError

from ..errors import ConfigurationError, ServerError, UncertainError
from .door import NOT_OURS, Door, passwords

ANSWER_TIMEOUT = 1.0  # seconds for a Sentinel to answer
STRAGGLERS = 0.05  # seconds for the others, once a majority has answered, without which there was no failover
MINORITY = 0.3  # ... and after the first answer, as long as it has not
CONNECT_TIMEOUT = 1.0  # seconds for the primary, unless the URL or client says: another one may be named by then


class _View(NamedTuple):
    """What one Sentinel says."""

    host: str
    port: int
    epoch: int  # of that configuration
    up: bool

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class _Named:
    """What a redis-py connection asks for the address: the one that was found."""

    is_master = True
    check_connection = False

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port

    async def get_master_address(self) -> tuple[str, int]:
        return self._address


class SentinelDoor(Door):
    """Makes connections to the primary of a client from redis-py's ``Sentinel.master_for``."""

    max_pause = 0.15  # until the failover is over nothing is locked, and a Sentinel is asked cheaply

    def __init__(self, client: redis.Redis) -> None:
        """:raises ConfigurationError: it is a client for replicas"""
        pool = client.connection_pool
        assert isinstance(pool, SentinelConnectionPool)
        if not pool.is_master:
            raise ConfigurationError(
                f"servers: the client is one for replicas of {pool.service_name!r}, which accept no writes; "
                "give Sentinel.master_for(...)"
            )
        kwargs = {k: v for k, v in pool.connection_kwargs.items() if k != "connection_pool"}
        kind: Any = pool.connection_class
        super().__init__(kind, kwargs, pool)
        self._timeout = self._kwargs.get("socket_connect_timeout") or CONNECT_TIMEOUT
        self._name: str = pool.service_name
        self._manager = pool.sentinel_manager
        self._sentinels = [_own(sentinel) for sentinel in self._manager.sentinels]
        self._secrets += passwords(*(sentinel.connection_pool.connection_kwargs for sentinel in self._sentinels))
        addresses = [_address_of(sentinel) for sentinel in self._sentinels]
        self._db = self._kwargs.get("db") or 0
        self._of_sentinels = f"redis+sentinel://{','.join(addresses)}/{self._name}/{self._db}"
        self.label = self._of_sentinels
        self._believed: _View | None = None  # last, and where the last connect went, or goes

    async def open(self) -> asyncio.StreamWriter:
        named = await self._find()
        # For those who reach the servers under another address than the Sentinels do.
        host = getattr(self._manager, "_force_master_ip", None) or named.host
        self._kwargs["connection_pool"] = _Named(host, named.port)
        self.label = f"{self._name} at {host}:{named.port}/{self._db}"
        return await super().open()

    def at(self, host: str, port: int) -> Door:
        raise ConfigurationError(
            f"servers: {self._name!r} is a node of a cluster; give the cluster's nodes, not its Sentinels"
        )

    async def replaced(self) -> str | None:
        """The address of the primary that the Sentinels name now, if the last connect did not go there."""
        before = self._believed
        views, _ = await self._ask_all(ANSWER_TIMEOUT)
        newest = self._newest(views)
        # Whoever has connected meanwhile has asked as well.
        if newest is None or before is not self._believed or before is None:
            return None
        if (newest.host, newest.port) != (before.host, before.port):
            return str(newest)
        self._believed = newest  # its epoch, after more than one failover
        return None

    async def aclose(self) -> None:
        for sentinel in self._sentinels:
            await sentinel.aclose()

    async def _find(self) -> _View:
        """:raises ServerError: there is no primary, for all that the Sentinels know
        :raises UncertainError: they say nothing of it
        """
        self.label = label = self._of_sentinels
        views, problems = await self._ask_all(STRAGGLERS)
        newest = self._newest(views)
        if newest is not None:
            if not newest.up:
                # They have given it up: its keys count no more, another server will be the primary.
                raise ServerError(label, f"the Sentinels see the primary {newest} down, and name no other yet")
            self._believed = newest
            return newest
        if views:
            raise UncertainError(label, "the only Sentinels that answer have missed the last failover")
        if len(problems) < len(self._sentinels):
            raise ServerError(label, f"the Sentinels know no primary of the name {self._name!r}")
        # Nobody has said anything of the primary: it may be in the best of health.
        what = "; ".join(sorted({self.quote(problem) or type(problem).__name__ for problem in problems}))
        if all(isinstance(problem, AuthenticationError | ResponseError) for problem in problems):
            raise UncertainError(
                label,
                f"the Sentinels refuse ({what}); if they want a password of their own, give a client: "
                "Sentinel(..., sentinel_kwargs={'password': ...}).master_for(...)",
                lasting=True,
            )
        raise UncertainError(label, f"no Sentinel can be reached ({what})")

    def _newest(self, views: Sequence[_View]) -> _View | None:
        """What to believe. None: nothing that they say."""
        if not views:
            return None
        epoch = max(view.epoch for view in views)
        if self._believed is not None and epoch < self._believed.epoch and 2 * len(views) <= len(self._sentinels):
            return None  # most of them would have to be set up anew for an older one to be right
        newest = [view for view in views if view.epoch == epoch]
        return next((view for view in newest if view.up), newest[0])

    async def _ask_all(self, patience: float) -> tuple[list[_View], list[Exception]]:
        """What they say, and what went wrong. When most have answered, the others have that many
        seconds left."""
        loop = asyncio.get_running_loop()
        until = loop.time() + ANSWER_TIMEOUT
        pending = {loop.create_task(self._ask(sentinel)) for sentinel in self._sentinels}
        views: list[_View] = []
        problems: list[Exception] = []
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
                    most = 2 * len(pending) < len(self._sentinels)
                    until = min(until, loop.time() + (patience if most else max(patience, MINORITY)))
        finally:
            while pending:
                for task in pending:
                    task.cancel()
                _, pending = await asyncio.wait(pending, timeout=0.01)  # one may get lost (cancellation.py)
        return views, problems

    async def _ask(self, sentinel: redis.Redis) -> _View | Exception | None:
        """None: it does not know the name."""
        try:
            masters: Any = await sentinel.sentinel_masters()
            address = await sentinel.execute_command(  # type: ignore[no-untyped-call]  # redis-py's own gap
                "SENTINEL GET-MASTER-ADDR-BY-NAME", self._name
            )
            state = masters.get(self._name)
            if state is None or address is None:
                return None
            host, port = address
            # A replica's address is told as soon as it is promoted, while the state is still the old primary's.
            promoted = (host, port) != (state["ip"], state["port"])
            up = promoted or self._manager.check_master_state(state, self._name)
            return _View(host, port, state["config-epoch"], up)
        except Exception as error:  # anything at all: credential providers are the user's own code
            return error


def _own(sentinel: redis.Redis) -> redis.Redis:
    """A client of our own to the same Sentinel, which does not repeat what has failed."""
    pool = sentinel.connection_pool
    kwargs = {k: v for k, v in pool.connection_kwargs.items() if k not in (*NOT_OURS, "protocol")}
    for timeout in ("socket_timeout", "socket_connect_timeout"):
        kwargs[timeout] = kwargs.get(timeout) or ANSWER_TIMEOUT
    kwargs |= {"retry": Retry(NoBackoff(), 0), "decode_responses": True}
    return redis.Redis.from_pool(redis.ConnectionPool(pool.connection_class, **kwargs))


def _address_of(sentinel: redis.Redis) -> str:
    kwargs = sentinel.connection_pool.connection_kwargs
    host, port = kwargs.get("host", "localhost"), kwargs.get("port", 26379)
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
