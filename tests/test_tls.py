"""TLS: redis-py's options do what they say, and what goes wrong is told with the option that sets it right.

The servers that pip installs speak no TLS, so something in front of one does.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis
import trustme

from asynclock import Locker, ServerError
from asynclock.testing import Server, TLSFront
from tests.support import internals
from tests.support.helpers import AT_ONCE, body, key, until

pytestmark = pytest.mark.redis_py


class Papers:
    """Certificates, and files of them: our CA, another one, and a client's."""

    def __init__(self, directory: Path) -> None:
        self._ca, other = trustme.CA(), trustme.CA()
        self.ca, self.other, self.client, self.stranger = (
            str(directory / name) for name in ("ca.pem", "other.pem", "client.pem", "stranger.pem")
        )
        self._ca.cert_pem.write_to_path(self.ca)
        other.cert_pem.write_to_path(self.other)
        self._ca.issue_cert("client@example.org").private_key_and_cert_chain_pem.write_to_path(self.client)
        other.issue_cert("client@example.org").private_key_and_cert_chain_pem.write_to_path(self.stranger)

    def server(self, *names: str, client: bool = False, newest: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._ca.issue_cert(*(names or ("127.0.0.1", "localhost"))).configure_cert(context)
        if client:
            context.verify_mode = ssl.CERT_REQUIRED
            self._ca.configure_trust(context)
        if newest is not None:
            context.maximum_version = newest
        return context


@pytest.fixture(scope="session")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return Papers(tmp_path_factory.mktemp("tls"))


async def refused(url: str, *words: str, lasting: bool = True) -> None:
    for _ in range(2):
        with pytest.raises(ServerError) as caught:
            await Locker(url).acquire("job")
        for word in (url.split("/")[2], *words):
            assert word in str(caught.value)
        assert caught.value.lasting is lasting


@pytest.mark.asyncio
@pytest.mark.parametrize("protocol", [3, 2])
@pytest.mark.parametrize("how", ["URL", "client"])
async def test_held_and_lost(server: Server, papers: Papers, how: str, protocol: int) -> None:
    with TLSFront(server.port, papers.server()) as front:
        client: Any = f"rediss://localhost:{front.port}/0?ssl_ca_certs={papers.ca}&protocol={protocol}"
        if how == "client":
            client = redis.Redis(host="localhost", port=front.port, ssl=True, ssl_ca_certs=papers.ca, protocol=protocol)
        async with Locker(client) as locker:
            holding = await body(await locker.acquire("job"))
            scopes = await asyncio.gather(*(locker.acquire(f"{number} {'x' * 1000}") for number in range(500)))
            await asyncio.gather(*(scope.release() for scope in scopes))
            since = time.monotonic()
            server.execute("DEL", key("job"))
            assert (await holding.lost_within(AT_ONCE, since)).reason == "deleted"
        if how == "client":
            assert await client.ping()  # it is the app's
            await client.aclose()
        await until(lambda: "asynclock-" not in str(server.execute("CLIENT", "LIST")))


@pytest.mark.asyncio
async def test_a_held_lock_survives_client_kill(server: Server, papers: Papers) -> None:
    with TLSFront(server.port, papers.server()) as front:
        async with Locker(f"{front.url}?ssl_ca_certs={papers.ca}") as locker:
            node = internals.node(locker)
            holding = await body(await locker.acquire("job"))
            for _ in range(3):
                before = node.connection
                server.execute("CLIENT", "KILL", "TYPE", "normal")
                await until(lambda before=before: node.connection not in (None, before))  # type: ignore[misc]
                await asyncio.sleep(0.05)
                assert holding.scope.held
            since = time.monotonic()
            server.execute("DEL", key("job"))
            assert (await holding.lost_within(AT_ONCE, since)).reason == "deleted"


@pytest.mark.asyncio
@pytest.mark.parametrize("trusted", ["another", "none"])
async def test_a_certificate_of_an_unknown_ca(server: Server, papers: Papers, trusted: str) -> None:
    query = f"?ssl_ca_certs={papers.other}" if trusted == "another" else ""
    with TLSFront(server.port, papers.server()) as front:
        await refused(front.url + query, "certificate", "ssl_ca_certs")


@pytest.mark.asyncio
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_certificate_for_another_name(server: Server, papers: Papers, host: str) -> None:
    with TLSFront(server.port, papers.server("elsewhere.example")) as front:
        url = f"rediss://{host}:{front.port}/0?ssl_ca_certs={papers.ca}"
        await refused(url, "mismatch", "ssl_check_hostname=False")
        async with Locker(f"{url}&ssl_check_hostname=False") as locker, locker.with_context("job") as scope:
            assert scope.held


@pytest.mark.asyncio
@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_server_that_asks_for_a_client_certificate(
    server: Server, papers: Papers, newest: ssl.TLSVersion
) -> None:
    with TLSFront(server.port, papers.server(client=True, newest=newest)) as front:
        url = f"{front.url}?ssl_ca_certs={papers.ca}"
        for wrong in (url, f"{url}&ssl_certfile={papers.stranger}&ssl_keyfile={papers.stranger}"):
            # Whether its alert comes through before the reset is a race.
            with pytest.raises(ServerError, match=r"handshake.*ssl_certfile and ssl_keyfile"):
                await Locker(wrong).acquire("job")
        async with Locker(f"{url}&ssl_certfile={papers.client}&ssl_keyfile={papers.client}") as locker:
            async with locker.with_context("job") as scope:
                assert scope.held


@pytest.mark.asyncio
async def test_a_file_that_is_not_there(server: Server, papers: Papers) -> None:
    with TLSFront(server.port, papers.server()) as front:
        await refused(f"{front.url}?ssl_ca_certs=/no/such.pem", "file", "ssl_ca_certs='/no/such.pem'")


@pytest.mark.asyncio
async def test_tls_where_there_is_none(server: Server, papers: Papers) -> None:
    url = server.url.replace("redis:", "rediss:") + f"?ssl_ca_certs={papers.ca}&socket_connect_timeout=1"
    with pytest.raises(ServerError, match="TLS"):
        await Locker(url).acquire("job")
