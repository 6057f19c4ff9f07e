"""The results of a run, saved as ``results.json``, from which charts and tables are made."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from .figures import OURS, Figure
from .machine import Machine

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results.json")
CHARTS = ROOT / "docs" / "charts"


@dataclass(slots=True)
class Results:
    machine: Machine
    figures: list[Figure] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)  #: another library, and why it was not measured
    broken: dict[str, str] = field(default_factory=dict)  #: "scenario, loop" -> why it failed
    seconds: dict[str, float] = field(default_factory=dict)  #: "scenario, loop" -> how long it took

    def write(self, path: Path) -> None:
        saved = {
            "machine": self.machine,
            "absent": self.absent,
            "broken": self.broken,
            "seconds": self.seconds,
            "figures": [figure.to_json() for figure in self.figures],
        }
        path.write_text(json.dumps(saved, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """:raises OSError: there is no such file"""
        saved = json.loads(path.read_text())
        figures = [Figure.from_json(each) for each in saved["figures"]]
        return cls(saved["machine"], figures, saved["absent"], saved["broken"], saved.get("seconds", {}))

    def find(self, scenario: str, what: str | Callable[[str], bool], loop: str, by: str = OURS) -> Figure | None:
        """The figure of that name, or the first whose name matches; None: it was not measured."""
        chosen = what if callable(what) else what.__eq__
        return next(
            (
                each
                for each in self.figures
                if (each.scenario, each.loop, each.by) == (scenario, loop, by) and chosen(each.what)
            ),
            None,
        )

    def missed(self) -> list[str]:
        """The figures that missed a target, one line each."""
        return [
            f"{each.scenario}, {each.loop}: {each.label}: {each.judged()}"
            for each in self.figures
            if each.reached is False
        ]
