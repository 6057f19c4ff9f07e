"""What becomes of a locker that is forgotten, forked, or made where a platform has less to offer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis.asyncio as redis

from asynclock import AcquireTimeoutError, ConfigurationError, Locker, NotLockedError, ServerError
from asynclock.testing import Cluster, Proxy, Sentinels, Server
from tests.support import internals
from tests.support.helpers import key, until

pytestmark = [pytest.mark.every_python, pytest.mark.redis_py]


def connections(server: Server) -> int:
    listed = server.execute("CLIENT", "LIST")
    assert isinstance(listed, bytes)
    return listed.count(b"name=asynclock-")


@contextlib.contextmanager
def forgotten(count: int = 1) -> Iterator[None]:
    """So many lockers are forgotten in the block, and each tells so."""
    texts: list[str] = []

    def told(message: Warning | str, *rest: object) -> None:  # what catch_warnings would keep, lives on
        if "<Locker" in str(message):
            texts.append(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = told
        yield
        gc.collect()
    assert len(texts) == count, texts
    assert all("forgotten without aclose()" in text and "127.0.0.1:" in text for text in texts), texts


# Forgotten


@pytest.mark.asyncio
async def test_twenty(server: Server) -> None:
    lockers = [Locker(server.url) for _ in range(20)]
    for locker in lockers:
        await (await locker.acquire("job")).release()
    assert connections(server) == 20
    with forgotten(20):
        del locker
        lockers.clear()
    await until(lambda: not connections(server))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "options",
    [{"client_side_caching": False}, {"min_replicas": 0, "key_majority": 2}, {"restart_quarantine": True}],
    ids=str,
)
@pytest.mark.parametrize("query", ["", "?protocol=2"])
async def test_whatever_its_connections_are(server: Server, query: str, options: dict[str, Any]) -> None:
    locker = Locker(server.url + query, **options)
    await (await locker.acquire("job")).release()
    with forgotten():
        del locker
    await until(lambda: not connections(server))


@pytest.mark.asyncio
async def test_independent_servers_of_which_one_is_away(server: Server, own_server: Server, kind: str) -> None:
    with Server(kind) as third:
        locker = Locker([server.url, own_server.url, third.url], restart_quarantine=False)
        await (await locker.acquire("job")).release()
        third.kill()
        nodes = internals.nodes(locker)
        await until(lambda: any(node.connection is None for node in nodes))
        with forgotten():
            del locker
        await until(lambda: not connections(server) + connections(own_server))


@pytest.mark.asyncio
async def test_while_it_reconnects(own_server: Server) -> None:
    locker = Locker(own_server.url)
    await (await locker.acquire("job")).release()
    own_server.kill()
    node = internals.node(locker)
    await until(lambda: node.connection is None)
    with forgotten():
        del locker
    await until(lambda: not node.connecting.running)
    own_server.start()
    await asyncio.sleep(0.1)
    assert connections(own_server) == 0


@pytest.mark.asyncio
async def test_while_it_connects(server: Server) -> None:
    async with Proxy(server.port) as proxy:
        proxy.freeze()
        locker = Locker(proxy.url)
        with pytest.raises(AcquireTimeoutError):
            await locker.acquire("job", timeout=0.05)
        opening = internals.opening(locker)
        assert opening is not None
        await asyncio.sleep(0.01)  # asyncio.shield lets go of the exception, and its traceback of the locker
        with forgotten():
            del locker
        await until(opening.done, 2)  # and not when the server has not answered for 5 s
        assert opening.cancelled()


@pytest.mark.asyncio
async def test_a_push_may_come_before_it_has_connected(server: Server) -> None:
    """A server tracks what is read while a connection is set up. An exception would drop the connection."""
    locker = Locker(server.url)
    internals.manager(locker).invalidated(key("job").encode(), 0.0)
    await (await locker.acquire("job")).release()
    await locker.aclose()


@pytest.mark.asyncio
async def test_one_that_could_not_connect() -> None:
    locker = Locker("redis://127.0.0.1:1")
    with pytest.raises(ServerError):
        await locker.acquire("job")
    with forgotten(0):
        del locker


@pytest.mark.asyncio
async def test_its_client_is_closed_too(server: Server) -> None:
    locker = Locker(server.url + "?client_name=asynclock-of-the-client")
    await (await locker.acquire("job")).release()
    await locker.client.ping()
    assert connections(server) == 2
    with forgotten():
        del locker
    await until(lambda: not connections(server))


@pytest.mark.asyncio
async def test_that_of_a_cluster(kind: str) -> None:
    with Cluster(kind) as cluster:
        locker = Locker(cluster.servers[0].url)
        await (await locker.acquire("job")).release()
        with forgotten():
            del locker
        await until(lambda: not sum(map(connections, cluster.servers)))


@pytest.mark.asyncio
async def test_that_of_sentinels(kind: str) -> None:
    if kind == "redis-6.2":
        pytest.skip("asynclock.testing has no Sentinels of Redis 6.2")
    with Sentinels(kind) as sentinels:
        hosts = ",".join(f"{host}:{port}" for host, port in sentinels.addresses)
        locker = Locker(f"redis+sentinel://{hosts}/mymaster/0")
        await (await locker.acquire("job")).release()
        with forgotten():
            del locker
        await until(lambda: not connections(sentinels.primary))
        await until(lambda: len(asyncio.all_tasks()) == 1)  # those to the Sentinels are closed by redis-py


@pytest.mark.asyncio
async def test_one_that_is_closed_or_new_is_not(server: Server) -> None:
    with forgotten(0):
        async with Locker(server.url) as locker, locker.with_context("job"):
            pass
        other = Locker(server.url)
        await (await other.acquire("job")).release()
        await other.aclose()
        Locker(server.url)
        with pytest.raises(RuntimeError, match="the body's own"):
            async with Locker(server.url):
                raise RuntimeError("the body's own")
        with pytest.raises(ConfigurationError):
            Locker(server.url, key_validity=-1)
        del locker, other


@pytest.mark.asyncio
async def test_closed_in_a_hurry(server: Server) -> None:
    """``aclose`` that is cancelled closes all the same, and there is nothing to complain of."""
    with forgotten(0):
        locker = Locker(server.url)
        await (await locker.acquire("job")).release()
        closing = asyncio.create_task(locker.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        del locker
        await asyncio.wait([closing])
        del closing
    await until(lambda: not connections(server))


# What keeps it


@pytest.mark.asyncio
async def test_a_scope_keeps_it(server: Server) -> None:
    with forgotten(0):
        scope = await Locker(server.url, key_validity=0.5).acquire("job")
        gc.collect()
        await asyncio.sleep(1.0)  # two validities: it is extended
        assert scope.held
    with forgotten():
        await scope.release()
        del scope
    assert server.execute("EXISTS", key("job")) == 0
    await until(lambda: not connections(server))


@pytest.mark.asyncio
async def test_a_block_keeps_it(server: Server) -> None:
    with forgotten():
        async with Locker(server.url, key_validity=0.5).with_context("job") as scope:
            gc.collect()
            await asyncio.sleep(0.6)
            assert scope.held
        del scope
    await until(lambda: not connections(server))


@pytest.mark.asyncio
async def test_who_waits_keeps_it(server: Server, locker: Locker) -> None:
    with forgotten():
        holder = await locker.acquire("job")
        waiting = asyncio.create_task(Locker(server.url).acquire("job"))
        await asyncio.sleep(0.1)
        gc.collect()
        assert not waiting.done()
        await holder.release()
        scope = await asyncio.wait_for(waiting, 2)
        assert scope.held
        await scope.release()
        del scope, waiting
    await until(lambda: connections(server) == 1)


@pytest.mark.asyncio
async def test_who_connects_keeps_it(server: Server) -> None:
    async with Proxy(server.port) as proxy:
        proxy.freeze()
        with forgotten():
            waiting = asyncio.create_task(Locker(proxy.url).acquire("job"))
            await asyncio.sleep(0.05)
            gc.collect()
            proxy.thaw()
            scope = await asyncio.wait_for(waiting, 5)
            assert scope.held
            await scope.release()
            del scope, waiting
    await until(lambda: not connections(server))


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore:the scope of lock 'job' was forgotten:ResourceWarning")
@pytest.mark.parametrize("cycle", [False, True])
async def test_with_its_scope(server: Server, cycle: bool) -> None:
    """The key is given back before the connection is closed, in whichever order the two are collected."""
    locker = Locker(server.url, key_validity=60)
    scope = await locker.acquire("job")
    if cycle:
        locker.myself = [locker, scope]  # type: ignore[attr-defined]  # whatever a program may do
    assert server.execute("EXISTS", key("job")) == 1
    with forgotten():
        del locker, scope
    await until(lambda: not connections(server))
    await until(lambda: not server.execute("EXISTS", key("job")))


# Where and when it is collected


@pytest.mark.asyncio
async def test_in_another_thread(server: Server) -> None:
    for _ in range(20):
        lockers = [Locker(server.url)]
        await (await lockers[0].acquire("job")).release()
        lockers[0].myself = lockers  # type: ignore[attr-defined]  # a cycle: the garbage collector's
        del lockers
        thread = threading.Thread(target=gc.collect)
        with forgotten():
            thread.start()
            await asyncio.to_thread(thread.join)
        await until(lambda: not connections(server))


HEAD = "import asyncio, gc, os, sys, threading\nURL = sys.argv[1]\n"


def run(server: Server, program: str, *options: str, arguments: Sequence[str] = ()) -> str:
    """What the program says on stderr, in a process of its own; its exit status is 0."""
    command = [sys.executable, *options, "-c", HEAD + textwrap.dedent(program), server.url, *arguments]
    # Warnings are what is looked for: they are not to be errors.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, done.stderr
    # In debug mode asyncio tells of what took long, on a machine that is busy.
    return "".join(line for line in done.stderr.splitlines(True) if not line.startswith("Executing <"))


ACQUIRE = """
    from asynclock import Locker
    locker = None
    async def main(keep):
        global locker
        mine = Locker(URL)
        if keep:
            locker = mine
        scope = await mine.acquire("job")
        await scope.release()
"""


@pytest.mark.parametrize(
    "end",
    {
        "asyncio.run": "asyncio.run(main(False))",
        "closed at once": "loop = asyncio.new_event_loop(); loop.run_until_complete(main(False)); loop.close()",
        "loop closed before": "asyncio.run(main(True)); del locker",
        "interpreter ends": "asyncio.run(main(True))",
        "loop not closed": "loop = asyncio.new_event_loop(); loop.run_until_complete(main(True)); del locker, loop",
        "in a thread, loop closed before": "asyncio.run(main(True))\n    def drop():\n"
        "        global locker; del locker\n    t = threading.Thread(target=drop); t.start(); t.join()",
        "in a thread while it closes": "loop = asyncio.new_event_loop(); loop.run_until_complete(main(True))\n"
        "    def drop():\n        global locker; del locker\n"
        "    t = threading.Thread(target=drop); t.start(); loop.close(); t.join()",
        "cycle": "asyncio.run(main(True)); locker.myself = locker; del locker; gc.collect()",
    }.items(),
    ids=lambda each: each[0],
)
@pytest.mark.parametrize("policy", ["asyncio", "uvloop"])
def test_nothing_but_a_warning(server: Server, end: tuple[str, str], policy: str) -> None:
    """No exception, no complaint of tasks, no socket that stays; a ``ResourceWarning`` for the locker."""
    use = "import uvloop; asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())" if policy == "uvloop" else ""
    warnings = "-W", "always::ResourceWarning", "-W", "ignore::DeprecationWarning"  # of policies, from Python 3.14 on
    said = run(server, f"    {use}\n{ACQUIRE}\n    {end[1]}\n", *warnings)
    lines = [line for line in said.splitlines() if line and not line.startswith(" ")]
    ours = [line for line in lines if "<Locker" in line]
    assert len(ours) == 1, said
    assert "ResourceWarning" in ours[0] and "forgotten without aclose()" in ours[0], said
    # asyncio has warnings of its own, of loops and transports that nobody has closed.
    assert not [line for line in lines if "ResourceWarning" not in line], said


@pytest.mark.parametrize("options", ["", "client_name=asynclock-of-the-client"])
def test_the_loop_goes_on_without_it(server: Server, options: str) -> None:
    """What runs in a loop that was closed, or ends with ``asyncio.run``, is nothing."""
    program = f"""
        from asynclock import Locker
        async def main():
            locker = Locker(URL + "?{options}")
            scope = await locker.acquire("job")
            await scope.release()
            if "{options}":
                await locker.client.ping()
            del locker, scope
            await asyncio.sleep(0.1)
            assert len(asyncio.all_tasks()) == 1, asyncio.all_tasks()
        asyncio.run(main(), debug=True)
    """
    said = run(server, program, "-X", "dev")
    lines = [line for line in said.splitlines() if line and "<Locker" not in line and not line.startswith(" ")]
    assert not [line for line in lines if "tracemalloc" not in line and "Object allocated" not in line], said


# Forks


def in_child(what: Callable[[], Any]) -> Any:
    """What it returns in the child of a fork, or the exception's text."""

    def child(send: Any) -> None:
        try:
            send.send(what())
        except BaseException as error:
            send.send(f"{type(error).__name__}: {error}")

    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(send,))
    process.start()
    send.close()
    assert receive.poll(30), "the child says nothing"
    result = receive.recv()
    process.join()
    receive.close()
    return result


class Forked:
    """Lockers in processes: what each has put into its keys."""

    def __init__(self, *servers: Server) -> None:
        self.servers = servers

    async def _tokens(self, locker: Locker, name: str) -> list[bytes]:
        found = []
        async with locker:
            for _ in range(2):
                async with locker.with_context(name, timeout=5):
                    # Of three servers, two make a lock. The third may be late, or still have the token before.
                    values = Counter(server.execute("GET", key(name, i)) for i, server in enumerate(self.servers))
                    token = next(value for value, times in values.items() if 2 * times > len(self.servers))
                    assert isinstance(token, bytes)
                    found.append(token)
        return found

    def tokens(self, locker: Locker, name: str = "job") -> list[bytes]:
        return asyncio.run(self._tokens(locker, name))


def lockers_of(tokens: list[bytes]) -> set[bytes]:
    assert isinstance(tokens, list), tokens
    assert len(tokens) == len(set(tokens)) == 2, tokens
    return {token.split(b":")[2] for token in tokens}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
class TestForks:
    @pytest.mark.parametrize("how", ["url", "client", "urls"])
    def test_before_it_connects(self, server: Server, own_server: Server, how: str, kind: str) -> None:
        """As with ``gunicorn --preload``: children, their children and the parent, each with tokens of its own."""
        with Server(kind) as third:
            servers: Any = {
                "url": server.url,
                "client": redis.Redis.from_url(server.url),
                "urls": [server.url, own_server.url, third.url],
            }[how]
            options: dict[str, Any] = {"restart_quarantine": False} if how == "urls" else {}
            locker = Locker(servers, **options)
            use = Forked(server, own_server, third) if how == "urls" else Forked(server)
            found = [in_child(lambda: use.tokens(locker)) for _ in range(2)]
            found.append(in_child(lambda: in_grandchild(lambda: use.tokens(locker))))
            found.append(use.tokens(locker))
            prefixes = [lockers_of(tokens) for tokens in found]
            assert len(set.union(*prefixes)) == sum(map(len, prefixes)) == 4, found

    def test_all_at_once(self, server: Server) -> None:
        """The lock excludes children and parent from one another."""
        locker = Locker(server.url)

        def held_elsewhere() -> str:
            async def attempt() -> str:
                async with locker:
                    try:
                        await locker.try_acquire("job")
                    except NotLockedError:
                        return "not locked"
                return "locked"

            return asyncio.run(attempt())

        first, second = Locker(server.url), Locker(server.url)

        async def main() -> list[str]:
            async with first, first.with_context("job"):
                return [in_child(held_elsewhere), in_child(held_elsewhere)]

        assert asyncio.run(main()) == ["not locked", "not locked"]
        assert "ConfigurationError" in in_child(lambda: asyncio.run(first.acquire("job")))
        assert lockers_of(Forked(server).tokens(second))

    def test_after_connecting_has_failed(self, own_server: Server) -> None:
        own_server.kill()
        locker = Locker(own_server.url)
        with pytest.raises(ServerError):
            asyncio.run(locker.acquire("job"))
        own_server.start()
        use = Forked(own_server)
        assert lockers_of(in_child(lambda: use.tokens(locker))) != lockers_of(use.tokens(locker))

    def test_one_that_connects(self, server: Server) -> None:
        locker = Locker(server.url)

        async def main() -> Any:
            opening = asyncio.create_task(locker.acquire("job"))
            await asyncio.sleep(0)
            said = in_child(lambda: asyncio.run(locker.acquire("job")))
            await (await opening).release()
            await locker.aclose()
            return said

        said = asyncio.run(main())
        assert said.startswith("ConfigurationError") and "fork" in said

    def test_the_locks_client_was_used_before(self, server: Server) -> None:
        """Its connections are the parent's: the child has a client of its own, and both get their own answers."""
        locker = Locker(server.url)

        async def main() -> tuple[Any, Any]:
            parent: Any = locker.client
            mine = await parent.client_id()

            async def other() -> Any:
                found = await locker.client.client_id()
                async with locker, locker.with_context("job"):
                    pass
                return found

            def child() -> Any:
                found = asyncio.run(other())
                gc.collect()
                return found

            theirs = in_child(child)
            assert await parent.client_id() == mine, "still that connection, and its own answer"
            await locker.aclose()
            return mine, theirs

        mine, theirs = asyncio.run(main())
        assert isinstance(theirs, int), theirs
        assert mine != theirs

    def test_a_client_of_the_programs_that_was_connected_before(self, server: Server) -> None:
        """A locker takes the settings, and none of the connections."""

        async def main() -> Any:
            client = redis.Redis.from_url(server.url)
            mine = await client.client_id()
            locker = Locker(client)
            use = Forked(server)
            tokens = in_child(lambda: use.tokens(locker))
            assert lockers_of(tokens)
            assert await client.client_id() == mine
            async with locker, locker.with_context("job"):
                pass
            await client.aclose()

        asyncio.run(main())

    def test_forgotten_in_the_child(self, server: Server) -> None:
        """Nothing is sent, nothing is said, and the parent keeps its lock and its connection."""

        async def main() -> None:
            held = [Locker(server.url)]
            scope = await held[0].acquire("job")
            node = internals.node(held[0])
            wire = node.connection

            def child() -> list[str]:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    held.clear()
                    internals.let_go_of_locker(scope)
                    gc.collect()
                return [str(each.message) for each in caught if "Locker" in str(each.message)]

            assert in_child(child) == []
            await asyncio.sleep(0.1)
            assert scope.held and node.connection is wire
            assert server.execute("EXISTS", key("job")) == 1
            await scope.release()
            await held[0].aclose()

        asyncio.run(main())


def in_grandchild(what: Callable[[], Any]) -> Any:
    multiprocessing.process.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    return in_child(what)


# Platforms

WINDOWS = [
    *("os.register_at_fork", "os.fork", "os.killpg", "os.setsid", "os.waitid", "os.WNOWAIT", "os.WSTOPPED", "os.P_PID"),
    *("os.sched_getaffinity", "os.getuid", "os.uname", "time.clock_gettime", "time.CLOCK_BOOTTIME"),
    *("time.CLOCK_MONOTONIC", "time.CLOCK_MONOTONIC_RAW", "signal.SIGKILL", "signal.SIGSTOP", "signal.SIGCONT"),
    *("signal.SIGUSR1", "signal.SIGALRM", "signal.pthread_sigmask", "socket.SO_REUSEPORT"),
    *("asyncio.open_unix_connection", "asyncio.start_unix_server"),
]
PLATFORMS = {
    "win32": (WINDOWS, ["resource", "fcntl", "termios", "pwd", "grp"]),
    "darwin": (["os.sched_getaffinity", "os.WNOWAIT", "time.CLOCK_BOOTTIME"], []),
    "emscripten": (["os.register_at_fork", "os.fork", "os.killpg", "signal.SIGKILL", "time.CLOCK_BOOTTIME"], []),
}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_what_a_platform_lacks(server: Server, platform: str) -> None:
    """Everything can be imported, and locks work, in a process from which it was taken; and whatever cannot work
    there says so."""
    program = """
        import signal, socket, subprocess, time
        import multiprocessing, redis.asyncio, ssl, typer, rich.console, rich.live, zoneinfo  # for the real platform
        platform, names, modules = sys.argv[2], sys.argv[3].split(), sys.argv[4].split()
        for name in names:
            module, _, attribute = name.partition(".")
            vars(globals()[module]).pop(attribute, None)
        for module in modules:
            sys.modules[module] = None
        real, sys.platform = sys.platform, platform
        import asynclock, asynclock.testing, asynclock.cli, asynclock.cli.app, asynclock.cli.demo

        if platform == "win32":
            try:
                asynclock.Locker("unix:///run/valkey.sock")
            except asynclock.ConfigurationError as error:
                assert "unix" in str(error), error
            else:
                raise AssertionError("no refusal")
            try:
                asynclock.testing.Server().start()
            except RuntimeError as error:
                assert "Windows" in str(error), error
            else:
                raise AssertionError("no refusal")
            sys.argv = ["asynclock", "demo"]
            try:
                asynclock.cli.main()
            except SystemExit as error:
                assert error.code == 2, error.code

        sys.platform = real
        async def main():
            async with asynclock.Locker(URL) as locker:
                async with locker.with_context("job") as scope:
                    assert 4 < scope.remaining() <= 5, scope.remaining()
        asyncio.run(main())
    """
    names, modules = PLATFORMS[platform]
    said = run(server, program, arguments=[platform, " ".join(names), " ".join(modules)])
    assert said == (
        "asynclock demo: not available on Windows, which has no Valkey server to start\n" * (platform == "win32")
    )
