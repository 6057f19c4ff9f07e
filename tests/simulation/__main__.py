"""``python -m tests.simulation --seeds N`` plays N schedules. The exit code is 1 if one of them breaks a guarantee."""

from __future__ import annotations

import os
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .runner import Tally, history, play_all, tell
from .worlds import KINDS, REPLICAS, schedule

app = typer.Typer(add_completion=False)


@app.command()
def main(
    seeds: Annotated[int, typer.Option(min=1, help="How many schedules to play.")] = 20_000,
    start: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    world: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(KINDS)}. Default: the seed chooses one of the first five.")
    ] = None,
    tracking: Annotated[bool | None, typer.Option(help="With or without. Default: the seed chooses.")] = None,
    fencing: Annotated[
        bool | None, typer.Option(help="With or without fencing tokens. Default: the seed chooses.")
    ] = None,
    at_least: Annotated[
        bool | None, typer.Option(help="With or without least times. Default: the seed chooses.")
    ] = None,
    permits: Annotated[
        bool | None,
        typer.Option(help="With permits of semaphores in place of locks, or not. Default: the seed chooses."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="How many processes to use.")] = os.cpu_count() or 1,
    show: Annotated[bool, typer.Option("--show", help="Only print the history of the first seed.")] = False,
) -> None:
    """Play random schedules with the lock's rules in a simulated world, and check the guarantees after every event."""
    if world is not None and world not in KINDS:
        raise typer.BadParameter(f"{world!r} is not one of {', '.join(KINDS)}", param_hint="--world")
    if world == REPLICAS and (fencing or at_least):
        raise typer.BadParameter("not with replicas", param_hint="--fencing" if fencing else "--at-least")
    console = Console(highlight=False, soft_wrap=True)
    if show:
        chosen = schedule(start, world, tracking, fencing, at_least, permits)
        console.print(f"{chosen}\n{chosen.story}\n\n{history(chosen)}", markup=False)
        return
    before = time.monotonic()
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]:.0f} schedules/s"),
        TimeRemainingColumn(),
    )
    tally = Tally()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=seeds, pace=0.0)
        for tally in play_all(start, seeds, world, tracking, fencing, at_least, permits, jobs):
            pace = tally.schedules / (time.monotonic() - before)
            progress.update(bar, completed=tally.schedules, pace=pace)
    took = time.monotonic() - before
    console.print(
        f"{tally.schedules:,} schedules in {took:.1f} s ({tally.schedules / took:,.0f}/s), {tally.events:,} events\n"
        f"{tally.granted:,} times granted, {tally.groups:,} times several names, {tally.tokens:,} fencing tokens, "
        f"{tally.kept:,} keys kept, {tally.failovers:,} failovers, {tally.unconfirmed:,} writes not confirmed, "
        f"lost: {', '.join(f'{reason} {times:,}' for reason, times in tally.losses.most_common())}\n"
        f"two holders at once after a server had lost keys: {tally.overlaps:,} times; longest time from the loss of "
        f"the majority until a connected holder was notified: {tally.told:.1f} packet delays"
    )
    if tally.failed is not None:
        console.print(
            f"\nFAILED: {tell(schedule(tally.failed, world, tracking, fencing, at_least, permits))}", markup=False
        )
        again = f"python -m tests.simulation --seeds 1 --start {tally.failed}"
        again += f" --world {world}" * (world is not None)
        again += f" --{'' if tracking else 'no-'}tracking" * (tracking is not None)
        again += f" --{'' if fencing else 'no-'}fencing" * (fencing is not None)
        again += f" --{'' if at_least else 'no-'}at-least" * (at_least is not None)
        again += f" --{'' if permits else 'no-'}permits" * (permits is not None)
        console.print(f"\nto repeat: {again}", markup=False)
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
