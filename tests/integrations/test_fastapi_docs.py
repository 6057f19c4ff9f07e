"""The application of docs/fastapi.md does what the page says."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from asynclock.testing import Server
from tests.integrations.web import answered, client_of, take
from tests.support.helpers import ROOT

pytestmark = [pytest.mark.serverless, pytest.mark.asyncio]


async def test_the_page_is_right(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    names: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/fastapi.md").read_text(), re.DOTALL | re.MULTILINE):
        exec(compile(code.replace("redis://127.0.0.1:6379", server.url), "fastapi.md", "exec"), names)
    async with client_of(names["app"]) as client:
        for path in ("pay", "withdraw", "deposit", "close", "invoice"):
            assert (await client.post(f"/users/7/{path}")).status_code == 200, path
        assert "sent while nobody" in (await client.get("/users/7/statement")).text
        take(server, "user:7")
        await asyncio.sleep(0)
        answered(await client.post("/users/007/pay"), 423)
        schema = (await client.get("/openapi.json")).json()["paths"]["/users/{user_id}/pay"]["post"]
        assert {"423", "503"} < set(schema["responses"])
        server.execute("DEL", "asynclock:0:user:7")
        await names["use_it_here"]()
    async with client_of(names["site"]) as client:
        assert (await client.post("/users/7/pay")).json() == {"held": True}
    await asyncio.to_thread(names["use_it"])
    assert [record.getMessage() for record in caplog.records if record.name == "asynclock"] == []
