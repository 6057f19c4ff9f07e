"""TLS in front of a real server, tried with Python's own TLS."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from asynclock import Locker
from asynclock.testing import Server, TLSFront
from asynclock.testing.resp import encode_command
from tests.support.certificates import Certificates
from tests.support.helpers import key

pytestmark = pytest.mark.serverless


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def front(server: Server, certificates: Certificates) -> Iterator[TLSFront]:
    with TLSFront(server.port, certificates.server_context()) as front:
        yield front


def connect(
    front: TLSFront, certificates: Certificates, name: str = "localhost", *, client: bool = False
) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=certificates.ca)
    if client:
        context.load_cert_chain(certificates.client, certificates.client_key)
    return context.wrap_socket(
        socket.create_connection(("127.0.0.1", front.port), 5),
        server_hostname=name,
        suppress_ragged_eofs=False,  # an end that TLS was not told of is an error
    )


def read(connection: ssl.SSLSocket, size: int) -> bytes:
    with connection.makefile("rb") as stream:
        return stream.read(size)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_it_passes_all_on(front: TLSFront, server: Server, certificates: Certificates, name: str) -> None:
    assert front.url == f"rediss://localhost:{front.port}/0"
    with connect(front, certificates, name) as connection:
        connection.sendall(encode_command("SET", "key", "v" * 3_000_000) + encode_command("GET", "key"))
        expected = b"+OK\r\n$3000000\r\n" + b"v" * 3_000_000 + b"\r\n"
        assert read(connection, len(expected)) == expected
        assert server.execute("STRLEN", "key") == 3_000_000
        # The server closes: all that it said arrives, and then a proper end.
        connection.sendall(encode_command("QUIT"))
        assert read(connection, 100) == b"+OK\r\n"


def test_clients_see_whom_they_talk_to(server: Server, certificates: Certificates, tmp_path: Path) -> None:
    with TLSFront(server.port, certificates.server_context("redis.example")) as front:
        with pytest.raises(ssl.SSLCertVerificationError, match=r"(?i)hostname mismatch"):
            connect(front, certificates)
        with pytest.raises(ssl.SSLCertVerificationError, match=r"unable to get local issuer|self.signed"):
            connect(front, Certificates(tmp_path), "redis.example")
        connect(front, certificates, "redis.example").close()
        with socket.create_connection(("127.0.0.1", front.port), 5) as plain, pytest.raises(ConnectionError):
            plain.sendall(encode_command("PING"))
            while data := plain.recv(100):  # TLS may say in its own way why it hangs up
                assert b"PONG" not in data
            raise ConnectionError("hung up")


def test_a_client_certificate_can_be_required(server: Server, certificates: Certificates) -> None:
    with TLSFront(server.port, certificates.server_context(client_required=True)) as front:
        with connect(front, certificates, client=True) as connection:
            connection.sendall(encode_command("PING"))
            assert read(connection, 7) == b"+PONG\r\n"
        with pytest.raises((ssl.SSLError, ConnectionError)):  # TLS 1.3 tells after the handshake
            with connect(front, certificates) as connection:
                connection.sendall(encode_command("PING"))
                assert read(connection, 7) == b""


def test_ends_are_passed_on(certificates: Certificates) -> None:
    with Server() as own, TLSFront(own.port, certificates.server_context()) as front:
        connection = connect(front, certificates)
        connection.sendall(encode_command("PING"))
        assert read(connection, 7) == b"+PONG\r\n"
        own.kill()
        assert connection.recv(1) == b""
        connection.close()
        own.start()
        with connect(front, certificates) as again:
            again.sendall(encode_command("PING"))
            assert read(again, 7) == b"+PONG\r\n"
            front.close()
            with pytest.raises((ConnectionResetError, ssl.SSLError)):
                assert again.recv(1) != b""


def test_close_is_idempotent_and_leaves_nothing(server: Server, certificates: Certificates) -> None:
    front = TLSFront(server.port, certificates.server_context())
    front.close()
    with pytest.raises(RuntimeError, match="with"):
        front.port  # noqa: B018
    threads = threading.active_count()
    with front, socket.create_connection(("127.0.0.1", front.port)) as silent:  # in the middle of a handshake
        connect(front, certificates).close()
        front.close()
        assert silent.recv(1) == b""
    front.close()
    assert threading.active_count() == threads
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", front.port))


@pytest.mark.asyncio
async def test_a_locker_goes_through(server: Server, certificates: Certificates) -> None:
    with TLSFront(server.port, certificates.server_context(client_required=True)) as front:
        keys = f"ssl_certfile={certificates.client}&ssl_keyfile={certificates.client_key}"
        async with Locker(f"{front.url}?ssl_ca_certs={certificates.ca}&{keys}") as locker:
            async with locker.with_context("locked"):
                assert server.execute("EXISTS", key("locked")) == 1


@pytest.mark.asyncio
async def test_a_server_that_is_not_there_is_a_reset(certificates: Certificates) -> None:
    with Server() as own, TLSFront(own.port, certificates.server_context()) as front:
        own.kill()
        context = ssl.create_default_context(cafile=certificates.ca)
        with pytest.raises(ConnectionResetError):  # blocking sockets of TLS do not tell that from an end
            reader, writer = await asyncio.open_connection("localhost", front.port, ssl=context)
            try:
                await asyncio.wait_for(reader.read(1), 5)
            finally:
                writer.transport.abort()
