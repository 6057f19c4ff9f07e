"""SIGTERM: the recipes of docs/ as real processes, and how long the next holder waits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from asynclock import Locker
from asynclock.testing import Server
from tests.support.helpers import AT_ONCE, key, until

pytestmark = [pytest.mark.serverless, pytest.mark.asyncio, pytest.mark.one_loop]

ROOT = Path(__file__).parents[1]
VALIDITY = 5.0  # seconds: the default
HANDLED = "asyncio.get_running_loop().add_signal_handler"


def recipe(heading: str, language: str = "python", page: str = "leader.md") -> str:
    """The code of a section."""
    section = re.split(r"^###? ", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)
    (text,) = (each for each in section if each.startswith(f"{heading}\n"))
    found = re.search(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found, heading
    return found[1]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def started(command: list[str], directory: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process with children of its own; none is left."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


async def leads(server: Server, process: asyncio.subprocess.Process) -> None:
    await until(lambda: server.execute("EXISTS", key("scheduler")) or process.returncode is not None, 30)
    assert process.returncode is None, (await process.communicate())[0].decode()


async def next_holder(locker: Locker, pid: int, record: pytest.FixtureRequest, sent: int = signal.SIGTERM) -> float:
    """Seconds from the signal to the lock, for somebody who waits for it."""
    waiting = asyncio.create_task(locker.acquire("scheduler"))
    await asyncio.sleep(0.2)  # it has asked once, and waits: nothing on the wire shows that
    assert not waiting.done()
    since = time.monotonic()
    os.kill(pid, sent)
    try:
        scope = await asyncio.wait_for(waiting, 30)
        waited = time.monotonic() - since
    finally:
        waiting.cancel()
        await asyncio.wait([waiting])
    await scope.release()
    print(f"{record.node.name}: the next holder waited for {waited * 1000:.1f} ms")
    return waited


async def ended(process: asyncio.subprocess.Process) -> str:
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    return output.decode()


def script(server: Server, directory: Path, code: str) -> list[str]:
    (directory / "app.py").write_text(code.replace("redis://127.0.0.1:6379", server.url))
    return [sys.executable, "app.py"]


assert HANDLED in recipe("A script")
UNHANDLED = recipe("A script").replace(HANDLED, "print")


async def test_a_script_gives_its_lock_back(
    server: Server, locker: Locker, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    async with started(script(server, tmp_path, recipe("A script")), tmp_path) as process:
        await leads(server, process)
        assert await next_holder(locker, process.pid, request) < AT_ONCE
        output = await ended(process)
        assert process.returncode == 0, output
        assert set(output.split()) == {"leading"}  # no traceback


async def test_so_it_does_for_ctrl_c(
    server: Server, locker: Locker, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    async with started(script(server, tmp_path, recipe("A script")), tmp_path) as process:
        await leads(server, process)
        assert await next_holder(locker, process.pid, request, signal.SIGINT) < AT_ONCE
        await ended(process)


@pytest.mark.slow
async def test_without_the_recipe_the_next_holder_waits_for_the_expiry(
    server: Server, locker: Locker, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    async with started(script(server, tmp_path, UNHANDLED), tmp_path) as process:
        await leads(server, process)
        waited = await next_holder(locker, process.pid, request)
        assert VALIDITY / 2 - 0.5 < waited < VALIDITY + AT_ONCE  # extended every VALIDITY / 2
        await ended(process)
        assert process.returncode == -signal.SIGTERM


# uvicorn

ENDLESS = """

@app.get("/endless")
async def endless() -> None:
    await asyncio.sleep(600)
"""


def uvicorn(server: Server, directory: Path, *options: str, port: int = 0) -> list[str]:
    script(server, directory, recipe("uvicorn") + ENDLESS)
    return [sys.executable, "-m", *recipe("uvicorn", "sh").split()[:2], *("--port", str(port or free_port())), *options]


@pytest.mark.parametrize("options", [[], ["--workers", "2"], ["--loop", "uvloop"]], ids=" ".join)
async def test_uvicorn_gives_the_lock_of_the_lifespan_back(
    options: list[str], server: Server, locker: Locker, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    async with started(uvicorn(server, tmp_path, *options), tmp_path) as process:
        await leads(server, process)
        # uvicorn itself takes 0.1 s, and looks for signals to workers twice a second.
        assert await next_holder(locker, process.pid, request) < 0.5 + 0.5 * bool(options) + AT_ONCE
        output = await ended(process)
        assert "Traceback" not in output, output


async def open_request(port: int) -> asyncio.StreamWriter:
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)
    writer.write(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await writer.drain()
    await asyncio.sleep(0.2)  # for it to arrive: nothing that is seen here shows that
    return writer


async def test_uvicorn_with_a_request_that_does_not_end(
    server: Server, locker: Locker, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    port = free_port()
    options = recipe("uvicorn", "sh").split()[2:]
    assert options == ["--timeout-graceful-shutdown", "20"]
    async with started(uvicorn(server, tmp_path, options[0], "1", port=port), tmp_path) as process:
        writer = await open_request(port)
        await leads(server, process)
        assert 1 <= await next_holder(locker, process.pid, request) < 1.5 + AT_ONCE
        await ended(process)
        writer.close()


# aiohttp


async def test_aiohttp_gives_the_lock_of_its_leader_back(
    server: Server, locker: Locker, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    code = recipe("When the process ends", page="aiohttp.md").replace("port=8080", f"port={free_port()}")
    async with started(script(server, tmp_path, code), tmp_path) as process:
        await leads(server, process)
        assert await next_holder(locker, process.pid, request) < AT_ONCE
        output = await ended(process)
        assert process.returncode == 0, output
        assert "Traceback" not in output, output


async def test_aiohttp_with_a_request_that_does_not_end(
    server: Server, locker: Locker, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    port = free_port()
    endless = """
async def endless(request: web.Request) -> web.Response:
    await asyncio.sleep(600)
    return web.Response()


def make_app() -> web.Application:
    app = web.Application()
    app.router.add_get("/endless", endless)
"""
    code = recipe("When the process ends", page="aiohttp.md").replace(
        "def make_app() -> web.Application:\n    app = web.Application()\n", endless
    )
    code = code.replace("port=8080", f"port={port}").replace("shutdown_timeout=20", "shutdown_timeout=1")
    async with started(script(server, tmp_path, code), tmp_path) as process:
        writer = await open_request(port)
        await leads(server, process)
        waited = await next_holder(locker, process.pid, request)
        assert 1 <= waited < 2.5 + AT_ONCE  # aiohttp waits, cancels the handler, and waits again
        await ended(process)
        writer.close()


# Kubernetes

POD = yaml.safe_load(recipe("Kubernetes", "yaml"))["spec"]


def in_a_container(command: list[str]) -> list[str]:
    """As process 1, of a namespace of its own. It dies with ``unshare``."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("needs unshare, and root, to be process 1")
    made = subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no namespace can be made here: {made.stderr.decode()}")
    return ["unshare", "--pid", "--fork", "--kill-child", *command]


def process_1(unshare: asyncio.subprocess.Process) -> int:
    children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()
    return int(children[0])


async def test_a_pod_is_through_before_it_is_killed(
    server: Server, locker: Locker, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The command of the page, as process 1, with a request that does not end; the seconds are a tenth."""
    port = free_port()
    command: list[str] = POD["containers"][0]["command"]
    graceful = command.index("--timeout-graceful-shutdown") + 1
    assert int(command[graceful]) + 5 <= POD["terminationGracePeriodSeconds"]
    command[graceful] = str(int(command[graceful]) // 10)
    command[command.index("--port") + 1] = str(port)
    script(server, tmp_path, recipe("uvicorn") + ENDLESS)
    async with started(in_a_container([sys.executable, "-m", *command]), tmp_path) as process:
        writer = await open_request(port)
        await leads(server, process)
        assert await next_holder(locker, process_1(process), request) < POD["terminationGracePeriodSeconds"] / 10 + 1
        await ended(process)
        writer.close()


async def test_a_script_as_process_1_gives_its_lock_back(
    server: Server, locker: Locker, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    command = in_a_container(script(server, tmp_path, recipe("A script")))
    async with started(command, tmp_path) as process:
        await leads(server, process)
        assert await next_holder(locker, process_1(process), request) < AT_ONCE
        await ended(process)


async def test_process_1_without_the_recipe_is_not_even_ended(server: Server, locker: Locker, tmp_path: Path) -> None:
    command = in_a_container(script(server, tmp_path, UNHANDLED))
    async with started(command, tmp_path) as process:
        await leads(server, process)
        os.kill(process_1(process), signal.SIGTERM)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.wait(), 1)
        assert server.execute("EXISTS", key("scheduler")) == 1


@pytest.mark.parametrize("exec_", ["", "exec "])
async def test_a_shell_does_not_pass_it_on_without_exec(exec_: str, server: Server, tmp_path: Path) -> None:
    python, app = script(server, tmp_path, recipe("A script"))
    command = ["sh", "-c", f"true; {exec_}{python} {app}; true" if not exec_ else f"true; {exec_}{python} {app}"]
    async with started(command, tmp_path) as process:
        await leads(server, process)
        os.kill(process.pid, signal.SIGTERM)
        if exec_:
            await ended(process)
        else:  # the shell has ended, and the leader goes on
            await until(lambda: process.returncode is not None)  # wait() would wait for the end of its output, too
            await asyncio.sleep(0.5)
        assert server.execute("EXISTS", key("scheduler")) == (not exec_)
