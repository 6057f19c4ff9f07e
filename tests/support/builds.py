"""For tests that work on one of the two builds only."""

from __future__ import annotations

import pytest

from asynclock import compiled

#: For a test that replaces a method of a class that may be compiled, or gives it an object of another class.
only_pure = pytest.mark.skipif(
    compiled, reason="it replaces part of a class, and this one is compiled; the source runs it"
)
