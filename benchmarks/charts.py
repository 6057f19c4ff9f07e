"""The charts of README.md and docs/speed.md, as SVG: transparent, in colours that are readable on white and on black.

Text stays text, in the reader's own sans-serif font.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")  # no display is needed

from matplotlib import pyplot as plt

from .contestants import CONTESTANTS
from .figures import OURS, number
from .results import Results
from .turns import FLOOR

LOOPS = ("asyncio", "uvloop")
TASKS = (1, 10, 64, 512)

GREY = "#757d87"  # about as readable on white as on a dark page: a contrast of 4.2 and more
COLOURS = {
    FLOOR: GREY,
    OURS: "#e8590c",
    "redis-py": "#2f7fd6",
    "redis-lock-py": "#2b9a66",
    "pottery": "#a35fd0",
    "aioredlock": "#b58200",
    "coredis": "#d6457f",
}
LOOK: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "asynclock",  # the same results, the same file
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "text.color": GREY,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.titlecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(results: Results, directory: Path) -> list[Path]:
    """Write the charts whose figures were measured. :returns: the files"""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, chart in CHARTS.items():
        with plt.rc_context(LOOK):
            drawn = chart(results)
            if drawn is not None:
                path = directory / f"{name}.svg"
                drawn.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None})
                plt.close(drawn)
                written.append(path)
    return written


def cycle(results: Results) -> Any:
    """µs for acquire and release against the number of tasks, a line for each library, a panel for each loop."""
    loops = [loop for loop in LOOPS if results.find("cycle", "1 task", loop)]
    if not loops:
        return None
    drawn, panels = plt.subplots(1, len(loops), figsize=(4.9 * len(loops), 4.4), sharey=True, squeeze=False)
    for panel, loop in zip(panels[0], loops, strict=True):
        ends: dict[str, tuple[float, float]] = {}
        for who in (FLOOR, *CONTESTANTS):
            points = [
                (tasks, figure.median)
                for tasks in TASKS
                if (figure := results.find("cycle", "1 task" if tasks == 1 else f"{tasks} tasks", loop, who))
            ]
            if points:
                ours = who == OURS
                panel.plot(
                    *zip(*points, strict=True),
                    color=COLOURS[who],
                    marker="o",
                    markersize=6 if ours else 4,
                    linewidth=2.8 if ours else 1.6,
                    linestyle="--" if who == FLOOR else "-",
                    zorder=3 if ours else 2,
                )
                ends[who] = points[-1]
        for who, (tasks, height) in spread(ends).items():
            label = "a bare protocol" if who == FLOOR else who
            weight = "bold" if who == OURS else "normal"
            panel.annotate(
                label,
                (tasks, height),
                (9, 0),
                textcoords="offset points",
                va="center",
                color=COLOURS[who],
                weight=weight,
            )
        panel.set(xscale="log", yscale="log", title=f"on {'the asyncio loop' if loop == 'asyncio' else loop}")
        panel.set_xticks(TASKS, [str(tasks) for tasks in TASKS])
        panel.set_xticks([], minor=True)
        panel.set_xlabel("tasks, each with its own lock")
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.grid(axis="y", which="major")
        panel.margins(y=0.08)
    panels[0][0].set_ylabel("µs for acquire and release, less is better")
    drawn.tight_layout(w_pad=6)
    return drawn


def spread(ends: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """The positions of the labels: at the ends of the lines, and moved apart if they are close."""
    apart = 1.3  # times as high
    placed: dict[str, tuple[float, float]] = {}
    height = 0.0
    for who, (tasks, value) in sorted(ends.items(), key=lambda item: item[1][1]):
        height = max(value, height * apart)
        placed[who] = (tasks, height)
    return placed


def handover(results: Results) -> Any:
    """ms from a release in one process until a waiter in another has the lock: the median, and a line to the p99."""
    loop = next((loop for loop in reversed(LOOPS) if results.find("waiting", "release to acquired", loop)), None)
    if loop is None:
        return None
    figures = [figure for who in CONTESTANTS if (figure := results.find("waiting", "release to acquired", loop, who))]
    figures.sort(key=lambda figure: -figure.median)
    drawn, panel = plt.subplots(figsize=(8.4, 0.5 * len(figures) + 1.1))
    for row, figure in enumerate(figures):
        colour = COLOURS[figure.by]
        panel.hlines(row, figure.median, figure.p99, color=colour, linewidth=1.6)
        panel.plot(figure.median, row, "o", color=colour, markersize=10 if figure.by == OURS else 7)
        panel.annotate(
            f"{number(figure.median)} ms", (figure.median, row), (0, 8), textcoords="offset points", ha="center"
        )
    panel.set_yticks(range(len(figures)), [figure.by for figure in figures])
    for label, figure in zip(panel.get_yticklabels(), figures, strict=True):
        label.set_color(COLOURS[figure.by])
        label.set_weight("bold" if figure.by == OURS else "normal")
    panel.tick_params(axis="y", length=0)
    panel.set(
        xscale="log", xlabel=f"ms from release to acquired in another process, on {loop}: median, and line to p99"
    )
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.grid(axis="x", which="major")
    panel.margins(x=0.08, y=0.18)
    panel.spines["left"].set_visible(False)
    return drawn


CHARTS: dict[str, Callable[[Results], Any]] = {"cycle": cycle, "handover": handover}
