"""``asynclock status`` as its user runs it: in a process of its own, with pipes and on a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import subprocess
from datetime import datetime

import pytest

from asynclock import Locker
from asynclock.cli.lockers import owners_in
from asynclock.cli.texts import columns, duration, safe, safe_bytes
from asynclock.testing import Server
from tests.support.go import Go
from tests.support.helpers import key, worker
from tests.support.shell import COMMAND, LIMIT, Deployment, Terminal, environment, running, shell, shells

pytestmark = [pytest.mark.one_loop]

NOWHERE = "redis://127.0.0.1:1"
KEYS = {"name", "held", "library", "owner", "host", "pid", "since", "age", "remaining", "forced", "votes"}
ALL_KEYS = KEYS | {"problem", "keys"}


# What is shown


@pytest.mark.asyncio
async def test_held_and_free_on_every_deployment(deployment: Deployment) -> None:
    where = deployment.arguments
    async with deployment.locker(owner="web-3:812") as locker, locker.with_context("report:daily"):
        await deployment.complete(locker, "report:daily")
        text, done = await asyncio.gather(shell("status", *where, "report:daily"), shell("status", *where, "--json"))
        assert (text.status, text.err) == (0, "")
        votes = rf"{deployment.keys}/{deployment.keys}"
        assert re.search(rf"^report:daily +web-3:812 +20\d\d-.*Z +[\d.]+ s +\d\.\d s +{votes}$", text.out, re.MULTILINE)
        assert len(
            re.findall(r"^asynclock:\d:report:daily +.*127.0.0.1:\d+/\d .*the holder$", text.out, re.MULTILINE)
        ) == (deployment.keys)
        assert (done.status, done.err) == (0, "")
        lock = done.lock
        assert set(lock) == ALL_KEYS
        assert {name: lock[name] for name in KEYS - {"since", "age", "remaining"}} == {
            "name": "report:daily",
            "held": True,
            "library": "asynclock",
            "owner": "web-3:812",
            "host": "web-3",
            "pid": 812,
            "forced": False,
            "votes": deployment.keys,
        }
        at, since = (datetime.fromisoformat(moment) for moment in (done.json["at"], lock["since"]))
        assert 0 <= (at - since).total_seconds() < 60 and abs((at - since).total_seconds() - lock["age"]) < 0.01
        assert 0 < lock["remaining"] < 5.1
        assert [state["key"] for state in lock["keys"]] == [
            key("report:daily", index) for index in range(deployment.keys)
        ]
        assert {state["state"] for state in lock["keys"]} == {"held"}
        assert all(re.fullmatch(r"(mymaster at )?127\.0\.0\.1:\d+/\d", state["server"]) for state in lock["keys"])
        for server in done.json["servers"]:  # the other command of these two may be there
            assert "web-3:812" in server["owners"] and server["lockers"] == len(server["owners"]) <= 2
        assert len(done.json["servers"]) == (3 if deployment.keys == 3 else 1)
    done = await shell("status", *where, "--json", "report:daily")
    assert done.status == 1
    assert set(done.lock) == ALL_KEYS and done.lock["held"] is False and done.lock["owner"] is None


@pytest.mark.asyncio
async def test_a_holder_in_another_process(server: Server) -> None:
    async with worker(server, "5", "hold", "job") as process:
        await process.event()
        lock = (await shell("status", "--url", server.url, "--json")).lock
        assert (lock["host"], lock["pid"]) == (socket.gethostname(), process.process.pid)


@pytest.mark.asyncio
async def test_all_locks_are_found_by_scan(server: Server) -> None:
    count = 700
    server.transaction(*[("SET", key(f"job {number:04}"), "x") for number in range(count)])
    server.execute("CONFIG", "RESETSTAT")
    done = await shell("status", "--url", server.url)
    assert done.status == 0
    assert re.findall(r"^job (\d+)  ", done.out, re.MULTILINE) == [f"{number:04}" for number in range(count)]
    info = server.execute("INFO", "commandstats")
    assert isinstance(info, bytes)
    assert b"cmdstat_scan" in info and b"cmdstat_keys" not in info
    server.execute("FLUSHALL")
    done = await shell("status", "--url", server.url)
    assert done.status == 1
    assert done.out.startswith("No lock is held.\n")


@pytest.mark.asyncio
async def test_other_libraries_are_unknown_and_no_value_is_shown(server: Server) -> None:
    """Whoever knows a value can release the key."""
    where = ["--url", server.url, "--key-prefix", "rueidislock"]
    async with Go(server.port, "rueidislock", validity=60) as go:
        lock = await go.acquire("job")
        value = safe_bytes(lock.value)
        table = [["job"], ["--json"], ["--values"], ["--values", "--json"]]
        text, listed, values, listed_values = await shells("status", *([*where, *arguments] for arguments in table))
        assert text.status == listed.status == 0
        assert re.search(r"^job +unknown +unknown +unknown +5\d\.\d s +1/1$", text.out, re.MULTILINE)
        assert listed.lock["library"] == "unknown" and listed.lock["owner"] is listed.lock["since"] is None
        assert value not in text.out and "value" not in listed.lock["keys"][0]
        assert value in values.out and listed_values.lock["keys"][0]["value"] == value
    async with Locker(server.url) as locker, locker.with_context("job"):
        own = server.execute("GET", key("job"))
        assert isinstance(own, bytes)
        del table[3:]
        shown = await shells("status", *(["--url", server.url, *arguments] for arguments in table))
        assert [own.decode() in done.out for done in shown] == [False, False, True]


@pytest.mark.asyncio
async def test_taken_by_force_and_without_an_end(server: Server) -> None:
    server.execute("SET", key("endless"), "x")
    async with Locker(server.url) as locker, locker.force_with_context("job"):
        text, listed = await shells("status", ["--url", server.url], ["--url", server.url, "--json"])
    assert re.search(r"^job .*1/1 by force$", text.out, re.MULTILINE)
    assert re.search(r"^endless .* no end  1/1$", text.out, re.MULTILINE)
    endless, forced = listed.json["locks"]
    assert endless["held"] is True and endless["remaining"] is None and endless["forced"] is False
    assert forced["forced"] is True


EVIL = ["\x1b[2J\x1b]0;title\x07", "line\nbreak\r\ttab", "\u202eright-to-left", "\x9b31m", "é 世界", "l" * 300]


@pytest.mark.asyncio
async def test_names_from_a_server_are_harmless(server: Server) -> None:
    """Whoever can write to the server has chosen them: no escape sequence gets through to a terminal."""
    for name in EVIL:
        server.execute("SET", key(name), f"asynclock:n:0:1:5:{name}")  # the owner too
    for arguments in ([], EVIL, ["--json"], ["--values"]):
        done = await shell("status", "--url", server.url, *arguments)
        assert done.status == 0
        assert all(letter.isprintable() for letter in done.out.replace("\n", ""))
    assert [lock["name"] for lock in (await shell("status", "--url", server.url, "--json")).json["locks"]] == sorted(
        EVIL
    )
    assert r"\x1b[2J\x1b]0;title\x07" in done.out
    with Terminal("status", "--url", server.url) as terminal:
        assert await asyncio.to_thread(terminal.ended) == 0
        assert all(len(line) <= 80 for line in terminal.screen)  # which refuses what cannot be printed


@pytest.mark.asyncio
async def test_stdout_in_another_encoding(server: Server) -> None:
    server.execute("SET", key("é 世"), "x")
    done = await shell("status", "--url", server.url, PYTHONIOENCODING="ascii")
    assert done.status == 0 and r"\xe9 \u4e16" in done.out


@pytest.mark.asyncio
async def test_on_a_terminal_of_80_columns(server: Server) -> None:
    async with Locker(server.url, owner="worker-12.eu-west-1.compute.internal:30411") as locker:
        async with locker.with_context("invoices:customer:0000000042:2026-11"), locker.with_context("short"):
            with Terminal("status", "--url", server.url) as terminal:
                assert await asyncio.to_thread(terminal.ended) == 0
    lines = terminal.screen
    assert re.fullmatch(r"LOCK +OWNER +SINCE +AGE +LEFT +KEYS", lines[0])
    assert all(len(line) <= 80 for line in lines)
    assert any(re.search(r"^short .*\d\d:\d\d:\d\dZ +[\d.]+ s +\d\.\d s +1/1$", line) for line in lines)
    first = "".join(line.split("  ")[0] for line in lines[1:4])
    assert "invoices:customer:0000000042:2026-11" in first  # all of it, on several lines
    assert lines[-2] == f"127.0.0.1:{server.port}/0: 1 other locker connected"


# Servers


@pytest.mark.asyncio
async def test_one_of_three_servers_is_down_and_two_are(trio: Deployment) -> None:
    async with trio.locker(owner="web-3:812") as locker, locker.with_context("job"):
        await trio.complete(locker, "job")
        trio.servers[0].kill()
        for arguments in (["job"], []):
            done = await shell("status", *trio.arguments, "--json", *arguments)
            assert done.status == 0, done.err
            assert done.lock["owner"] == "web-3:812" and done.lock["votes"] == 2
            assert [state["state"] for state in done.lock["keys"]] == ["unreadable", "held", "held"]
            assert [each["lockers"] for each in done.json["servers"]] == [None, 1, 1]
    trio.servers[1].kill()
    done = await shell("status", *trio.arguments, "job")
    assert (done.status, done.out) == (125, "")
    assert str(trio.servers[0].port) in done.err and "Traceback" not in done.err


@pytest.mark.asyncio
async def test_what_the_user_may_not_see(server: Server) -> None:
    allowed = ["+@all", "-client", "+client|tracking", "+client|id", "+client|setname"]
    server.execute("ACL", "SETUSER", "looker", "on", ">secret", "~*", "&*", *allowed)
    try:
        async with Locker(server.url) as locker, locker.with_context("job"):
            done = await shell("status", "--url", f"redis://looker:secret@127.0.0.1:{server.port}", "job")
            assert done.status == 0
            assert "connected lockers not known: " in done.out and "secret" not in done.out + done.err
            server.execute("ACL", "SETUSER", "looker", "-scan", "-keys")
            done = await shell("status", "--url", f"redis://looker:secret@127.0.0.1:{server.port}")
            assert done.status == 125 and "SCAN" in done.err and "secret" not in done.err
    finally:
        server.execute("ACL", "DELUSER", "looker")


@pytest.mark.asyncio
async def test_connected_lockers(server: Server) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for owner in ("b:2", "a:1", "c d", ""):
            await stack.enter_async_context(Locker(server.url, owner=owner))
        await stack.enter_async_context(resp2 := Locker(server.url + "?protocol=2", owner="resp2"))
        await resp2.client.ping()  # which makes a connection of redis-py's pool
        (known,) = (await shell("status", "--url", server.url, "--json")).json["servers"]
    assert known == {
        "server": f"127.0.0.1:{server.port}/0",
        "lockers": 5,
        "owners": ["", "a:1", "b:2", "c_d", "resp2"],
        "problem": None,
    }


def test_clients_that_call_themselves_what_they_like() -> None:
    listed = b"id=3 name=asynclock-1:a=b=c:1\nid=4 name=mine lib-name=redis-py(asynclock_v1)\nid=5 name=\xff\n\nid\n"
    assert owners_in(listed, 9) == ("a=b=c:1", "mine")
    assert owners_in(listed, 3) == ("mine",)
    assert owners_in([1], 3) == ()


# The exit status


@pytest.mark.asyncio
async def test_exit_statuses(server: Server) -> None:
    async with Locker(server.url) as locker, locker.with_context("held"):
        url = ["--url", server.url]
        table = {
            (*url, "held"): 0,
            (*url, "held", "free"): 1,
            (*url, "free"): 1,
            (*url,): 0,
            (*url, ""): 2,
            (*url, "x" * 100_000): 2,
            (*url, "--no-such-option"): 2,
            ("--url", "nonsense"): 2,
            ("--config", "/nonexistent.toml"): 2,
            ("--url", NOWHERE): 125,
            ("--url", NOWHERE, "held"): 125,
        }
        results = await shells("status", *table)
    for (arguments, expected), done in zip(table.items(), results, strict=True):
        assert done.status == expected, (arguments, done)
        assert bool(done.err) is (expected > 1)
        assert "Traceback" not in done.err


@pytest.mark.asyncio
async def test_nobody_reads_it(server: Server) -> None:
    server.transaction(*[("SET", key(f"job {number:04}"), "x") for number in range(3000)])

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            f'{" ".join(COMMAND)} status --url {server.url} | head -1; echo "${{PIPESTATUS[0]}}"',
            executable="/bin/bash",
            shell=True,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            env=environment(),
            check=False,
        )

    done = await asyncio.to_thread(run)
    assert done.stderr == ""
    assert re.fullmatch(r"LOCK .*\n0\n", done.stdout)


@pytest.mark.asyncio
@pytest.mark.parametrize(("name", "status"), [("held", 0), ("free", 1), ("", 2), (NOWHERE, 125)])
@pytest.mark.parametrize("form", ["--json", "--values"])
async def test_the_exit_status_does_not_depend_on_who_reads_it(
    server: Server, name: str, status: int, form: str
) -> None:
    """As in ``asynclock status job | true``: nobody has read anything."""
    server.execute("SET", key("held"), "x")
    reading, writing = os.pipe()
    os.close(reading)
    url = NOWHERE if name == NOWHERE else server.url
    async with running("status", "--url", url, form, name, stdout=writing) as asking:
        os.close(writing)
        done = await asking.ended()
    assert done.status == status
    assert bool(done.err) is (status > 1) and "Traceback" not in done.err


@pytest.mark.asyncio
@pytest.mark.parametrize(("where", "status"), [(">&-", 0), (">&- 2>&- <&-", 0), ("> /dev/full", 125)])
async def test_an_output_that_is_not_there(server: Server, where: str, status: int) -> None:
    server.execute("SET", key("job"), "x")
    program = ["sh", "-c", f'{" ".join(COMMAND)} status --url {server.url} job {where}; echo "$?" >&2']
    done = await shell(program=program)
    assert (done.err.splitlines()[-1], done.out) == (str(status), "")
    assert "Traceback" not in done.err and "ignored" not in done.err


# Text


def test_text_is_made_safe() -> None:
    assert safe("a\x00\x1b\x7f\x85\u200b\ud800\U000e0001é世") == r"a\x00\x1b\x7f\x85\u200b\ud800\U000e0001é世"
    assert safe("0123456789", 5) == "01…89"
    assert safe_bytes(b"a\\\x00\xff~") == r"a\x5c\x00\xff~"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (4.24, "4.2 s"),
        (59.96, "1 min 0 s"),
        (125, "2 min 5 s"),
        (3599.7, "1 h 0 min"),
        (270000, "3 d 3 h"),
    ],
)
def test_lengths_of_time(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_columns_fit() -> None:
    rows = [("A", "B", "C"), ("世界" * 10, "b" * 30, "12.3 s")]
    assert columns(rows)[1] == f"{'世界' * 10}  {'b' * 30}  12.3 s"
    second = columns(rows, 40)[1]
    assert second.endswith("  12.3 s") and "…" in second
    assert columns([("a", "b" * 50, "c")], 40) == [f"a  {'b' * 17}…{'b' * 16}  c"]
    assert all(len(line) <= 10 for line in columns(rows, 10))
