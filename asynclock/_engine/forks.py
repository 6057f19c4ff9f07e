"""Forks: tells the lockers in the child of a fork that their connections are the parent's."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    def fork(self) -> None:
        """This process is the child of a fork that came just now."""


_registered: weakref.WeakSet[Forkable] = weakref.WeakSet()
_kept: list[object] = []


def register(each: Forkable) -> None:
    """Call its ``fork`` in the child of every fork, for as long as somebody else keeps it."""
    _registered.add(each)


def keep(what: object) -> None:
    """Keep what belongs to the parent until the child ends: a connection that is garbage collected here may say
    goodbye to the server on the parent's behalf."""
    _kept.append(what)


def _in_child() -> None:
    for each in list(_registered):
        each.fork()


if hasattr(os, "register_at_fork"):  # not on Windows, where no process is forked
    os.register_at_fork(after_in_child=_in_child)
