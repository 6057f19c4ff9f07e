"""The builds of asynclock that can be measured side by side: the installed one, and its Python source."""

from __future__ import annotations

import functools
import importlib
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import asynclock
from asynclock._build import SourceOnly

NAME = "asynclock_pure"


@functools.cache
def pure() -> ModuleType:
    """asynclock as pure Python, also where the compiled build is installed: the same files under another name, which
    works since they import each other relatively."""
    if not asynclock.compiled:
        return asynclock
    source = Path(str(asynclock.__file__))
    spec = spec_from_file_location(NAME, source, submodule_search_locations=[str(source.parent)])
    assert spec is not None and spec.loader is not None
    sys.meta_path.insert(0, SourceOnly(NAME))
    package = sys.modules[NAME] = module_from_spec(spec)
    spec.loader.exec_module(package)
    hot = importlib.import_module(f"{NAME}.core.lease")
    assert str(hot.__file__).endswith(".py")
    return package
