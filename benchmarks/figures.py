"""Figures: repeated measurements, and their targets."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

Statistic = Literal["min", "median", "p99", "max"]
Sign = Literal["≤", "≥"]

OURS = "asynclock"  # the build that is installed
COMPILED = "compiled"
PURE = "pure Python"  # ... and its source, where that is the compiled one
SWIFT = "wait_release=False"


def number(value: float) -> str:
    """Three significant digits: 0.123, 1.23, 12.3, 123, 12,345."""
    return f"{value:,.{0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2 if abs(value) >= 0.9995 else 3}f}"


@dataclass(frozen=True, slots=True)
class Target:
    """A limit for one statistic of a figure, in the figure's unit."""

    of: Statistic
    sign: Sign
    bound: float

    def __str__(self) -> str:
        bound = f"{self.bound:,.10g}"
        return f"{self.sign} {bound}" if self.of == "median" else f"{self.of} {self.sign} {bound}"


def at_most(bound: float, of: Statistic = "median") -> Target:
    return Target(of, "≤", bound)


def at_least(bound: float, of: Statistic = "median") -> Target:
    return Target(of, "≥", bound)


@dataclass(frozen=True, slots=True)
class Figure:
    """Statistics of ``n`` measurements."""

    scenario: str
    what: str
    by: str  #: what was measured: asynclock, the floor, or another library
    loop: str
    unit: str
    n: int
    min: float
    median: float
    p99: float  # nearest rank: the maximum if n < 100
    max: float
    targets: tuple[Target, ...] = ()

    @classmethod
    def of(
        cls,
        scenario: str,
        what: str,
        loop: str,
        unit: str,
        values: Sequence[float],
        targets: Sequence[Target] = (),
        by: str = OURS,
    ) -> Self:
        ordered = sorted(values)
        return cls(
            scenario,
            what,
            by,
            loop,
            unit,
            len(ordered),
            ordered[0],
            statistics.median(ordered),
            percentile(ordered, 99),
            ordered[-1],
            tuple(targets),
        )

    @property
    def label(self) -> str:
        return self.what if self.by == OURS else f"{self.what}: {self.by}"

    def reaches(self, target: Target) -> bool:
        value: float = getattr(self, target.of)
        return value <= target.bound if target.sign == "≤" else value >= target.bound

    @property
    def reached(self) -> bool | None:
        """Does it reach its targets? ``None``: it has none."""
        return all(map(self.reaches, self.targets)) if self.targets else None

    def judged(self) -> str:
        """The targets, and whether they are reached: ``≤ 1.1 reached``, ``≤ 3, max ≤ 15 not reached (max 18.2)``."""
        if not self.targets:
            return ""
        said = ", ".join(map(str, self.targets))
        missed = [target.of for target in self.targets if not self.reaches(target)]
        values = ", ".join(f"{of} {number(getattr(self, of))}" for of in missed)
        return f"{said} not reached ({values})" if missed else f"{said} reached"

    def to_json(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in self.__slots__ if name != "targets"}
        targets = [
            {"of": target.of, "sign": target.sign, "bound": target.bound, "reached": self.reaches(target)}
            for target in self.targets
        ]
        return own | {"targets": targets}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        targets = tuple(Target(each["of"], each["sign"], each["bound"]) for each in saved["targets"])
        return cls(**{name: saved[name] for name in cls.__slots__ if name != "targets"}, targets=targets)


def percentile(ordered: Sequence[float], percent: int) -> float:
    """By the nearest-rank method."""
    return ordered[-(-len(ordered) * percent // 100) - 1]
