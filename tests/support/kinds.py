"""Which servers there are for the Python that runs the tests: two of the packages have no wheels for the newest."""

from __future__ import annotations

import sys

import pytest

NOT_FROM = {"redis-6.2": (3, 12), "redis-8.2": (3, 14)}  # as in the extra "test" of pyproject.toml


def needs(kind: str) -> pytest.MarkDecorator:
    version = NOT_FROM.get(kind, (4, 0))
    return pytest.mark.skipif(sys.version_info >= version, reason=f"the package of {kind} has no wheels for it")


def each(*kinds: str) -> list[object]:
    """Parameters of a test."""
    return [pytest.param(kind, marks=needs(kind)) for kind in kinds]
