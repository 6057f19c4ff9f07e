"""What the documentation says of ``asynclock status``, ``watch`` and ``break``: options, keys and exit statuses."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer.main

from asynclock import Holder
from asynclock.cli import exit_status
from asynclock.cli.app import app
from asynclock.cli.facts import facts
from asynclock.core.holders import KeyState

pytestmark = [pytest.mark.serverless, pytest.mark.one_loop, pytest.mark.fast]

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "shell.md").read_text()
COMMANDS: Any = typer.main.get_command(app).commands  # type: ignore[attr-defined]
LOOKING = ("status", "watch", "break")


def section(command: str) -> str:
    return PAGE.partition(f"## asynclock {command}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("command", LOOKING)
def test_the_synopsis_has_every_option(command: str) -> None:
    synopsis = next(line for line in section(command).splitlines() if line.startswith(f"asynclock {command} "))
    options = {option.opts[0] for option in COMMANDS[command].params if option.param_type_name == "option"}
    assert set(re.findall(r"--[\w-]+", synopsis)) == options - {"--help"}


@pytest.mark.parametrize("command", LOOKING)
def test_every_command_line_is_accepted(command: str) -> None:
    """Those of the page, and those of ``--help``."""
    text = section(command) + str(COMMANDS[command].epilog)
    lines = [
        line
        for line in text.splitlines()
        if re.search(rf"^(\$ | *)asynclock {command}\b", line)
        and f"asynclock {command} [" not in line
        and " NAME " not in line
    ]
    assert len(lines) >= 2
    for line in lines:
        words = shlex.split(re.split(r"[|>]| && ", line.partition(f"asynclock {command}")[2])[0], comments=True)
        assert COMMANDS[command].make_context(command, words).params is not None


@pytest.mark.parametrize("command", LOOKING)
def test_statuses(command: str) -> None:
    told = {
        int(status)
        for row in re.findall(r"^\| ([\d, ]+) \|", section(command), re.MULTILINE)
        for status in row.split(",")
    }
    free = set() if command == "watch" else {exit_status.FREE}
    assert told == {0, exit_status.WRONG_USAGE, exit_status.FAILED, 130, 143} | free


def test_the_keys_of_json() -> None:
    key = KeyState("asynclock:0:job", "a:6379", b"value", 1.0)
    holder = Holder("job", None, None, 1.0, False, (key,), b"value")
    text = section("status")
    known = facts("job", holder, datetime.now(UTC), values=True)
    for name in [*known, *known["keys"][0], "at", "locks", "servers", "lockers", "owners"]:
        assert f"`{name}`" in text, name
    for name in ("held", "free", "disconnected", "reconnected"):
        assert f'`"{name}"`' in section("watch"), name
