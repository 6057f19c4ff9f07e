"""Shortens a failing program."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

from .programs import Block, Program


def shrink(program: Program, fails: Callable[[Program], bool]) -> Program:
    """Leave out statements, or only the statement around a block, as long as ``fails`` returns True."""
    again = True
    while again:
        again = False
        for shorter in _shorter(program):
            if fails(shorter):
                program, again = shorter, True
                break
    return program


def _shorter(program: Program) -> Iterator[Program]:
    """Shorter programs, beginning with the shortest."""
    for number in range(len(_places(program))):
        without = copy.deepcopy(program)
        block, index = _places(without)[number]
        del block[index]
        yield without
    for number, (block, index) in enumerate(_places(program)):
        for inner in range(len(block[index].blocks())):
            unwrapped = copy.deepcopy(program)
            block, index = _places(unwrapped)[number]
            block[index : index + 1] = block[index].blocks()[inner]
            yield unwrapped


def _places(program: Program) -> list[tuple[Block, int]]:
    """The block and the index of every statement, outer ones first."""
    found: list[tuple[Block, int]] = []

    def look(block: Block) -> None:
        found.extend((block, index) for index in range(len(block)))
        for step in block:
            for inner in step.blocks():
                look(inner)

    look(program.body)
    look(program.cancel_after)
    return found
