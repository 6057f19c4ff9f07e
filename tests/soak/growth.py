"""A worker's memory and open files, at first and at the end."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.history import History, Sample

WARM_UP = 300.0  # seconds until all code and buffers have been used once
ALLOWED = 0.02  # share by which memory may grow after the warm-up


@dataclass(frozen=True)
class Growth:
    who: str
    resident: tuple[float, float]
    """Bytes after the warm-up and at the end: medians over a tenth of the time in between, but at most a minute."""
    files: tuple[int, int]
    """Before the first fault, and after the last one."""

    @property
    def share(self) -> float:
        return self.resident[1] / self.resident[0] - 1


def growth(history: History, who: str) -> Growth:
    samples = [sample for sample in history.samples[who] if sample.at < history.closing]
    begin, finish = samples[0].at, samples[-1].at
    warm = begin + min(WARM_UP, (finish - begin) / 3)
    width = max(12.0, min(60.0, (finish - warm) / 10))
    return Growth(
        who,
        (_median(samples, warm, warm + width), _median(samples, finish - width, finish)),
        (samples[0].files, samples[-1].files),
    )


def _median(samples: Sequence[Sample], since: float, until: float) -> float:
    return statistics.median(sample.resident for sample in samples if since <= sample.at <= until)
