"""``asynclock watch`` as its user runs it: in a process of its own, with pipes and on a terminal."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from asynclock import Locker, LockLostError
from asynclock.testing import Server
from tests.support.helpers import key, until, worker
from tests.support.shell import COMMAND, LIMIT, Deployment, Lines, Terminal, environment, running, screen, shells

pytestmark = [pytest.mark.serverless, pytest.mark.one_loop]

# Several times what it takes: another process reads the change, and this one reads what that has written.
SOON = 1.0
# Looks for new locks every 0.2 s.
OFTEN = [sys.executable, "-c", "from asynclock.cli import main, watch; watch.SEARCH = 0.2; main()"]


async def change(lines: Lines, event: str) -> dict[str, object]:
    """The next JSON, which has this ``event``."""
    told: dict[str, object] = await lines.object()
    assert told["event"] == event, told
    return told


# What is shown


@pytest.mark.asyncio
async def test_changes_on_every_deployment(deployment: Deployment) -> None:
    async with (
        deployment.locker(owner="web-3:812") as locker,
        running("watch", *deployment.arguments, "--json", "job") as watch,
    ):
        first = await change(watch, "free")
        assert first["initial"] is True and first["held"] is False
        acquired = time.time()
        async with locker.with_context("job"):
            held = await change(watch, "held")
            assert time.time() - acquired < SOON
            at = datetime.fromisoformat(str(held["at"]))
            assert abs((datetime.now(UTC) - at).total_seconds()) < SOON
            assert (held["name"], held["owner"], held["pid"], held["initial"]) == ("job", "web-3:812", 812, False)
            assert isinstance(held["remaining"], float) and 0 < held["remaining"] < 5.1
            assert isinstance(held["keys"], list) and len(held["keys"]) == deployment.keys
            released = time.time()
        assert (await change(watch, "free"))["held"] is False
        assert time.time() - released < SOON
        done = await watch.end()
        assert (done.status, done.out, done.err) == (143, "", "")


@pytest.mark.asyncio
async def test_lines(server: Server) -> None:
    stamp = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\d\dZ"
    async with (
        Locker(server.url, owner="web-3:812") as locker,
        running("watch", "--url", server.url, "job", "\x1b[2J") as watch,
    ):
        assert {(await watch.line())[24:], (await watch.line())[24:]} == {"  free    job", r"  free    \x1b[2J"}
        async with locker.with_context("job"):
            since = r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\dZ"
            assert re.fullmatch(
                rf"{stamp}  held    job  web-3:812, since {since} \([\d.]+ s\), \d\.\d s left, 1 of 1 keys",
                await watch.line(),
            )
        assert re.fullmatch(rf"{stamp}  free    job", await watch.line())
        scope = await locker.force_acquire("job")
        assert re.match(rf"{stamp}  forced  job  web-3:812", await watch.line())
        await scope.release()
        await watch.line()
        server.execute("SET", key("\x1b[2J"), "\x1b[31m")
        assert re.fullmatch(
            rf"{stamp}  held    \\x1b\[2J  another library, without an end, 1 of 1 keys", await watch.line()
        )


@pytest.mark.asyncio
async def test_a_holder_that_is_killed_and_one_that_is_robbed(server: Server) -> None:
    async with running("watch", "--url", server.url, "--json", "job") as watch:
        await change(watch, "free")
        async with worker(server, "0.6", "hold", "job") as process:
            assert (await change(watch, "held"))["pid"] == process.process.pid
            os.kill(process.process.pid, signal.SIGKILL)
            killed = time.monotonic()
            await change(watch, "free")
            assert time.monotonic() - killed < 0.6 + SOON
        async with Locker(server.url, owner="a") as a, Locker(server.url, owner="b") as b:
            with pytest.raises(LockLostError):
                async with a.with_context("job"):
                    assert (await change(watch, "held"))["owner"] == "a"
                    robbed = asyncio.create_task(b.force_acquire("job"))
                    await asyncio.sleep(5)
            told = await change(watch, "held")
            assert (told["owner"], told["forced"]) == ("b", True)
            await (await robbed).release()
            await change(watch, "free")


@pytest.mark.asyncio
async def test_without_names_new_locks_are_found(server: Server) -> None:
    async with Locker(server.url) as locker, locker.with_context("old"):
        async with running("watch", "--url", server.url, "--json", program=OFTEN) as watch:
            assert (await change(watch, "held"))["name"] == "old"
            async with locker.with_context("new"):
                assert (await change(watch, "held"))["name"] == "new"
            assert (await change(watch, "free"))["name"] == "new"
            async with locker.with_context("new"):
                assert (await change(watch, "held"))["name"] == "new"


@pytest.mark.asyncio
async def test_a_server_goes_away_and_comes_back(own_server: Server) -> None:
    """It says so, tells nothing that it does not know, and goes on."""
    async with running("watch", "--url", own_server.url, "--json", "job") as watch:
        await change(watch, "free")
        own_server.execute("SET", key("job"), "x", "PX", 600000)
        await change(watch, "held")
        own_server.kill()
        assert (await change(watch, "disconnected"))["server"] == f"127.0.0.1:{own_server.port}/0"
        assert re.match(r"asynclock watch: 127\.0\.0\.1:\d+/0: disconnected, reconnecting: ", await watch.complaint())
        own_server.start()
        told = await change(watch, "reconnected")
        assert isinstance(told["after"], float)
        assert re.search(r": connected again after \d+\.\d s$", await watch.complaint())
        await change(watch, "free")
        own_server.execute("SET", key("job"), "x")
        await change(watch, "held")
        assert (await watch.end()).err == ""


@pytest.mark.asyncio
async def test_one_of_three_servers_goes_away(trio: Deployment) -> None:
    async with (
        trio.locker(owner="a") as locker,
        running("watch", *trio.arguments, "--json", "job") as watch,
    ):
        await change(watch, "free")
        trio.servers[0].kill()
        await change(watch, "disconnected")
        async with locker.with_context("job"):
            assert (await change(watch, "held"))["owner"] == "a"
        await change(watch, "free")


# On a terminal


@pytest.mark.asyncio
async def test_a_table_that_stays(server: Server) -> None:
    async with Locker(server.url, owner="worker-12.eu-west-1.compute.internal:30411", key_validity=3) as locker:
        scopes = [await locker.acquire(name) for name in ("invoices:customer:0000000042:2026-11", "job")]
        server.execute("SET", key("\x1b[2J"), "\x1b[2J", "PX", 60000)

        def look() -> None:
            with Terminal("watch", "--url", server.url) as terminal:
                terminal.shows(r"3 held, 0 free")
                # The time left counts down, and goes up again when the lock is extended, which is no change.
                left = [3.0]
                while not any(later > before for before, later in itertools.pairwise(left)):
                    position = len(terminal.written)
                    terminal.shows(r"Ctrl-C ends this", since=position)
                    # Up to the end of the last frame: the next one may have come in parts.
                    frame = "\n".join(screen(terminal.written[: terminal.written.rindex(" ends this.")]))
                    (seconds,) = re.findall(r"^job .* (\d\.\d) s +1/1$", frame, re.MULTILINE)
                    left.append(float(seconds))
                assert len(left) > 3
                asyncio.run_coroutine_threadsafe(scopes[1].release(), loop).result(LIMIT)
                terminal.shows(r"2 held, 1 free", since=position)
                assert all(len(line) <= 80 for line in terminal.screen)
                assert re.fullmatch(r"LOCK +OWNER +HELD FOR +LEFT +KEYS", terminal.screen[0])
                rows = [line.split("  ")[0] for line in terminal.screen[1:4]]
                assert rows[0] == r"\x1b[2J" and rows[1].startswith("invoices:") and "…" in rows[1]
                assert re.fullmatch(r"job +free", terminal.screen[3])
                position = len(terminal.written)
                server.execute("CLIENT", "KILL", "TYPE", "NORMAL")
                terminal.shows(r"disconnected, reconnecting.*connected again.*LOCK ", since=position)
                terminal.type("\x03")
                assert terminal.ended() == 130
                assert terminal.written.rindex("\x1b[?25h") > terminal.written.rindex("\x1b[?25l")  # the cursor is back
                assert "Traceback" not in terminal.written

        loop = asyncio.get_running_loop()
        await asyncio.to_thread(look)
        await scopes[0].release()


@pytest.mark.asyncio
async def test_more_locks_than_lines(server: Server) -> None:
    server.transaction(*[("SET", key(f"job {number:02}"), "x") for number in range(40)])

    def look() -> None:
        with Terminal("watch", "--url", server.url, lines=12, columns=60) as terminal:
            terminal.shows(r"40 held, 0 free; 33 more than fit here")
            assert [line[:6] for line in terminal.screen[1:8]] == [f"job {number:02}" for number in range(7)]
            terminal.process.send_signal(signal.SIGTERM)
            assert terminal.ended() == 143

    await asyncio.to_thread(look)


# How it ends


@pytest.mark.asyncio
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_ends_it(server: Server, number: int, status: int) -> None:
    async with running("watch", "--url", server.url, "job") as watch:
        await watch.line()
        done = await watch.end(number)
        assert (done.status, done.out, done.err) == (status, "", "")
    await until(lambda: b"asynclock-" not in _clients(server))  # and its connection is closed


def _clients(server: Server) -> bytes:
    listed = server.execute("CLIENT", "LIST")
    assert isinstance(listed, bytes)
    return listed


@pytest.mark.asyncio
async def test_a_signal_ends_it_though_nobody_reads_its_output(server: Server) -> None:
    """The pipe is full, so it waits in the middle of a line."""
    reading, writing = os.pipe()
    server.transaction(*[("SET", key(f"job {number:05} {'x' * 200}"), "x") for number in range(3000)])
    try:
        async with running("watch", "--url", server.url, "--json", stdout=writing) as watch:
            os.close(writing)

            await until(lambda: waits_to_write(watch.process.pid), LIMIT)
            assert (await watch.end()).status == 143
    finally:
        os.close(reading)


def waits_to_write(pid: int) -> bool:
    """As the kernel says it."""
    return "pipe_write" in Path(f"/proc/{pid}/wchan").read_text()


@pytest.mark.asyncio
async def test_a_closed_pipe_ends_it(server: Server) -> None:
    """Also if there is nothing to write."""

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            f'{" ".join(COMMAND)} watch --url {server.url} job | head -1; echo "${{PIPESTATUS[0]}}"',
            executable="/bin/bash",
            shell=True,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            env=environment(),
            check=False,
        )

    done = await asyncio.to_thread(run)
    assert done.stderr == ""
    assert re.fullmatch(r".*  free    job\n0\n", done.stdout)


@pytest.mark.asyncio
async def test_what_it_refuses(server: Server) -> None:
    table = {
        ("--url", server.url, ""): 2,
        ("--url", server.url, "--values"): 2,
        ("--url", "nonsense"): 2,
        ("--url", "redis://127.0.0.1:1"): 125,
        ("--url", "redis://127.0.0.1:1", "job"): 125,
    }
    results = await shells("watch", *table)
    for (arguments, expected), done in zip(table.items(), results, strict=True):
        assert (done.status, done.out) == (expected, ""), (arguments, done)
        assert done.err and "Traceback" not in done.err
