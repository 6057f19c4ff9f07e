"""docs/proofs.md: every guarantee is there, and every file and test that it names."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache

import pytest

from tests.support.proofs import ROOT, guarantees, headings, proofs

pytestmark = pytest.mark.serverless


@cache
def decorators_of(file: str) -> dict[str, list[str]]:
    """The decorators of each test of a file."""
    tree = ast.parse((ROOT / file).read_text())
    return {
        node.name: [ast.unparse(decorator) for decorator in node.decorator_list]
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.fast
def test_the_numbers_are_those_of_the_guarantees() -> None:
    assert headings() == guarantees((ROOT / "docs" / "guarantees.md").read_text())


@pytest.mark.fast
def test_every_test_exists() -> None:
    assert len(proofs()) > 100
    for guarantee, file, test in proofs():
        assert test in decorators_of(file), f"guarantee {guarantee}: {file} has no {test}"


@pytest.mark.fast
def test_every_guarantee_has_a_fast_test_on_a_real_server() -> None:
    fast = {
        guarantee
        for guarantee, file, test in proofs()
        if "pytest.mark.fast" in decorators_of(file)[test] and "/core/" not in file
    }
    assert fast - {0} == headings().keys()


def test_one_guarantee_can_be_chosen() -> None:
    """``pytest --guarantee 6`` runs the tests that the page names for it, and no others."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-n", "0", "--collect-only"]
    command += ["--guarantee", "6", *{proof.file for proof in proofs() if proof.guarantee == 6}]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    chosen = {line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line}
    assert chosen == {f"{file}::{test}" for guarantee, file, test in proofs() if guarantee == 6}, done.stdout
