"""The example as it is deployed: uvicorn with two workers and uvloop, which share locks and a database file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from asynclock.testing import Server
from tests.integrations.web import answered
from tests.support.apps import Client
from tests.support.helpers import ROOT

pytestmark = [pytest.mark.serverless, pytest.mark.one_loop, pytest.mark.slow, pytest.mark.asyncio]

REQUESTS = 20


@contextlib.asynccontextmanager
async def workers(server: Server, tmp_path: Path, wait: float) -> AsyncIterator[Client]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    arguments = ["--workers", "2", "--loop", "uvloop", "--port", str(port)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uvicorn", "examples.fastapi_app:app", *arguments),
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "LOCK_URL": server.url,
            "LOCK_WAIT": str(wait),
            "DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path / 'accounts.db'}",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    output = b""
    try:
        async with asyncio.timeout(60):
            while output.count(b"Application startup complete") < 2:
                line = await process.stdout.readline()
                assert line, output.decode()
                output += line
        # A connection for each request, so that the workers share them.
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, limits=limits) as http:
            yield Client(http, server, port)
        process.send_signal(signal.SIGTERM)
        rest, _ = await asyncio.wait_for(process.communicate(), 20)
        assert b"Traceback" not in output + rest, (output + rest).decode()
    finally:
        if process.returncode is None:  # the workers end with the one that watches them
            process.terminate()
            await process.communicate()


def connections(server: Server) -> int:
    return str(server.execute("CLIENT", "LIST")).count("resp=3")


async def test_twenty_requests_at_once_count_down_to_eighty(own_server: Server, tmp_path: Path) -> None:
    async with workers(own_server, tmp_path, wait=60) as client:
        asked = [client.withdraw("anna", 1, 0.005, 60) for _ in range(REQUESTS)]
        responses = await asyncio.gather(*asked)
        assert {response.status_code for response in responses} == {200}
        assert sorted(response.json()["balance"] for response in responses) == list(range(80, 100))
        for _ in range(100):  # both workers have had some, or get one now
            if connections(own_server) == 2:
                break
            await client.withdraw("bert", 1)
        assert connections(own_server) == 2
        assert (await client.withdraw("anna", 80)).json() == {"balance": 0}
        assert own_server.execute("KEYS", "asynclock:*") == []


async def test_workers_keep_each_other_out_and_start_without_the_lock_server(
    own_server: Server, tmp_path: Path
) -> None:
    own_server.kill()
    async with workers(own_server, tmp_path, wait=0.2) as client:
        assert (await client.http.get("/openapi.json")).status_code == 200
        answered(await client.withdraw("anna"), 503)
        own_server.start()
        async with asyncio.timeout(20):
            while (await client.withdraw("anna")).status_code == 503:
                await asyncio.sleep(0.05)
        async with client.working("anna"):
            for _ in range(4):
                answered(await client.withdraw("anna"), 423)
        assert (await client.withdraw("anna", 0)).status_code == 422
