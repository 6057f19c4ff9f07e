"""Which build runs: hot modules as machine code, or everything as Python source.

It must be imported before the modules that may be compiled: with ``ASYNCLOCK_PURE=1`` it changes how they are found.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from types import ModuleType


class SourceOnly:
    """Finds the source of each module of ``package``, beside which there may be a compiled one."""

    def __init__(self, package: str) -> None:
        self._package = f"{package}."

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.startswith(self._package) and path is not None:
            for directory in path:
                if (spec := FileFinder(directory, (SourceFileLoader, SOURCE_SUFFIXES)).find_spec(name)) is not None:
                    return spec
        return None


def is_compiled(module: ModuleType) -> bool:
    """Is that module machine code?"""
    return not str(module.__file__).endswith(tuple(SOURCE_SUFFIXES))


if os.environ.get("ASYNCLOCK_PURE", "") not in ("", "0"):  # for debugging
    sys.meta_path.insert(0, SourceOnly("asynclock"))
