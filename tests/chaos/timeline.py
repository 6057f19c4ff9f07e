"""A timeline of holds and faults as an SVG, made without a drawing library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from .history import Fault, History, Hold
from .logs import KEPT

SECONDS = 10.0  # length of the timeline
WIDTH, LEFT, TOP, LANE, GAP = 1100, 96, 46, 13, 14
INK, SOFT, PANEL, WHITE, RED = "#1f2933", "#5b6b7b", "#f3f5f8", "#ffffff", "#c0392b"
WORKERS = ("#2f6db5", "#2e7d5b", "#a8620a", "#6b4fa0")
TRACKS = {"servers": "#f3d9d6", "wires": "#dfe3f5", "workers": "#e6efdc"}
SANS = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"


def interesting(history: History, seconds: float = SECONDS) -> tuple[float, float]:
    """The stretch of time in which most happened."""
    last = min(history.calm, history.until)

    def worth(since: float) -> float:
        until = since + seconds
        kinds = {fault.kind for fault in history.faults.values() if since < fault.since < until - 1}
        late = {first for first, second in history.overlaps if since < second.held < until}
        lost = sum(since < hold.ended < until for hold in history.lost)
        return len(kinds) + 3 * min(len(late), 3) + min(lost, 6) / 2

    starts = [fault.since - 0.5 for fault in history.faults.values() if fault.since + seconds < last]
    since = max(starts, key=worth, default=history.since)
    return since, since + seconds


def draw(
    title: str,
    names: Sequence[str],
    holds: Sequence[Hold],
    faults: Sequence[tuple[Fault, str]],
    stretch: tuple[float, float],
) -> str:
    """:param faults: with the track of each"""
    since, until = stretch
    places = len(WORKERS)
    shown = [(fault, track) for fault, track in faults if fault.since < until and fault.until > since]
    rows = _rows([fault for fault, _ in shown])
    head = TOP + 16 * (max(rows, default=0) + 1) + 10
    height = head + len(names) * (places * LANE + GAP) + 66
    parts = [text(LEFT, 26, title, size=15, bold=True)]

    def x(at: float) -> float:
        return LEFT + (min(max(at, since), until) - since) / (until - since) * (WIDTH - LEFT - 20)

    for (fault, track), row in zip(shown, rows, strict=True):
        a, b = x(fault.since), max(x(fault.until), x(fault.since) + 2)
        y = TOP + 16 * row
        parts.append(rect(a, head - 6, b - a, height - head - 54, TRACKS[track], opacity=0.55))
        parts.append(rect(a, y, b - a, 13, TRACKS[track], stroke=SOFT))
        label = f"{fault.kind} {_short(fault.on)}"
        if a + 6 * len(label) < WIDTH - 10:
            parts.append(text(a + 3, y + 10, label, size=10))
        else:
            parts.append(text(WIDTH - 14, y + 10, label, size=10, anchor="end"))
    for number, name in enumerate(names):
        top = head + number * (places * LANE + GAP)
        parts.append(text(LEFT - 10, top + places * LANE / 2 + 4, name, anchor="end", bold=True))
        for lane in range(places):
            parts.append(rect(LEFT, top + lane * LANE, WIDTH - LEFT - 20, LANE - 2, WHITE, opacity=0.6))
        for hold in holds:
            if hold.name == name:
                parts += _hold(hold, top, x, [other for other in holds if other.name == name])
    bottom = height - 52
    for second in range(int(until - since) + 1):
        at = x(since + second)
        parts.append(f'<line x1="{at:.1f}" y1="{bottom - 8}" x2="{at:.1f}" y2="{bottom - 2}" stroke="{SOFT}"/>')
        parts.append(text(at, bottom + 10, f"{second} s", size=10, fill=SOFT, anchor="middle"))
    at = float(LEFT)
    for place, color in enumerate(WORKERS):
        parts.append(rect(at, height - 28, 12, 10, color))
        parts.append(text(at + 17, height - 19, f"worker {place}", size=11, fill=SOFT))
        at += 84
    for color, words in (
        (RED, "somebody else has it by now: it does not run, or is not told yet"),
        ("none", "lost (a red end)"),
    ):
        parts.append(rect(at, height - 28, 12, 10, color, stroke=RED))
        parts.append(text(at + 17, height - 19, words, size=11, fill=SOFT))
        at += 30 + 6.2 * len(words)
    return svg(title, WIDTH, height, parts)


def _hold(hold: Hold, top: float, x: Callable[[float], float], others: Sequence[Hold]) -> list[str]:
    place = int(hold.who[1 : hold.who.index("-")])
    y = top + place * LANE
    a, b = x(hold.held), x(hold.ended)
    parts = [rect(a, y, max(b - a, 1.2), LANE - 2, WORKERS[place % len(WORKERS)])]
    for other in others:
        if hold.held < other.held < hold.ended:
            a, until = x(other.held), x(min(hold.ended, other.ended))
            parts.append(rect(a, y + 3, max(until - a, 1.2), LANE - 8, RED))
    if hold.why not in KEPT:
        parts.append(rect(b - 1.2, y - 1, 2.4, LANE, RED))
    return parts


def _rows(faults: Sequence[Fault]) -> list[int]:
    """The row of each label, so that no two labels overlap."""
    free: list[float] = []
    rows = []
    for fault in faults:
        label = fault.since + 0.075 * len(f"{fault.kind} {_short(fault.on)}") * SECONDS / 10
        row = next((row for row, until in enumerate(free) if until < fault.since), len(free))
        free[row : row + 1] = [max(fault.until, label)]
        rows.append(row)
    return rows


def _short(on: str) -> str:
    return on if len(on) < 24 else ""


def svg(title: str, width: int, height: int, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' role="img" aria-labelledby="title">\n<title id="title">{escape(title)}</title>\n'
        f'<rect width="{width}" height="{height}" rx="12" fill="{PANEL}"/>\n{body}\n</svg>\n'
    )


def rect(
    x: float, y: float, w: float, h: float, fill: str, *, opacity: float | None = None, stroke: str | None = None
) -> str:
    more = (f' fill-opacity="{opacity:g}"' if opacity else "") + (f' stroke="{stroke}"' if stroke else "")
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" fill="{fill}"{more}/>'


def text(
    x: float, y: float, words: str, *, size: int = 12, fill: str = INK, bold: bool = False, anchor: str = "start"
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-family="{SANS}" fill="{fill}"'
        f' text-anchor="{anchor}"{weight}>{escape(words)}</text>'
    )
