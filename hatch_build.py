"""Build hook: compiles the hot modules to machine code if ``ASYNCLOCK_COMPILE=1``. Else the wheel is pure Python.

The Python source is the only source, and stays in the wheel beside the compiled modules: tracebacks show it, and
``ASYNCLOCK_PURE=1`` runs it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# What runs in every acquire and release, as far as it can be compiled. Not what awaits (acquisition.py, scope.py):
# compiled coroutines raise again, close and warn in ways of their own. Not what needs weak references or inherits from
# interpreted classes (manager.py, rooms.py). The rest would gain nothing: it runs once a connection.
#
# What costs there: a constant that is not Final is looked up in a dictionary, and an attribute or a method of what is
# not compiled (a Protocol, too) costs as much as in Python.
COMPILED = (
    # The rules: who gets a lock, and until when.
    "asynclock/core/clock.py",
    "asynclock/core/contention.py",
    "asynclock/core/handoff.py",
    "asynclock/core/lease.py",
    "asynclock/core/operations.py",
    "asynclock/core/pace.py",
    "asynclock/core/port.py",
    "asynclock/core/queue.py",
    "asynclock/core/retry.py",
    "asynclock/core/room.py",
    "asynclock/core/rules.py",
    "asynclock/core/tokens.py",
    # From a request to bytes, and from bytes to its answer.
    "asynclock/wire/commands.py",
    "asynclock/wire/connection.py",
    "asynclock/wire/expiry.py",
    "asynclock/wire/invalidations.py",  # or else compiled callers of Connection would bypass what it overrides
    "asynclock/wire/node.py",
    "asynclock/wire/owed.py",
    "asynclock/wire/reply_limits.py",
    "asynclock/wire/requests.py",
    "asynclock/wire/sending.py",
    # From a task to its lease, and back.
    "asynclock/_engine/first_check.py",
    "asynclock/_engine/held.py",
    "asynclock/_engine/pending_releases.py",
    "asynclock/_engine/timers.py",
    "asynclock/_engine/waiter.py",
)
# --no-site-packages: the result does not depend on what happens to be installed.
OPTIONS = ("--config-file=", "--no-site-packages", "--ignore-missing-imports", "--follow-imports=silent")


class CompileHook(BuildHookInterface[Any]):
    """Hatchling calls this for every wheel."""

    def dependencies(self) -> list[str]:
        return ["mypy[mypyc]>=2.4.1,<2.5", "setuptools>=77"] if _wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or not _wanted():
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        if version == "editable":
            _compile(self.root, self.root)  # beside the source, where it is imported from
            return
        self._built = tempfile.TemporaryDirectory()
        for library in _compile(self.root, self._built.name):
            build_data["force_include"][str(library)] = library.relative_to(self._built.name).as_posix()

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if (built := getattr(self, "_built", None)) is not None:
            built.cleanup()


def _wanted() -> bool:
    return os.environ.get("ASYNCLOCK_COMPILE", "") not in ("", "0")


def _compile(root: str, target: str) -> list[Path]:
    """Compile the modules under ``root``. Returns the libraries that are under ``target`` then."""
    from mypyc.build import mypycify
    from setuptools import Distribution

    before = os.getcwd()
    os.chdir(root)  # the paths in tracebacks are relative to it
    try:
        with tempfile.TemporaryDirectory() as scratch:
            extensions = mypycify(
                [*OPTIONS, *COMPILED],
                opt_level="3",
                debug_level="1",
                group_name="asynclock",
                target_dir=scratch,
            )
            command = Distribution({"name": "asynclock", "ext_modules": extensions}).get_command_obj("build_ext")
            command.build_lib = target
            command.build_temp = scratch
            command.ensure_finalized()
            command.run()
            return [Path(target, command.get_ext_filename(extension.name)) for extension in extensions]
    finally:
        os.chdir(before)
