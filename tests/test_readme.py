"""README.md claims only what runs, in few words, and its links lead somewhere wherever it is shown."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

from asynclock.testing import Server
from tests.support.helpers import key

pytestmark = [pytest.mark.every_python, pytest.mark.serverless]

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_first_example(server: Server) -> None:
    code = blocks("python")[0].replace("redis://127.0.0.1:6379", server.url)
    process = subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "still mine\n"
        server.execute("DEL", key("my_lock"))
        since = time.monotonic()
        rest = process.communicate(timeout=5)[0]
        assert time.monotonic() - since < 2
        assert rest.startswith("stopped: lock 'my_lock' was lost: another client deleted its key")
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.fast
def test_ci_runs_the_two_commands_as_they_stand() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    shell = [block.strip() for block in blocks("sh")]
    demo, tests = (next(line for line in shell if word in line) for word in ("asynclock demo", "pytest"))
    for command in (demo, tests):
        quiet = command.replace("pip install", "pip install --quiet")
        assert quiet in ci or quiet.replace("asynclock demo", "asynclock demo --plain") in ci, command


def test_it_is_read_in_four_minutes() -> None:
    assert len(README.split()) <= 900


def test_its_guarantees_are_headings_of_the_page_that_has_them_in_full() -> None:
    page = (ROOT / "docs" / "guarantees.md").read_text()
    listed = re.findall(r"^(\d)\. \[\*\*(.+?)\.\*\*\]\(\S+/guarantees/#\S+\) ", README, re.MULTILINE)
    assert listed == re.findall(r"^## (\d)\. (.+)$", page, re.MULTILINE)
    assert [number for number, _ in listed] == list("123456")


def test_links_and_images_work_on_a_package_index_too() -> None:
    """There is nothing beside it there: every address is a whole one, and what it leads to is in this repository."""
    source, site = URLS["Source"], URLS["Documentation"]
    raw = source.replace("://github.com/", "://raw.githubusercontent.com/")
    assert yaml.safe_load((ROOT / "mkdocs.yml").read_text())["site_url"] == site
    targets = re.findall(
        r"\]\(([^)\s]+)\)|^\[\w+\]: (\S+)$", re.sub(r"```.*?```", "", README, flags=re.DOTALL), re.MULTILINE
    )
    assert len(targets) > 20
    for target in [*map("".join, targets), URLS["Changelog"]]:
        address, _, anchor = target.partition("#")
        if address.startswith(site):
            path = address.removeprefix(site).rstrip("/") or "index"
            page = ROOT / "docs" / f"{path}.md"
            assert page.exists(), target
            assert not anchor or anchor in anchors(page), target
        elif address.startswith((f"{source}/blob/main/", f"{raw}/main/")):
            assert (ROOT / address.partition("/main/")[2]).exists(), target
        else:
            assert address.endswith(("/rueidislock", "/valkeylock")), target


def anchors(page: Path) -> set[str]:
    """As the site makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}
