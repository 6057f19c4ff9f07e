"""asynclock.sync in several processes: how a process ends, Ctrl-C, forks. Each test runs a script, as a user would,
with every warning an error, so that none can hide."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from asynclock.testing import Server
from tests.support.helpers import AT_ONCE, ROOT

pytestmark = [pytest.mark.every_python, pytest.mark.redis_py]

PROLOGUE = """
import os, signal, sys, threading, time
import asynclock
from asynclock import ConfigurationError, LockLostError
from asynclock.sync import Locker

locker = Locker(sys.argv[1])
"""
GREENLETS = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}
EVERY_WARNING = (
    *("-W", "error"),
    *("-W", "ignore:This process:DeprecationWarning"),  # of os.fork beside threads: an error from Python 3.15 on
)
START = 10.0  # seconds within which a script has begun, on a machine that is busy with other tests


@contextmanager
def running(server: Server, tmp_path: Path, script: str) -> Iterator[subprocess.Popen[str]]:
    file = tmp_path / "script.py"
    file.write_text(PROLOGUE + textwrap.dedent(script))
    process = subprocess.Popen(
        [sys.executable, *EVERY_WARNING, str(file), server.url],
        cwd=ROOT,
        env={**os.environ, "PYTHONASYNCIODEBUG": ""},  # it would tell what takes long on a busy machine
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # the whole group: a child that hangs would keep the pipes open
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run(server: Server, tmp_path: Path, script: str, code: int = 0) -> str:
    """What it prints. It ends by itself, without a word of complaint, and leaves no key."""
    with running(server, tmp_path, script) as process:
        output, complaints = process.communicate(timeout=30)
    assert complaints == ""
    assert process.returncode == code
    assert server.execute("KEYS", "*") == []
    return output


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# The end of a process


@pytest.mark.fast
def test_what_is_held_is_given_back(server: Server, tmp_path: Path) -> None:
    run(server, tmp_path, "scope = locker.acquire('job')")


@pytest.mark.parametrize("end", ["sys.exit(3)", "os.kill(os.getpid(), signal.SIGTERM)"])
def test_inside_of_a_block(server: Server, tmp_path: Path, end: str) -> None:
    script = f"""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
        with locker.with_context("job"):
            {end}
    """
    run(server, tmp_path, script, code=3)


def test_threads_that_go_on_keep_their_locks(server: Server, tmp_path: Path) -> None:
    """Also those that begin to use them when the main thread has ended."""
    script = """
        def work(after):
            time.sleep(after)
            for _ in range(3):
                with locker.with_context(f"job {after}") as scope:
                    assert scope.wait_lost(timeout=0.2) is None
                    scope.check()
            print("through", flush=True)

        locker.acquire("before").release()
        for after in (0, 0.3):
            threading.Thread(target=work, args=[after]).start()
    """
    assert run(server, tmp_path, script).split() == ["through"] * 2


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python 3.12 starts no thread once the main thread has ended")
def test_the_first_use_when_the_main_thread_has_ended(server: Server, tmp_path: Path) -> None:
    """By name: nothing that Python shuts down with its main thread is needed to look it up."""
    script = """
        def work():
            threading.main_thread().join()
            with Locker(sys.argv[1].replace("127.0.0.1", "localhost")) as mine, mine.with_context("job"):
                print("through")

        threading.Thread(target=work).start()
    """
    assert run(server, tmp_path, script) == "through\n"


@pytest.mark.parametrize("daemon", ["is inside of a block", "waits", "waits for a loss", "is told"])
def test_a_daemon_thread_does_not_hold_it_up(server: Server, tmp_path: Path, daemon: str) -> None:
    script = f"""
        def work(how):
            if how == "waits":
                locker.acquire("job")
            with locker.with_context("another") as scope:
                if how == "is inside of a block":
                    time.sleep(60)
                elif how == "is told":
                    scope.on_lost(lambda reason: print(reason, flush=True))
                    time.sleep(60)
                print(scope.wait_lost(), flush=True)
                time.sleep(60)

        scope = locker.acquire("job")
        threading.Thread(target=work, args=[{daemon!r}], daemon=True).start()
        time.sleep(0.3)
        print("end", time.monotonic(), flush=True)
    """
    output = run(server, tmp_path, script).split()
    assert time.monotonic() - float(output[1]) < 5
    assert output[2:] == (["closed"] if daemon in ("waits for a loss", "is told") else [])


def test_functions_of_atexit_may_use_locks(server: Server, tmp_path: Path) -> None:
    script = """
        import atexit

        @atexit.register
        def last():
            scope.check()
            print("held")

        scope = locker.acquire("job")
    """
    assert run(server, tmp_path, script) == "held\n"


def test_a_server_that_is_silent_does_not_hold_it_up(own_server: Server, tmp_path: Path) -> None:
    with running(own_server, tmp_path, "scope = locker.acquire('job'); print('held', flush=True); input()") as process:
        process.stdin = None
        assert line(process) == "held"
        own_server.pause()
        try:
            since = time.monotonic()
            assert process.wait(20) in (0, 1)  # input() finds the end of its file, or not
            assert time.monotonic() - since < 5 + AT_ONCE
        finally:
            own_server.resume()


def test_a_loop_that_ends_is_not_waited_for(server: Server, tmp_path: Path) -> None:
    """As if something had broken it."""
    script = """
        import warnings
        from concurrent.futures import ThreadPoolExecutor

        warnings.simplefilter("ignore", ResourceWarning)  # of the connection that it has left open
        scope = locker.acquire("job")
        with ThreadPoolExecutor() as threads:
            waiting = [threads.submit(locker.acquire, "job"), threads.submit(scope.wait_lost)]
            time.sleep(0.2)
            locker._here.thread.stop()
            print(type(waiting[0].exception()).__name__, waiting[1].result())
        try:
            locker.acquire("another")
        except asynclock.LockerClosedError as error:
            print(error)
        scope.release()
        print(scope.wait_lost())
        locker.close()
    """
    with running(server, tmp_path, script) as process:
        output, complaints = process.communicate(timeout=30)
    assert complaints == ""
    assert output.splitlines()[0] == "LockerClosedError None"
    assert "make a new Locker" in output
    server.execute("FLUSHALL")


# Ctrl-C


@pytest.mark.parametrize(
    "wait",
    [
        "locker.acquire('job')",
        "locker.acquire('job', timeout=60)",
        "with locker.with_context('job'): pass",
        "with locker.with_context('another') as scope: scope.wait_lost()",
        "with locker.with_context('another') as scope: time.sleep(60)",
    ],
)
def test_ctrl_c(server: Server, tmp_path: Path, wait: str) -> None:
    script = f"""
        def interrupt():
            time.sleep(0.3)
            print(time.monotonic(), flush=True)
            os.kill(os.getpid(), signal.SIGINT)

        other = Locker(sys.argv[1])
        holder = other.acquire("job")
        threading.Thread(target=interrupt).start()
        try:
            {wait}
        except KeyboardInterrupt:
            print(time.monotonic())
        holder.release()
        time.sleep(0.2)
        print(locker.client.keys("*"), other.client.keys("*"))
    """
    sent, caught, *keys = run(server, tmp_path, script).split()
    assert float(caught) - float(sent) < AT_ONCE
    assert keys == ["[]", "[]"]


def test_ctrl_c_that_nobody_catches(server: Server, tmp_path: Path) -> None:
    with running(
        server, tmp_path, "with locker.with_context('job'): print('held', flush=True); time.sleep(60)"
    ) as process:
        assert line(process) == "held"
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=10)
    assert complaints.splitlines()[-1] == "KeyboardInterrupt"
    assert complaints.count("Traceback") == 1
    assert server.execute("KEYS", "*") == []


# Forks


def test_a_fork(server: Server, tmp_path: Path) -> None:
    """What the parent holds is not the child's; what the child does is nothing to the parent."""
    script = """
        scope = locker.acquire("job")
        pid = os.fork()
        if not pid:
            assert len(threading.enumerate()) == 1
            assert not scope.held and scope.remaining() == 0.0 and scope.lost_reason is None
            for refused in (scope.check, scope.wait_lost, scope.__enter__, lambda: scope.on_lost(print)):
                try:
                    refused()
                    print("not refused")
                except ConfigurationError as error:
                    assert "the lock is the parent's" in str(error)
            scope.release()
            scope.cancel()
            try:
                locker.acquire("job", timeout=0.2)
            except TimeoutError:
                print("the parent holds it", flush=True)
            with locker.with_context("child's"):
                assert [thread.name for thread in threading.enumerate()] == ["MainThread", "asynclock"]
                assert locker.client.get("asynclock:0:child's")
            print("closes", flush=True)
            locker.close()
            sys.exit()
        assert os.waitpid(pid, 0)[1] == 0
        scope.check()
        assert locker.client.get("asynclock:0:job")
        time.sleep(5.2)  # longer than the validity: it was extended meanwhile
        scope.check()
        assert locker.client.exists("asynclock:0:job")
        print("still held")
    """
    assert run(server, tmp_path, script).splitlines() == ["the parent holds it", "closes", "still held"]


def test_a_fork_inside_of_a_block(server: Server, tmp_path: Path) -> None:
    """The child leaves it, and the lock stays the parent's."""
    script = """
        with locker.with_context("job") as scope:
            pid = os.fork()
            if not pid:
                sys.exit()
            assert os.waitpid(pid, 0)[1] == 0
            scope.check()
            assert locker.client.get("asynclock:0:job")
            print("held")
    """
    assert run(server, tmp_path, script) == "held\n"


def test_a_fork_while_other_threads_use_locks(server: Server, tmp_path: Path) -> None:
    """Whatever they were in the middle of: the child waits for nothing that they have locked."""
    script = """
        ended = threading.Event()

        def use(name):
            while not ended.is_set():
                with Locker(sys.argv[1]) as mine, mine.with_context(name), locker.with_context(f"{name} too"):
                    pass

        users = [threading.Thread(target=use, args=[name]) for name in "abc"]
        for user in users:
            user.start()
        for number in range(20):
            pid = os.fork()
            if not pid:
                with locker.with_context("child's") as scope:
                    scope.check()
                sys.exit(5)
            assert os.waitpid(pid, 0)[1] == 5 << 8
        ended.set()
    """
    run(server, tmp_path, script)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(server: Server, tmp_path: Path, method: str) -> None:
    """With a locker that the parent uses, too: each process counts alone."""
    script = f"""
        import multiprocessing

        def count(locker, file, times):
            for _ in range(times):
                with locker.with_context("job"):
                    with open(file) as counter:
                        value = int(counter.read())
                    with open(file, "w") as counter:
                        counter.write(str(value + 1))
            globals()["kept"] = locker.acquire(f"{{os.getpid()}}")  # the process ends with it

        if __name__ == "__main__":
            file = sys.argv[0] + ".counter"
            with open(file, "w") as counter:
                counter.write("0")
            context = multiprocessing.get_context({method!r})
            children = [context.Process(target=count, args=[locker, file, 20]) for _ in range(3)]
            with locker.with_context("job"):
                for child in children:
                    child.start()
            count(locker, file, 20)
            for child in children:
                child.join()
                assert child.exitcode == 0, child.exitcode
            kept.release()
            assert locker.client.keys("*") == [], locker.client.keys("*")
            with open(file) as counter:
                print(counter.read())
    """
    assert run(server, tmp_path, script) == "80\n"


def test_threads_of_a_child_of_multiprocessing_go_on(server: Server, tmp_path: Path) -> None:
    script = """
        import multiprocessing

        def work():
            with locker.with_context("job") as scope:
                assert scope.wait_lost(timeout=0.5) is None
                scope.check()
            print("through", flush=True)

        def child():
            threading.Thread(target=work).start()
            time.sleep(0.2)

        if __name__ == "__main__":
            process = multiprocessing.get_context("fork").Process(target=child)
            process.start()
            process.join()
            assert process.exitcode == 0
    """
    assert run(server, tmp_path, script) == "through\n"


def test_a_copy_of_an_asynchronous_scope_says_nothing(server: Server, tmp_path: Path) -> None:
    """The lock is the parent's, so the child has forgotten nothing."""
    script = """
        import asyncio

        async def main():
            async with asynclock.Locker(sys.argv[1]) as locker:
                scope = await locker.acquire("job")
                pid = os.fork()
                if not pid:
                    del scope
                    os._exit(0)
                assert os.waitpid(pid, 0)[1] == 0
                await scope.release()

        asyncio.run(main())
    """
    run(server, tmp_path, script)


# Greenlets in place of threads


@pytest.mark.parametrize("library", GREENLETS)
def test_greenlets_in_place_of_threads_are_refused(server: Server, library: str) -> None:
    """Both would run the locker's event loop in the thread that waits for it."""
    pytest.importorskip(library)
    script = """
        from asynclock import ConfigurationError
        from asynclock.sync import Locker

        for attempt in range(2):
            try:
                with Locker(sys.argv[1]) as locker, locker.with_context("job"):
                    print("held")
            except ConfigurationError as error:
                print(error)
        Locker(sys.argv[1]).close()
    """
    program = f"{GREENLETS[library]}\nimport sys\n{textwrap.dedent(script)}"
    done = subprocess.run(
        [sys.executable, "-c", program, server.url], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    first, second = done.stdout.splitlines()
    assert first == second
    assert library in first and "gthread" in first and "prefork" in first
