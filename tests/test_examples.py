"""The example apps over real HTTP: 200, 423 and 503, and no key left behind, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from asynclock.testing import Server
from tests.support.apps import WORK, Client, check_refused, running
from tests.support.helpers import AT_ONCE, until

pytestmark = [pytest.mark.every_python, pytest.mark.serverless, pytest.mark.asyncio]
each_app = pytest.mark.parametrize("name", ["fastapi", "aiohttp"])


def connection(response: httpx.Response) -> object:
    """The client's address: the same for requests on one connection."""
    return response.extensions["network_stream"].get_extra_info("client_addr")


@each_app
async def test_a_request_holds_the_lock_and_gives_it_back(name: str, server: Server) -> None:
    async with running(name, server) as client:
        task = asyncio.create_task(client.withdraw("anna", seconds=0.1))
        await until(lambda: client.locked("anna"))
        response = await task
        assert not client.locked("anna")  # given back before the response was sent
        assert (response.status_code, response.json()) == (200, {"balance": 90})


@each_app
async def test_requests_for_one_account_take_turns(name: str, server: Server) -> None:
    async with running(name, server, wait=20) as client:
        responses = await asyncio.gather(*(client.withdraw("anna", seconds=0.05) for _ in range(3)))
        # Each reads the balance, works, and writes the balance: none has overwritten another's.
        assert sorted(response.json()["balance"] for response in responses) == [70, 80, 90]
        assert not client.locked("anna")


@each_app
async def test_a_busy_account_is_423_and_another_one_is_free(name: str, server: Server) -> None:
    wait = 0.1
    async with running(name, server, wait=wait) as client, client.working("anna") as first:
        since = time.monotonic()
        check_refused(await client.withdraw("anna"), 423)
        assert wait * 0.9 <= time.monotonic() - since < wait + AT_ONCE
        assert (await client.withdraw("bert")).status_code == 200
        assert not first.done()


async def test_the_two_apps_keep_each_other_out(server: Server) -> None:
    async with running("fastapi", server) as fast, running("aiohttp", server) as aio:
        async with fast.working("anna"):
            check_refused(await aio.withdraw("anna"), 423)
        async with aio.working("anna"):
            check_refused(await fast.withdraw("anna"), 423)


@pytest.mark.parametrize("name", ["fastapi", "fastapi in a BaseHTTPMiddleware", "aiohttp"])
async def test_a_loss_during_the_work_is_503_at_once(name: str, server: Server) -> None:
    async with running(name, server) as client, client.working("anna") as task:
        since = time.monotonic()
        client.take_away("anna")
        response = await task
        assert time.monotonic() - since < AT_ONCE
        check_refused(response, 503)
        again = await client.withdraw("anna")
        assert again.json() == {"balance": 90}  # the one that lost its lock has withdrawn nothing
        assert connection(again) == connection(response)


@contextlib.contextmanager
def after_each_write(do: Callable[[], None]) -> Iterator[None]:
    """Call ``do`` when the app has written a balance, after its last look at the lock."""

    def committed(_: Session) -> None:
        do()

    event.listen(Session, "after_commit", committed)
    try:
        yield
    finally:
        event.remove(Session, "after_commit", committed)


@each_app
async def test_a_loss_that_shows_at_the_release_is_503(name: str, server: Server) -> None:
    async with running(name, server) as client:
        with after_each_write(lambda: client.take_away("anna")):
            check_refused(await client.withdraw("anna"), 503)


@each_app
async def test_a_server_that_dies_during_the_work_is_503_at_once(name: str, own_server: Server) -> None:
    async with running(name, own_server) as client, client.working("anna") as task:
        since = time.monotonic()
        own_server.kill()
        check_refused(await task, 503)
        assert time.monotonic() - since < AT_ONCE


@each_app
async def test_a_server_that_dies_while_a_request_waits_is_503_and_not_423(name: str, own_server: Server) -> None:
    async with running(name, own_server, wait=1.0) as client, client.working("anna"):
        waiting = asyncio.create_task(client.withdraw("anna"))
        await asyncio.sleep(0.2)  # it has asked once, and waits: nothing on the wire shows that
        assert not waiting.done()
        own_server.kill()
        check_refused(await waiting, 503)


@each_app
async def test_a_server_that_is_down_is_503_until_it_is_back(name: str, own_server: Server) -> None:
    async with running(name, own_server, wait=5) as client:
        own_server.kill()
        for _ in range(2):
            since = time.monotonic()
            check_refused(await client.withdraw("anna"), 503)
            assert time.monotonic() - since < AT_ONCE  # and not after the wait
        own_server.start()
        async with asyncio.timeout(10):
            while True:
                response = await client.withdraw("anna")
                if response.status_code != 503:
                    break
                await asyncio.sleep(0.05)
        assert response.status_code == 200


@each_app
async def test_the_handlers_own_exception_comes_out_and_the_lock_is_released(name: str, server: Server) -> None:
    async with running(name, server) as client:
        response = await client.withdraw("anna", amount=101)
        assert response.status_code == 409
        assert "the balance is 100" in response.text
        assert not client.locked("anna")
        assert (await client.withdraw("anna", amount=0)).status_code == 422
        assert not client.locked("anna")
        assert (await client.withdraw("anna", amount=100)).json() == {"balance": 0}


@each_app
@pytest.mark.parametrize("during", ["the work", "the wait"])
async def test_a_client_that_goes_away_leaves_no_key(name: str, during: str, server: Server) -> None:
    """Both frameworks let the handler go on to its end."""
    async with running(name, server, wait=20) as client:
        async with client.working("anna") if during == "the wait" else contextlib.nullcontext():
            with pytest.raises(httpx.ReadTimeout):
                await client.withdraw("anna", seconds=0.2, timeout=0.1)
        response = await client.withdraw("anna")  # its turn comes after the one that nobody waits for
        assert response.json() == {"balance": 80}
        assert not client.locked("anna")


async def test_aiohttp_can_stop_the_work_of_a_client_that_goes_away(server: Server) -> None:
    async with running("aiohttp with handler_cancellation", server) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.withdraw("anna", seconds=WORK, timeout=0.1)
        since = time.monotonic()
        await until(lambda: not client.locked("anna"))
        assert time.monotonic() - since < AT_ONCE
        assert (await client.withdraw("anna")).json() == {"balance": 90}


@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("command", [["-m", "examples.fastapi_app"], ["examples/aiohttp_app.py"]], ids=" ".join)
async def test_they_run_as_their_first_lines_say(command: list[str], server: Server, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        cwd=Path(__file__).parents[1],
        env={
            **os.environ,
            "LOCK_URL": server.url,
            "PORT": str(port),
            "DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path / 'accounts.db'}",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with (
            asyncio.timeout(30),
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http,
        ):
            while True:
                try:
                    response = await Client(http, server, port).withdraw("anna")
                    break
                except httpx.ConnectError:
                    assert process.returncode is None, "it ended by itself"
                    await asyncio.sleep(0.05)
        assert response.json() == {"balance": 90}
        process.send_signal(signal.SIGINT)
        output, _ = await asyncio.wait_for(process.communicate(), 10)
        assert process.returncode == 0, output.decode()
        assert b"Traceback" not in output
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
