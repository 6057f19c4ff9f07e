"""The results of a run: a table for people, JSON for machines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from . import timeline
from .deployments import DEPLOYMENTS
from .faults import KINDS
from .history import History, tell
from .logs import merged
from .run import Outcome

PICTURED = ("long-1", "long-2", "middle-1", "middle-2")


def writable(*files: Path | None) -> None:
    """Create the directories of these files now: a failure after an hour of chaos would lose the results."""
    for file in files:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)


def show(console: Console, outcome: Outcome) -> None:
    history, bounds, verdict = outcome.history, outcome.bounds, outcome.verdict
    table = Table(title=f"{DEPLOYMENTS[outcome.deployment].title}, {outcome.seconds:.0f} s of faults", min_width=100)
    table.add_column("fault")
    for column in ("times", "two holders", "… servers forgot", "longest", "bound", "stale", "noticed in"):
        table.add_column(column, justify="right")
    for column in ("locks lost", "told in", "longest wait", "errors", "commands a second"):
        table.add_column(column, justify="right")
    for kind, row in sorted(verdict.rows.items()):
        table.add_row(
            kind,
            str(row.injected),
            f"[bold red]{row.broken}[/]" if row.broken else "0",
            str(row.forgotten or "-"),
            _ms(row.longest) if row.forgotten else "-",
            _ms(bounds.told.get(kind, 0.0)) if bounds.told.get(kind) else "none allowed",
            str(row.stale or "-"),
            _ms(row.noticed) if row.stale else "-",
            str(row.lost or "-"),
            _ms(row.told) if row.lost else "-",
            f"{row.wait:.2f} s" if bounds.wait < math.inf else "-",
            f"[bold red]{row.errors}[/]" if row.errors else "0",
            f"{row.rate:,.0f}" if row.rate else "-",
        )
    console.print(table)
    waits = f"Nobody may have a lock for {bounds.wait:g} s after a fault at most. " if bounds.wait < math.inf else ""
    console.print(
        f"{history.holds:,} holds by {outcome.workers} workers, {sum(history.refused.values()):,} turned away or timed "
        f"out. Locks lost: {_counted(history.lost_why)}. {waits}The longest wait of one acquisition was "
        f"{history.longest_wait:.1f} s, of a close {history.longest_close:.2f} s, of leaving a block after a loss "
        f"{_ms(verdict.longest_exit)}. Keys left when all had closed: {outcome.left_at_once}."
    )
    kinds = Table(title="Holds of each kind (one may be of several)", min_width=60)
    for column in ("kind", "holds", "lost", "holder killed", "holder stopped"):
        kinds.add_column(column, justify="left" if column == "kind" else "right")
    for kind in sorted(history.of_kind):
        kinds.add_row(kind, *(f"{number:,}" for number in _of_kind(history, kind)))
    console.print(kinds)
    console.print(
        f"Fencing tokens: {_tokens(history):,}; {verdict.disorder} not above an earlier one, since a counter was lost "
        f"and a clock was behind. Left before their least time was over: {history.left_early:,}; {verdict.not_kept} of "
        f"these not kept, since servers lost keys, or by force. Most permits at once: {_counted(history.most)}."
    )
    if beyond := sum(row.beyond for row in verdict.rows.values()):
        console.print(
            f"Two held a lock for longer than that fault's bound {beyond} times, while other faults were around: these "
            f"may keep the message from coming, and have {bounds.validity:g} s more."
        )
    for violation in verdict.violations[:20]:
        console.print(f"[bold red]violated[/] {violation}", markup=True, highlight=False)
    if len(verdict.violations) > 20:
        console.print(f"... and {len(verdict.violations) - 20} more")


def markdown(outcomes: Sequence[Outcome]) -> str:
    """A Markdown table of the effects of each fault, over all deployments."""
    lines = [
        "| fault | times | two holders, servers kept their word | … servers forgot | … the longest | … its bound "
        "| nobody has a lock, after it, for | errors not asynclock's own |",
        "|---|---|---|---|---|---|---|---|",
    ]
    kinds = sorted({kind for outcome in outcomes for kind in outcome.verdict.rows})
    for kind in kinds:
        there = [outcome for outcome in outcomes if kind in outcome.verdict.rows]
        rows = [outcome.verdict.rows[kind] for outcome in there]
        forgotten, beyond = sum(row.forgotten for row in rows), sum(row.beyond for row in rows)
        bound = max(outcome.bounds.told.get(kind, 0.0) for outcome in there)
        cells = [
            "no fault around" if kind == "none" else kind,
            str(sum(row.injected for row in rows) or "-"),
            str(sum(row.broken for row in rows)),
            f"{forgotten}" + (f", {beyond} beyond" if beyond else "") if forgotten else "-",
            _ms(max(row.longest for row in rows)) if forgotten else "-",
            _ms(bound) if bound else "none allowed",
            f"{wait:.2f} s" if (wait := max(row.wait for row in rows)) else "-",
            str(sum(row.errors for row in rows)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| kind of lock | holds | lost | holder killed | holder stopped |", "|---|---|---|---|---|"]
    for kind in sorted({kind for outcome in outcomes for kind in outcome.history.of_kind}):
        of_each = [_of_kind(outcome.history, kind) for outcome in outcomes]
        lines.append(f"| {kind} | {' | '.join(f'{sum(column):,}' for column in zip(*of_each, strict=True))} |")
    return "\n".join(lines) + "\n"


def picture(outcome: Outcome) -> str:
    stretch = timeline.interesting(outcome.history)
    history = tell(merged(outcome.directory), stretch)
    faults = [(fault, KINDS[fault.kind].track) for fault in history.faults.values()]
    title = f"{DEPLOYMENTS[outcome.deployment].title}: {timeline.SECONDS:g} seconds, seed {outcome.seed}"
    return timeline.draw(title, PICTURED, history.kept, faults, stretch)


def as_json(outcome: Outcome) -> dict[str, Any]:
    history, verdict = outcome.history, outcome.verdict
    return {
        "deployment": outcome.deployment,
        "seed": outcome.seed,
        "seconds": outcome.seconds,
        "workers": outcome.workers,
        "holds": history.holds,
        "refused": dict(history.refused),
        "lost": dict(history.lost_why),
        "longest wait": history.longest_wait,
        "longest close": history.longest_close,
        "longest exit": verdict.longest_exit,
        "kinds": {
            kind: dict(zip(("holds", "lost", "killed", "stopped"), _of_kind(history, kind), strict=True))
            for kind in sorted(history.of_kind)
        },
        "tokens": _tokens(history),
        "tokens not in order": verdict.disorder,
        "left before their least time": history.left_early,
        "not kept for their least time": verdict.not_kept,
        "most permits": dict(history.most),
        "keys left at once": outcome.left_at_once,
        "bounds": dataclasses.asdict(outcome.bounds),
        "faults": {kind: dataclasses.asdict(row) for kind, row in sorted(verdict.rows.items())},
        "violations": verdict.violations,
    }


def _of_kind(history: History, kind: str) -> tuple[int, int, int, int]:
    """Holds of a kind: all, lost, and those whose worker got a SIGKILL or a SIGSTOP."""
    return history.of_kind[kind], history.lost_of_kind[kind], history.killed[kind], history.paused[kind]


def _tokens(history: History) -> int:
    return sum(map(len, history.tokens.values()))


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms" if seconds < 0.1 else f"{seconds * 1000:,.0f} ms"


def _counted(counter: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counter.items())) or "none"
