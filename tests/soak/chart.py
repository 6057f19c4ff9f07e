"""Memory and descriptors of every worker over time, with the faults marked, as an SVG."""

from __future__ import annotations

from collections.abc import Callable

from tests.chaos.history import History
from tests.chaos.timeline import INK, SOFT, WHITE, WORKERS, rect, svg, text

WIDTH, LEFT, RIGHT, TOP, TALL = 1000, 84, 24, 52, 150


def draw(title: str, history: History, warm: float) -> str:
    """:param warm: the end of the warm-up"""
    height = TOP + 2 * (TALL + 40) + 20
    samples = [sample for of_one in history.samples.values() for sample in of_one]
    begin, finish = min(sample.at for sample in samples), max(sample.at for sample in samples)

    def x(at: float) -> float:
        return LEFT + (at - begin) / max(finish - begin, 1e-9) * (WIDTH - LEFT - RIGHT)

    parts = [text(LEFT, 28, title, size=15, bold=True)]
    memory = [sample.resident / 2**20 for sample in samples]
    most = max(sample.files for sample in samples)
    for top, what, low, high in (
        (TOP, "MB resident", min(memory) * 0.95, max(memory) * 1.05),
        (TOP + TALL + 40, "open files", 0.0, most * 1.15),
    ):

        def y(value: float, top: float = top, low: float = low, high: float = high) -> float:
            return top + TALL - (value - low) / (high - low) * TALL

        parts.append(rect(LEFT, top, WIDTH - LEFT - RIGHT, TALL, WHITE))
        for fault in history.faults.values():
            parts.append(rect(x(fault.since), top, 1.0, TALL, "#f3d9d6"))
        for step in range(5):
            value = low + (high - low) * step / 4
            parts.append(text(LEFT - 8, y(value) + 4, f"{value:.1f}", size=10, fill=SOFT, anchor="end"))
        parts.append(text(LEFT, top - 6, what, size=11, fill=SOFT))
        parts.append(rect(x(warm), top, 1.2, TALL, INK))
        for number, (_, of_one) in enumerate(sorted(history.samples.items())):
            values = [(sample.at, sample.resident / 2**20 if top == TOP else float(sample.files)) for sample in of_one]
            parts.append(_line(values, x, y, WORKERS[number % len(WORKERS)]))
    for minutes in _ticks((finish - begin) / 60):
        parts.append(
            text(x(begin + minutes * 60), height - 26, f"{minutes:g} min", size=10, fill=SOFT, anchor="middle")
        )
    words = "A line for each worker; red: faults; black: the end of the warm-up."
    parts.append(text(LEFT, height - 8, words, size=11, fill=SOFT))
    return svg(title, WIDTH, height, parts)


def _line(
    values: list[tuple[float, float]], x: Callable[[float], float], y: Callable[[float], float], color: str
) -> str:
    points = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in values)
    return f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>'


def _ticks(minutes: float) -> list[float]:
    step = next(step for step in (0.25, 0.5, 1, 2, 5, 10, 20, 60) if minutes / step <= 8 or step == 60)
    return [number * step for number in range(int(minutes / step) + 1)]
