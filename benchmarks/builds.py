"""The builds of asynclock that can be measured side by side: the installed one, and its Python source."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import asynclock

NAME = "asynclock_pure"


class _Source:
    """Finds the source of the modules of ``asynclock_pure``, beside which there may be compiled ones."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.startswith(f"{NAME}.") and path is not None:
            for directory in path:
                if (spec := FileFinder(directory, (SourceFileLoader, SOURCE_SUFFIXES)).find_spec(name)) is not None:
                    return spec
        return None


@functools.cache
def pure() -> ModuleType:
    """asynclock as pure Python, also where the compiled build is installed: the same files under another name, which
    works since they import each other relatively."""
    if not asynclock.compiled:
        return asynclock
    source = Path(str(asynclock.__file__))
    spec = spec_from_file_location(NAME, source, submodule_search_locations=[str(source.parent)])
    assert spec is not None and spec.loader is not None
    sys.meta_path.insert(0, _Source)
    package = sys.modules[NAME] = module_from_spec(spec)
    spec.loader.exec_module(package)
    hot = importlib.import_module(f"{NAME}.core.lease")
    assert str(hot.__file__).endswith(".py")
    return package
