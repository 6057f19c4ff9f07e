"""Which tests prove which guarantee: the tables of docs/proofs.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "proofs.md"


class Proof(NamedTuple):
    guarantee: int  # 0: promised, but none of the numbered guarantees
    file: str  # tests/….py
    test: str


def guarantees(text: str) -> dict[int, str]:
    """The numbered headings of a page: ``## 1. One holder``"""
    return {int(number): title for number, title in re.findall(r"^## (\d+)\. (.+)$", text, re.MULTILINE)}


def headings() -> dict[int, str]:
    return guarantees(PAGE.read_text())


def proofs() -> list[Proof]:
    found = []
    guarantee = 0
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            number = re.match(r"## (\d+)\. ", line)
            guarantee = int(number[1]) if number else 0
        file = re.search(r"^\|.*?`(tests/[\w/]+\.py)` \|", line)
        if file:
            found += [Proof(guarantee, file[1], test) for test in re.findall(r"`(test_\w+)`", line)]
    return found
