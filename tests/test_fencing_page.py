"""The recipes of docs/fencing.md refuse a number that is too low, and its tables say what there is.

tests/test_fencing_postgres.py runs the same statements on PostgreSQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis

from asynclock import Locker
from asynclock.testing import Server

pytestmark = pytest.mark.one_loop

PAGE = (Path(__file__).parent.parent / "docs" / "fencing.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
(TABLE,) = re.findall(r"`(CREATE TABLE [^`]+)`", PAGE)
(INSERT,) = re.findall(r'^WRITE_ROW = """\n(.*?)^"""$', PAGE, re.DOTALL | re.MULTILINE)
(UPDATE,) = re.findall(r"`(UPDATE reports SET [^`]+)`", PAGE)


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """All names that the page defines."""
    names: dict[str, Any] = {}
    for language, code in BLOCKS:
        if language == "python":
            exec(compile(code, "fencing.md", "exec"), names)
    return names


async def two_tokens(locker: Locker) -> tuple[int, int]:
    """Of a holder, and of the next one."""
    async with locker.with_context("report") as scope:
        first = await scope.fencing_token()
    async with locker.with_context("report") as scope:
        return first, await scope.fencing_token()


@pytest.mark.asyncio
async def test_the_first_example(locker: Locker, page: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    await page["nightly"](locker)
    await page["nightly"](locker)
    first, second = (int(line.removeprefix("write with ")) for line in capsys.readouterr().out.splitlines())
    assert first < second


@pytest.fixture
def database() -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.execute(TABLE)
        yield database


def rows(database: sqlite3.Connection) -> list[tuple[str, str, int]]:
    return database.execute("SELECT name, text, fence FROM reports").fetchall()


@pytest.mark.asyncio
async def test_a_row(locker: Locker, page: dict[str, Any], database: sqlite3.Connection) -> None:
    early, late = await two_tokens(locker)
    for text, fence in (("one", early), ("one more", early), ("two", late)):
        page["write_row"](database, "r", text, fence)
    with pytest.raises(page["TooLateError"]):
        page["write_row"](database, "r", "too late", early)
    assert rows(database) == [("r", "two", late)]


@pytest.mark.asyncio
async def test_a_row_that_is_always_there(locker: Locker, database: sqlite3.Connection) -> None:
    early, late = await two_tokens(locker)
    database.execute("INSERT INTO reports VALUES ('r', '', 0)")

    def write(text: str, fence: int) -> int:
        return database.execute(UPDATE, {"name": "r", "text": text, "fence": fence}).rowcount

    assert [write("one", early), write("one more", early), write("two", late), write("too late", early)] == [1, 1, 1, 0]
    assert rows(database) == [("r", "two", late)]


class ClientError(Exception):
    """As that of botocore."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}}


class Bucket:
    """A client of boto3, as far as the recipe knows it, with one bucket in memory. ``meanwhile`` is called after each
    read."""

    class exceptions:  # the name is boto3's
        ClientError = ClientError

    def __init__(self) -> None:
        self.objects: dict[str, tuple[str, bytes, dict[str, str]]] = {}
        self.meanwhile: Any = lambda: None
        self._etags = itertools.count()

    def head_object(self, Bucket: str, Key: str) -> dict[str, Any]:
        found = self.objects.get(Key)
        self.meanwhile()
        if found is None:
            raise ClientError("404")
        return {"ETag": found[0], "Metadata": dict(found[2])}

    def put_object(
        self,
        Bucket: str,
        Key: str,
        Body: bytes,
        Metadata: dict[str, str],
        IfMatch: str | None = None,
        IfNoneMatch: str | None = None,
    ) -> None:
        found = self.objects.get(Key)
        if (IfNoneMatch == "*" and found is not None) or (IfMatch is not None and (not found or found[0] != IfMatch)):
            raise ClientError("PreconditionFailed")
        self.objects[Key] = (f'"{next(self._etags)}"', Body, Metadata)


@pytest.mark.asyncio
@pytest.mark.parametrize("meanwhile", [False, True], ids=["one after the other", "between read and write"])
async def test_an_object_in_a_bucket(locker: Locker, page: dict[str, Any], meanwhile: bool) -> None:
    early, late = await two_tokens(locker)
    s3, write = Bucket(), page["write_object"]
    if meanwhile:

        def next_holder_writes() -> None:
            s3.meanwhile = lambda: None
            write(s3, "bucket", "r", b"two", late)

        s3.meanwhile = next_holder_writes
    else:
        write(s3, "bucket", "r", b"one", early)
        write(s3, "bucket", "r", b"one more", early)
        write(s3, "bucket", "r", b"two", late)
    with pytest.raises(page["TooLateError"]):
        write(s3, "bucket", "r", b"too late", early)
    assert s3.objects["r"][1:] == (b"two", {"fence": str(late)})


@pytest.mark.asyncio
async def test_a_key(server: Server, locker: Locker, page: dict[str, Any]) -> None:
    early, late = await two_tokens(locker)
    async with redis.Redis.from_url(server.url) as client:
        for text, fence in (("one", early), ("one more", early), ("two", late)):
            await page["write_key"](client, "r", text, fence)
        with pytest.raises(page["TooLateError"]):
            await page["write_key"](client, "r", "too late", early)
        assert await client.hgetall("r") == {b"fence": str(late).encode(), b"text": b"two"}


@pytest.mark.asyncio
async def test_a_stopped_holder_comes_too_late(
    server: Server, other: Locker, page: dict[str, Any], database: sqlite3.Connection
) -> None:
    """What it is all for: the lock is lost while the first holder is about to write."""
    async with Locker(server.url, key_validity=0.4) as locker:
        scope = await locker.acquire("report")
        fence = await scope.fencing_token()
        taken = await other.force_acquire("report")  # as if the first had been stopped for longer than the validity
        page["write_row"](database, "r", "two", await taken.fencing_token())
        await taken.release()
        with pytest.raises(page["TooLateError"]):
            page["write_row"](database, "r", "one", fence)
        await asyncio.sleep(0)


def test_the_name_of_a_counter() -> None:
    from asynclock.core.counters import counter_of

    assert f"`{counter_of(b'asynclock:0:my_lock', b'asynclock', 0, b'my_lock').decode()}`" in PAGE
