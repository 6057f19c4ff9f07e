"""docs/moving.md: asynclock's half of each snippet does what it returns."""

from __future__ import annotations

import asyncio
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import LockError

from asynclock import Locker
from asynclock.testing import Server

pytestmark = pytest.mark.serverless

PAGE = Path(__file__).parent.parent / "docs" / "moving.md"


async def nothing() -> None: ...


@pytest.mark.asyncio
async def test_the_snippets_for_those_who_move_do_what_they_return(server: Server) -> None:
    names: dict[str, Any] = {}
    for _, code in re.findall(r"^( *)```python\n(.*?)^\1```$", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        exec(compile(textwrap.dedent(code), "moving.md", "exec"), names)
    moved = [name for name in names if name.startswith("after_")]
    assert len(moved) == 4
    async with Locker(server.url) as locker, Locker(server.url) as other, Redis.from_url(server.url) as client:
        for name in moved:
            assert await names[name](locker) == "done"
            async with other.with_context("job"):
                assert await names[name](locker) == "busy"

            async def lose() -> None:
                server.execute("DEL", "asynclock:0:job")
                await asyncio.sleep(5)

            names["work"] = lose
            assert (await names[name](locker)).startswith("lost")
            names["work"] = nothing
        assert await names["both"](client, locker) == "done"
        async with client.lock("job", timeout=5):
            with pytest.raises(LockError):
                await names["both"](client, locker)
    async with names["beside_go"](server.url) as locker, locker.with_context("job"):
        assert server.execute("EXISTS", *(f"rueidislock:{index}:job" for index in range(3))) == 3
