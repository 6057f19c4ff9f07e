"""docs/moving.md: asynclock's half of each snippet does what it returns."""

from __future__ import annotations

import asyncio
import inspect
import re
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from asynclock import Locker, sync
from asynclock.testing import Server

pytestmark = pytest.mark.serverless

PAGE = Path(__file__).parent.parent / "docs" / "moving.md"


TOLD = 1.0  # seconds after which a loss is known; it takes milliseconds, unless the machine does something else


def snippets() -> dict[str, Any]:
    """What the code of the page defines."""
    names: dict[str, Any] = {}
    for _, code in re.findall(r"^( *)```python\n(.*?)^\1```$", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        exec(compile(textwrap.dedent(code), "moving.md", "exec"), names)
    return names


def moved(names: dict[str, Any], in_threads: bool) -> list[str]:
    """The functions of those who have moved."""
    return [
        name
        for name, value in names.items()
        if name.startswith("after_") and inspect.iscoroutinefunction(value) is not in_threads
    ]


@pytest.mark.asyncio
async def test_the_snippets_for_those_who_move_do_what_they_return(server: Server) -> None:
    names = snippets()
    work = names["work"]

    async def lose() -> None:
        server.execute("DEL", "asynclock:0:job")
        await asyncio.sleep(5)

    assert len(moved(names, in_threads=False)) == 4
    async with Locker(server.url) as locker, Locker(server.url) as other, Redis.from_url(server.url) as client:
        for name in moved(names, in_threads=False):
            assert await names[name](locker) == "done"
            async with other.with_context("job"):
                assert await names[name](locker) == "busy"
            names["work"] = lose
            assert (await names[name](locker)).startswith("lost")
            names["work"] = work
        assert await names["both"](client, locker) == "done"
        async with client.lock("job", timeout=5):
            assert await names["both"](client, locker) == "busy"
    async with names["beside_go"](server.url) as locker, locker.with_context("job"):
        assert server.execute("EXISTS", *(f"rueidislock:{index}:job" for index in range(3))) == 3


def test_the_snippets_for_threads_do_what_they_return(server: Server) -> None:
    names = snippets()
    step = names["step"]
    steps: list[str] = []

    def lose() -> None:
        steps.append("done without the lock" if steps else "lost")
        server.execute("DEL", "asynclock:0:job")
        time.sleep(TOLD)

    assert len(moved(names, in_threads=True)) == 3
    with sync.Locker(server.url) as locker, sync.Locker(server.url) as other:
        for name in moved(names, in_threads=True):
            assert names[name](locker) == "done"
            with other.with_context("job"):
                assert names[name](locker) == "busy"
            names["step"] = lose
            assert names[name](locker).startswith("lost")
            assert steps == ["lost"]
            names["step"] = step
            steps.clear()
