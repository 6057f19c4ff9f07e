"""A real primary with replicas, and the Sentinels that watch it, on loopback."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from .nodes import follows, raw, text
from .servers import Server
from .started import Started

_CHANGE_LIMIT = 20.0  # seconds, like the next one
_POLL = 0.02

# Sentinel's default periods are 10 s, 2 s and 1 s, and it does nothing for 30 s after a hiccup (TILT): tests would take
# minutes. A replica can replace a primary only if it has answered INFO within the last five ping periods, and while the
# primary is down it gets INFO once a second.
_RHYTHM = ("INFO-PERIOD", 200, "ASK-PERIOD", 100, "PING-PERIOD", 400, "TILT-PERIOD", 1000)
_MEETING = ("PUBLISH-PERIOD", 100)
# A Sentinel that has not been told of a failover for four such periods turns a new primary into a replica again. The
# one that leads the failover checks once a second whether it is complete.
_MET = ("PUBLISH-PERIOD", 500)


class Sentinels(Started):
    """A primary, its replicas, and Sentinels, a majority of which must agree on a failover. They end with the ``with``
    block.

    :param kind: one of :data:`KINDS`, or the name or path of an executable: Valkey, or Redis 7.0 or later
    :param replicas: number of replicas
    :param sentinels: number of Sentinels
    :param name: the name by which the Sentinels know the primary
    :param config: lines of ``valkey.conf`` for the servers; the replicas and the Sentinels use its ``requirepass`` too
    :param sentinel_config: lines of ``sentinel.conf`` for the Sentinels

    A primary that is silent for 0.7 s counts as down, and another one replaces it about a second later.

    The methods ignore servers and Sentinels that are killed or paused, until these are back. All of them block. If
    waiting takes too long, they raise ``TimeoutError``.
    """

    def __init__(
        self,
        kind: str = "valkey-9.1",
        *,
        replicas: int = 2,
        sentinels: int = 3,
        name: str = "mymaster",
        config: Mapping[str, str] | None = None,
        sentinel_config: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._kind = kind
        self._count = replicas, sentinels
        self._config = {"repl-diskless-sync": "yes", "repl-diskless-sync-delay": "0"} | dict(config or {})
        self._sentinel_config = {
            f"sentinel down-after-milliseconds {name}": "700",
            f"sentinel failover-timeout {name}": "3000",
            f"sentinel parallel-syncs {name}": str(max(1, replicas)),
        }
        if password := self._config.get("requirepass"):
            self._config.setdefault("masterauth", password)
            self._sentinel_config[f"sentinel auth-pass {name}"] = password
        self._sentinel_config |= dict(sentinel_config or {})
        self._resources = contextlib.ExitStack()
        self.servers: list[Server] = []
        """The first primary, then its replicas."""
        self.sentinels: list[Server] = []
        """The Sentinels."""

    def start(self) -> None:
        """Start everything, and wait until every Sentinel knows every other one and every replica."""
        if self.servers:
            return
        replicas, sentinels = self._count
        first = self._add(self.servers, self._config)
        first.start()
        address = f"127.0.0.1 {first.port}"
        for _ in range(replicas):
            self._add(self.servers, self._config | {"replicaof": address})
        # The file needs "monitor" before any other line with the name.
        monitor = {f"sentinel monitor {self.name}": f"{address} {sentinels // 2 + 1}"}
        for _ in range(sentinels):
            self._add(self.sentinels, monitor | self._sentinel_config, sentinel=True)
        others = [*self.servers[1:], *self.sentinels]
        with ThreadPoolExecutor(len(others) or 1) as pool:
            list(pool.map(Server.start, others))
        self._set(*_RHYTHM, *_MEETING)
        self.wait_until_ok(_CHANGE_LIMIT)
        self._set(*_MET)

    def close(self) -> None:
        """Kill all servers and Sentinels, and remove their directories. Does nothing the second time."""
        self._resources.close()
        self.servers.clear()
        self.sentinels.clear()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each Sentinel, as ``redis.asyncio.sentinel.Sentinel`` takes them."""
        return [("127.0.0.1", sentinel.port) for sentinel in self.sentinels]

    @property
    def url(self) -> str:
        """``redis+sentinel://HOST:PORT,.../NAME/0``, for a ``Locker``."""
        hosts = ",".join(f"{host}:{port}" for host, port in self.addresses)
        return f"redis+sentinel://{hosts}/{self.name}/0"

    @property
    def primary(self) -> Server:
        """The server that most Sentinels name as the primary: a dead one too, until they have replaced it.

        :raises RuntimeError: no Sentinel is running
        """
        answers = self._answers()
        if not answers:
            raise RuntimeError("no Sentinel is running")
        return answers.most_common(1)[0][0]

    @property
    def replicas(self) -> list[Server]:
        """All servers but the primary, dead or alive. Raises as :attr:`primary`."""
        primary = self.primary
        return [server for server in self.servers if server is not primary]

    def failover(self) -> Server:
        """Have the Sentinels make a replica the primary, wait as :meth:`wait_for_failover` does, and return it."""
        old = self.primary

        def is_over() -> bool:
            if self._is_over(old):
                return True
            if set(self._answers()) == {old}:  # not begun, or begun and aborted because no replica was fit
                try:
                    self._awake_sentinels[0].execute("SENTINEL", "FAILOVER", self.name)
                except RuntimeError as error:
                    if not str(error).startswith(("NOGOODSLAVE", "INPROG")):
                        raise
            return False

        self._wait(is_over, 2 * _CHANGE_LIMIT)
        return self.primary

    def wait_for_failover(self, old: Server, seconds: float = _CHANGE_LIMIT) -> Server:
        """Wait until all Sentinels name another primary than ``old`` and it accepts writes, and return it.

        :raises TimeoutError: this takes longer than that many seconds
        """
        self._wait(lambda: self._is_over(old), seconds)
        return self.primary

    def _is_over(self, old: Server) -> bool:
        answers = self._answers()
        return len(answers) == 1 and old not in answers and _is_primary(*answers)

    def wait_until_ok(self, seconds: float = 10.0) -> None:
        """Wait until all Sentinels name the same primary, it runs as one, all running servers follow it, and every
        Sentinel sees all of these servers and all running Sentinels, and none of them as down.

        :raises TimeoutError: this takes longer than that many seconds
        """
        self._wait(self._is_ok, seconds)

    @property
    def _awake_sentinels(self) -> list[Server]:
        return [sentinel for sentinel in self.sentinels if sentinel.awake]

    def _add(self, group: list[Server], config: Mapping[str, str], *, sentinel: bool = False) -> Server:
        server = Server(self._kind, config=config, sentinel=sentinel)
        self._resources.callback(server.close)
        group.append(server)
        return server

    def _set(self, *parameters: str | int) -> None:
        for sentinel in self.sentinels:
            sentinel.execute("SENTINEL", "DEBUG", *parameters)

    def _answers(self) -> Counter[Server]:
        """How many Sentinels name which server the primary."""
        by_port = {server.port: server for server in self.servers}
        ports = []
        for sentinel in self._awake_sentinels:
            address = sentinel.execute("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
            assert isinstance(address, list)
            ports.append(int(raw(address[1])))
        return Counter(by_port[port] for port in ports)

    def _is_ok(self) -> bool:
        answers = self._answers()
        if len(answers) != 1 or not _is_primary(*answers):
            return False
        (primary,) = answers
        replicas = {server.port for server in self.servers if server.awake} - {primary.port}
        sentinels = {sentinel.port for sentinel in self._awake_sentinels}
        if not all(follows(server) for server in self.servers if server.port in replicas):
            return False
        return all(
            replicas <= self._healthy(sentinel, "SLAVES")
            and sentinels - {sentinel.port} <= self._healthy(sentinel, "SENTINELS")
            for sentinel in self._awake_sentinels
        )

    def _healthy(self, sentinel: Server, what: str) -> set[int]:
        """The ports of the replicas, or of the other Sentinels, that this Sentinel sees as healthy."""
        found = sentinel.execute("SENTINEL", what, self.name)
        assert isinstance(found, list)
        ports = set()
        for fields in found:
            assert isinstance(fields, list)
            texts = [text(field) for field in fields]
            known = dict(zip(texts[::2], texts[1::2], strict=True))
            down = {"s_down", "o_down", "disconnected"} & set(known["flags"].split(","))
            if not down and known.get("master-link-status", "ok") == "ok":
                ports.add(int(known["port"]))
        return ports

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds

        def is_met() -> bool:
            try:
                return condition()
            except ConnectionError:
                return False  # a Sentinel that changes the role of a server ends all its connections

        while not is_met():
            if time.monotonic() > deadline:
                logs = "\n".join(f"{sentinel.port}:\n{sentinel.log[-1000:]}" for sentinel in self.sentinels)
                raise TimeoutError(
                    f"the Sentinels did not get there within {seconds} s. The ends of their logs:\n{logs}"
                )
            time.sleep(_POLL)


def _is_primary(server: Server) -> bool:
    if not server.awake:
        return False
    role = server.execute("ROLE")
    return isinstance(role, list) and role[0] == b"master"
