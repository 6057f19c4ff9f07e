"""A few hundred cases of the fuzzer, which runs for minutes by itself: ``python -m tests.fuzz --minutes M``."""

from __future__ import annotations

import asyncio

from asynclock.testing import Server
from tests.fuzz.__main__ import fuzz


def test_replies_that_no_server_sends(own_server: Server) -> None:
    report = asyncio.run(fuzz(own_server, iter(range(500)), 60.0))
    assert report.cases == 500
    assert not report.failed and not report.left, str(report)
