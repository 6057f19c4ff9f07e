"""docs/shell.md: its examples run, and its tables say what there is."""

import configparser
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from asynclock.cli import exit_status as statuses
from asynclock.cli.app import app
from asynclock.cli.servers import find_servers
from asynclock.testing import Server
from tests.support.helpers import key
from tests.support.runs import LIMIT, URLS

pytestmark = [pytest.mark.serverless, pytest.mark.one_loop]

PAGE = (Path(__file__).parent.parent / "docs" / "shell.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
RUN: Any = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]


def block(language: str, word: str) -> str:
    (found,) = [text for of, text in BLOCKS if of == language and word in text]
    return found


def section(heading: str) -> str:
    return PAGE.partition(f"# {heading}\n")[2].partition("\n#")[0]


@pytest.fixture
def env(server: Server, tmp_path: Path) -> dict[str, str]:
    """With ``asynclock``, and the programs of the examples, which print their arguments."""
    programs = {
        "asynclock": f'exec {sys.executable} -m asynclock "$@"',
        "report": 'echo report "$@"',
        "deploy": 'echo deploy "$@"; exit ${DEPLOY:-0}',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    rest = {name: value for name, value in os.environ.items() if name not in URLS}
    return rest | {"PATH": f"{tmp_path}:{rest['PATH']}", "ASYNCLOCK_URL": server.url}


def shell(text: str, env: dict[str, str], *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        ["sh", *(arguments or ["-c", text])],
        env=env, capture_output=True, text=True, timeout=LIMIT, check=False, start_new_session=True,
    )  # fmt: skip
    return done.returncode, done.stdout


def hold(server: Server, name: str) -> None:
    server.execute("SET", key(name), "somebody", "PX", 60_000)


def test_a_cron_job(server: Server, env: dict[str, str]) -> None:
    url, line = block("crontab", "asynclock").splitlines()
    assert url.startswith("ASYNCLOCK_URL=redis://")
    command = re.sub(r"^(\S+\s+){5}", "", line).replace("--at-least 60", "--at-least 0.1")
    assert command != line
    assert shell(command, env) == (0, "report --daily\n")
    hold(server, "report")
    assert shell(command, env) == (0, "")


def test_a_systemd_unit(server: Server, env: dict[str, str], tmp_path: Path) -> None:
    unit, timer = (configparser.ConfigParser(strict=False) for _ in range(2))
    unit.read_string(block("ini", "report.service"))
    timer.read_string(block("ini", "report.timer"))
    name, _, file = unit["Service"]["Environment"].partition("=")
    assert (name, file) == ("ASYNCLOCK_CONFIG", "/etc/asynclock/jobs.toml")
    config = tmp_path / "jobs.toml"
    config.write_text(f'url = "{env.pop("ASYNCLOCK_URL")}"\n')
    assert unit["Service"]["SuccessExitStatus"] == "143"  # stopped by systemd
    command = unit["Service"]["ExecStart"].replace("--at-least 120", "--at-least 0.1")
    command = command.replace("/opt/asynclock/bin/", "").replace("/usr/local/bin/", "")  # where they are here
    assert shell(command, env | {name: str(config)}) == (0, "report --daily\n")
    hold(server, "report")
    assert shell(command, env | {name: str(config)}) == (0, "")
    assert timer["Timer"]["OnCalendar"] == "daily"


def test_a_deploy_script(server: Server, env: dict[str, str]) -> None:
    script = block("sh", "deploy:web").replace("-w 300", "-w 1")
    assert shell(script, env) == (0, "deploy production\ndeployed\n")
    assert shell(script, env | {"DEPLOY": "3"}) == (0, "deploy production\nfailed\n")
    hold(server, "deploy:database")
    assert shell(script, env) == (0, "somebody else was deploying for 5 minutes\n")


def test_a_script_that_locks_itself(server: Server, env: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "backup"
    script.write_text(block("sh", "at the top of the script"))
    assert shell("", env, str(script)) == (0, "the only one\n")
    hold(server, "backup")
    assert shell("", env, str(script)) == (1, "")


def test_the_config_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    config = tmp_path / "asynclock.toml"
    config.write_text(block("toml", "urls").replace("/etc/asynclock/password", "password"))
    servers = find_servers(config=config, environment={})
    assert servers.urls[0] == "rediss://locks:secret@a.example"
    servers.locker()


def test_every_command_line_is_accepted() -> None:
    lines = [line for _, text in BLOCKS for line in text.splitlines() if re.search(r"\basynclock run (?!\[)", line)]
    lines += re.findall(r"`(asynclock run [^`…]*--[^`]*)`", PAGE)
    assert len(lines) >= 9
    for line in lines:
        words = shlex.split(line.partition("asynclock run")[2].partition("|")[0].partition(";")[0])
        context = RUN.make_context("run", words)
        assert context.meta["command"], line
        find_servers(urls=context.params["url"] or (), environment={}).locker()


def test_every_option_is_in_the_table_with_its_default() -> None:
    rows = [re.split(r" ?\| ?", line)[1:3] for line in section("Options").splitlines() if line.startswith("| `-")]
    told = {
        re.findall(r"--[\w-]+", options)[0]: (set(re.findall(r"(?<!\w)--?[\w-]+", options)), default)
        for options, default in rows
    }
    for parameter in RUN.params:
        if parameter.param_type_name == "option":
            long = next(option for option in parameter.opts if option.startswith("--"))
            options, default = told.pop(long)
            assert options == set(parameter.opts)
            if parameter.default not in (None, False):
                assert default == f"{parameter.default:g}", long
    assert [*told] == ["--help"]


def test_the_table_of_statuses() -> None:
    rows = re.findall(r"^\| (\d+) \|", section("Exit status"), re.MULTILINE)
    names = ("NOT_ACQUIRED", "LOST", "FAILED", "NOT_RUNNABLE", "NOT_FOUND")
    assert [int(row) for row in rows] == [getattr(statuses, name) for name in names]


def test_completion_can_be_installed(env: dict[str, str]) -> None:
    done = subprocess.run(
        ["asynclock", "--show-completion"], env=env | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    answer = env | {"_ASYNCLOCK_COMPLETE": "complete_bash", "COMP_WORDS": "asynclock run --at", "COMP_CWORD": "2"}
    done = subprocess.run(["asynclock"], env=answer, capture_output=True, text=True, timeout=LIMIT, check=True)
    assert done.stdout.split() == ["--at-least"]
