"""``asynclock break`` as its user runs it: in a process of its own, with a terminal to ask on, and without."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from asynclock import Locker
from asynclock.testing import Server
from tests.support.go import Go
from tests.support.helpers import AT_ONCE, Body, body, key, until, worker
from tests.support.shell import Deployment, Terminal, running, shell, shells

pytestmark = [pytest.mark.serverless, pytest.mark.one_loop]

QUESTION = r"\[y/N\] $"


async def on_terminal(look: Callable[[Terminal], None], *arguments: str) -> None:
    def run() -> None:
        with Terminal("break", *arguments) as terminal:
            look(terminal)

    await asyncio.to_thread(run)


@pytest.mark.asyncio
async def test_its_holder_loses_it_on_every_deployment(deployment: Deployment, tmp_path: Path) -> None:
    config = tmp_path / "asynclock.toml"
    config.write_text("restart_quarantine = false\n")  # these servers are young
    async with deployment.locker(owner="web-3:812") as locker:
        holding = await body(await locker.acquire("job"))
        done = await shell("break", "--yes", "--config", str(config), *deployment.arguments, "job")
        assert (done.status, done.err) == (0, "")
        assert (await holding.lost_within(AT_ONCE, time.monotonic())).reason == "taken over"
        assert re.fullmatch(
            r"Lock 'job' was taken from web-3:812, since .* left, \d of \d keys, and given back\.\n", done.out
        )
        await (await locker.try_acquire("job")).release()  # it is free
        assert await locker.names() == []


@pytest.mark.asyncio
async def test_nobody_holds_it(server: Server) -> None:
    done = await shell("break", "--yes", "--url", server.url, "job")
    assert (done.status, done.out) == (1, "")
    assert done.err == "asynclock break: nobody holds lock 'job'; nothing was done\n"


@pytest.mark.asyncio
async def test_the_next_one_gets_it(server: Server) -> None:
    async with Locker(server.url) as locker, worker(server, "5", "hold", "job") as process:
        await process.event()
        waiting = asyncio.create_task(locker.acquire("job"))
        assert (await shell("break", "--yes", "--url", server.url, "job")).status == 0
        scope = await asyncio.wait_for(waiting, AT_ONCE)
        assert scope.held
        await scope.release()


@pytest.mark.asyncio
async def test_go_services(server: Server) -> None:
    async with Go(server.port, "rueidislock", validity=60) as go:
        lock = await go.acquire("job")
        done = await shell("break", "--yes", "--url", server.url, "--key-prefix", "rueidislock", "job")
        assert done.status == 0 and "taken from another library, " in done.out
        assert await lock.extend() == [0]
        await until(lambda: lock.keys[0] in go.invalidated)


@pytest.mark.asyncio
async def test_without_a_terminal_nobody_can_be_asked(server: Server) -> None:
    async with Locker(server.url) as locker, locker.with_context("job") as scope:
        done = await shell("break", "--url", server.url, "job")
        assert (done.status, done.out) == (2, "")
        assert done.err == "asynclock break: there is no terminal to ask on: add --yes\n"
        assert scope.held and scope.lost_reason is None


@pytest.mark.asyncio
async def test_it_asks(server: Server) -> None:
    async with Locker(server.url, owner="web-3:812") as locker:
        holding = await body(await locker.acquire("job"))

        def no(answer: str, terminal: Terminal) -> None:
            shown = terminal.shows(QUESTION)
            assert re.match(r"Lock 'job' is held by web-3:812, since 20\d\d-.*\r\nTake it from web-3:812, ", shown)
            terminal.type(answer)
            assert terminal.ended() == 1
            assert terminal.written.endswith("asynclock break: nothing was done\r\n")

        for answer in ("\n", "yeah\n", "\x04"):  # the last one: there is no answer
            await on_terminal(partial(no, answer), "--url", server.url, "job")

        def interrupt(terminal: Terminal) -> None:
            terminal.shows(QUESTION)
            terminal.type("\x03")
            assert terminal.ended() == 130
            assert "Traceback" not in terminal.written

        await on_terminal(interrupt, "--url", server.url, "job")
        assert holding.scope.held

        def yes(terminal: Terminal) -> None:
            terminal.shows(QUESTION)
            terminal.type("Y\n")
            assert terminal.ended() == 0
            assert re.search(r"Lock 'job' was taken from web-3:812, .*, and given back\.\r\n$", terminal.written)

        await on_terminal(yes, "--url", server.url, "job")
        assert (await holding.lost_within(AT_ONCE, time.monotonic())).reason == "taken over"


@pytest.mark.asyncio
async def test_the_holder_changes_while_it_asks(server: Server) -> None:
    """Nobody loses a lock who was not named."""
    async with Locker(server.url, owner="first") as first, Locker(server.url, owner="second") as second:
        scope = await first.acquire("job")
        loop = asyncio.get_running_loop()

        async def pass_on() -> None:
            await scope.release()
            holding.append(await body(await second.acquire("job")))

        def look(terminal: Terminal) -> None:
            terminal.shows(f"Take it from first.*{QUESTION}")
            asyncio.run_coroutine_threadsafe(pass_on(), loop).result(10)
            position = len(terminal.written)
            terminal.type("y\n")
            shown = terminal.shows(f"Take it from second.*{QUESTION}", since=position)
            assert "meanwhile, the lock has another holder" in shown
            assert holding[0].scope.held
            terminal.type("y\n")
            assert terminal.ended() == 0

        holding: list[Body] = []
        await on_terminal(look, "--url", server.url, "job")
        assert (await holding[0].lost_within(AT_ONCE, time.monotonic())).reason == "taken over"


@pytest.mark.asyncio
async def test_it_is_given_back_while_it_asks(server: Server) -> None:
    async with Locker(server.url) as locker:
        scope = await locker.acquire("job")
        loop = asyncio.get_running_loop()

        def look(terminal: Terminal) -> None:
            terminal.shows(QUESTION)
            asyncio.run_coroutine_threadsafe(scope.release(), loop).result(10)
            terminal.type("y\n")
            assert terminal.ended() == 1
            assert "nobody holds lock 'job' any more; nothing was done" in terminal.written

        await on_terminal(look, "--url", server.url, "job")
        assert server.execute("EXISTS", key("job")) == 0


@pytest.mark.asyncio
async def test_names_from_a_server_are_harmless(server: Server) -> None:
    name = "\x1b[2J\n"
    server.execute("SET", key(name), "asynclock:n:0:1:5:\x1b[31m")
    done = await shell("break", "--yes", "--url", server.url, name)
    assert done.status == 0
    assert all(letter.isprintable() for letter in done.out.removesuffix("\n"))


@pytest.mark.asyncio
async def test_what_it_does_does_not_depend_on_who_reads_its_output(server: Server) -> None:
    """As in ``asynclock break --yes job | true``. Status 0 says that it was done."""
    server.execute("SET", key("job"), "somebody", "PX", 60_000)
    reading, writing = os.pipe()
    os.close(reading)
    async with running("break", "--yes", "--url", server.url, "job", stdout=writing) as breaking:
        os.close(writing)
        done = await breaking.ended()
    assert (done.status, done.err, server.execute("EXISTS", key("job"))) == (0, "", 0)


@pytest.mark.asyncio
async def test_what_it_refuses(server: Server) -> None:
    nowhere = "redis://127.0.0.1:1"
    table = {
        ("--yes", "--url", server.url, ""): 2,
        ("--yes", "--url", server.url): 2,
        ("--yes", "--url", server.url, "a", "b"): 2,
        ("--yes", "--url", "nonsense", "job"): 2,
        ("--yes", "--url", nowhere, "job"): 125,
        ("--url", nowhere, "job"): 2,
    }
    results = await shells("break", *table)
    for (arguments, expected), done in zip(table.items(), results, strict=True):
        assert (done.status, done.out) == (expected, ""), (arguments, done)
        assert done.err and "Traceback" not in done.err
