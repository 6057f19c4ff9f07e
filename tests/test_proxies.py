"""Proxies with a list of commands of their own: what is not needed is not required."""

from __future__ import annotations

import asyncio

import pytest

from asynclock import Locker, NotLockedError, ServerError
from asynclock.testing import Server
from tests.support import internals
from tests.support.helpers import key
from tests.support.interceptor import Interceptor

HELLO, TIME, INFO, CLIENT = b"HELLO", b"TIME", b"INFO", b"CLIENT"
NEEDED = (b"GET", b"SET", b"PTTL", b"EVAL", b"PEXPIRE", b"DEL", b"SELECT", b"AUTH")

REFUSALS = [
    b"-unsupported command '%b'\r\n",  # Envoy
    b"-ERR unsupported command '%b'\r\n",
    b"-ERR unknown command '%b'\r\n",
    b"-ERR unknown command `%b`, with args beginning with: `3`, \r\n",
    b"-ERR %b is not supported\r\n",
    b"-ERR command not allowed: %b\r\n",
    b"-ERR invalid command\r\n",
    b"-NOPERM this user has no permissions to run the '%b' command\r\n",
    b"-Proxy error\r\n",
]


class Proxy(Interceptor):
    """Passes on what it knows. ``refusal``: what it says to the rest; None: nothing, and hangs up."""

    passes_on = False

    def __init__(self, port: int, refusal: bytes | None, *lacks: bytes, knows: tuple[bytes, ...] = ()) -> None:
        super().__init__(port)
        self.refusal = refusal
        self.lacks = lacks
        self.knows = knows

    def instead(self, command: bytes) -> bytes | None:
        word = command.split(b"\r\n")[2].upper()
        if word in self.lacks or (self.knows and word not in self.knows):
            if self.refusal is None:
                raise ConnectionAbortedError("unknown command")
            return self.refusal % word if b"%b" in self.refusal else self.refusal
        return None


async def works(proxy: Proxy, server: Server, **options: object) -> Locker:
    """Acquired, extended, contended, released; also after a reconnect."""
    async with Locker(proxy.url, key_validity=0.4, **options) as locker:  # type: ignore[arg-type]
        for _ in range(2):
            async with locker.with_context("job") as scope:
                assert 1 <= int(str(server.execute("PTTL", key("job")))) <= 500  # in the server's time
                await asyncio.sleep(0.5)  # through an extension
                assert scope.held
                assert await scope.fencing_token() == await scope.fencing_token()
                async with Locker(proxy.url, **options) as other:  # type: ignore[arg-type]
                    with pytest.raises(NotLockedError):
                        await other.try_acquire("job")
            assert server.execute("EXISTS", key("job")) == 0
            node = internals.node(locker)
            assert node.connection is not None
            node.connection.abort()
        return locker


@pytest.mark.asyncio
@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("lacks", [(HELLO,), (TIME,), (INFO,), (HELLO, INFO, TIME, CLIENT)], ids=str)
async def test_a_proxy_that_refuses(server: Server, refusal: bytes, lacks: tuple[bytes, ...]) -> None:
    async with Proxy(server.port, refusal, *lacks) as proxy:
        await works(proxy, server, client_side_caching=False)


@pytest.mark.asyncio
async def test_a_proxy_with_next_to_nothing(server: Server) -> None:
    """It passes on no more than a lock needs, with and without words for the rest."""
    for refusal in (REFUSALS[0], None):
        async with Proxy(server.port, refusal, knows=NEEDED) as proxy:
            await works(proxy, server, client_side_caching=False)


@pytest.mark.asyncio
@pytest.mark.parametrize("protocol", ["", "?protocol=2"])
async def test_a_proxy_that_hangs_up(server: Server, protocol: str) -> None:
    for lacks in ((HELLO,), (HELLO, INFO), (HELLO, TIME), (HELLO, INFO, TIME, CLIENT)):
        async with Proxy(server.port, None, *lacks) as proxy:
            proxy.url += protocol
            locker = await works(proxy, server, client_side_caching=False)
            node = internals.node(locker)
            assert not node.connector.plain or lacks != (HELLO,)  # what it knows is used


@pytest.mark.asyncio
async def test_what_is_needed_is_required_still(server: Server) -> None:
    async with Proxy(server.port, REFUSALS[0], HELLO, CLIENT) as proxy:
        with pytest.raises(ServerError, match="client_side_caching=False"):
            await Locker(proxy.url).acquire("job")
    async with Proxy(server.port, REFUSALS[0], TIME) as proxy:
        with pytest.raises(ServerError, match="TIME"):
            await Locker(proxy.url, fallback_setpx=False).acquire("job")


@pytest.mark.asyncio
async def test_an_info_of_the_proxys_own(server: Server) -> None:
    class Own(Proxy):
        def instead(self, command: bytes) -> bytes | None:
            if b"INFO" in command:
                text = b"# Proxy\r\nproxy_version:1.0-beta\r\n"
                return b"$%d\r\n%b\r\n" % (len(text), text)
            return super().instead(command)

    async with Own(server.port, REFUSALS[0], HELLO) as proxy:
        await works(proxy, server, client_side_caching=False)


@pytest.mark.asyncio
async def test_a_permission_that_is_not_needed(server: Server) -> None:
    server.execute("ACL", "SETUSER", "limited", "reset", "on", ">s3cret", "+@all", "-time", "-info", "~*", "&*")
    try:
        for protocol in (2, 3):
            url = f"redis://limited:s3cret@127.0.0.1:{server.port}?protocol={protocol}"
            async with Locker(url) as locker, locker.with_context("job") as scope:
                assert scope.held
    finally:
        server.execute("ACL", "DELUSER", "limited")


@pytest.mark.asyncio
async def test_a_unix_socket_without_hello(kind: str) -> None:
    """There, redis-py wraps what a server has said into an error of its own."""
    with Server(kind, unix_socket=True, config={"rename-command": 'HELLO ""'}) as server:
        async with Locker(server.unix_url) as locker, locker.with_context("job") as scope:
            assert scope.held
    with Server(kind, unix_socket=True, config={"requirepass": "right"}) as server:
        with pytest.raises(ServerError, match="authentication") as caught:
            await Locker(server.unix_url.replace("unix://", "unix://:wr0ng@")).acquire("job")
        assert caught.value.lasting
