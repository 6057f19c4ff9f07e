"""A few hundred cases of the fuzzer, which runs for minutes by itself: ``python -m tests.fuzz --minutes M``."""

from __future__ import annotations

import asyncio

import pytest

from asynclock.testing import Sentinels, Server
from tests.fuzz.__main__ import fuzz

LIMIT = 240.0  # seconds: five times as long as it takes in debug mode, for a machine that is busy with other tests


def test_replies_that_no_server_sends(own_server: Server) -> None:
    report = asyncio.run(fuzz(own_server, iter(range(500)), LIMIT))
    assert report.cases == 500
    assert not report.failed and not report.left, str(report)


@pytest.mark.one_loop
def test_sentinels_that_lie(kind: str) -> None:
    if kind == "redis-6.2":
        pytest.skip("asynclock.testing has no Sentinels of Redis 6.2")
    with Sentinels(kind, replicas=0) as group:
        report = asyncio.run(fuzz(group, iter(range(100)), LIMIT))
    assert report.cases == 100
    assert not report.failed and not report.left, str(report)
